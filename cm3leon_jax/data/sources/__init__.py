"""Formats of raw data: one file each, which makes it a seqio data source of documents."""
