"""CM3Leon in JAX: train one transformer over interleaved text and image codes (arXiv 2309.02591)."""

__version__ = "0.2.0"
