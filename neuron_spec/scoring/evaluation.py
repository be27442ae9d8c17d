"""Evaluations: the scores of one system on several directions, their means over groups of these, and their files."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from neuron_spec.artifacts import (
    HYPOTHESES,
    REFERENCES,
    SCORES_CSV,
    SCORES_JSON,
    SCORES_TABLE,
    SIGNATURE,
    SOURCES,
    claim,
    is_already_here,
    read_json,
    read_text,
    require_file,
    require_writable,
    signature_in,
    versions,
    write_json,
    write_text,
)
from neuron_spec.directions import GROUPS, Direction
from neuron_spec.errors import ArtifactError, DirectionError, in_file
from neuron_spec.forms import form_of, number, require_form
from neuron_spec.languages import ENGLISH, PIVOT, UNKNOWN, language, pivot
from neuron_spec.pages.tables import Cell, csv_text, fixed, markdown_table, percent, plain
from neuron_spec.scoring.endpoints import BLEU, CHRF, COMET, NLL, SENTENCES, SentenceScores
from neuron_spec.scoring.language_id import LanguageIdentifier
from neuron_spec.scoring.metrics import (
    OFFICIAL_TOKENIZER,
    DirectionScore,
    Outputs,
    detokenized,
    lengths,
    score,
)

ALL = "all"
# Parameters of a signature that say what was measured beside the texts; they are added to what is complete without.
LIKELIHOOD = "likelihood"
ADDITIONS = (LIKELIHOOD, COMET.key)


@dataclass(frozen=True)
class GroupMean:
    """Unweighted means over the ``directions`` directions of a group; None where one of them lacks the figure.

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
    length_ratio: float | None = None
    brevity_penalty: float | None = None
    nll: float | None = None
    tag_nll: float | None = None
    bits_per_character: float | None = None
    comet: float | None = None


_FIGURES = tuple(f.name for f in fields(GroupMean) if f.name not in ("kind", "name", "group", "directions"))


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
    means = []
    for kind, name, group, members in grouped(scores, families, tiers):
        of_members: dict[str, list[Any]] = {key: [getattr(s, key) for s in members] for key in _FIGURES}
        # A mean over the few directions that have a figure would pass for one over all.
        known: dict[str, Any] = {
            key: None if None in values else fmean(values) for key, values in of_members.items()
        }
        means.append(GroupMean(kind, name, group, len(members), **known))
    return means


def grouped(
    scores: Sequence[DirectionScore],
    families: Mapping[str, str] | None = None,
    tiers: Mapping[str, str] | None = None,
) -> Iterator[tuple[str, str, str, list[DirectionScore]]]:
    """Kind, name, group (see `GroupMean`) and members of every group that `summarize` shows; none is empty."""
    parts = [("overall", ALL, ALL, list(scores))]
    parts += [("group", g.code, g.code, [s for s in scores if s.group == g.code]) for g in GROUPS]
    named = {"family": [family_in(families, s.direction) for s in scores]}
    if tiers:  # not every corpus has any
        named = {"tier": [tier_in(tiers, s.direction) for s in scores], **named}
    for kind, names in named.items():
        for name in sorted({name for name in names if name is not None}):
            members = [s for s, its_name in zip(scores, names, strict=True) if its_name == name]
            parts += [(kind, name, g.code, [s for s in members if s.group == g.code]) for g in GROUPS]
            parts.append((kind, name, ALL, members))
    return (part for part in parts if part[-1])


def tier_in(tiers: Mapping[str, str], direction: Direction) -> str | None:
    """Of the language that is not English; None where neither is."""
    return None if direction.foreign is None else tiers.get(direction.foreign, UNKNOWN)


def family_in(families: Mapping[str, str] | None, direction: Direction) -> str | None:
    """As `tier_in`; the language table's for a language that is not in ``families``."""
    code = direction.foreign
    return None if code is None else (families or {}).get(code, language(code).family)


@dataclass(frozen=True)
class Evaluation:
    """One system on several directions; ``outputs`` and ``scores`` are in the same order.

    ``sentences`` has what is known of each sentence beside its texts, of the directions of which anything is.
    ``off_target_note`` says why there is no off-target rate, where there is none. ``pivot`` is the language around which
    directions were grouped.
    """

    signature: dict[str, Any]
    outputs: list[Outputs]
    scores: list[DirectionScore]
    families: dict[str, str] = field(default_factory=dict)
    tiers: dict[str, str] = field(default_factory=dict)
    sentences: dict[Direction, SentenceScores] = field(default_factory=dict)
    off_target_note: str | None = None
    pivot: str | None = ENGLISH

    @cached_property
    def summary(self) -> list[GroupMean]:
        return summarize(self.scores, self.families, self.tiers)


def evaluate(
    outputs: Sequence[Outputs],
    *,
    signature: Mapping[str, Any],
    official: bool = False,
    language_id: LanguageIdentifier | None = None,
    off_target_note: str | None = None,
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
    tokenizer = OFFICIAL_TOKENIZER if official else None
    return Evaluation(
        signature=dict(signature),
        outputs=list(outputs),
        scores=[score(text, language_id=language_id, tokenizer=tokenizer) for text in texts],
        families=dict(families or {}),
        tiers=dict(tiers or {}),
        off_target_note=off_target_note,
        pivot=pivot(),
    )


def with_sentences(
    evaluation: Evaluation, sentences: Mapping[Direction, SentenceScores], *, official: bool = False
) -> Evaluation:
    """The evaluation with what is known of each sentence, and the figures of directions that follow from it.

    ``bits_per_character`` is the text's negative log-likelihood, end of sentence included, over ln 2 and the number of
    Unicode characters of the references that BLEU sees, without line breaks, of the sentences that have a likelihood.

    Args:
        official: whether BLEU sees them detokenized.
    """
    scores = []
    for outputs, of_direction in zip(evaluation.outputs, evaluation.scores, strict=True):
        of = sentences.get(outputs.direction, SentenceScores())
        ratios = {key: of.ratio(key) for key in ("nll", "tag_nll", "comet")}
        values = {key: ratio.value if ratio else math.nan for key, ratio in ratios.items()}
        if nll := ratios["nll"]:
            scored = detokenized(outputs) if official else outputs
            characters = float(np.fromiter(map(len, scored.references), float)[nll.known].sum())
            values["bits_per_character"] = (
                float(np.nansum(nll.numerators)) / math.log(2) / characters if characters else math.nan
            )
        known: dict[str, Any] = {key: None if math.isnan(value) else value for key, value in values.items()}
        scores.append(replace(of_direction, **known))
    return replace(evaluation, scores=scores, sentences=dict(sentences))


# ------------------------------------------------------------------ files


def _signatures(scores: Sequence[DirectionScore]) -> dict[str, list[str]]:
    """Metric -> sacreBLEU's signatures."""
    return {m: sorted({getattr(score, f"{m}_signature") for score in scores}) for m in ("bleu", "chrf")}


def scores_table(evaluation: Evaluation) -> str:
    """One evaluation in full: means, tiers and families first, then every direction, then how."""
    scores, summary = evaluation.scores, evaluation.summary
    has_comet = any(row.comet is not None for row in scores)
    names = (
        BLEU.title,
        CHRF.title,
        NLL.title,
        *[COMET.title] * has_comet,
        "length ratio",
        "off-target",
        "empty",
    )

    def figures(row: DirectionScore | GroupMean) -> list[Cell]:
        return [
            row.bleu,
            row.chrf,
            fixed(row.nll, NLL.decimals),
            *[fixed(row.comet, COMET.decimals)] * has_comet,
            fixed(row.length_ratio, 3),
            percent(row.off_target_fraction, 1),
            percent(row.empty_fraction, 1),
        ]

    parts = []
    for title, kinds in (
        ("Directions by group", ("overall", "group")),
        ("Tiers", ("tier",)),
        ("Families of the non-English language", ("family",)),
    ):
        means = [row for row in summary if row.kind in kinds]
        if means:
            header = ("mean over", "group", "directions", *names)
            rows = [[row.name, row.group, row.directions, *figures(row)] for row in means]
            parts.append(f"## {title}\n\n" + markdown_table(header, rows))

    directions: list[list[Cell]] = [
        [str(row.direction), row.sentences, *figures(row), percent(row.language_id_accuracy_fraction, 1)]
        for row in scores
    ]
    columns = ("direction", "sentences", *names, "references identified")
    signatures = zip(("BLEU", "chrF++"), _signatures(scores).values(), strict=True)
    parts += [
        "## Directions\n\n" + markdown_table(columns, directions),
        "## Likelihood and length, further\n\n" + _further_table(evaluation),
        "\n".join(f"- {metric}: `{each}`" for metric, of_metric in signatures for each in of_metric),
        "Means are unweighted over directions. Off-target: hypotheses identified as another language than\n"
        "the target; judge it by the share of references that are identified as the target.",
        _likelihood_note(evaluation),
    ]
    if evaluation.off_target_note:
        parts.append(f"Off-target is not measured: {plain(evaluation.off_target_note)}.")
    return "\n\n".join(parts) + "\n"


def _further_table(evaluation: Evaluation) -> str:
    def figures(row: DirectionScore | GroupMean) -> list[Cell]:
        return [fixed(x, 3) for x in (row.bits_per_character, row.tag_nll, row.brevity_penalty)]

    means = [row for row in evaluation.summary if row.kind in ("overall", "group")]
    rows: list[list[Cell]] = [[f"mean of {row.name}", *figures(row)] for row in means]
    rows += [[str(row.direction), *figures(row)] for row in evaluation.scores]
    header = ("direction", "bits per character", "NLL of the tag", "brevity penalty")
    return markdown_table(header, rows)


def _likelihood_note(evaluation: Evaluation) -> str:
    """What the likelihood is of, or why there is none."""
    if not any(row.nll is not None for row in evaluation.scores):
        return (
            "No likelihood: it was left out (--no-likelihood), or logs were scored, which do not have it. Length ratio:\n"
            "of hypotheses to references, in words."
        )
    note = (
        "NLL: negative log-likelihood of the references, teacher-forced, in nats a target token, end of sentence\n"
        "included and the language token (tag) left out, whose own is in nats a sentence. It depends on the vocabulary,\n"
        "bits per character do not. Length ratio: of hypotheses to references, in words."
    )
    without = {
        str(d): int(np.isnan(of.text_nll).sum())
        for d, of in evaluation.sentences.items()
        if of.text_nll is not None
    }
    if left := [f"{number} of {name}" for name, number in without.items() if number]:
        note += (
            f"\nSentences without a likelihood, as the model has no positions for them: {', '.join(left)}."
        )
    return note


def write_evaluation(output_dir: str | Path, evaluation: Evaluation) -> None:
    """Write texts, ``table.md``, ``scores.csv`` and, last, ``scores.json``: the mark of completeness."""
    folder = Path(output_dir)
    # Until the end nothing here is complete, whatever an earlier run left.
    (folder / SCORES_JSON).unlink(missing_ok=True)
    for outputs in evaluation.outputs:
        # Their presence says whether sources are known, so none may be left from an earlier run.
        _text_file(folder, SOURCES, outputs.direction).unlink(missing_ok=True)
        for name, lines in outputs.texts().items():
            write_text(_text_file(folder, name, outputs.direction), "".join(line + "\n" for line in lines))
        path = folder / SENTENCES / f"{outputs.direction}.csv"
        path.unlink(missing_ok=True)
        if of_sentences := evaluation.sentences.get(outputs.direction):
            of_sentences.write(path)
    write_text(folder / SCORES_TABLE, scores_table(evaluation))
    families, tiers = evaluation.families, evaluation.tiers
    plain = {
        score.direction: {f.name: getattr(score, f.name) for f in fields(score) if f.name != "direction"}
        for score in evaluation.scores
    }
    rows = [
        [str(d), d.group.code, tier_in(tiers, d), family_in(families, d), *values.values()]
        for d, values in plain.items()
    ]
    header = ("direction", "group", "tier", "family", *next(iter(plain.values())))
    write_text(folder / SCORES_CSV, csv_text(header, rows))
    content = {
        "signature": evaluation.signature,
        "sacrebleu": _signatures(evaluation.scores),
        "directions": {str(direction): values for direction, values in plain.items()},
        "summary": [asdict(mean) for mean in evaluation.summary],
        "families": families,
        "tiers": tiers,
        **({"off_target_note": note} if (note := evaluation.off_target_note) else {}),
        **({PIVOT: evaluation.pivot} if evaluation.pivot != ENGLISH else {}),
    }
    write_json(folder / SCORES_JSON, content)


def is_evaluated(folder: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether a folder holds the whole evaluation; ``signature.json`` says whose it is before the scores are there.

    What it holds besides, such as likelihoods that are not asked for, is no other evaluation; and one that only lacks
    these is not whole, but the same.

    Raises:
        ArtifactError: if it is another evaluation's, or unsigned.
        OSError: if it is not whole, and nothing can be written there.
    """
    mark = folder / SIGNATURE
    is_unsigned = not mark.is_file() and any((folder / name).exists() for name in (HYPOTHESES, SCORES_JSON))
    signature_here = {} if is_unsigned else signature_in(mark, "signature of an evaluation")
    shared = _additions(signature_here) & _additions(wanted)
    here = signature_here and _with_additions(signature_here, shared)
    is_claimed = is_already_here(folder, here, _with_additions(wanted, shared), what="evaluation")
    is_whole = is_claimed and (folder / SCORES_JSON).is_file() and shared == _additions(wanted)
    if is_whole:
        print(f"{folder}: complete already", file=sys.stderr)
    else:
        require_writable(folder / SCORES_JSON)
    return is_whole


def claim_evaluation(folder: Path, made_from: Mapping[str, Any]) -> None:
    """From here on the folder is this evaluation's; what was added to scores that are gone is gone too.

    Raises:
        ArtifactError: if it is another evaluation's by now.
    """
    mark = folder / SIGNATURE
    if (here := signature_in(mark, "signature of an evaluation")) and _additions(here):
        is_already_here(folder, without_additions(here), made_from, what="evaluation")
        write_json(mark, made_from)
    else:
        claim(mark, made_from, what="evaluation", where=folder)


def _additions(signature: Mapping[str, Any] | None) -> set[str]:
    return {*((signature or {}).get("parameters") or {})} & {*ADDITIONS}


def _with_additions(signature: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """The signature with these additions and no others."""
    parameters = signature.get("parameters") or {}
    kept = {key: value for key, value in parameters.items() if key in names or key not in ADDITIONS}
    return {**signature, "parameters": kept} if "parameters" in signature else dict(signature)


def without_additions(signature: Mapping[str, Any]) -> dict[str, Any]:
    """What the same evaluation is signed with before anything is added to it."""
    return _with_additions(signature, ())


def add(folder: Path, evaluation: Evaluation, wanted: Mapping[str, Any], name: str, **by: str) -> Evaluation:
    """Write an evaluation to which an addition was made, over the one that is in the folder.

    Args:
        wanted: the signature asked for.
        name: of the addition, one of `ADDITIONS`.
        by: versions of what made it, beside those of this installation.
    """
    here = evaluation.signature
    parameters = {**here["parameters"], name: wanted["parameters"][name]}
    additions = [key for key in ADDITIONS if key in parameters]
    order = [*(key for key in parameters if key not in ADDITIONS), *additions]  # whatever was added first
    ordered = {key: parameters[key] for key in order}
    made_by = {**versions(), **by}
    before = here.get("versions", made_by)
    added = {**here.get("added_with", {}), **({} if made_by == before else {name: made_by})}
    signed = {**wanted, "parameters": ordered, "versions": before, **({"added_with": added} if added else {})}
    together = replace(evaluation, signature=signed)
    write_evaluation(folder, together)
    write_json(folder / SIGNATURE, signed)  # last: until then the folder says that it lacks this
    return together


_FRACTION = number(0, 1 + 1e-9)
_POINTS = number(0, 100 + 1e-9)  # a perfect BLEU is a little above 100
_COUNT = number(0, whole=True)
_SCORES = form_of(
    DirectionScore,
    but={
        "bleu": _POINTS,
        "chrf": _POINTS,
        "sentences": number(1, whole=True),
        "hypothesis_tokens": _COUNT,
        "reference_tokens": _COUNT,
        "empty_fraction": _FRACTION,
        "off_target_fraction": (_FRACTION, None),
        "language_id_accuracy_fraction": (_FRACTION, None),
    },
)
del _SCORES["direction"]  # the key of the rest
_FORM = {
    "directions": {str: _SCORES},
    "signature": {"inputs?": {str: str}, "parameters?": {}, "versions?": {}, "command?": (str, None)},
    "families": {str: str},
    "tiers": {str: str},
    "off_target_note?": (str, None),
    f"{PIVOT}?": (str, None),
}


def read_evaluation(output_dir: str | Path) -> Evaluation:
    """Read what `write_evaluation` wrote.

    Raises:
        ArtifactError: if the folder holds no complete evaluation, or a file in it is damaged.
    """
    folder = Path(output_dir)
    mend = "run `neuron-spec evaluate` to the end"
    content = read_json(require_file(folder / SCORES_JSON, "complete evaluation", mend), "scores")
    require_form(content, _FORM, "an evaluation", folder / SCORES_JSON, mend="evaluate again")
    with in_file(folder / SCORES_JSON):
        scores = [_score(name, values) for name, values in content["directions"].items()]
    made_from, families, tiers = content["signature"], content["families"], content["tiers"]
    if not scores:
        raise ArtifactError(
            "an evaluation of no direction", where=folder / SCORES_JSON, mend="evaluate again"
        )
    paths = {s.direction: (folder / SENTENCES / f"{s.direction}.csv", s.sentences) for s in scores}
    sentences = {d: SentenceScores.read(path, n) for d, (path, n) in paths.items() if path.is_file()}
    outputs, note = [_read_outputs(folder, s) for s in scores], content.get("off_target_note")
    around = content.get(PIVOT, ENGLISH)
    return Evaluation(made_from, outputs, scores, families, tiers, sentences, note, around)


def _score(direction: str, values: Mapping[str, Any]) -> DirectionScore:
    """With what earlier versions did not write, where it follows from the rest."""
    of_lengths = lengths(values["hypothesis_tokens"], values["reference_tokens"])
    return DirectionScore(direction=Direction.parse(direction), **{**of_lengths, **values})


def _read_outputs(folder: Path, of: DirectionScore) -> Outputs:
    has_sources = _text_file(folder, SOURCES, of.direction).is_file()
    texts = {}
    for name in (HYPOTHESES, REFERENCES, *([SOURCES] if has_sources else [])):
        path = require_file(_text_file(folder, name, of.direction), f"{name} of an evaluation")
        *lines, rest = read_text(path).split("\n")
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
