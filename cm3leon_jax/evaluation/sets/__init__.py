"""Evaluation sets: requests of published data sets, and what is true of each; one file per format."""
