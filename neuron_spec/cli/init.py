"""Write this version's configs, scripts, notebook and small dense checkpoint into a folder, to be run and changed there.

A checkout of the repository has them already. Files that are there and differ are never overwritten.

examples:
  neuron-spec init experiments
  experiments/scripts/quickstart.sh --smoke
  experiments/scripts/experiments/homeassistant.sh --help
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from neuron_spec.arguments import output_folder
from neuron_spec.errors import ArtifactError, some
from neuron_spec.shared import FOLDERS, shared_files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=output_folder, metavar="DIR", help="made if it is not there")


def run(args: argparse.Namespace) -> None:
    write_shared(args.folder)
    print(args.folder / "scripts" / "quickstart.sh")


def write_shared(folder: Path) -> None:
    """Write what is shared into ``folder``.

    Raises:
        ArtifactError: if a file is there already with other content; nothing is written then.
    """
    source = shared_files()
    paths = [
        path.relative_to(source)
        for part in FOLDERS
        for path in sorted((source / part).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    ]
    changed = [
        str(path)
        for path in paths
        if (folder / path).exists() and (folder / path).read_bytes() != (source / path).read_bytes()
    ]
    if changed:
        raise ArtifactError(
            "files of another version, or changed ones, are here",
            where=folder,
            got=some(changed),
            expected="none of its files, or the same",
            mend="choose another folder",
        )
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / path, folder / path)
