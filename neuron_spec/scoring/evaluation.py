"""From hypotheses and references to scores: BLEU and chrF++ (0-100), off-target and empty rates (0-1).

The only module that imports sacrebleu.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics.base import Metric
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.significance import PairedTest

from neuron_spec.artifacts import (
    HYPOTHESES,
    REFERENCES,
    SCORES_CSV,
    SCORES_JSON,
    SCORES_TABLE,
    SOURCES,
    read_json,
    require_file,
    write_json,
    write_text,
)
from neuron_spec.directions import GROUPS, UNKNOWN, Direction, language
from neuron_spec.errors import ArtifactError, DirectionError, NeuronSpecError
from neuron_spec.pages.tables import scores_table
from neuron_spec.scoring.language_id import LanguageIdentifier

ALL = "all"
# Languages whose words 13a cannot find; every other language is scored with 13a.
_TOKENIZERS = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}
_DEFAULT_TOKENIZER = "13a"


@dataclass(frozen=True)
class Outputs:
    """What a system wrote for one direction: line i of each list is about test sentence i.

    Raises:
        NeuronSpecError: if the lists are empty or of different length, or a text holds a line break.
    """

    direction: Direction
    hypotheses: list[str]
    references: list[str]
    sources: list[str] | None = None

    def __post_init__(self) -> None:
        lengths = {len(lines) for lines in self._texts().values()}
        if lengths == {0} or len(lengths) > 1:
            raise NeuronSpecError(
                "hypotheses, references and sources do not belong together",
                where=self.direction,
                got=", ".join(f"{len(lines)} {name}" for name, lines in self._texts().items()),
                expected="one of each per test sentence, and at least one sentence",
            )
        for name, lines in self._texts().items():
            broken = next((i for i, line in enumerate(lines) if "\n" in line), None)
            if broken is not None:
                raise NeuronSpecError(
                    "a line break inside a sentence",
                    where=f"{self.direction}, {name}, sentence {broken}",
                    got=repr(lines[broken]),
                    expected="one line per sentence",
                )

    def _texts(self) -> dict[str, list[str]]:
        texts = {HYPOTHESES: self.hypotheses, REFERENCES: self.references}
        return texts if self.sources is None else {**texts, SOURCES: self.sources}


# ------------------------------------------------------------------ reading fairseq-generate

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
    lines = _read_text(require_file(path, "fairseq-generate log")).split("\n")
    found: dict[str, dict[int, str]] = {"S": {}, "T": {}, "H": {}}
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
            found[kind].setdefault(sentence, text)
        elif sentence in found[kind]:
            raise ArtifactError(
                "a sentence appears twice in a fairseq-generate log",
                where=f"{path}, line {number}",
                got=f"{kind}-{sentence}",
                mend="the log holds several runs or directions: give one file for each",
            )
        else:
            found[kind][sentence] = text
    _require_whole(path, found)

    in_header = Direction(header[1], header[2]) if header else None
    known = _direction_of(path, direction, in_header)
    sources = _without_language_tokens(path, known, found["S"])
    pieces = any(_PIECE_START in text for texts in found.values() for text in texts.values())
    text_of = {
        kind: [_joined(texts[sentence]) if pieces else texts[sentence] for sentence in sorted(texts)]
        for kind, texts in {**found, "S": sources}.items()
    }
    return Outputs(known, text_of["H"], text_of["T"], text_of["S"] or None)


def _read_text(path: Path) -> str:
    """The text as it is: Python's text mode would turn a carriage return into a line break.

    Split it at line feeds, not with splitlines, which takes further characters for line breaks.
    """
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ArtifactError("a text is not UTF-8", where=path, got=str(error)) from error


def _require_whole(path: Path, found: Mapping[str, Mapping[int, str]]) -> None:
    if not found["H"] or not found["T"]:
        raise ArtifactError(
            "no translations in a fairseq-generate log",
            where=path,
            got=f"{len(found['H'])} H lines, {len(found['T'])} T lines",
            expected="an H and a T line for each sentence",
            mend="give the output of fairseq-generate without --quiet",
        )
    kinds = [kind for kind in "HTS" if found[kind]]
    sentences = range(1 + max(max(found[kind]) for kind in kinds))
    for kind in kinds:
        missing = [i for i in sentences if i not in found[kind]]
        if missing:
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


def _without_language_tokens(path: Path, direction: Direction, sources: Mapping[int, str]) -> dict[int, str]:
    """Take off the ``__de__`` before each source; it must name one of the direction's two languages."""
    matches = {sentence: _LANGUAGE_TOKEN.match(text) for sentence, text in sources.items()}
    tokens = {match[1] for match in matches.values() if match}
    if not all(matches.values()):
        return dict(sources)  # not tagged; what looks like a token in some sentence is its text
    foreign = tokens - {direction.source, direction.target}
    if foreign:
        raise DirectionError(
            "the language tokens in a fairseq-generate log are not of its direction",
            where=path,
            got=", ".join(f"__{token}__" for token in sorted(foreign)),
            expected=f"__{direction.source}__ or __{direction.target}__",
            mend="name the direction that the log is of",
        )
    return {sentence: _LANGUAGE_TOKEN.sub("", text, count=1) for sentence, text in sources.items()}


def _joined(pieces: str) -> str:
    return pieces.replace(" ", "").replace(_PIECE_START, " ").strip()


# ------------------------------------------------------------------ scoring


@dataclass(frozen=True)
class DirectionScore:
    """Scores of one direction. ``*_tokens`` count words as BLEU's tokenizer sees them."""

    direction: Direction
    bleu: float
    chrf: float
    sentences: int
    hypothesis_tokens: int
    reference_tokens: int
    empty_fraction: float
    off_target_fraction: float | None
    language_id_accuracy_fraction: float | None
    bleu_signature: str
    chrf_signature: str

    @property
    def group(self) -> str:
        """``O2M`` out of English, ``M2O`` into it, ``X2Y`` between two other languages."""
        return self.direction.group.code


def score(
    outputs: Outputs, *, language_id: LanguageIdentifier | None = None, tokenizer: str | None = None
) -> DirectionScore:
    """BLEU, chrF++ (word order 2) and the rates of empty and off-target hypotheses.

    A hypothesis is off target if it is not empty and identified as another language than the target;
    the rate means nothing without ``language_id_accuracy_fraction``, the share of the references that
    are identified as the target. Both are None without ``language_id``. ``tokenizer`` is sacreBLEU's;
    by default the one for the target language.

    Raises:
        NeuronSpecError: if a tokenizer is not installed or unknown.
        CorpusError: if ``language_id`` does not know the target language.
    """
    target = outputs.direction.target
    bleu = _bleu(tokenizer or _default_tokenizer(target), target)
    chrf = CHRF(word_order=2)
    bleu_score = bleu.corpus_score(outputs.hypotheses, [outputs.references])
    chrf_score = chrf.corpus_score(outputs.hypotheses, [outputs.references])

    written = [text for text in outputs.hypotheses if text.strip()]
    sentences = len(outputs.hypotheses)
    off_target = accuracy = None
    if language_id is not None:
        accuracy = language_id.accuracy({target: outputs.references})[target]
        off_target = sum(found != target for found in language_id.identify(written)) / sentences
    return DirectionScore(
        direction=outputs.direction,
        bleu=bleu_score.score,
        chrf=chrf_score.score,
        sentences=sentences,
        hypothesis_tokens=bleu_score.sys_len,
        reference_tokens=bleu_score.ref_len,
        empty_fraction=(sentences - len(written)) / sentences,
        off_target_fraction=off_target,
        language_id_accuracy_fraction=accuracy,
        bleu_signature=str(bleu.get_signature()),
        chrf_signature=str(chrf.get_signature()),
    )


def _default_tokenizer(target: str) -> str:
    return _TOKENIZERS.get(target, _DEFAULT_TOKENIZER)


def _bleu(tokenizer: str, target: str, references: Sequence[Sequence[str]] | None = None) -> BLEU:
    try:
        return BLEU(tokenize=tokenizer, references=references)
    except RuntimeError as error:
        extra = tokenizer.partition("-")[0]
        raise NeuronSpecError(
            "the BLEU tokenizer of a target language is not installed",
            where=f"target language {target}",
            got=f"sacreBLEU tokenizer {tokenizer!r} without its packages",
            mend=f'pip install "sacrebleu[{extra}]"',
        ) from error


def detokenized(outputs: Outputs) -> Outputs:
    """Hypotheses and references through the Moses detokenizer of the target language.

    The references are thereby changed too ("9: 30 am"), so scores are comparable with the official
    EC30 figures and with no others.

    Raises:
        NeuronSpecError: if sacremoses is not installed.
    """
    try:
        from sacremoses import MosesDetokenizer
    except ImportError as error:
        raise NeuronSpecError(
            "official scoring needs the Moses detokenizer",
            got="no package sacremoses",
            mend="pip install sacremoses",
        ) from error
    # Its rules for apostrophes and clitics depend on the language.
    moses = MosesDetokenizer(lang=outputs.direction.target)
    return Outputs(
        outputs.direction,
        [moses.detokenize(text.split()) for text in outputs.hypotheses],
        [moses.detokenize(text.split()) for text in outputs.references],
        outputs.sources,
    )


def official_scoring(outputs: Outputs, *, language_id: LanguageIdentifier | None = None) -> DirectionScore:
    """Score as the official EC30 figures were: `detokenized` text, 13a for every language.

    Raises:
        NeuronSpecError: if sacremoses is not installed.
    """
    return score(detokenized(outputs), language_id=language_id, tokenizer=_DEFAULT_TOKENIZER)


# ------------------------------------------------------------------ significance

BOOTSTRAP_SEED = 12345  # sacreBLEU's own default, so `sacrebleu --paired-bs` gives the same p
_SEED_VARIABLE = "SACREBLEU_SEED"


@dataclass(frozen=True)
class PairedScore:
    """A system and a baseline on the same sentences, by one metric (0-100).

    ``sacrebleu_p_value`` is that of sacreBLEU's paired bootstrap, and 1 where the scores are equal.
    ``resampled_differences`` is float64 `[samples]`: system minus baseline, sentences drawn anew.
    """

    baseline_score: float
    score: float
    sacrebleu_p_value: float
    resampled_differences: NDArray[np.float64]
    signature: str

    @property
    def p_value(self) -> float:
        """Two-sided, ours: how often a resampled difference is as far from their mean as the true one from 0.

        From sacreBLEU's own samples. With N of them never below 1 / (N + 1), and 1 where the scores are equal.
        """
        from_mean = np.abs(self.resampled_differences - self.resampled_differences.mean())
        hits = int((from_mean >= abs(self.score - self.baseline_score)).sum())
        return (1 + hits) / (1 + len(from_mean))


def paired_bootstrap(
    baseline: Outputs, systems: Sequence[Outputs], *, samples: int, official: bool = False
) -> list[dict[str, PairedScore]]:
    """Compare systems with a baseline on one direction: for each, ``bleu`` and ``chrf``.

    The p-value asks: with other test sentences of this kind, would these two trained models still
    differ? sacreBLEU makes it as Moses does, from how far the *sizes* of the resampled differences exceed
    their mean: one tail of two. So `PairedScore.p_value` is ours: two-sided, of the same samples. Measured with
    BLEU and 1,000 samples on 6,000 test sets of 200 sentences, each hypothesis given to one of two systems by a
    coin's toss: sacreBLEU's p was below 0.05 in 10.9 % of them and below 0.1 in 25.1 %, ours in 5.4 % and 11.2 %;
    with 1,000 sentences 9.7 % and 23.9 %, 4.9 % and 9.4 %.

    Args:
        systems: outputs for the baseline's direction and references.
        samples: how often the sentences are drawn with replacement.
        official: compare `detokenized` text with 13a, as `official_scoring` does.

    Raises:
        NeuronSpecError: as `score` and `detokenized`.
    """
    if official:
        baseline, systems = detokenized(baseline), [detokenized(system) for system in systems]
    target, references = baseline.direction.target, [baseline.references]
    tokenizer = _DEFAULT_TOKENIZER if official else _default_tokenizer(target)
    # The metrics keep the references' n-grams, which take as long to count as a system's.
    metrics: dict[str, Metric] = {
        "bleu": _bleu(tokenizer, target, references),
        "chrf": CHRF(word_order=2, references=references),
    }
    texts = [baseline.hypotheses, *(system.hypotheses for system in systems)]
    compared: list[dict[str, PairedScore]] = [{} for _ in systems]
    for name, metric in metrics.items():
        signatures, found = _paired_test(metric, texts, samples)
        (title,) = signatures
        first, *others = (result.score for result in found[title])
        resampled = _resampled_scores(metric, texts, samples)  # [1 + len(systems), samples]
        for index, (scores, result) in enumerate(zip(compared, found[title][1:], strict=True)):
            # sacreBLEU counts draws that differ by more than the systems: for equal ones there is none.
            p_value = 1.0 if others[index] == first else result.p_value
            differences = resampled[1 + index] - resampled[0]
            scores[name] = PairedScore(first, others[index], p_value, differences, str(signatures[title]))
    return compared


def _paired_test(
    metric: Metric, texts: Sequence[Sequence[str]], samples: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What sacreBLEU's PairedTest returns, with our seed: it reads it from the environment alone."""
    before = os.environ.get(_SEED_VARIABLE)
    os.environ[_SEED_VARIABLE] = str(BOOTSTRAP_SEED)
    try:
        named = [(str(index), lines) for index, lines in enumerate(texts)]
        return PairedTest(named, {"metric": metric}, references=None, test_type="bs", n_samples=samples)()
    finally:
        if before is None:
            del os.environ[_SEED_VARIABLE]
        else:
            os.environ[_SEED_VARIABLE] = before


def _resampled_scores(metric: Metric, texts: Sequence[Sequence[str]], samples: int) -> NDArray[np.float64]:
    """float64 `[systems, samples]`: the scores on the very draws of PairedTest, which keeps them to itself."""
    sentences = len(texts[0])
    generator = np.random.default_rng(BOOTSTRAP_SEED)
    drawn = generator.choice(sentences, size=(samples, sentences), replace=True)
    times = np.stack([np.bincount(row, minlength=sentences) for row in drawn])  # [samples, sentences]
    scores = []
    for lines in texts:
        statistics = np.array(metric._extract_corpus_statistics(lines, None))  # [sentences, statistics]
        totals = (times @ statistics).astype(float)
        scores.append([metric._compute_score_from_stats(row).score for row in totals])
    return np.array(scores)


# ------------------------------------------------------------------ means


@dataclass(frozen=True)
class GroupMean:
    """Unweighted means over the ``directions`` directions of a group.

    ``kind`` is overall, group, tier or family; ``name`` the tier or family, or the group itself;
    ``group`` is O2M, M2O or X2Y, or ``all`` where they are not told apart.
    """

    kind: str
    name: str
    group: str
    directions: int
    bleu: float
    chrf: float
    empty_fraction: float
    off_target_fraction: float | None


def summarize(
    scores: Sequence[DirectionScore],
    families: Mapping[str, str] | None = None,
    tiers: Mapping[str, str] | None = None,
) -> list[GroupMean]:
    """Means overall, per direction group, and per tier and family of the non-English language.

    Tiers and families are given for each group and for all of it; directions without English have
    neither. A language not in ``families`` has the language table's family. Without ``tiers`` there are
    none; with them, a language not in it has the tier ``unknown``.
    """
    return [
        _mean(kind, name, group, members) for kind, name, group, members in grouped(scores, families, tiers)
    ]


def grouped(
    scores: Sequence[DirectionScore],
    families: Mapping[str, str] | None = None,
    tiers: Mapping[str, str] | None = None,
) -> Iterator[tuple[str, str, str, list[DirectionScore]]]:
    """Kind, name, group (see `GroupMean`) and members of every group that `summarize` shows; none is empty."""
    families, tiers = families or {}, tiers or {}
    parts = [("overall", ALL, ALL, list(scores))]
    parts += [("group", g.code, g.code, [s for s in scores if s.group == g.code]) for g in GROUPS]
    named = {"family": {s.direction: _family(s, families) for s in scores}}
    if tiers:  # not every corpus has any
        named = {"tier": {s.direction: _tier(s, tiers) for s in scores}, **named}
    for kind, names in named.items():
        for name in sorted({name for name in names.values() if name is not None}):
            members = [s for s in scores if names[s.direction] == name]
            parts += [(kind, name, g.code, [s for s in members if s.group == g.code]) for g in GROUPS]
            parts.append((kind, name, ALL, members))
    return (part for part in parts if part[-1])


def _tier(of: DirectionScore, tiers: Mapping[str, str]) -> str | None:
    code = of.direction.foreign
    return None if code is None else tiers.get(code, UNKNOWN)


def _family(of: DirectionScore, families: Mapping[str, str]) -> str | None:
    code = of.direction.foreign
    return None if code is None else families.get(code, language(code).family)


def _mean(kind: str, name: str, group: str, scores: Sequence[DirectionScore]) -> GroupMean:
    off_target = [s.off_target_fraction for s in scores if s.off_target_fraction is not None]
    return GroupMean(
        kind=kind,
        name=name,
        group=group,
        directions=len(scores),
        bleu=fmean(s.bleu for s in scores),
        chrf=fmean(s.chrf for s in scores),
        empty_fraction=fmean(s.empty_fraction for s in scores),
        # A mean over the few directions that have a rate would pass for one over all.
        off_target_fraction=fmean(off_target) if len(off_target) == len(scores) else None,
    )


@dataclass(frozen=True)
class Evaluation:
    """One system on several directions; ``outputs`` and ``scores`` are in the same order."""

    signature: dict[str, Any]
    outputs: list[Outputs]
    scores: list[DirectionScore]
    families: dict[str, str] = field(default_factory=dict)
    tiers: dict[str, str] = field(default_factory=dict)

    @property
    def summary(self) -> list[GroupMean]:
        return summarize(self.scores, self.families, self.tiers)


def evaluate(
    outputs: Sequence[Outputs],
    *,
    signature: Mapping[str, Any],
    official: bool = False,
    language_id: LanguageIdentifier | None = None,
    families: Mapping[str, str] | None = None,
    tiers: Mapping[str, str] | None = None,
) -> Evaluation:
    """Score every direction. The evaluation holds the texts as given, before any detokenizing.

    Raises:
        NeuronSpecError: as `score` and `detokenized`.
        DirectionError: if there is no direction, or one is given twice.
    """
    directions = [str(output.direction) for output in outputs]
    if not directions or len(set(directions)) < len(directions):
        raise DirectionError(
            "an evaluation needs each direction once",
            got=", ".join(directions) or "none",
            expected="one or more, each with one file",
        )
    texts = [detokenized(output) if official else output for output in outputs]
    tokenizer = _DEFAULT_TOKENIZER if official else None
    return Evaluation(
        signature=dict(signature),
        outputs=list(outputs),
        scores=[score(text, language_id=language_id, tokenizer=tokenizer) for text in texts],
        families=dict(families or {}),
        tiers=dict(tiers or {}),
    )


# ------------------------------------------------------------------ files


def write_evaluation(output_dir: str | Path, evaluation: Evaluation) -> None:
    """Write texts, ``table.md``, ``scores.csv`` and, last, ``scores.json``: the mark of completeness."""
    folder = Path(output_dir)
    # Until the end nothing here is complete, whatever an earlier run left.
    (folder / SCORES_JSON).unlink(missing_ok=True)
    for outputs in evaluation.outputs:
        # Their presence says whether sources are known, so none may be left from an earlier run.
        _text_file(folder, SOURCES, outputs.direction).unlink(missing_ok=True)
        for name, lines in outputs._texts().items():
            write_text(_text_file(folder, name, outputs.direction), "".join(line + "\n" for line in lines))
    write_text(folder / SCORES_TABLE, scores_table(evaluation))
    write_text(folder / SCORES_CSV, _as_csv(evaluation))
    write_json(
        folder / SCORES_JSON,
        {
            "signature": evaluation.signature,
            "sacrebleu": {
                "bleu": sorted({s.bleu_signature for s in evaluation.scores}),
                "chrf": sorted({s.chrf_signature for s in evaluation.scores}),
            },
            "directions": {str(s.direction): _as_plain(s) for s in evaluation.scores},
            "summary": [asdict(mean) for mean in evaluation.summary],
            "families": evaluation.families,
            "tiers": evaluation.tiers,
        },
    )


def read_evaluation(output_dir: str | Path) -> Evaluation:
    """Read what `write_evaluation` wrote.

    Raises:
        ArtifactError: if the folder holds no complete evaluation, or a file in it is damaged.
    """
    folder = Path(output_dir)
    mend = "run `neuron-spec evaluate` to the end"
    content = read_json(require_file(folder / SCORES_JSON, "complete evaluation", mend), "scores")
    try:
        scores = [
            DirectionScore(direction=Direction.parse(name), **values)
            for name, values in content["directions"].items()
        ]
        signature, families, tiers = content["signature"], content["families"], content["tiers"]
    except (AttributeError, KeyError, TypeError) as error:
        raise ArtifactError(
            "scores are not of the form that neuron-spec writes",
            where=folder / SCORES_JSON,
            got=f"{type(error).__name__}: {error}",
            expected=f"directions with {', '.join(f.name for f in fields(DirectionScore)[1:])}",
            mend=mend,
        ) from error
    return Evaluation(signature, [_read_outputs(folder, s) for s in scores], scores, families, tiers)


def _read_outputs(folder: Path, of: DirectionScore) -> Outputs:
    has_sources = _text_file(folder, SOURCES, of.direction).is_file()
    texts = {}
    for name in (HYPOTHESES, REFERENCES, *([SOURCES] if has_sources else [])):
        path = require_file(_text_file(folder, name, of.direction), f"{name} of an evaluation")
        *lines, rest = _read_text(path).split("\n")
        if rest or len(lines) != of.sentences:
            raise ArtifactError(
                f"{name} of an evaluation are damaged",
                where=path,
                got=f"{len(lines)} lines",
                expected=f"{of.sentences} lines, as {SCORES_JSON} says",
                mend="evaluate again",
            )
        texts[name] = lines
    return Outputs(of.direction, texts[HYPOTHESES], texts[REFERENCES], texts.get(SOURCES))


def _text_file(folder: Path, name: str, direction: Direction) -> Path:
    return folder / name / f"{direction}.txt"


def _as_plain(of: DirectionScore) -> dict[str, Any]:
    """The direction itself is the key under which this is kept."""
    return {f.name: getattr(of, f.name) for f in fields(of) if f.name != "direction"}


def _as_csv(evaluation: Evaluation) -> str:
    text = io.StringIO()
    rows = [
        {
            "direction": str(s.direction),
            "group": s.group,
            "tier": _tier(s, evaluation.tiers),
            "family": _family(s, evaluation.families),
            **_as_plain(s),
        }
        for s in evaluation.scores
    ]
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
