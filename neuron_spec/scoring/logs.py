"""Reading logs of ``fairseq-generate``: hypotheses, references and sources, without language tokens and pieces."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from neuron_spec.artifacts import require_file
from neuron_spec.directions import Direction
from neuron_spec.errors import ArtifactError, DirectionError
from neuron_spec.scoring.metrics import Outputs

_LOG_LINE = re.compile(r"([STH])-(\d+)\t(.*)", re.DOTALL)
_LANGUAGE_TOKEN = re.compile(r"__(\w+?)__(?: |$)")
_HEADER = re.compile(r"source_lang'?[=:] ?'(\w+)'.*?target_lang'?[=:] ?'(\w+)'")
# Folders also have names such as 'run-2': only codes as short as languages' are taken for a direction.
_FOLDER = re.compile(r"[a-z]{2,3}(_[A-Za-z]+)?-[a-z]{2,3}(_[A-Za-z]+)?")
_PIECE_START = "\u2581"


def read_generate_output(path: str | Path, *, direction: Direction | None = None) -> Outputs:
    """Read a log of ``fairseq-generate``: the S, T and H lines, in the order of the test set.

    The first (best) hypothesis of each sentence is kept. SentencePiece pieces, if the log still has
    them, are joined, and language tokens removed. The direction is the caller's, else the one in the
    log's header, else the folder's name (``.../de-en/generate-test.txt``).

    Raises:
        ArtifactError: if the file is missing, has no such lines, is malformed, or lacks sentences.
        DirectionError: if the direction is not known, or the log is of another one.
    """
    path = Path(path)
    lines = read_text(require_file(path, "fairseq-generate log")).split("\n")
    by_kind: dict[str, dict[int, str]] = {"S": {}, "T": {}, "H": {}}
    header = None
    for number, line in enumerate(lines, start=1):
        match = _LOG_LINE.fullmatch(line)
        if match is None:
            header = header or _HEADER.search(line)
            continue
        kind, sentence, text = match[1], int(match[2]), match[3]
        if kind == "H":
            _score, tab, text = text.partition("\t")
            if not tab:
                raise ArtifactError(
                    "malformed fairseq-generate log",
                    where=f"{path}, line {number}",
                    got=repr(line[:80]),
                    expected="'H-<id>', score and text, parted by tabs",
                )
            by_kind[kind].setdefault(sentence, text)
        elif sentence in by_kind[kind]:
            raise ArtifactError(
                "a sentence appears twice in a fairseq-generate log",
                where=f"{path}, line {number}",
                got=f"{kind}-{sentence}",
                mend="the log holds several runs or directions: give one file for each",
            )
        else:
            by_kind[kind][sentence] = text
    _require_whole(path, by_kind)

    known = _direction_of(path, direction, Direction(header[1], header[2]) if header else None)
    by_kind["S"] = _without_language_tokens(path, known, by_kind["S"])
    texts = {kind: [by_sentence[i] for i in sorted(by_sentence)] for kind, by_sentence in by_kind.items()}
    if any(_PIECE_START in text for of_kind in texts.values() for text in of_kind):
        texts = {
            kind: [text.replace(" ", "").replace(_PIECE_START, " ").strip() for text in of_kind]
            for kind, of_kind in texts.items()
        }
    return Outputs(known, texts["H"], texts["T"], texts["S"] or None)


def read_text(path: Path) -> str:
    """The text as it is: Python's text mode would turn a carriage return into a line break.

    Split it at line feeds, not with splitlines, which takes further characters for line breaks.
    """
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ArtifactError("a text is not UTF-8", where=path, got=str(error)) from error


def _require_whole(path: Path, by_kind: Mapping[str, Mapping[int, str]]) -> None:
    if not by_kind["H"] or not by_kind["T"]:
        raise ArtifactError(
            "no translations in a fairseq-generate log",
            where=path,
            got=f"{len(by_kind['H'])} H lines, {len(by_kind['T'])} T lines",
            expected="an H and a T line for each sentence",
            mend="give the output of fairseq-generate without --quiet",
        )
    kinds = [kind for kind in "HTS" if by_kind[kind]]
    sentences = range(1 + max(max(by_kind[kind]) for kind in kinds))
    for kind in kinds:
        if missing := [i for i in sentences if i not in by_kind[kind]]:
            raise ArtifactError(
                "sentences are missing from a fairseq-generate log",
                where=path,
                got=f"no {kind} line for {len(missing)} of {len(sentences)} ids, the first {missing[0]}",
                expected="every id from 0",
                mend="the run was cut short, or this is one shard of several: join the shards' logs",
            )


def _direction_of(path: Path, given: Direction | None, in_header: Direction | None) -> Direction:
    if given and in_header and given != in_header:
        raise DirectionError(
            "a fairseq-generate log is of another direction", where=path, got=in_header, expected=given
        )
    if named := given or in_header:
        return named
    folder = path.resolve().parent.name
    if not _FOLDER.fullmatch(folder):
        raise DirectionError(
            "a fairseq-generate log does not tell its direction",
            where=path,
            got=f"folder {folder!r}, and no source_lang in the log",
            mend="name the direction, or the folder after it, such as 'de-en/generate-test.txt'",
        )
    return Direction.parse(folder)


def _without_language_tokens(path: Path, direction: Direction, sources: dict[int, str]) -> dict[int, str]:
    """Take off the ``__de__`` before each source; it must name one of the direction's two languages."""
    matches = [_LANGUAGE_TOKEN.match(text) for text in sources.values()]
    if not all(matches):
        return sources  # not tagged; what looks like a token in some sentence is its text
    tokens = {match[1] for match in matches if match}
    if foreign := tokens - {direction.source, direction.target}:
        raise DirectionError(
            "the language tokens in a fairseq-generate log are not of its direction",
            where=path,
            got=", ".join(f"__{token}__" for token in sorted(foreign)),
            expected=f"__{direction.source}__ or __{direction.target}__",
            mend="name the direction that the log is of",
        )
    return {sentence: _LANGUAGE_TOKEN.sub("", text, count=1) for sentence, text in sources.items()}
