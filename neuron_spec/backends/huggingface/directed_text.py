"""Tokens of text for training, by direction, and the order of its batches: one direction each, drawn by temperature.

Axis letters: N pairs, T tokens, B sentences.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from neuron_spec.backends.huggingface.text import (
    Example,
    batches,
    by_direction,
    collated,
    language_token,
    pairs_of,
    use_languages,
)
from neuron_spec.directions import Direction, as_directions
from neuron_spec.errors import CorpusError, DirectionError

_AT_A_TIME = 100_000  # tokens that `batches` hands on; the order of pairs is made good afterwards
Place = tuple[int, int]  # a direction's row, and a pair's place among those of the direction


@dataclass(frozen=True)
class _Side:
    """Sentences of one side: tokens int32 ``[T]``, and where each starts, int64 ``[N + 1]``."""

    tokens: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, sentences: Sequence[Sequence[int]]) -> _Side:
        starts = np.zeros(len(sentences) + 1, dtype=np.int64)
        np.cumsum([len(sentence) for sentence in sentences], out=starts[1:])
        tokens = np.fromiter((token for sentence in sentences for token in sentence), np.int32, starts[-1])
        return cls(tokens, starts)

    def __getitem__(self, place: int) -> list[int]:
        found: list[int] = self.tokens[self.starts[place] : self.starts[place + 1]].tolist()
        return found


class DirectedText(Dataset[tuple[int, Example]]):
    """The tokens of all pairs, each with its direction: 4 bytes a token in memory.

    Attributes:
        directions: in the order of their rows.
        language_tokens: int64, sorted: tokens of a target that are no text, but say its language.
        padding: the token that fills up the source of a batch.
    """

    def __init__(self, text: Mapping[Any, Any], tokenizer: Any, model: Any) -> None:
        """Tokenize. Pairs longer than the model's positions are left out, which is said on standard error.

        Args:
            text: direction -> its pairs, as `text.pairs_of` takes them.
            tokenizer: the model's; None if the rows are tokens, of which then all count as text.
            model: for its positions, vocabulary and padding.

        Raises:
            DirectionError, ModelError, CorpusError: if directions, text, tokenizer and model do not fit, or a direction
                has no pairs.
        """
        named = by_direction(text)
        config, tags = model.config, set()
        for one in named:
            use_languages(tokenizer, one)
            if tokenizer is not None and (tag := language_token(tokenizer, one.target)) is not None:
                tags.add(int(tokenizer.convert_tokens_to_ids(tag)))
        self.directions = list(named)
        self.language_tokens = torch.tensor(sorted(tags), dtype=torch.int64)
        self.padding = int(config.pad_token_id)
        self._sides: list[tuple[_Side, _Side]] = []
        for one, pairs in named.items():
            found = batches(
                one,
                pairs_of(one, pairs),
                tokenizer,
                max_tokens=_AT_A_TIME,
                max_length=getattr(config, "max_position_embeddings", None),
                vocabulary=config.vocab_size,
            )
            examples = sorted((example for batch in found for example in batch), key=lambda one: one.index)
            if not examples:
                raise CorpusError("a direction without text", got=str(one), expected="at least one pair")
            self._sides.append(
                (_Side.of([pair.source for pair in examples]), _Side.of([pair.target for pair in examples]))
            )

    def __len__(self) -> int:
        return sum(len(source.starts) - 1 for source, _ in self._sides)

    def __getitem__(self, place: Place) -> tuple[int, Example]:
        row, index = place
        source, target = self._sides[row]
        return row, Example(source[index], target[index], index)

    def lengths(self, row: int) -> np.ndarray:
        """The tokens of each pair's longer side, int64 ``[N]``."""
        source, target = self._sides[row]
        return np.maximum(np.diff(source.starts), np.diff(target.starts))

    def of(self, directions: Iterable[Direction | str]) -> DirectedText:
        """Some of the directions.

        Raises:
            DirectionError: if one is not there.
        """
        asked = as_directions(directions)
        if missing := [str(one) for one in asked if one not in self.directions]:
            raise DirectionError(
                "no text of a direction",
                got=", ".join(missing),
                expected=f"some of {', '.join(map(str, self.directions))}",
            )
        rows = [self.directions.index(one) for one in asked]
        found = copy.copy(self)
        found.directions = [self.directions[row] for row in rows]
        found._sides = [self._sides[row] for row in rows]
        return found

    @property
    def sha256(self) -> str:
        """Of all directions and tokens."""
        digest = hashlib.sha256()
        for one, sides in zip(self.directions, self._sides, strict=True):
            digest.update(f"{one}\0".encode())
            for side in sides:
                digest.update(side.starts.tobytes() + side.tokens.tobytes())
        return digest.hexdigest()

    def batch(self, examples: Sequence[tuple[int, Example]]) -> dict[str, Any]:
        """``direction``, ``input_ids``, ``attention_mask`` and ``labels`` of examples of one direction."""
        ((row,), pairs) = {row for row, _ in examples}, [example for _, example in examples]
        return {"direction": str(self.directions[row]), **collated(pairs, padding=self.padding)}

    @property
    def text_tokens(self) -> dict[Direction, int]:
        """How many labels of each direction are text."""
        tags = self.language_tokens.numpy()
        return {
            one: int(((target.tokens != -100) & ~np.isin(target.tokens, tags)).sum())
            for one, (_, target) in zip(self.directions, self._sides, strict=True)
        }

    def text_positions(self, labels: Tensor) -> Tensor:
        """True where a label is text, end of sentence included: neither padding nor a language token; bool ``[B, T]``."""
        return labels.ne(-100) & ~torch.isin(labels, self.language_tokens.to(labels.device))


def cut(
    lengths: np.ndarray, order: Iterable[int], *, sentences: int | None, max_tokens: int | None
) -> list[list[int]]:
    """Batches of pairs in an order of falling length: so many sentences, or tokens with padding on either side."""
    found: list[list[int]] = []
    for place in order:
        batch = found[-1] if found else []
        is_full = not batch or len(batch) == sentences
        if is_full or (max_tokens is not None and (len(batch) + 1) * lengths[batch[0]] > max_tokens):
            found.append([place])
        else:
            batch.append(place)
    return found


class DirectedBatches:
    """The order of batches, the same function of seed and epoch in each process, of which it takes every so-many-th.

    A batch holds pairs of one direction and about one length. Of n batches of a direction and temperature T, n ** (1 / T)
    decides its share of an epoch, which has as many batches as all directions have: with T = 1 an epoch is each pair
    once, with greater ones small directions come again, in other batches, and of large ones some do not come.
    """

    def __init__(
        self,
        text: DirectedText,
        *,
        sentences: int | None = None,
        max_tokens: int | None = None,
        temperature: float = 1.0,
        seed: int = 1,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        """Args: sentences, max_tokens: of a batch; a sentence longer than that is one of its own.

        Raises:
            CorpusError: if there are fewer batches than processes.
        """
        self.text, self.temperature, self.seed, self.epoch = text, temperature, seed, 0
        self.rank, self.processes = rank, processes
        self.sizes = {"sentences": sentences, "max_tokens": max_tokens}
        numbers = np.array(
            [len(self._of(row, np.random.default_rng(0))) for row in range(len(text.directions))]
        )
        shares = numbers ** (1 / temperature)
        self.quotas = np.maximum(1, np.rint(numbers.sum() * shares / shares.sum())).astype(int).tolist()
        if sum(self.quotas) < processes:
            raise CorpusError(
                "fewer batches than processes", got=sum(self.quotas), expected=f"at least {processes}",
                mend="train with fewer processes, or make batches smaller",
            )  # fmt: skip

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(self.quotas) // self.processes

    def __iter__(self) -> Iterator[list[Place]]:
        all_batches: list[list[Place]] = []
        for row, quota in enumerate(self.quotas):
            of_direction: list[list[int]] = []
            while len(of_direction) < quota:
                generator = np.random.default_rng([self.seed, self.epoch, row, len(of_direction)])
                again = self._of(row, generator)
                of_direction += [again[i] for i in generator.permutation(len(again))]
            all_batches += [[(row, place) for place in batch] for batch in of_direction[:quota]]
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(all_batches))
        for i in order[: len(self) * self.processes][self.rank :: self.processes]:
            yield all_batches[i]

    def _of(self, row: int, generator: np.random.Generator) -> list[list[int]]:
        """A direction's batches. How many, lengths alone decide: pairs of one length change places."""
        lengths = self.text.lengths(row)
        order = np.lexsort((generator.permutation(len(lengths)), -lengths))
        return cut(lengths, order.tolist(), **self.sizes)
