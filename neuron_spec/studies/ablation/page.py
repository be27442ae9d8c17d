"""An ablation's folder and section: whether a direction loses more by its own neurons than by those of others."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch

from neuron_spec.languages import family_of
from neuron_spec.pages.heatmap import loss_increase_heatmap
from neuron_spec.pages.page import Block, Paragraph, Picture, Section, Table
from neuron_spec.pages.study_page import (
    FAMILY_FORM,
    FAMILY_HEADER,
    FAMILY_P,
    KNOWN,
    StudyPage,
    family_cells,
    form,
    loss_said,
    p_of,
    reasons_of,
)
from neuron_spec.pages.tables import Cell, csv_text, signed

if TYPE_CHECKING:  # a report starts without fairseq
    from neuron_spec.studies.ablation.measure import Ablation


_ABOUT = (
    "What a direction loses when the neurons of each set in turn emit nothing, for all directions alike: the rise of "
    "its loss, in nats per token. If the sets are functional, a direction loses most by its own.",
    "*Own*, *others*: mean rise of the loss without a direction's own neurons, and without those of another direction "
    "of the group; *own is largest*: for how many directions all other sets of the group cost less. p: the share of all "
    "ways to deal the group's sets out, or of random ones, that cost at least as much as the true one; one-sided, and "
    "untouched by sets that matter to all or directions that suffer from any. *Random*: as many random neurons of each "
    "layer. *Remaining sets*: those of directions of another group, or, of sets per language, English's.",
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
        partial(family_of, families=ablation.families),
    )
    numbers = {"switched_off": dict(switched_off), **summarize(ablation, seed=seed)}
    return PAGE.write(folder, numbers, made, {"ablation": figure}, as_csv(ablation))


def as_csv(ablation: Ablation) -> str:
    """One line per evaluated direction and what was switched off."""
    names = ["nothing", *ablation.owners]
    names += [f"random-{number}" for number in range(1, 1 + len(ablation.without_random))]
    losses = torch.cat([ablation.intact[None], ablation.without, ablation.without_random])
    rows: list[tuple[object, ...]] = []
    for direction, row, nats in zip(ablation.directions, ablation.own, losses.T.tolist(), strict=True):
        owner = None if row is None else ablation.owners[row]
        for name, loss in zip(names, nats, strict=True):
            rows.append((direction, name, int(name == owner), f"{loss:.6f}", f"{loss - nats[0]:.6f}"))
    return csv_text(("direction", "switched_off", "is_own", "nats_per_token", "change"), rows)


def _show(content: Mapping[str, Any], pictures: Mapping[str, Picture]) -> Section:
    parameters, groups = content["signature"]["parameters"], content["groups"]
    what = "the distinctive neurons of each set" if parameters["ablate"] == "distinctive" else "whole sets"
    text = f"Switched off: {what}."
    if parameters["checkpoint"] == "specialized":
        text += (
            " The checkpoint is specialized: a direction runs without the neurons that it drops anyway, so that the sets "
            "of others can cost it little."
        )
    rows: list[list[Cell]] = []
    for name, group in groups.items():
        n, largest = len(group["directions"]), group["own_is_largest"]
        rows.append(
            [
                name,
                n,
                *(signed(group[key], 3) for key in ("own", "others", "random")),
                None if largest is None else f"{largest} of {n}",
                p_of(group),
                signed(group["other_rows"], 3),
                f"{fmean(content['intact'][direction] for direction in group['directions']):.3f}",
            ]
        )
    header = ("evaluated", "directions", "own", "others", "random", "own is largest", "p", "remaining sets")
    blocks: list[Block] = [
        Paragraph(text),
        loss_said(content["signature"]),
        Table((*header, "intact loss"), rows),
        *reasons_of(groups),
        *pictures.values(),
    ]

    tests = {name: group["families"] for name, group in groups.items() if group["families"]}
    relatives: list[Block] = [
        Table(
            ("evaluated", *FAMILY_HEADER), [[name, *family_cells(test, 3)] for name, test in tests.items()]
        ),
        Paragraph(f"Mean rise of the loss without the neurons of another language; {FAMILY_P}"),
        *reasons_of(tests),
    ]
    if not tests:
        relatives = [Paragraph("Not computed: see above.")]

    layers: list[list[Cell]] = []
    for layer, of in content["switched_off"].items():
        holders = of["held_by_others"].values()
        spread = [fmean(holders), f"{min(holders):.1f}-{max(holders):.1f}"] if holders else [None, None]
        layers.append([layer, of["neurons"], of["switched_off"], *spread])
    text = (
        "Of each set, mean. *Held by other sets*: by how many of them a neuron that is switched off is held, mean over "
        "owners; the fewer, the more distinctive."
    )
    table = Table(("layer", "neurons", "switched off", "held by other sets", "least-most"), layers)
    return Section(
        "",
        blocks,
        [
            Section("By the sets of relatives", relatives, is_folded=True),
            Section("Neurons switched off", [Paragraph(text), table], is_folded=True),
        ],
    )


_GROUP = {
    **dict.fromkeys(("own", "others", "random", "p", "other_rows"), KNOWN),
    "own_is_largest": (int, None),
    "directions": [str, 1],
    "families": (FAMILY_FORM, None),
    "reason": (str, None),
}
_LAYER = {"neurons": int, "switched_off": float, "held_by_others": {str: float}}
PAGE = StudyPage(
    name="ablation",
    title="Ablation",
    csv="ablation.csv",
    csv_holds="loss",
    show=_show,
    about=_ABOUT,
    captions={"ablation": "Loss increase of every direction without each set's neurons"},
    form=form(
        {"groups": {str: _GROUP}, "intact": {str: float}, "switched_off": {str: _LAYER}},
        ablate=str,
        checkpoint=str,
    ),
    picture_name="{figure}-{folder}",
)
section = PAGE.section
