"""The model with random weights that generation is tested with."""

from tests.generation.conftest import folder, saved_run, tiny_config, trained

__all__ = ["folder", "saved_run", "tiny_config", "trained"]
