"""What an export's folder holds, and raw text to its pieces and back. Light: neither torch nor fairseq."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import sentencepiece

from neuron_spec.artifacts import (
    differences,
    hash_file,
    hash_text,
    read_json,
    read_lines,
    require_file,
    write_json,
)
from neuron_spec.directions import Direction
from neuron_spec.errors import ArtifactError

EXPORT_JSON = "export.json"
PIECES = "sentencepiece.model"
CHECKPOINT = "checkpoint.pt"
WEIGHTS, MODEL_JSON = "model.safetensors", "model.json"
FORMATS = ("fairseq", "ctranslate2", "safetensors")
QUANTIZATIONS = ("float32", "float16", "int8")
_VOCABULARIES = ("shared_vocabulary.json", "source_vocabulary.json")  # of CTranslate2
_SEAL = "sha256"  # of all else that EXPORT_JSON says
_MEND = "delete the folder, and make it again with neuron-spec export"
_SPACE = "\u2581"  # SentencePiece's mark of a piece that begins a word
_SPECIAL = ("<s>", "</s>")


@dataclass(frozen=True)
class ExportFolder:
    """An export, complete.

    Attributes:
        format: one of `FORMATS`.
        source_tag, target_tag: the language tokens that its texts begin with; None if one has none.
        max_source_positions: the longest source, its tag and end of sentence included.
        files: name of every other file -> its hash.
        scores_tag: the target's language token has a part in a translation's score, as in fairseq; forced, as by
            transformers, it has none.
    """

    path: Path
    format: str
    direction: Direction
    source_tag: str | None
    target_tag: str | None
    max_source_positions: int
    max_target_positions: int
    files: Mapping[str, str]
    scores_tag: bool = True

    @property
    def max_source_tokens(self) -> int:
        """How many pieces a source may have, beside its language token and end of sentence."""
        return self.max_source_positions - bool(self.source_tag) - 1

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises: ArtifactError if there is none, or another thing, at ``path``, or it was changed since."""
        said = read_json(path / EXPORT_JSON, "export")
        seal = said.pop(_SEAL, None) if isinstance(said, dict) else None
        if seal is None or seal != _seal(said):
            raise ArtifactError(
                "not an export" if seal is None else "an export whose description was changed",
                where=path / EXPORT_JSON,
                got=f"no {_SEAL}" if seal is None else f"{_SEAL} {_seal(said)[:12]}",
                expected=None if seal is None else f"{str(seal)[:12]}, as it says itself",
                mend=_MEND,
            )
        return cls(
            path,
            said["format"],
            Direction.parse(said["direction"]),
            said["source_tag"],
            said["target_tag"],
            said["max_source_positions"],
            said["max_target_positions"],
            said["files"],
            said.get("scores_tag", True),
        )

    @property
    def source_symbols(self) -> list[str]:
        """The pieces that its sources are made of, of an export that `require_whole` let pass; none of safetensors."""
        if (dictionary := f"dict.{self.direction.source}.txt") in self.files:
            return [line.rpartition(" ")[0] for line in read_lines(self.path / dictionary)]
        vocabularies = [name for name in _VOCABULARIES if name in self.files]
        return [symbol for name in vocabularies for symbol in read_json(self.path / name, "vocabulary")]

    def require_whole(self) -> None:
        """Raises: ArtifactError if a file is not what was written there."""
        there = {name: self.path / name for name in self.files}
        now = {name: hash_file(file)[:12] for name, file in there.items() if file.is_file()}
        written = {name: digest[:12] for name, digest in self.files.items()}
        if now != written:
            raise ArtifactError(
                "files of an export are gone, damaged or others than were written",
                where=self.path,
                **differences(now, written, at_most=4),
                mend=_MEND,
            )


def write_export_json(said: Mapping[str, Any], folder: Path) -> None:
    """Write `EXPORT_JSON` into a folder in which all else is written, with the hashes of its files, and of itself."""
    files = {file.name: hash_file(file) for file in sorted(folder.iterdir())}
    everything = json.loads(json.dumps({**said, "files": files}))  # as it will be read
    write_json(folder / EXPORT_JSON, {**everything, _SEAL: _seal(everything)})


def _seal(said: Mapping[str, Any]) -> str:
    return hash_text(json.dumps(said, sort_keys=True))


def exports_in(path: Path) -> dict[Direction, ExportFolder]:
    """Direction -> its export: ``path`` itself, or folders in it; empty if it holds none.

    Raises:
        ArtifactError: if two are of one direction.
    """
    folders = [path]
    if not (path / EXPORT_JSON).is_file():
        folders = sorted(file.parent for file in path.glob(f"[!.]*/{EXPORT_JSON}"))
    found: dict[Direction, ExportFolder] = {}
    for export in map(ExportFolder.read, folders):
        if (other := found.setdefault(export.direction, export)) is not export:
            raise ArtifactError(
                f"two exports of {export.direction}",
                where=path,
                got=f"{other.path.name}, {export.path.name}",
                mend="name the folder of one of them",
            )
    return found


@dataclass(frozen=True)
class Search:
    """How translations are searched, by fairseq's flags and with its defaults.

    Attributes:
        max_tokens: of a batch's sources, padding included.
    """

    beam: int = 5
    lenpen: float = 1.0
    max_len_a: float = 0.0
    max_len_b: int = 200
    max_tokens: int = 2000

    def max_len(self, longest: int, positions: int) -> int:
        """How many tokens a translation may have, its language token among them, its end of sentence not.

        Args:
            longest: tokens of the longest source of the batch, language token and end of sentence included.
            positions: the longest target that the model takes.
        """
        return min(int(self.max_len_a * longest + self.max_len_b), positions - 1)

    @property
    def flags(self) -> list[str]:
        """Of ``fairseq-generate``."""
        return [
            word for name, value in vars(self).items() for word in (f"--{name.replace('_', '-')}", str(value))
        ]


@dataclass(frozen=True)
class Hypothesis:
    """A translation as a model gives it.

    Attributes:
        tokens: its pieces, without language token and end of sentence.
        score: its log-likelihood in nats, language token and end of sentence included, over its length to the power of
            the length penalty, as fairseq's; None if it was not asked for.
    """

    tokens: list[str]
    score: float | None


class Pieces:
    """A SentencePiece model, and raw text to its pieces and back."""

    def __init__(self, model: Path, *, known: Iterable[str] | None = None) -> None:
        """Args: known: the symbols of the model that is to read the pieces, of which most have to be there.

        Raises:
            ArtifactError: if the file is missing or no SentencePiece model, or one of another vocabulary.
        """
        try:
            self._processor = sentencepiece.SentencePieceProcessor(
                model_file=str(require_file(model, "SentencePiece model"))
            )
        except RuntimeError as error:
            raise ArtifactError("not a SentencePiece model", where=model, got=str(error)) from error
        if known is None:
            return
        symbols = {*known}
        pieces = [self._processor.id_to_piece(i) for i in range(self._processor.vocab_size())]
        normal = [piece for i, piece in enumerate(pieces) if not self._processor.is_control(i)]
        found = sum(piece in symbols for piece in normal)
        if found < len(normal) / 2:
            raise ArtifactError(
                "the SentencePiece model is of another vocabulary than the checkpoint's",
                where=model,
                got=f"{found} of its {len(normal)} pieces in the dictionary",
                mend="name the model that the training text was segmented with: --spm FILE",
            )

    def of(self, text: str) -> list[str]:
        """The pieces of a line; none of a blank one."""
        pieces: list[str] = self._processor.encode(text.strip(), out_type=str)
        return pieces


def joined(tokens: Sequence[str]) -> str:
    """Pieces put together to words, as fairseq's ``--remove-bpe sentencepiece`` does."""
    return (
        "".join(token for token in tokens if token not in _SPECIAL)
        .replace(" ", "")
        .replace(_SPACE, " ")
        .strip()
    )
