"""Pixels to codes and back: the VQGAN, its losses and its training."""
