"""The sets of a run: how sparse they are and how far they overlap, as `studies.analysis` has it of each seed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from neuron_spec.languages import UNKNOWN
from neuron_spec.neurons.choices import METHODS
from neuron_spec.pages.page import Paragraph, Picture, Section, Table, plain
from neuron_spec.pages.style import drawn
from neuron_spec.pages.tables import counted
from neuron_spec.report.run_folder import Run, Seed
from neuron_spec.studies.analysis.measure import Question, analyze
from neuron_spec.studies.analysis.page import (
    CAPTIONS,
    Analyses,
    draw,
    dropped_table,
    known,
    left_out,
    overlap_blocks,
    what_is_compared,
)


def sets(run: Run) -> list[Section]:
    analyses = [analyze(Question(seed.masks, families=run.families), {}) for seed in run.seeds]
    dropped = dropped_table(analyses)
    overlap = [*what_is_compared(analyses[0]), *overlap_blocks(analyses)]
    if finding := _finding(analyses):
        overlap.append(Paragraph(finding))
    if any(len(of["compared"]["directions"]) > 1 for of in analyses[0]["sides"].values()):
        overlap += [picture for seed in run.seeds for picture in _figures(run, seed, "overlap")]
        overlap += [*_figures(run, run.seeds[0], "dendrogram", "iou"), *left_out(analyses[0])]
    return [
        Section(
            "Specialized neurons",
            [_how_selected(run, dropped), dropped, *_figures(run, run.seeds[0], "sparsity")],
        ),
        Section("Overlap of the sets", overlap),
    ]


def of_first_seed(run: Run) -> str:
    """What a caption says besides, where there are others."""
    return f"; seed {run.seeds[0].number}" if len(run.seeds) > 1 else ""


def _figures(run: Run, seed: Seed, *names: str) -> list[Picture]:
    is_first = seed is run.seeds[0]
    end, of = ("", of_first_seed(run)) if is_first else (f"-seed-{seed.number}", f"; seed {seed.number}")
    figures = draw(Question(seed.masks, families=run.families), names)
    return [drawn(f"{name}{end}", f"{CAPTIONS[name]}{of}", figure) for name, figure in figures.items()]


def _how_selected(run: Run, dropped: Table) -> Paragraph:
    metadata = run.seeds[0].masks.metadata
    method = str(metadata.get("method", UNKNOWN))
    ks = sorted({k for side in metadata.get("k_percent", {}).values() for k in side.values()})
    text = f"Sets by *{plain(method)}*: {METHODS.get(method, 'not made by neuron-spec select')}"
    text += f"; k = {', '.join(f'{k:g}' for k in ks)}. " if ks else ". "
    if all(row[-1] == 0 for row in dropped.rows):
        text += "No direction drops any neuron: specialization changes nothing here. "
    over = "the directions of a group" + (" and seeds" if len(run.seeds) > 1 else "")
    return Paragraph(text + f"The table has the neurons dropped in percent, over {over}.")


def _finding(analyses: Analyses) -> str:
    """Whether families overlap more, over all layers; empty where no layer tells."""
    differences, adjusted, smallest = [], [], 0.0
    for side, of_side in analyses[0]["sides"].items():
        families = [analyses[0]["languages"][code]["family"] for code in of_side["compared"]["languages"]]
        for layer, of_layer in of_side["layers"].items():
            tests = [of["sides"][side]["layers"][layer]["families"] for of in analyses]
            if values := known(tests, "difference_percent"):
                differences.append(fmean(values))
                of_adjusted = [of["sides"][side]["layers"][layer]["adjusted"]["families"] for of in analyses]
                adjusted += [fmean(each) for each in [known(of_adjusted, "difference_percent")] if each]
                smallest = max(smallest, _smallest_p(of_layer["families"], families))
    if not differences:
        return ""
    text = f"Languages of one family overlap more than others in {_more(differences)} of IoU"
    if adjusted:
        text += f"; by adjusted IoU in {_more(adjusted)}"
    return text + (f". With so few languages, p cannot be below {smallest:.3f}." if smallest > 0.001 else ".")


def _more(differences: Sequence[float]) -> str:
    return (
        f"{sum(value > 0 for value in differences)} of {counted(len(differences), 'layer')}, the difference being "
        f"{min(differences):+.1f} to {max(differences):+.1f} points"
    )


def _smallest_p(test: Mapping[str, Any], families: Sequence[str]) -> float:
    """That of the true families: relabellings that only swap families of one size do as well as they."""
    if not test["is_exact"]:
        return 1 / (1 + test["relabellings"])
    sizes = Counter(Counter(name for name in families if name != UNKNOWN).values())
    return math.prod(map(math.factorial, sizes.values())) / test["relabellings"]
