"""Differences as tables: score with its deviation, difference, interval, p, wins and losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from neuron_spec.directions import GROUPS
from neuron_spec.pages.page import Table
from neuron_spec.pages.tables import Cell, bounds, shown_p, signed
from neuron_spec.scoring.comparison import Difference
from neuron_spec.statistics import OverSeeds

_ARROWS = {group.code: group.arrow for group in GROUPS}


def spread(of: OverSeeds) -> Cell:
    """``16.5``, or ``16.5 ± 0.3`` over several seeds."""
    return of.mean if of.std is None else f"{of.mean:.1f} ± {of.std:.1f}"


def signed_spread(of: OverSeeds) -> str:
    """``+0.25``, or ``+0.25 ± 0.10`` over several seeds."""
    return f"{of.mean:+z.2f}" + ("" if of.std is None else f" ± {of.std:.2f}")


def group_cells(kind: str, name: str, group: str) -> list[Cell]:
    """What a mean is over: a tier, a family or all languages; and of which directions."""
    return ["all languages" if kind in ("overall", "group") else name, _ARROWS.get(group, group)]


def difference_cells(row: Difference) -> list[Cell]:
    """Difference in BLEU, interval and p; unknown ones are None."""
    return [
        signed(row.difference),
        None if row.low is None or row.high is None else bounds(row.low, row.high),
        None if row.p_value is None else shown_p(row.p_value),
    ]


def difference_table(
    baseline: str, rows: Sequence[Difference], further: Mapping[str, Sequence[Cell]] | None = None
) -> Table:
    """A line for each system.

    Args:
        further: name of a column -> its cells.
    """
    further = further or {}
    lines = [
        [
            row.system,
            spread(OverSeeds(row.bleu, row.bleu_std)),
            row.chrf,
            *difference_cells(row),
            row.wins,
            row.losses,
        ]
        for row in rows
    ]
    header = (
        "system",
        "BLEU",
        "chrF++",
        f"BLEU - {baseline}",
        "95% interval",
        "p",
        "wins",
        "losses",
        *further,
    )
    return Table(header, [[*line, *cells] for line, *cells in zip(lines, *further.values(), strict=True)])


def values_of(row: Difference, columns: Mapping[str, str]) -> dict[str, Any]:
    """Some fields of a row, as files name them: name in the file -> field."""
    return {name: getattr(row, field) for name, field in columns.items()}
