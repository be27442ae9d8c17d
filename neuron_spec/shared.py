"""Where configs, scripts and the small dense checkpoint are: in a checkout, or in an installed package."""

from __future__ import annotations

from pathlib import Path

FOLDERS = ("configs", "scripts", "data/quickstart")


def shared_files() -> Path:
    """The folder that holds `FOLDERS`."""
    package = Path(__file__).parent
    checkout = package.parent
    return checkout if (checkout / "setup.py").is_file() else package / "share"
