"""COMET scores by the ``comet-score`` program of the user's own environment.

unbabel-comet asks for versions of numpy and torch that ours are not, so it is a program here and no package.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neuron_spec.artifacts import HYPOTHESES, REFERENCES, SOURCES, hash_file, write_text
from neuron_spec.directions import Direction
from neuron_spec.errors import NeuronSpecError
from neuron_spec.scoring.endpoints import Floats
from neuron_spec.scoring.metrics import Outputs

PROGRAM = "comet-score"
_FLAGS = {SOURCES: "-s", HYPOTHESES: "-t", REFERENCES: "-r"}
_LAST_LINES = 8
_VERSION = "from importlib.metadata import version; print(version('unbabel-comet'))"


@dataclass(frozen=True)
class Comet:
    """A model, and the program that runs it.

    Attributes:
        model: a name such as ``Unbabel/wmt22-comet-da``, or the file of a checkpoint.
        program: absolute, or on the PATH.
    """

    model: str
    program: Path
    cpu: bool = False

    @classmethod
    def find(cls, model: str, program: Path | None = None, *, cpu: bool = False) -> Comet:
        """Raises: NeuronSpecError if there is no such program."""
        # Absolute, as a Path has lost the ./ by which a file is told from a name on the PATH.
        found = shutil.which(program.absolute() if program and program.is_file() else program or PROGRAM)
        if found is None:
            raise NeuronSpecError(
                "COMET's program is absent",
                got=f"no program {program}" if program else f"no {PROGRAM} on the PATH",
                expected="comet-score of unbabel-comet 2.2, in an environment of its own: it needs numpy below 2",
                mend="python -m venv comet && comet/bin/pip install unbabel-comet, then --comet-program "
                "comet/bin/comet-score",
            )
        return cls(model, Path(found), cpu)

    @property
    def name(self) -> str:
        """The model's, for a signature: of a file also what is in it."""
        path = Path(self.model)
        return f"{path.name} {hash_file(path)[:12]}" if path.is_file() else self.model

    @property
    def versions(self) -> dict[str, str]:
        """The package's, as the Python says that the program is run by; empty where it does not."""
        with open(self.program, "rb") as file:
            first = file.readline(1000).decode("utf-8", "replace").strip()
        python = Path(first.removeprefix("#!"))
        if not (first.startswith("#!") and python.name.startswith("python") and python.is_file()):
            return {}
        said = subprocess.run([python, "-c", _VERSION], capture_output=True, text=True)
        return {"unbabel-comet": said.stdout.strip()} if said.returncode == 0 else {}

    def require_sources(self, directions_without: Iterable[Direction], mend: str) -> None:
        """Raises: NeuronSpecError if there are any."""
        if names := [str(direction) for direction in directions_without]:
            raise NeuronSpecError(
                "COMET looks at sources too",
                where=", ".join(names),
                got="no sources",
                expected="the text that was translated",
                mend=mend,
            )

    def score(self, outputs: Sequence[Outputs]) -> dict[Direction, Floats]:
        """Every sentence's score, float64 ``[N]`` for each direction, of one run of the program.

        Raises:
            NeuronSpecError: if the program fails, or does not give each sentence a score.
        """
        with tempfile.TemporaryDirectory(prefix="neuron-spec-comet-") as name:
            folder = Path(name)
            paths = {kind: folder / f"{kind}.txt" for kind in _FLAGS}
            texts = {
                kind: [_one_line(line) for of in outputs for line in of.texts()[kind]] for kind in _FLAGS
            }
            for kind, path in paths.items():
                write_text(path, "".join(f"{line}\n" for line in texts[kind]))
            found = folder / "scores.json"
            words = [word for kind, path in paths.items() for word in (_FLAGS[kind], str(path))]
            words += ["--model", self.model, "--to_json", str(found), "--quiet", *["--gpus", "0"] * self.cpu]
            self._run(words)
            if not found.is_file():
                raise self._error("it wrote no scores", f"no file for --to_json {found.name}")
            scores = self._read(found, texts[HYPOTHESES])
        ends = np.cumsum([len(of.hypotheses) for of in outputs])[:-1]
        return dict(zip((of.direction for of in outputs), np.split(scores, ends), strict=True))

    def _run(self, words: Sequence[str]) -> None:
        try:
            done = subprocess.run(
                [self.program, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8",
                errors="replace",
            )  # fmt: skip
        except OSError as error:
            raise self._error("it cannot be run", str(error)) from error
        if done.returncode != 0:
            last = done.stdout.strip().splitlines()[-_LAST_LINES:]
            raise self._error(f"it ended with status {done.returncode}", "\n            ".join(["", *last]))

    def _read(self, path: Path, hypotheses: Sequence[str]) -> Floats:
        """The file maps the hypotheses' file to an object for each sentence."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            (rows,) = content.values()
            scores = np.array([float(row["COMET"]) for row in rows])
            written = [row.get("mt") for row in rows]
        except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
            raise self._error("its scores cannot be read", f"{type(error).__name__}: {error}") from error
        if len(scores) != len(hypotheses):
            raise self._error(
                "it scored another number of sentences", f"{len(scores)}, not {len(hypotheses)}"
            )
        for number, (score, one, other) in enumerate(zip(scores, written, hypotheses, strict=True), start=1):
            if not math.isfinite(score):
                raise self._error("a score is not a number", f"{score} of sentence {number}")
            if one is not None and str(one).split() != other.split():
                raise self._error("it scored other sentences", f"{one!r} for sentence {number}, {other!r}")
        return scores

    def _error(self, what: str, got: str) -> NeuronSpecError:
        return NeuronSpecError(
            f"COMET's program: {what}",
            where=self.program,
            got=got,
            expected=f"scores of {self.model}",
            mend="run it by hand on two sentences; --comet-program names another",
        )


def _one_line(text: str) -> str:
    """The program takes carriage returns for the ends of lines."""
    return text.replace("\r", " ")
