"""The page of systems: ``systems.md``, ``.csv`` and ``.json``."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from neuron_spec.artifacts import write_json, write_text
from neuron_spec.pages.page import Bullets, Page, Section, Table, as_markdown
from neuron_spec.pages.tables import Cell, csv_text
from neuron_spec.scoring.comparison_files import difference_table
from neuron_spec.studies.systems.measure import Cost, Systems

SYSTEMS = "systems"  # .md, .csv, .json

# Of a system's scores, in the CSV and the JSON: name -> field.
_SCORES = {
    **{"bleu": "bleu", "chrf": "chrf", "bleu_difference": "difference"},
    **{name: name for name in ("low", "high", "p_value", "wins", "losses")},
}


def write_systems(output: Path, systems: Systems) -> Path:
    """Write ``systems.csv``, ``.json`` and, last, ``.md``, whose path is returned."""
    scores = {name: row.values(_SCORES) for name, row in systems.scores.items()}
    lines = [
        [name, *map(_rounded, [*values.values(), *asdict(systems.costs[name]).values()])]
        for name, values in scores.items()
    ]
    header = ["system", *_SCORES, *(field.name for field in fields(Cost))]
    write_text(output / f"{SYSTEMS}.csv", csv_text(header, lines))
    write_json(output / f"{SYSTEMS}.json", {**asdict(systems), "scores": scores})
    table = difference_table(systems.baseline, list(systems.scores.values()))
    sections = [
        Section("Scores", [table]),
        Section("Costs", [_cost_table(systems), Bullets(_notes(systems))]),
    ]
    write_text(output / f"{SYSTEMS}.md", as_markdown(Page("Systems", [], sections)))
    return output / f"{SYSTEMS}.md"


def _rounded(cell: Any) -> Any:
    return round(cell, 6) if isinstance(cell, float) else cell


def _cost_table(systems: Systems) -> Table:
    parameters = systems.dense.parameters
    rows: list[list[Cell]] = [
        [
            name,
            f"{cost.parameters / parameters:.3f}",
            f"{cost.trained_parameters / parameters:.3f}",
            f"{cost.bytes_per_direction / 1000:.1f}",
            _shown(cost.extraction_seconds, ".1f"),
            _shown(cost.training_ratio, ".2f"),
            _shown(cost.generation_ratio, ".2f"),
            _shown(None if cost.peak_bytes is None else cost.peak_bytes / 1e6, ".0f"),
        ]
        for name, cost in systems.costs.items()
    ]
    header = (
        *("system", "parameters x dense", "trained x dense", "kB a direction", "extraction s"),
        *("training speed x dense", "generation speed x dense", "peak MB"),
    )
    return Table(header, rows)


def _shown(value: float | None, form: str) -> Cell:
    return None if value is None else format(value, form)


def _notes(systems: Systems) -> list[str]:
    dense = systems.dense
    notes = [
        f"Scores: means over {systems.directions} directions and {systems.seeds} seed(s). p: two-sided sign-flip test over "
        "directions. wins, losses: directions of all seeds where the difference is significant over sentences, after "
        "Holm's adjustment. comparison.md, beside, has all of it.",
        f"Dense: {dense.parameters:,} parameters. Tied ones are counted once; a bilingual system is all its models.",
        "kB a direction: the file of masks over its directions, the adapters' parameters over all directions, or a "
        "bilingual model's; none is in a dense model.",
        "Extraction: seconds of wall clock from the dense model to every direction's masks, fine-tuning of LaSS "
        "without its processes' starts. Not taken in turns: read it for its size.",
    ]
    if dense.training_tokens_per_s:
        notes.append(
            f"Speeds: medians of rounds taken in turns; dense trains {dense.training_tokens_per_s:,.0f} target tokens/s "
            f"and generates {dense.generation_tokens_per_s:,.0f} tokens/s. Dense continuation and bilingual models "
            "compute as the dense model, and have its figures. Peak: of two updates; on the CPU what the process "
            "grew by, on a GPU what torch allocated."
        )
    return notes
