"""Zero-shot pairs: which directions share no training data, and their text, of sets that are the same sentences.

A set of ``de-nl`` is German and Dutch that translate the same lines of a third language: the ``de`` side of ``de-en`` and
the ``nl`` side of ``nl-en``, where the English lines are the same. Nothing is binarized again.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from neuron_spec.artifacts import CORPUS_CARD, hash_file, read_lines
from neuron_spec.backends.fairseq.checkpoints import task_args
from neuron_spec.backends.fairseq.data_bin import directions_in, folder_with, shards_of, split_prefix
from neuron_spec.corpora.build import TRAIN, corpus_folder, raw_file
from neuron_spec.directions import Direction, direction_id, direction_of, parse_directions
from neuron_spec.errors import ArtifactError, CorpusError, DirectionError, ModelError, some
from neuron_spec.languages import is_pivot, pivot

_SHOWN = 12  # directions in a message


def zero_shot_directions(
    state: dict[str, Any], path: Path, data_bin: Path, lang_pairs: str | None = None
) -> list[Direction]:
    """The directions asked for, or all between two languages of the checkpoint's training that are not the pivot.

    A direction has training data if the checkpoint was trained on it or its reverse, which is the same text, has masks
    of it, or if the data-bin has a training set of the two.

    Raises:
        DirectionError: if one that is asked for has training data, a language is unknown, or all pairs have some.
    """
    trained = task_args(state, path)
    known = [*parse_directions(trained.lang_pairs), *(own_directions(state, trained.langs) or [])]
    for folder in shards_of(data_bin) or [data_bin]:
        if any(folder.glob(f"{TRAIN}.*.idx")):
            known += directions_in(folder, TRAIN)
    seen = {frozenset((of.source, of.target)) for of in known}
    if lang_pairs is not None:
        asked = parse_directions(lang_pairs)
        for direction in asked:
            direction_id(direction, trained.langs)
        if same := [str(of) for of in asked if of.source == of.target]:
            raise DirectionError(
                "a direction from a language into itself",
                got=", ".join(same),
                mend="name two languages, or leave it out",
            )
        if has_data := [str(of) for of in asked if frozenset((of.source, of.target)) in seen]:
            raise DirectionError(
                "no zero-shot directions: they have training data, or their reverse has",
                got=", ".join(has_data),
                expected=f"pairs that neither {path} was trained on nor {data_bin} has a {TRAIN} set of",
                mend="leave them out, or evaluate them without --zero-shot",
            )
        return asked
    used = {code for of in parse_directions(trained.lang_pairs) for code in (of.source, of.target)}
    langs = [lang for lang in trained.langs if lang in used and not is_pivot(lang)]
    pairs = [Direction(s, t) for s in langs for t in langs if s != t and frozenset((s, t)) not in seen]
    if not pairs:
        raise DirectionError(
            "no pair of languages without training data",
            where=path,
            got=f"{', '.join(langs) or 'no language'} besides {pivot() or 'a pivot'}",
        )
    return pairs


def own_directions(state: dict[str, Any], langs: Sequence[str]) -> list[Direction] | None:
    """The directions that a checkpoint has parts of their own for: masks or adapters; None if it has no such parts."""
    for name, rows in state["model"].items():
        if name.startswith("encoder.") and name.endswith("_rows"):
            return [direction_of(number, langs) for number in (rows >= 0).nonzero().flatten().tolist()]
    return None


def require_composable(state: dict[str, Any], langs: Sequence[str], directions: Sequence[Direction]) -> None:
    """That a specialized checkpoint has an encoder's sets of every source, and a decoder's of every target.

    Raises:
        ModelError: if it has not.
    """
    masked = own_directions(state, langs) or []
    sources, targets = ({getattr(of, side) for of in masked} for side in ("source", "target"))
    lacking = [f"{of} (no direction from {of.source})" for of in directions if of.source not in sources]
    lacking += [f"{of} (no direction into {of.target})" for of in directions if of.target not in targets]
    if lacking:
        raise ModelError(
            "sets that cannot be composed: the encoder's are of a direction from the same source, the decoder's of one "
            "into the same target",
            got=some(lacking, _SHOWN),
            mend="name others with --lang-pairs, or run these through all neurons alone: -- --missing-direction dense",
        )


@contextmanager
def zero_shot_corpus(
    data_bin: Path, subset: str, directions: Sequence[Direction], langs: Sequence[str], *, raw: bool
) -> Iterator[Path]:
    """A data-bin that has these directions' sets, links to the given one's files, and its raw text and card beside it.

    Args:
        langs: through which a pair's two sides may be aligned: the pivot, or any of these where there is none.
        raw: raw text is needed too, and has to be aligned as well.

    Raises:
        ArtifactError: if a language has no set with a third one that the other has too.
        CorpusError: if these do not have the same lines.
    """
    folder = folder_with(data_bin, subset)
    pairs = list({frozenset((of.source, of.target)): of for of in directions}.values())
    through = {pair: _aligned_by(data_bin, subset, pair, langs, raw=raw) for pair in pairs}
    with tempfile.TemporaryDirectory(prefix="zero-shot-") as temporary:
        corpus, above = Path(temporary), corpus_folder(data_bin)
        (corpus / "data-bin").mkdir()
        (corpus / "raw").mkdir()
        files = {corpus / "data-bin" / file.name: file for file in folder.glob("dict.*.txt")}
        files |= {corpus / "raw" / file.name: file for file in (above / "raw").glob(f"{TRAIN}.*")}
        files |= {corpus / CORPUS_CARD: above / CORPUS_CARD} if (above / CORPUS_CARD).is_file() else {}
        for pair, third in through.items():
            for lang, other in ((pair.source, pair.target), (pair.target, pair.source)):
                own = Direction(lang, third or other)
                prefix, name = split_prefix(data_bin, subset, own), f"{subset}.{pair}.{lang}"
                for end in (".idx", ".bin"):
                    files[corpus / "data-bin" / f"{name}{end}"] = Path(f"{prefix}.{lang}{end}")
                if raw:
                    files[corpus / "raw" / name] = raw_file(data_bin, subset, own.source, own.target, lang)
        for link, file in files.items():
            os.symlink(file.resolve(), link)
        yield corpus / "data-bin"


def _aligned_by(
    data_bin: Path, subset: str, pair: Direction, langs: Sequence[str], *, raw: bool
) -> str | None:
    """The third language that both translate the same lines of; None: they have a set of their own."""
    here = {*directions_in(data_bin, subset)}
    if pair in here:
        return None
    around = [lang for lang in langs if is_pivot(lang)] if pivot() else langs
    thirds = [lang for lang in around if {Direction(pair.source, lang), Direction(pair.target, lang)} <= here]
    if not thirds:
        sets = sorted(str(of) for of in here if pair.source in (of.source, of.target))
        raise ArtifactError(
            f"no references: no {subset} set of {pair}, nor one of each of the two with the same third language",
            where=data_bin,
            got=f"sets of {some(sets, _SHOWN) if sets else 'neither'}",
            mend="leave the pair out of --lang-pairs",
        )
    for third in thirds:
        if _is_same(data_bin, subset, pair, third, raw=raw):
            return third
    raise CorpusError(
        f"no references: the {subset} sets of {pair.source} and {pair.target} are not the same sentences",
        where=data_bin,
        got=f"other lines of {', '.join(thirds)} beside each",
        expected="sets that are translations of the same lines, in the same order",
        mend="leave the pair out of --lang-pairs",
    )


def _is_same(data_bin: Path, subset: str, pair: Direction, third: str, *, raw: bool) -> bool:
    """Whether both languages' sets have the same lines of the third, in the data-bin and in the raw text."""
    of_both = [Direction(lang, third) for lang in (pair.source, pair.target)]
    prefixes = [split_prefix(data_bin, subset, of) for of in of_both]
    for end in (".idx", ".bin"):
        first, second = (Path(f"{prefix}.{third}{end}") for prefix in prefixes)
        if hash_file(first) != hash_file(second):
            return False
    if not raw:
        return True
    texts = [read_lines(raw_file(data_bin, subset, of.source, of.target, third)) for of in of_both]
    return texts[0] == texts[1]
