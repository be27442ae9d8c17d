"""Tests of whether what is alike follows families, or the overlap of sets, as every page shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from neuron_spec.pages.page import Block, Paragraph, Section, Table, not_computed
from neuron_spec.pages.tables import Cell, shown_p, signed

FAMILY_HEADER = ("same family", "other families", "p")  # of `family_cells`
FAMILY_P = "p: the share of all ways to deal families out, or of random ones, that separate at least as well; one-sided."


def family_cells(test: Mapping[str, Any] | None, decimals: int) -> list[Cell]:
    """Same family, other families and p, of a test that may be missing."""
    if test is None or test["reason"]:
        return [None, None, None]
    return [signed(test["same"], decimals), signed(test["other"], decimals), p_of(test)]


def p_of(test: Mapping[str, Any]) -> Cell:
    """None where nothing could be computed."""
    return None if test["p"] is None else shown_p(test["p"])


def overlap_tests(tests: Mapping[str, Mapping[str, Any]], what: str) -> list[Section]:
    """Whether ``what`` rises with the overlap of the sets, of each kind of directions; nothing without sets."""
    if not tests:
        return []
    rows: Sequence[Sequence[Cell]] = [
        [kind, signed(test["correlation"]), p_of(test)] for kind, test in tests.items() if not test["reason"]
    ]
    blocks: list[Block] = []
    if rows:
        blocks = [
            Table(("directions", "rank correlation", "p"), rows),
            Paragraph(f"Mantel's test of the sets' IoU, mean over layers, with the {what}; one-sided."),
        ]
    blocks += not_computed((kind, test["reason"]) for kind, test in tests.items())
    return [Section(f"Overlap of the sets and {what}", blocks, is_folded=True)]
