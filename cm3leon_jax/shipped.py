"""The configs, examples and launch scripts that come with the package."""

from __future__ import annotations

from pathlib import Path


def shipped_folder() -> Path:
    """The parent of `configs/` and `launch/`: the checkout, or a folder of the installed package."""
    package = Path(__file__).parent
    return package / "shipped" if (package / "shipped").is_dir() else package.parent


def shipped_configs() -> list[Path]:
    """The config files that come with the package."""
    files = [*(shipped_folder() / "configs").glob("*.py"), *(shipped_folder() / "examples").glob("*/*.py")]
    return [file for file in files if "def get_config(" in file.read_text(encoding="utf-8")]
