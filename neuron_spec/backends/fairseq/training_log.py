"""What ``fairseq-train`` logged, with ``--log-format simple`` or ``json``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from neuron_spec.artifacts import require_file

_UPDATE = "num_updates"

# Of a measure: update -> value.
Curve = dict[int, float]


def read_log(log: Path, measures: Iterable[str], kind: Literal["train_inner", "valid"]) -> dict[str, Curve]:
    """The measures of a training in the order of its updates; what was never logged is missing.

    Of a training that was resumed, what was trained anew counts, and what it replaces does not.

    Args:
        kind: of the lines that are read.

    Raises:
        ArtifactError: if there is no log.
    """
    measures = list(measures)
    # name=1.5, "name": "1.5", "valid_name": "1.5" and name 1.5 in one.
    value = re.compile(rf'\b(?:valid_)?({"|".join([_UPDATE, *measures])})"?(?:[=:] ?"?| )([-+.\de]+)')
    rows: dict[int, dict[str, float]] = {}
    with open(require_file(log, "training log"), encoding="utf-8", errors="replace") as lines:
        for line in lines:
            values = dict(value.findall(line)) if f"| {kind} |" in line else {}
            if len(values) < 2 or _UPDATE not in values:
                continue
            update = int(values.pop(_UPDATE))
            if rows and update <= max(rows):
                rows = {before: row for before, row in rows.items() if before < update}
            rows[update] = {name: float(of) for name, of in values.items()}
    curves = {name: {update: row[name] for update, row in rows.items() if name in row} for name in measures}
    return {name: curve for name, curve in curves.items() if curve}
