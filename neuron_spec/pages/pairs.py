"""Numbers and tables of pairs of directions, as several studies show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from neuron_spec.pages.tables import Cell, markdown_table, shown_p, signed

FAMILY_HEADER = ("same family", "other families", "p")  # of `family_cells`


def families_table(found: Mapping[str, Mapping[str, Mapping[str, Any]]], decimals: int = 2) -> str:
    rows: list[list[Cell]] = []
    reasons: dict[str, None] = {}
    for name, kinds in found.items():
        for kind, own in kinds.items():
            if own["reason"]:
                reasons[f"- {kind}: {own['reason']}"] = None
            else:
                rows.append(
                    [name, kind, signed(own["same"], decimals), signed(own["other"], decimals), p_of(own)]
                )
    text = ""
    if rows:
        text = markdown_table(("", "directions", "same family", "other families", "p"), rows)
        text += (
            "\n\np: the share of all ways to deal families out, or of random ones, that separate at least as "
            "well; one-sided. Of a pair, the mean of both ways."
        )
    return text + ("\n\nNot computed:\n\n" + "\n".join(reasons) if reasons else "")


def overlap_table(found: Mapping[str, Mapping[str, Any]], what: str) -> str:
    rows: list[list[Cell]] = [
        [kind, signed(own["correlation"]), p_of(own)] for kind, own in found.items() if not own["reason"]
    ]
    reasons = [f"- {kind}: {own['reason']}" for kind, own in found.items() if own["reason"]]
    text = f"## Overlap of the sets and {what}\n\n"
    if rows:
        text += markdown_table(("directions", "rank correlation", "p"), rows)
        text += f"\n\nMantel's test of the sets' IoU, mean over layers, with the {what}; one-sided."
    return text + ("\n\nNot computed:\n\n" + "\n".join(reasons) if reasons else "")


def how(command: str, made: Mapping[str, Any], csv_name: str, json_name: str) -> str:
    inputs = markdown_table(
        ("made from", "sha256"), [[name, str(value)] for name, value in made["inputs"].items()]
    )
    parameters = ", ".join(
        f"{name} {value}"
        for name, value in made["parameters"].items()
        if isinstance(value, (str, int, float))
    )
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    return (
        f"`neuron-spec {command}`, {parameters}. Every pair: `{csv_name}`; numbers in full: `{json_name}`."
        f"\n\n{inputs}\n\nVersions: {versions}."
    )


def square_table(names: Sequence[str], matrix: Tensor) -> dict[str, dict[str, float | None]]:
    return {
        name: dict(zip(names, plain_values(row), strict=True))
        for name, row in zip(names, matrix, strict=True)
    }


def plain_values(values: Tensor) -> list[float | None]:
    """JSON knows no NaN."""
    return [None if value != value else value for value in values.tolist()]


def mean_known(values: Tensor) -> float | None:
    known = values[~values.isnan()]
    return known.mean().item() if len(known) else None


def p_of(test: Mapping[str, Any]) -> Cell:
    if test["p"] is None:
        return None
    return f"{test['p']:.4f}" if test["is_exact"] else f"{test['p']:.4f} (random)"


def family_cells(test: Mapping[str, Any] | None, decimals: int) -> list[Cell]:
    """Same family, other families and p, of a test that may be missing."""
    if test is None or test["reason"]:
        return [None, None, None]
    return [signed(test["same"], decimals), signed(test["other"], decimals), shown_p(test["p"])]
