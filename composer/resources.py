"""The files that ship beside the code: bootstrap/ and recipes/.

In a checkout they are the folders at the top, in an installed wheel packages of their own.
"""

from __future__ import annotations

from pathlib import Path


def _shipped(name: str) -> Path:
    package = Path(__file__).parent
    installed = package / name
    return installed if installed.is_dir() else package.parent / name


def bootstrap_file(name: str) -> Path:
    """Return the path of a file of bootstrap/."""
    return _shipped("bootstrap") / name


def recipes_folder() -> Path:
    """Return the folder of the recipes that ship."""
    return _shipped("recipes")
