"""Splits that do not leak: whole groups held out, near duplicates taken out of the training set."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from neuron_spec.errors import CorpusError

NEAR_DUPLICATE = 0.6
_COMMONEST = 0.35  # fraction of n-grams, below NEAR_DUPLICATE
_LEAK_LEVELS = (0.6, 0.8)
_LARGEST_GROUP_FRACTION = 0.02  # of all messages; larger groups stay in training


def shuffle_key(seed: int, text: str) -> str:
    """Sort key of a shuffle that depends on the seed and the text, not on the order of the input."""
    return hashlib.sha256(f"{seed}\0{text}".encode()).hexdigest()


def hold_out_groups(
    groups: Mapping[str, Collection[str]],
    eligible: Collection[str],
    *,
    sizes: Mapping[str, int],
    seed: int,
    order: Sequence[str] | None = None,
) -> dict[str, list[str]]:
    """Choose held-out messages so that none of their groups is trained on.

    Args:
        groups: the groups (such as software components) in which each message occurs.
        eligible: the messages fit to be tested on.
        sizes: how many messages each held-out split gets, such as ``{"test": 200}``.
        order: of the groups that may be held out; None: the smaller ones, shuffled.

    Returns:
        Messages per split, "train" among them. Messages of held-out groups that are not eligible,
        or more than asked for, are in no split; messages that also occur in a training group are
        in "train".

    Raises:
        CorpusError: if the groups hold too few eligible messages.
    """
    members: dict[str, list[str]] = defaultdict(list)
    for message, names in groups.items():
        for name in names:
            members[name].append(message)
    if order is None:
        limit = _LARGEST_GROUP_FRACTION * len(groups)
        small = (name for name in members if len(members[name]) <= limit)
        order = sorted(small, key=lambda name: shuffle_key(seed, name))
    remaining = iter(order)

    held_out: dict[str, str] = {}  # group -> split
    splits: dict[str, list[str]] = {"train": []}
    for split, size in sizes.items():
        chosen: list[str] = []
        while len(chosen) < size:
            group = next(remaining, None)
            if group is None:
                raise CorpusError(
                    f"too few messages for the {split} split",
                    got=f"{len(chosen)} eligible messages in the groups that may be held out",
                    expected=f"{size}",
                    mend="choose fewer languages, or ask for smaller test and valid splits",
                )
            held_out[group] = split
            # A message is this split's only once all its groups are.
            chosen = [
                message
                for message in eligible
                if all(held_out.get(name) == split for name in groups[message])
            ]
        splits[split] = sorted(chosen, key=lambda message: shuffle_key(seed, message))[:size]
    splits["train"] = [
        message for message, names in groups.items() if any(name not in held_out for name in names)
    ]
    return splits


def groups_to_hold_out(sizes: Mapping[str, Mapping[str, int]], *, fraction: float, seed: int) -> set[str]:
    """Choose whole groups (such as talks) for every language at once.

    Groups are drawn in an order that depends on the seed alone, until each language has at least
    ``fraction`` of its messages in them.

    Args:
        sizes: for each language, how many messages each group has.

    Raises:
        CorpusError: if that would leave a language without a group to train on.
    """
    names = {name for groups in sizes.values() for name in groups}
    needed = {lang: fraction * sum(groups.values()) for lang, groups in sizes.items()}
    chosen: set[str] = set()
    for name in sorted(names, key=lambda name: shuffle_key(seed, name)):
        if all(
            needed[lang] <= sum(groups[n] for n in chosen if n in groups) for lang, groups in sizes.items()
        ):
            break
        chosen.add(name)
    for lang, groups in sizes.items():
        if chosen.issuperset(groups):
            raise CorpusError(
                "too few groups to hold some out",
                where=lang,
                got=f"{len(groups)}, and all of them would be held out",
                expected="several, of which some remain to train on",
                mend="leave this language out, or split in another way",
            )
    return chosen


def _grams(text: str) -> frozenset[str]:
    padded = f" {text.casefold()} "
    return frozenset(padded[i : i + 4] for i in range(max(1, len(padded) - 3)))


class HeldOutTexts:
    """Held-out texts by their character 4-grams, so that texts which resemble one are found fast.

    Memory: some 100 bytes a 4-gram of each.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        all_grams = [_grams(text) for text in texts]
        self._sizes = np.array([len(grams) for grams in all_grams])
        lists: dict[str, list[int]] = defaultdict(list)
        for index, grams in enumerate(all_grams):
            for gram in grams:
                lists[gram].append(index)
        self._postings = {gram: np.array(indices) for gram, indices in lists.items()}

    def similarities(self, text: str) -> NDArray[np.float64] | None:
        """Jaccard similarity (fraction) to each; None where nothing is shared with any."""
        grams = _grams(text)
        found = [self._postings[gram] for gram in grams if gram in self._postings]
        return self._jaccard(found, len(grams)) if found else None

    def _jaccard(self, found: Sequence[NDArray], size: int) -> NDArray[np.float64]:
        shared = np.bincount(np.concatenate(found), minlength=len(self._sizes))
        return shared / (size + self._sizes - shared)

    def resembled_by(self, text: str) -> list[int]:
        """The numbers of those of which it is a near duplicate (similarity of 0.6 or more); faster, the same.

        They share at least that fraction of its n-grams, and so enough of those that are left without the commonest.
        """
        grams = _grams(text)
        needed = NEAR_DUPLICATE * len(grams)
        found = [postings for gram in grams if (postings := self._postings.get(gram)) is not None]
        if len(found) < needed:
            return []
        found.sort(key=len)
        commonest = int(_COMMONEST * len(grams))
        votes = np.bincount(np.concatenate(found[: len(found) - commonest]))
        if votes.max() < needed - commonest:
            return []
        return np.flatnonzero(self._jaccard(found, len(grams)) >= NEAR_DUPLICATE).tolist()


def nearest_similarity(texts: Iterable[str], held_out: Sequence[str]) -> list[float]:
    """For each text the highest character-4-gram Jaccard similarity (fraction) to a held-out text."""
    index = HeldOutTexts(held_out)
    found = (index.similarities(text) for text in texts)
    return [0.0 if similarities is None else float(similarities.max()) for similarities in found]


def leak_report(train: Sequence[str], held_out: Sequence[str]) -> dict[str, float]:
    """Percent of held-out texts with a near duplicate in ``train``, for two similarities."""
    nearest = nearest_similarity(held_out, train)
    return {
        f"percent_with_near_duplicate_at_{level}": round(
            100 * sum(value >= level for value in nearest) / max(1, len(nearest)), 2
        )
        for level in _LEAK_LEVELS
    }


def without_near_duplicates(train: Sequence[str], held_out: Sequence[str]) -> list[str]:
    """The training texts that resemble no held-out text (similarity below 0.6)."""
    nearest = nearest_similarity(train, held_out)
    return [text for text, value in zip(train, nearest, strict=True) if value < NEAR_DUPLICATE]
