"""The verdict's page: answers in a table, and what they rest on; the validations of the trainings as figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from matplotlib.figure import Figure

from neuron_spec.artifacts import signature, write_json, write_text
from neuron_spec.pages.curves import Point, line_panels
from neuron_spec.pages.page import (
    Block,
    Bullets,
    Page,
    Paragraph,
    Picture,
    Section,
    Table,
    as_markdown,
    write_pictures,
)
from neuron_spec.pages.style import drawn, look
from neuron_spec.pages.tables import Cell, signed
from neuron_spec.scoring.comparison_files import interval_cell, signed_over_seeds, visible_cell
from neuron_spec.scoring.endpoints import BLEU, CHRF, NLL
from neuron_spec.scoring.systems import CONTINUATION
from neuron_spec.studies.verdict.measure import (
    FLAT,
    GAIN,
    INTERFERENCE,
    LONG,
    NOTHING_TO_GAIN,
    RULES,
    TO_GAIN,
    Outcome,
    Outcomes,
    Trainings,
    conclusions,
)

VERDICT = "verdict"  # .md, .json, and .png, .svg of stage 2
STAGE_1 = "stage-1"  # .png, .svg

_LENGTHS = {"": "stage 2", LONG: "stage 2, longer"}


def write_verdict(output: Path, outcomes: Outcomes, trainings: Trainings) -> Path:
    """Write the figures, ``verdict.json`` and, last, ``verdict.md``, whose path is returned."""
    plain = {
        "signature": signature(
            VERDICT,
            inputs=outcomes.inputs,
            parameters={
                "nats": {
                    "flat": FLAT,
                    "interference": INTERFERENCE,
                    "to_gain": TO_GAIN,
                    "nothing_to_gain": NOTHING_TO_GAIN,
                    "gain": GAIN,
                }
            },
        ),
        "conclusions": conclusions(outcomes),
        "outcomes": [asdict(row) for row in outcomes.rows],
        "trainings": asdict(trainings),
    }
    write_json(output / f"{VERDICT}.json", plain)
    figures = _figures(trainings)
    write_pictures(output, figures)
    write_text(output / f"{VERDICT}.md", as_markdown(_page(outcomes, trainings, figures), figures=""))
    return output / f"{VERDICT}.md"


def _page(outcomes: Outcomes, trainings: Trainings, figures: list[Picture]) -> Page:
    answered = [row for row in outcomes.rows if row.question]
    further = [row for row in outcomes.rows if not row.question]
    blocks: list[Block] = []
    if found := conclusions(outcomes):
        blocks.append(Bullets([f"**{sentence}**" for sentence in found]))
    if answered:
        blocks.append(_table(answered))
    else:
        asked = ", ".join(f"{system} - {baseline}" for baseline, system in RULES)
        blocks.append(
            Paragraph(f"No rule is for what was compared: they are for {asked}, by name, k and length apart.")
        )
    if any(len(row.seeds) == 1 for row in outcomes.rows):
        blocks.append(
            Paragraph(
                "One seed, where no more are shown: what training again would change is in none of this."
            )
        )
    if disagreements := [_disagreement(row) for row in outcomes.rows if row.disagree]:
        blocks += [Paragraph("Endpoints that disagree in sign with what decides:"), Bullets(disagreements)]
    sections = [Section("What else was compared", [_table(further)])] if further else []
    if trainings.dense:
        sections.append(Section("May stage 2 start?", [_stage_1(trainings), *figures[:1]]))
    if figures[1:]:
        sections.append(Section("Over training", figures[1:]))
    sections.append(Section("How to read this", [Bullets(_notes(outcomes))]))
    return Page("Does specialization help, and when?", blocks, sections)


def _table(rows: list[Outcome]) -> Table:
    columns: dict[str, list[Cell]] = {
        "question": [row.question for row in rows],
        "system - baseline": [f"{row.system} - {row.baseline}" for row in rows],
        "answer": [row.reading for row in rows],
        f"{NLL.title}, nats": [signed_over_seeds(row.nll, NLL) for row in rows],
        "each seed": [", ".join(f"{value:+z.{NLL.decimals}f}" for value in row.seeds) for row in rows],
        "95 % interval": [interval_cell(row.over_sentences, NLL) for row in rows],
        "smallest visible": [visible_cell(row.over_sentences, NLL) for row in rows],
        "t over seeds": [interval_cell(row.over_seeds, NLL) for row in rows],
        "smallest visible over seeds": [visible_cell(row.over_seeds, NLL) for row in rows],
        BLEU.title: [signed_over_seeds(row.bleu, BLEU) for row in rows],
        CHRF.title: [signed_over_seeds(row.chrf, CHRF) for row in rows],
    }
    known = {name: cells for name, cells in columns.items() if any(cell is not None for cell in cells)}
    return Table(list(known), list(zip(*known.values(), strict=True)))


def _disagreement(row: Outcome) -> str:
    figures = {
        BLEU.title: signed_over_seeds(row.bleu, BLEU),
        CHRF.title: signed_over_seeds(row.chrf, CHRF),
    }
    of_texts = " and ".join(f"{figures[title]} {title}" for title in row.disagree)
    return f"{row.system} - {row.baseline}: {signed_over_seeds(row.nll, NLL)} nats, but {of_texts}"


def _stage_1(trainings: Trainings) -> Table:
    rows: list[list[Cell]] = []
    for seed, curve in trainings.dense.items():
        bought = trainings.last_tenth(seed)
        may = None if bought is None else "yes" if bought < FLAT else "no"
        change = None if bought is None else signed(-bought, 3)
        rows.append([seed, max(curve), f"{curve[max(curve)]:.3f}", change, may])
    header = ("seed", "updates", f"{NLL.title} of validation text", "of which the last tenth", "flat")
    return Table(header, rows)


def _notes(outcomes: Outcomes) -> list[str]:
    return [
        f"{NLL.title}: {NLL.unit}; a negative difference is a gain. It decides; BLEU and chrF++ stand beside it.",
        "Means over all directions of a comparison, and over its seeds; ±: standard deviation over seeds. "
        "95 % interval: of one joint draw of sentences for all directions and seeds. Smallest visible: a true "
        "difference that such a comparison sees in 80 % of cases.",
        f"Interference: yes where the dense model is worse than bilingual ones by {INTERFERENCE:g} or more, no at 0 or "
        f"below; bilingual ones together have more parameters too, so that a yes may be for want of room. "
        f"Something to gain: yes where the ceiling is at {TO_GAIN:g} or below, no at {NOTHING_TO_GAIN:g} or above. "
        f"A gain: yes at {GAIN:g} or below in every seed, no at 0 or above in the mean. A control is worse where it is so "
        "in every seed. Anything between is undecided. These bounds were fixed before anything that they judge was trained.",
        f"Flat: the last tenth of stage 1 bought less than {FLAT:g} nats on validation text.",
    ]


def _figures(trainings: Trainings) -> list[Picture]:
    figures = []
    if trainings.dense:
        figures.append(
            drawn(STAGE_1, "Stage 1: likelihood of validation text over updates", dense_curves(trainings))
        )
    if against := trainings.against_continuation():
        caption = "Stage 2: validation text, minus dense continuation's"
        figures.append(drawn(VERDICT, caption, continued_curves(against)))
    return figures


def dense_curves(trainings: Trainings) -> Figure:
    """NLL of the validation text in nats a token over the updates of stage 1, a line per seed."""
    lines = {
        seed: {float(update): Point(value) for update, value in curve.items()}
        for seed, curve in trainings.dense.items()
    }
    return line_panels(
        [{f"{NLL.title}, nats a token": lines}], title="Stage 1: validation text", label="updates"
    )


def continued_curves(against: Mapping[str, Mapping[str, Mapping[int, float]]]) -> Figure:
    """A panel per length of stage 2, a line per system: NLL minus dense continuation's over updates."""
    panels = {
        _LENGTHS[length]: {
            system.removesuffix(LONG): {float(update): Point(value) for update, value in curve.items()}
            for system, curve in systems.items()
        }
        for length, systems in against.items()
    }
    names = dict.fromkeys(name for lines in panels.values() for name in lines)
    return line_panels(
        [panels],
        title=f"{NLL.title} of validation text minus {CONTINUATION}'s, nats; below 0: better",
        label="updates",
        looks={name: look(number) for number, name in enumerate(names)},
        zero="line",
    )
