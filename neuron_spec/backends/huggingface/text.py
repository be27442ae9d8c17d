"""Text for a model of transformers: pairs of sentences from lists, files or data sets, and their tokens, in batches."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuron_spec.corpora.parallel_files import ParallelFiles, find_files
from neuron_spec.directions import Direction, did_you_mean, parse_directions
from neuron_spec.errors import CorpusError, DirectionError, ModelError
from neuron_spec.export.folder import PIECES

Pairs = Iterable[Any]
# So many pairs of a direction are in memory at a time, sorted by length, so that batches have little padding.
_PAIRS_AT_A_TIME = 2000
_IGNORED = -100  # of labels, by transformers
HUB_PIECES = "sentencepiece.bpe.model"  # as repositories of NLLB, M2M-100 and mBART name it


@dataclass(frozen=True)
class Example:
    """A pair's tokens, and its place among its direction's pairs."""

    source: list[int]
    target: list[int]
    index: int


def by_direction(text: Any) -> dict[Direction, Any]:
    """Direction -> its pairs.

    Raises:
        CorpusError, DirectionError: if this is no mapping of such, or an empty one.
    """
    if not isinstance(text, Mapping):
        raise CorpusError("not text by direction", got=repr(text)[:80], expected='{"en-de": pairs, ...}')
    return dict(zip(parse_directions(map(str, text)), text.values(), strict=True))


def pairs_of(asked: Direction, text: Any) -> Iterator[Any]:
    """The pairs of a direction: ``(source, target)`` as text, or mappings of ``input_ids`` and ``labels`` as they are.

    Args:
        text: a tuple of the two sides, each the path of a file or lines; or pairs; or rows, as of a `datasets.Dataset`,
            with ``translation`` (``{"en": ..., "de": ...}``), a column for each language, or tokens.

    Raises:
        CorpusError: if the two sides are not parallel or cannot be read, or a row lacks one.
    """
    if isinstance(text, tuple) and len(text) == 2:
        if all(isinstance(side, Path) for side in text):
            yield from ParallelFiles(asked, text).lines()
            return
        number, sides = 0, [iter(() if isinstance(side, str) else side) for side in text]
        for number, pair in enumerate(zip_longest(*sides), start=1):
            if None in pair:
                raise CorpusError(
                    f"the two sides of {asked} are not parallel",
                    got=f"{number - 1} lines, and more on the {'target' if pair[0] is None else 'source'} side",
                    expected="as many lines on both sides",
                )
            yield _pair(asked, pair)
        return
    if not isinstance(text, Iterable):
        raise CorpusError(f"not pairs of {asked}", got=repr(text)[:80], expected="[(source, target), ...]")
    for row in text:
        if not isinstance(row, Mapping):
            yield _pair(asked, row)
        elif "input_ids" in row:
            if "labels" not in row:
                raise CorpusError(
                    f"tokens of {asked} without labels", got=", ".join(row), expected="input_ids, labels"
                )
            yield row
        else:
            sides = row.get("translation", row)
            if lacking := [code for code in (asked.source, asked.target) if code not in sides]:
                raise CorpusError(
                    f"a row without a side of {asked}",
                    got=", ".join(map(str, sides)),
                    expected=", ".join(lacking),
                    mend="rename the columns to the codes of the direction, which are the tokenizer's",
                )
            yield _pair(asked, (sides[asked.source], sides[asked.target]))


def of_files(
    names: Sequence[str], lang_pairs: str | None = None, *, flag: str = "--text"
) -> dict[Direction, Lines]:
    """The files of each direction, as ``--text`` names those of pairs (`parallel_files.find_files`), for `pairs_of`.

    Args:
        lang_pairs: the directions; None: both of each pair.
        flag: what named them, for messages.

    Raises:
        CorpusError: if files are missing, or are not those of a direction.
    """
    sides = {}
    for files in find_files(names, flag):
        source, target = files.codes
        sides[files.pair] = files
        sides[Direction(target, source)] = files
    asked = list(sides) if lang_pairs is None else parse_directions(lang_pairs)
    if missing := [str(one) for one in asked if one not in sides]:
        raise CorpusError(
            "no text of a direction", got=", ".join(missing), expected=f"some of {', '.join(map(str, sides))}"
        )
    return {one: Lines(sides[one], is_turned=sides[one].pair != one) for one in asked}


@dataclass(frozen=True)
class Lines:
    """The pairs of two files, or of one TSV file, anew whenever they are gone through."""

    files: ParallelFiles
    is_turned: bool = False

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for pair in self.files.lines():
            yield pair[::-1] if self.is_turned else pair


def _pair(asked: Direction, row: Any) -> tuple[str, str]:
    """Raises: CorpusError if these are not two lines of text."""
    is_pair = isinstance(row, tuple | list) and len(row) == 2 and all(isinstance(side, str) for side in row)
    if not is_pair:
        raise CorpusError(
            f"not a pair of {asked}", got=repr(row)[:80], expected="(source, target), two strings"
        )
    return row[0], row[1]


def _tokens(asked: Direction, row: Mapping[str, Any], name: str) -> list[int]:
    """Raises: CorpusError if these are not a sentence's tokens: whole numbers, one or more, in a flat list."""
    given = row[name]
    tokens = given.tolist() if hasattr(given, "tolist") else given
    is_list = isinstance(tokens, list | tuple) and len(tokens) > 0
    if not is_list or not all(isinstance(token, Integral) for token in tokens):
        raise CorpusError(
            "not the tokens of a sentence",
            where=f"{name} of {asked}",
            got=repr(given)[:80],
            expected="[number, ...], one or more",
        )
    return list(map(int, tokens))


def language_token(tokenizer: Any, code: str) -> str | None:
    """The token that stands for a language; None of a tokenizer that knows no languages.

    Raises:
        DirectionError: if it knows others.
    """
    if not hasattr(tokenizer, "src_lang"):
        return None
    if hasattr(tokenizer, "lang_code_to_token"):  # M2M-100
        known = dict(tokenizer.lang_code_to_token)
    else:
        special = {*tokenizer.get_added_vocab()} - {*tokenizer.special_tokens_map.values()}
        known = {token: token for token in special if token != str(tokenizer.mask_token)}
    if code not in known:
        raise DirectionError(
            "the tokenizer has no such language code",
            where=type(tokenizer).__name__,
            got=code,
            expected=f"one of {', '.join(sorted(known)[:8])}{', ...' if len(known) > 8 else ''}",
            mend=did_you_mean(code, known) or "name directions by the tokenizer's own codes",
        )
    return str(known[code])


def use_languages(tokenizer: Any, asked: Direction) -> None:
    """Have the tokenizer put the language tokens of a direction.

    Raises:
        DirectionError: if it has no such code.
    """
    if hasattr(tokenizer, "src_lang"):
        for code in (asked.source, asked.target):
            language_token(tokenizer, code)
        tokenizer.src_lang, tokenizer.tgt_lang = asked.source, asked.target


def pieces_model(tokenizer: Any) -> Path | None:
    """The SentencePiece model of a tokenizer, where it was loaded from; None if there is none."""
    named = [getattr(tokenizer, "spm_file", None), getattr(tokenizer, "vocab_file", None)]
    named += [Path(tokenizer.name_or_path) / name for name in (HUB_PIECES, PIECES)]
    found = [Path(name) for name in named if name and str(name).endswith(".model") and Path(name).is_file()]
    return found[0] if found else None


def examples_of(asked: Direction, pairs: Sequence[Any], tokenizer: Any, first: int) -> list[Example]:
    """The tokens of pairs, those of a direction that `use_languages` was called with.

    Raises:
        ModelError: if pairs of text come without a tokenizer.
    """
    tokens = [pair for pair in pairs if isinstance(pair, Mapping)]
    if tokens:
        sides = [(_tokens(asked, row, "input_ids"), _tokens(asked, row, "labels")) for row in tokens]
    elif tokenizer is None:
        raise ModelError(
            "text without a tokenizer", where=asked, mend="give the model's tokenizer, or tokens"
        )
    else:
        source, target = zip(*pairs, strict=True)
        encoded = tokenizer(list(source), text_target=list(target))
        sides = list(zip(encoded["input_ids"], encoded["labels"], strict=True))
    return [Example(source, target, first + i) for i, (source, target) in enumerate(sides)]


def require_known(tokens: Iterable[int], asked: Direction, vocabulary: int) -> None:
    """Raises: ModelError if a direction has tokens beyond a model's."""
    if unknown := [token for token in tokens if not 0 <= token < vocabulary]:
        raise ModelError(
            "tokens that the model does not have",
            where=asked,
            got=f"token {max(unknown, key=abs)}",
            expected=f"0 to {vocabulary - 1}",
            mend="name the model's own tokenizer",
        )


def batches(
    asked: Direction,
    pairs: Iterable[Any],
    tokenizer: Any,
    *,
    max_tokens: int,
    max_length: int | None,
    vocabulary: int,
    quiet: bool = False,
) -> Iterator[list[Example]]:
    """Batches of a direction, of at most ``max_tokens`` with padding on either side, one sentence at least.

    Pairs longer than the model takes are left out, which is said, unless ``quiet``.

    Args:
        vocabulary: how many tokens the model has.

    Raises:
        ModelError: if there are others in the text.
    """
    use_languages(tokenizer, asked)
    pairs, start, too_long = iter(pairs), 0, 0
    while chunk := list(islice(pairs, _PAIRS_AT_A_TIME)):
        examples = examples_of(asked, chunk, tokenizer, start)
        start += len(chunk)
        found = {token for one in examples for token in one.source}
        found |= {token for one in examples for token in one.target} - {_IGNORED}
        require_known(found, asked, vocabulary)
        lengths = {example.index: max(len(example.source), len(example.target)) for example in examples}
        fitting = [
            example for example in examples if max_length is None or lengths[example.index] <= max_length
        ]
        too_long += len(examples) - len(fitting)
        batch: list[Example] = []
        for example in sorted(fitting, key=lambda one: (lengths[one.index], one.index), reverse=True):
            if batch and lengths[batch[0].index] * (len(batch) + 1) > max_tokens:
                yield batch
                batch = []
            batch.append(example)
        if batch:
            yield batch
    if too_long and not quiet:
        said = f"{asked}: {too_long} of {start} pairs are longer than {max_length} tokens, and left out"
        print(said, file=sys.stderr)


def collated(
    batch: Sequence[Example], *, padding: int, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """``input_ids``, ``attention_mask`` and ``labels``, int64 ``[B, T]``, padded at the end."""

    def padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
        longest = max(map(len, rows))
        return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows], device=device)

    sources, targets = [one.source for one in batch], [one.target for one in batch]
    return {
        "input_ids": padded(sources, padding),
        "attention_mask": padded([[1] * len(row) for row in sources], 0),
        "labels": padded(targets, _IGNORED),
    }
