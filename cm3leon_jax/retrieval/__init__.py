"""Documents that bring their neighbors: vectors of documents, the search for what is near, and the choice."""
