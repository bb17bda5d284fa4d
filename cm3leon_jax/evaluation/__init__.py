"""Held-out loss, what is drawn and written, and the report."""
