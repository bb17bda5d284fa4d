"""The transformer, its attention, and the table from logical to mesh axes."""
