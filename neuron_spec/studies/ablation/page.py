"""An ablation's folder and section: whether a direction loses more by its own neurons than by those of others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuron_spec.pages.family_tests import FAMILY_HEADER, FAMILY_P, family_cells, p_of
from neuron_spec.pages.heatmap import loss_increase_heatmap
from neuron_spec.pages.page import Block, Paragraph, Picture, Section, Table, not_computed
from neuron_spec.pages.study_page import StudyPage
from neuron_spec.pages.style import drawn
from neuron_spec.pages.tables import Cell, csv_text, signed

if TYPE_CHECKING:  # a report starts without fairseq
    from neuron_spec.studies.ablation.measure import Ablation

ABLATION_JSON = "ablation.json"
ABLATION_TABLE = "ablation.md"
FIGURE = "ablation"
CAPTION = "Loss increase of every direction without each set's neurons"

_ABOUT = (
    "What a direction loses when the neurons of each set in turn emit nothing, for all directions alike: the rise of "
    "its loss, in nats per target token. If the sets are functional, a direction loses most by its own.",
    "*Own*, *others*: mean rise of the loss without a direction's own neurons, and without those of another direction "
    "of the group; *own is largest*: for how many directions all other sets of the group cost less. p: the share of all "
    "ways to deal the group's sets out, or of random ones, that cost at least as much as the true one; one-sided, and "
    "untouched by sets that matter to all or directions that suffer from any. *Random*: as many random neurons of each "
    "layer. *Remaining sets*: those of directions of another group, or, of sets per language, English's.",
)
_SPECIALIZED = (
    "The checkpoint is specialized: a direction runs without the neurons that it drops anyway, so that the "
    "sets of others can cost it little."
)


def write_ablation(
    folder: Path, ablation: Ablation, switched_off: Mapping[str, Any], made: Mapping[str, Any], *, seed: int
) -> Path:
    """Write figure, ``ablation.csv``, ``ablation.md`` and, last, ``ablation.json``: the mark of completeness.

    Args:
        switched_off: layer -> ``neurons`` (the width), ``switched_off`` (of each owner, mean) and
            ``held_by_others`` (owner -> by how many other sets such a neuron is held, mean).
        made: the signature.
        seed: of random relabellings.
    """
    from neuron_spec.studies.ablation.measure import summarize

    figure = loss_increase_heatmap(
        ablation.change,
        ablation.random_change,
        ablation.owners,
        ablation.directions,
        ablation.own,
        ablation.family,
    )
    numbers = {"switched_off": dict(switched_off), **summarize(ablation, seed=seed)}
    return PAGE.write(folder, numbers, made, [drawn(FIGURE, CAPTION, figure)], as_csv(ablation))


def as_csv(ablation: Ablation) -> str:
    """One line per evaluated direction and what was switched off."""
    losses = [("nothing", ablation.intact), *zip(ablation.owners, ablation.without, strict=True)]
    losses += [(f"random-{number}", nats) for number, nats in enumerate(ablation.without_random, start=1)]

    def rows() -> Iterator[tuple[object, ...]]:
        for i, (direction, row) in enumerate(zip(ablation.directions, ablation.own, strict=True)):
            owner = None if row is None else ablation.owners[row]
            for name, nats in losses:
                loss, intact = nats[i].item(), ablation.intact[i].item()
                yield direction, name, int(name == owner), f"{loss:.6f}", f"{loss - intact:.6f}"

    return csv_text(("direction", "switched_off", "is_own", "nats_per_token", "change"), rows())


def _show(content: Mapping[str, Any], pictures: Mapping[str, Picture]) -> Section:
    parameters, groups = content["signature"]["parameters"], content["groups"]
    what = "the distinctive neurons of each set" if parameters["ablate"] == "distinctive" else "whole sets"
    text = f"Switched off: {what}. "
    if parameters["checkpoint"] == "specialized":
        text += _SPECIALIZED
    header = ("evaluated", "directions", "own", "others", "random", "own is largest", "p", "remaining sets")
    blocks: list[Block] = [
        Paragraph(text.strip()),
        Table((*header, "intact loss"), [_row(content, *each) for each in groups.items()]),
        *not_computed((name, group["reason"]) for name, group in groups.items()),
        *pictures.values(),
    ]
    return Section("", blocks, [_relatives(groups), _neurons(content["switched_off"])])


def _row(content: Mapping[str, Any], name: str, group: Mapping[str, Any]) -> list[Cell]:
    n = len(group["directions"])
    own, others, random, remaining = (
        signed(group[key], 3) for key in ("own", "others", "random", "other_rows")
    )
    largest = None if group["own_is_largest"] is None else f"{group['own_is_largest']} of {n}"
    intact = sum(content["intact"][direction] for direction in group["directions"]) / n
    return [name, n, own, others, random, largest, p_of(group), remaining, f"{intact:.3f}"]


def _relatives(groups: Mapping[str, Any]) -> Section:
    tests = {name: group["families"] for name, group in groups.items() if group["families"]}
    blocks: list[Block] = [
        Table(
            ("evaluated", *FAMILY_HEADER), [[name, *family_cells(test, 3)] for name, test in tests.items()]
        ),
        Paragraph(f"Mean rise of the loss without the neurons of another language; {FAMILY_P}"),
        *not_computed((name, test["reason"]) for name, test in tests.items()),
    ]
    return Section(
        "By the sets of relatives",
        blocks if tests else [Paragraph("Not computed: see above.")],
        is_folded=True,
    )


def _neurons(layers: Mapping[str, Any]) -> Section:
    rows: list[list[Cell]] = []
    for layer, of in layers.items():
        holders = list(of["held_by_others"].values())
        mean = sum(holders) / len(holders) if holders else None
        spread = f"{min(holders):.1f}-{max(holders):.1f}" if holders else None
        rows.append([layer, of["neurons"], of["switched_off"], mean, spread])
    text = (
        "Of each set, mean. *Held by other sets*: by how many of them a neuron that is switched off is held, mean over "
        "owners; the fewer, the more distinctive."
    )
    header = ("layer", "neurons", "switched off", "held by other sets", "least-most")
    return Section("Neurons switched off", [Paragraph(text), Table(header, rows)], is_folded=True)


PAGE = StudyPage(
    name="ablation",
    title="Ablation",
    csv="ablation.csv",
    csv_holds="loss",
    show=_show,
    about=[*map(Paragraph, _ABOUT)],
    captions={FIGURE: CAPTION},
    picture_name="{figure}-{folder}",
)
section = PAGE.section
