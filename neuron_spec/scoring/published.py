"""Our EC30 scores beside the published ones.

A published figure is of one test set and one way of scoring: FLORES-200's two parts together, hypotheses and
references both put through a Moses detokenizer. Scores of another test set are refused; scores of another
way of scoring are shown with a warning.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from neuron_spec.artifacts import read_text, require_file
from neuron_spec.directions import Direction
from neuron_spec.errors import ArtifactError, NeuronSpecError, in_file
from neuron_spec.pages.page import Paragraph, Section, Table
from neuron_spec.pages.tables import Cell
from neuron_spec.scoring.evaluation import ALL, Evaluation
from neuron_spec.scoring.metrics import DirectionScore

SYSTEMS = ("dense", "specialized")
GAIN = "specialized - dense"
METRICS = {"bleu": "BLEU", "chrf": "chrF++", "comet": "COMET"}
TEST_SENTENCES = 2009  # FLORES-200 dev and devtest
_COLUMNS = ("system", "metric", "scope", "tier", "group", "value")
_MEAN = "mean"
_DECIMALS = {"bleu": 1, "chrf": 1, "comet": 3}


@dataclass(frozen=True)
class Published:
    """What the file holds. BLEU and chrF++ are 0-100, COMET 0-1; ``group`` is O2M, M2O or all.

    Attributes:
        directions: by system, the BLEU of each direction.
        means: by system, metric, tier (or all) and group.
        members: by direction, its tier and group.
    """

    directions: dict[str, dict[Direction, float]]
    means: dict[tuple[str, str, str, str], float]
    members: dict[Direction, tuple[str, str]]


@dataclass(frozen=True)
class Compared:
    """Ours and the published figure, for a direction (``name``) or the mean over ``directions`` of a group.

    ``system`` is one of SYSTEMS, or GAIN: what specialization adds. Units as in `Published`.
    """

    system: str
    metric: str
    name: str
    tier: str
    group: str
    directions: int
    ours: float
    published: float

    @property
    def difference(self) -> float:
        return self.ours - self.published


@dataclass(frozen=True)
class Comparison:
    """What can be compared, and in words under which conditions."""

    notes: list[str]
    rows: list[Compared]


def read_published(path: str | Path) -> Published:
    """Read such a file as results/published/ec30.csv.

    Raises:
        ArtifactError: if it is missing, or a line is not of the form that its README describes.
    """
    text = read_text(require_file(path, "file of published scores"))
    lines = csv.DictReader(io.StringIO(text))
    if tuple(lines.fieldnames or ()) != _COLUMNS:
        raise _malformed(path, 1, str(lines.fieldnames), f"the columns {', '.join(_COLUMNS)}")
    published = Published({system: {} for system in SYSTEMS}, {}, {})
    seen = set()
    try:
        rows = [*lines]
    except csv.Error as error:
        raise _malformed(path, lines.line_num, str(error), "comma-separated values") from error
    for number, line in enumerate(rows, start=2):
        *key, value = (line[column] for column in _COLUMNS)
        system, metric, scope, tier, group = key
        problem = None
        if system not in SYSTEMS or metric not in METRICS:
            problem = f"{system}, {metric}", f"one of {', '.join(SYSTEMS)}; {', '.join(METRICS)}"
        elif tuple(key) in seen:
            problem = ",".join(key), "each figure once"
        elif scope != _MEAN and metric != "bleu":
            problem = f"{metric} of {scope}", "of single directions, BLEU alone"
        elif len(line) > len(_COLUMNS):
            problem = f"{len(line)} columns and more", f"the columns {', '.join(_COLUMNS)}"
        try:
            figure = float(value)
        except (TypeError, ValueError):
            figure = math.nan
        if not math.isfinite(figure):
            problem = problem or (repr(value), "a number")
        if problem:
            raise _malformed(path, number, *problem)
        seen.add(tuple(key))
        if scope == _MEAN:
            published.means[system, metric, tier, group] = figure
        else:
            with in_file(f"{path}, line {number}"):
                direction = Direction.parse(scope)
            published.directions[system][direction] = figure
            published.members[direction] = tier, group
    return published


def _malformed(path: str | Path, line: int, got: str, expected: str) -> ArtifactError:
    return ArtifactError(
        "malformed file of published scores", where=f"{path}, line {line}", got=got, expected=expected
    )


def compare_with_published(evaluations: Mapping[str, Evaluation], published: Published) -> Comparison:
    """Set our *dense* and *specialized* beside the published ones; other systems have no counterpart.

    Only directions that every compared system and the published file have are compared. A mean is of the
    same directions on both sides: the printed one where all of a group's directions are there, else that of
    the printed BLEU of those that are; chrF++ and COMET are published only as means, so an incomplete group
    has none.

    Raises:
        NeuronSpecError: if there is nothing to compare, the test set is another one, or the systems were not
            scored in the same way.
    """
    systems = {name: evaluations[name] for name in SYSTEMS if name in evaluations}
    ours = {name: {s.direction: s for s in e.scores} for name, e in systems.items()}
    shared = [d for d in published.members if all(d in scores for scores in ours.values())]
    if not systems or not shared:
        raise NeuronSpecError(
            "nothing to compare with the published scores",
            got=f"systems {', '.join(evaluations) or 'none'}; {len(shared)} published directions in them",
            expected=f"{' or '.join(SYSTEMS)}, on directions of EC30",
            mend="leave out --published, or evaluate those",
        )
    for name, scores in ours.items():
        for direction in shared:
            if (sentences := scores[direction].sentences) != TEST_SENTENCES:
                raise NeuronSpecError(
                    "the published scores are of another test set",
                    where=f"{name}, {direction}",
                    got=f"{sentences} sentences",
                    expected=f"{TEST_SENTENCES}, dev and devtest of FLORES-200",
                    mend="leave out --published, or evaluate on EC30's test set",
                )
    notes = [
        _scoring_note(systems),
        f"{len(shared)} of the {len(published.members)} published directions. A mean is over the same directions on "
        "both sides.",
    ]
    rows = [
        row
        for metric in METRICS
        for name, scores in ours.items()
        for row in _compared(name, metric, {d: scores[d] for d in shared}, published)
    ]
    # What specialization adds, where both systems are there; the scoring's own effect largely cancels.
    dense = {(r.metric, r.name, r.tier, r.group): r for r in rows if r.system == "dense"}
    gains = [
        replace(row, system=GAIN, ours=row.ours - base.ours, published=row.published - base.published)
        for row in rows
        if row.system == "specialized" and (base := dense.get((row.metric, row.name, row.tier, row.group)))
    ]
    return Comparison(notes, rows + gains)


def _scoring_note(systems: Mapping[str, Evaluation]) -> str:
    official = {}
    for name, evaluation in systems.items():
        parameters = evaluation.signature.get("parameters", {})
        if not {"official_scoring", "references"} <= parameters.keys():
            raise NeuronSpecError(
                "an evaluation does not say how it was scored",
                where=name,
                got=f"a signature with the parameters {', '.join(parameters) or 'none'}",
                expected="official_scoring and references",
                mend="evaluate again",
            )
        # The official references are the data-bin's or the log's: raw ones differ, detokenized or not.
        is_official = parameters["official_scoring"] and parameters["references"] != "raw"
        official[name] = "official" if is_official else "raw"
    if len(set(official.values())) > 1:
        raise NeuronSpecError(
            "systems that were scored in different ways cannot stand beside published scores",
            got=", ".join(f"{name}: {scoring}" for name, scoring in official.items()),
            mend="evaluate all with --official-scoring --references data-bin",
        )
    if "raw" not in official.values():
        return (
            "Scoring: the official round trip, for ours and the published: hypotheses and references put "
            "through a Moses detokenizer."
        )
    return (
        "**Warning: ours and the published scores are not comparable.** Ours are not of the official round trip "
        "(hypotheses and the data-bin's references put through a Moses detokenizer), which changes the "
        "references too. For comparable ones: `neuron-spec evaluate --official-scoring --references data-bin`."
    )


def _compared(
    system: str, metric: str, scores: Mapping[Direction, DirectionScore], published: Published
) -> list[Compared]:
    """Means first, then directions; none of a metric that ours lack."""
    # An evaluation has COMET only where it was asked for, and then perhaps not for every direction.
    ours = {d: value for d, score in scores.items() if (value := getattr(score, metric)) is not None}
    theirs = published.directions[system] if metric == "bleu" else {}
    rows = []
    for (of, measure, tier, group), printed in published.means.items():
        if (of, measure) != (system, metric):
            continue
        everyone = [d for d, (t, g) in published.members.items() if tier in (ALL, t) and group in (ALL, g)]
        present = [d for d in everyone if d in ours]
        if present and len(present) == len(everyone):
            figure = printed
        elif present and theirs:
            figure = fmean(theirs[d] for d in present)
        else:
            continue
        mean = fmean(ours[d] for d in present)
        rows.append(Compared(system, metric, _MEAN, tier, group, len(present), mean, figure))
    singles = [(d, value) for d, value in ours.items() if d in theirs]
    rows += [Compared(system, metric, str(d), *published.members[d], 1, v, theirs[d]) for d, v in singles]
    return rows


# ------------------------------------------------------------------ as tables, and a section of a report


def means_table(comparison: Comparison, metric: str) -> tuple[list[str], list[list[Cell]]]:
    """Header and rows: a row per tier and group, for each system ours, published, and the difference."""
    rows = [row for row in comparison.rows if row.metric == metric and row.name == _MEAN]
    return _table(rows, ("tier", "group", "directions"))


def directions_table(comparison: Comparison) -> tuple[list[str], list[list[Cell]]]:
    """Header and rows of the BLEU of each direction, as `means_table`."""
    return _table([row for row in comparison.rows if row.name != _MEAN], ("direction", "tier"))


def _table(compared: Sequence[Compared], names: Sequence[str]) -> tuple[list[str], list[list[Cell]]]:
    systems = list(dict.fromkeys(row.system for row in compared))
    lines: dict[tuple[Cell, ...], dict[str, list[Cell]]] = {}
    for row in compared:
        key = tuple(row.name if name == "direction" else getattr(row, name) for name in names)
        decimals = _DECIMALS[row.metric]
        sign = "+" if row.system == GAIN else "-"  # format's word for: only where negative
        figures = [f"{value:{sign}z.{decimals}f}" for value in (row.ours, row.published)]
        lines.setdefault(key, {})[row.system] = [*figures, f"{row.difference:+z.{decimals}f}"]
    header = [*names]
    for system in systems:
        header += [f"{system}, ours", "published", "difference"]
    unknown: list[Cell] = [None] * 3
    return header, [
        [*key, *(cell for system in systems for cell in by_system.get(system, unknown))]
        for key, by_system in lines.items()
    ]


def published_section(evaluations: Mapping[str, Evaluation], published: Published) -> Section:
    """The notes; then the means of each metric, and the directions folded.

    Raises:
        NeuronSpecError: as `compare_with_published`.
    """
    comparison = compare_with_published(evaluations, published)
    metrics = [m for m in METRICS if any(row.metric == m for row in comparison.rows)]
    tables = [Section(f"{METRICS[m]}, means", [Table(*means_table(comparison, m))]) for m in metrics]
    tables.append(Section("BLEU, directions", [Table(*directions_table(comparison))], is_folded=True))
    return Section("Beside the published scores", [Paragraph(note) for note in comparison.notes], tables)
