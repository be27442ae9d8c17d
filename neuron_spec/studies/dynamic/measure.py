"""How masks moved in training, read from its log: see ``neuron_spec_dynamic`` for what it logs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from neuron_spec.artifacts import require_file

# Measure -> its panel's title. Logged as fractions, drawn in percent.
MEASURES = {
    "mask_churn": "churn, %",
    "mask_kept_fraction": "kept, %",
    "mask_overlap": "overlap of two directions, %",
}
_UPDATE = "num_updates"
# fairseq's formats simple (name=1.5) and json ("name": "1.5") in one; the means of an epoch are written otherwise.
_VALUE = re.compile(rf'\b({"|".join([_UPDATE, *MEASURES])})"?[=:] ?"?([-+.\de]+)')

# Measure -> update -> value, 0-1; a measure that was never logged is missing.
Curves = Mapping[str, Mapping[int, float]]


def read_churn(log: Path) -> Curves:
    """The measures of a training in the order of its updates; empty if its masks never moved.

    Of a training that was resumed, what was trained anew counts, and what it replaces does not.

    Raises:
        ArtifactError: if there is no log.
    """
    rows: dict[int, dict[str, float]] = {}
    with open(require_file(log, "training log"), encoding="utf-8", errors="replace") as lines:
        for line in lines:
            values = dict(_VALUE.findall(line))
            if len(values) < 2 or _UPDATE not in values:
                continue
            update = int(values.pop(_UPDATE))
            if rows and update <= max(rows):
                rows = {before: row for before, row in rows.items() if before < update}
            rows[update] = {name: float(value) for name, value in values.items()}
    curves = {name: {update: row[name] for update, row in rows.items() if name in row} for name in MEASURES}
    return {name: curve for name, curve in curves.items() if curve}
