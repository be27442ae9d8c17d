"""Numbers and figures as every section shows them."""

from __future__ import annotations

from collections.abc import Sequence

from neuron_spec.pages.tables import Cell, shown_p
from neuron_spec.report.run_folder import Run
from neuron_spec.statistics import OverSeeds


def mean_score(values: Sequence[float]) -> Cell:
    if not values:
        return None
    of = OverSeeds.of(values)
    return of.mean if of.std is None else f"{of.mean:.1f} ± {of.std:.1f}"


def difference(of: OverSeeds) -> str:
    return f"{of.mean:+z.2f}" + ("" if of.std is None else f" ± {of.std:.2f}")


def bounds(low: float, high: float) -> str:
    return f"{low:+z.2f} to {high:+z.2f}"


def p_value(value: float, *, sign: bool = False) -> str:
    text = shown_p(value)
    return text if not sign else f"\\< {text[1:]}" if text[0] == "<" else f"= {text}"


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def of_first_seed(run: Run) -> str:
    return f"; seed {run.seeds[0].number}" if len(run.seeds) > 1 else ""
