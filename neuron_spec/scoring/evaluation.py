"""Evaluations: the scores of one system on several directions, their means over groups of these, and their files."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from statistics import fmean
from typing import Any

from neuron_spec.artifacts import (
    HYPOTHESES,
    REFERENCES,
    SCORES_CSV,
    SCORES_JSON,
    SCORES_TABLE,
    SIGNATURE,
    SOURCES,
    is_already_here,
    read_json,
    require_file,
    signature_in,
    write_json,
    write_text,
)
from neuron_spec.directions import GROUPS, UNKNOWN, Direction, language
from neuron_spec.errors import ArtifactError, DirectionError
from neuron_spec.pages.tables import Cell, csv_text, markdown_table, percent
from neuron_spec.scoring.language_id import LanguageIdentifier
from neuron_spec.scoring.logs import read_text
from neuron_spec.scoring.metrics import DEFAULT_TOKENIZER, DirectionScore, Outputs, detokenized, score

ALL = "all"


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
    tokenizer = DEFAULT_TOKENIZER if official else None
    return Evaluation(
        signature=dict(signature),
        outputs=list(outputs),
        scores=[score(text, language_id=language_id, tokenizer=tokenizer) for text in texts],
        families=dict(families or {}),
        tiers=dict(tiers or {}),
    )


# ------------------------------------------------------------------ files


def scores_table(evaluation: Evaluation) -> str:
    """One evaluation in full: means, tiers and families first, then every direction, then how."""
    names = ("BLEU", "chrF++", "off-target", "empty")
    parts = []
    for title, kinds in (
        ("Directions by group", ("overall", "group")),
        ("Tiers", ("tier",)),
        ("Families of the non-English language", ("family",)),
    ):
        means = [row for row in evaluation.summary if row.kind in kinds]
        if means:
            header = ("mean over", "group", "directions", *names)
            rows = [[row.name, row.group, row.directions, *_means(row)] for row in means]
            parts.append(f"## {title}\n\n" + markdown_table(header, rows))

    directions: list[list[Cell]] = [
        [str(row.direction), row.sentences, *_means(row), percent(row.language_id_accuracy_fraction, 1)]
        for row in evaluation.scores
    ]
    columns = ("direction", "sentences", *names, "references identified")
    parts.append("## Directions\n\n" + markdown_table(columns, directions))

    signatures = sorted({f"BLEU: `{row.bleu_signature}`" for row in evaluation.scores})
    signatures += sorted({f"chrF++: `{row.chrf_signature}`" for row in evaluation.scores})
    parts.append("\n".join(f"- {line}" for line in signatures))
    parts.append(
        "Means are unweighted over directions. Off-target: hypotheses identified as another language than\n"
        "the target; judge it by the share of references that are identified as the target."
    )
    return "\n\n".join(parts) + "\n"


def _means(row: DirectionScore | GroupMean) -> list[Cell]:
    return [row.bleu, row.chrf, percent(row.off_target_fraction, 1), percent(row.empty_fraction, 1)]


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


def is_evaluated(folder: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether a folder holds the whole evaluation; ``signature.json`` says whose it is before the scores are there.

    Raises:
        ArtifactError: if it is another evaluation's, or unsigned.
    """
    mark = folder / SIGNATURE
    is_unsigned = not mark.is_file() and any((folder / name).exists() for name in (HYPOTHESES, SCORES_JSON))
    found = {} if is_unsigned else signature_in(mark, "signature of an evaluation")
    is_whole = is_already_here(folder, found, wanted, what="evaluation") and (folder / SCORES_JSON).is_file()
    if is_whole:
        print(f"{folder}: complete already", file=sys.stderr)
    return is_whole


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


def _as_plain(of: DirectionScore) -> dict[str, Any]:
    """The direction itself is the key under which this is kept."""
    return {f.name: getattr(of, f.name) for f in fields(of) if f.name != "direction"}


def _as_csv(evaluation: Evaluation) -> str:
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
    return csv_text(list(rows[0]), [list(row.values()) for row in rows])
