"""Runs in buckets: local copies of what is in object storage, and what is written there."""
