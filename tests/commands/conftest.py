"""The model with random weights that generation is tested with."""

from tests.generation.conftest import folder, tiny_config, trained

__all__ = ["folder", "tiny_config", "trained"]
