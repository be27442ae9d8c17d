"""Where the package is, and configs, scripts, the notebook and the small dense checkpoint: in a checkout, or in an installed package."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parent  # fairseq's --user-dir
FOLDERS = ("configs", "examples", "scripts", "data/quickstart")


def shared_files() -> Path:
    """The folder that holds `FOLDERS`."""
    checkout = PACKAGE.parent
    return checkout if (checkout / "setup.py").is_file() else PACKAGE / "share"
