"""Zero-shot directions with and without composed sets: a table of two evaluations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from neuron_spec.artifacts import SCORES_JSON, SIGNATURE, is_already_here, signature_in, write_text
from neuron_spec.directions import Direction
from neuron_spec.languages import UNKNOWN, family_of
from neuron_spec.pages.page import Paragraph, Section, Table
from neuron_spec.pages.tables import Cell, csv_text, fixed, markdown_table, percent
from neuron_spec.scoring.endpoints import BLEU, CHRF, NLL
from neuron_spec.scoring.evaluation import Evaluation, read_evaluation, without_additions
from neuron_spec.scoring.metrics import DirectionScore

COMPOSED, ALL_NEURONS = "composed", "dense-neurons"
VARIANTS = (COMPOSED, ALL_NEURONS)  # folders of an evaluation of zero-shot directions, and names of systems
_NEURONS = "--missing-direction"  # the flag by which the two differ
TABLE_CSV, TABLE_MD = "zero-shot.csv", "zero-shot.md"
# Of a direction: field -> title and decimals.
_FIGURES = {
    "bleu": (BLEU.title, 2),
    "chrf": (CHRF.title, 2),
    "off_target_fraction": ("off-target", 1),
    "nll": (NLL.title, NLL.decimals),
}
_NOTE = (
    "Neither a direction nor its reverse has training data. composed: the encoder's sets of a trained direction from the "
    "same source, the decoder's of one into the same target; dense-neurons: all neurons. Means are unweighted over "
    "directions. NLL: lower is better."
)


def read_variants(folder: Path) -> dict[str, Evaluation]:
    """The evaluations of a folder, of the same directions, model and text; a dense model's has no composed sets."""
    found = {
        name: read_evaluation(folder / name) for name in VARIANTS if (folder / name / SCORES_JSON).is_file()
    }
    last = list(found.values())[-1:]
    return {
        name: of
        for name, of in found.items()
        if _but_for_neurons(of.signature) == _but_for_neurons(last[0].signature)
    }


def require_same_beside(folder: Path, wanted: Mapping[str, Any]) -> None:
    """That the other variant, if it is beside this one's folder, is of the same but for its neurons: one table has both.

    Raises:
        ArtifactError: if it is of other directions, text, weights, masks, or ways to translate.
    """
    for name in VARIANTS:
        beside = folder.parent / name
        if name != folder.name and (mark := beside / SIGNATURE).is_file():
            here = signature_in(mark, "signature of an evaluation")
            is_already_here(beside, _but_for_neurons(here or {}), _but_for_neurons(wanted), what="evaluation")


def _but_for_neurons(signed: Mapping[str, Any]) -> dict[str, Any]:
    made = without_additions(signed)
    parameters = dict(made.get("parameters") or {})
    flags = [*parameters.get("fairseq_flags", ())]
    if _NEURONS in flags:  # the flag and its value
        place = flags.index(_NEURONS)
        del flags[place : place + 2]
    return made | {"parameters": parameters | {"fairseq_flags": flags}}


def members(
    scores: Sequence[DirectionScore], families: Mapping[str, str]
) -> Iterator[tuple[str, list[DirectionScore]]]:
    """Groups of directions: all, within and between families, and by source and target; none is empty."""

    def is_within(of: Direction) -> bool | None:
        both = {family_of(code, families) for code in (of.source, of.target)}
        return None if UNKNOWN in both else len(both) == 1

    groups = {
        "all": list(scores),
        "within a family": [s for s in scores if is_within(s.direction)],
        "between families": [s for s in scores if is_within(s.direction) is False],
    }
    for side, word in (("source", "from"), ("target", "into")):
        for code in dict.fromkeys(getattr(s.direction, side) for s in scores):
            groups[f"{word} {code}"] = [s for s in scores if getattr(s.direction, side) == code]
    return ((name, of) for name, of in groups.items() if of)


def _rows(variants: Mapping[str, Evaluation]) -> list[tuple[str, int, dict[tuple[str, str], float | None]]]:
    """Name, how many directions, and the figures of every group, then of every direction."""
    first = next(iter(variants.values()))
    scores = {name: {s.direction: s for s in of.scores} for name, of in variants.items()}
    groups = [*members(first.scores, first.families), *((str(s.direction), [s]) for s in first.scores)]
    rows = []
    for name, of_group in groups:
        figures: dict[tuple[str, str], float | None] = {}
        for key in _FIGURES:
            for variant, by_direction in scores.items():
                values = [getattr(by_direction[s.direction], key) for s in of_group]
                figures[key, variant] = None if None in values else fmean(values)
        rows.append((name, len(of_group), figures))
    return rows


def _cell(key: str, value: float | None) -> Cell:
    decimals = _FIGURES[key][1]
    return percent(value, decimals) if key.endswith("fraction") else fixed(value, decimals)


def _columns(variants: Mapping[str, Evaluation]) -> list[tuple[str, str]]:
    """Figure and variant; a figure that no direction has, as the likelihood that was not measured, is left out."""
    measured = [
        key
        for key in _FIGURES
        if any(getattr(s, key) is not None for of in variants.values() for s in of.scores)
    ]
    return [(key, variant) for key in measured for variant in variants]


def tables(variants: Mapping[str, Evaluation]) -> tuple[Table, Table]:
    """Of the groups, and of the directions: a column for each figure and variant."""
    columns = _columns(variants)
    header = [f"{_FIGURES[key][0]}, {variant}" for key, variant in columns]
    rows: list[list[Cell]] = []
    for name, number, figures in _rows(variants):
        rows.append([name, number, *(_cell(of[0], figures[of]) for of in columns)])
    directions = len(next(iter(variants.values())).scores)
    return (
        Table(("mean over", "directions", *header), rows[:-directions]),
        Table(("direction", *header), [[row[0], *row[2:]] for row in rows[-directions:]]),
    )


def write_table(folder: Path) -> None:
    """Write ``zero-shot.csv`` and ``zero-shot.md`` beside the evaluations of a folder."""
    variants = read_variants(folder)
    groups, directions = tables(variants)
    columns = _columns(variants)
    header = ("mean over", "directions", *(f"{key} {variant}" for key, variant in columns))
    rows = [[name, number, *(figures[of] for of in columns)] for name, number, figures in _rows(variants)]
    write_text(folder / TABLE_CSV, csv_text(header, rows))
    parts = [
        *("# Zero-shot directions", _NOTE),
        *(markdown_table(table.header, table.rows) for table in (groups, directions)),
    ]
    write_text(folder / TABLE_MD, "\n\n".join(parts) + "\n")


def section(folders: Mapping[str, Path]) -> Section:
    """Of a report: the means of every system, and each one's directions folded."""
    by_system = {name.removeprefix("zero-shot/"): read_variants(path) for name, path in folders.items()}
    means = []
    for system, variants in by_system.items():
        for variant in variants:
            _, number, figures = _rows({variant: variants[variant]})[0]
            means.append([system, variant, number, *(_cell(key, figures[key, variant]) for key in _FIGURES)])
    header = ("system", "neurons", "directions", *(title for title, _ in _FIGURES.values()))
    sections = []
    for system, variants in by_system.items():
        groups, directions = tables(variants)
        sections.append(Section(f"{system}, zero-shot", [groups, directions], is_folded=True))
    return Section("Zero-shot directions", [Paragraph(_NOTE), Table(header, means)], sections)
