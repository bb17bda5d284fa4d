"""Documents that bring their neighbours: vectors of documents, the search for what is near, and the choice."""
