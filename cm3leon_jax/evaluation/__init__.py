"""Metrics of a trained model on held-out documents, and the report."""
