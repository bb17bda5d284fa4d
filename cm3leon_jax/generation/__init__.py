"""Cached decoding: prompts, sampling, guidance."""
