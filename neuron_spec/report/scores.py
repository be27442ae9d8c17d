"""Scores of each system, and which differences are more than chance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from neuron_spec.directions import Direction
from neuron_spec.languages import is_english
from neuron_spec.pages.page import Block, Paragraph, Section, Table, plain
from neuron_spec.pages.style import drawn
from neuron_spec.pages.tables import Cell, bounds, counted, shown_p
from neuron_spec.report.run_folder import Run
from neuron_spec.scoring import figures as score_figures
from neuron_spec.scoring.comparison import METRICS, Comparison, GroupComparison
from neuron_spec.scoring.comparison_files import group_cells, sections_of, spread
from neuron_spec.scoring.systems import SPECIALIZED
from neuron_spec.statistics import OverSeeds


def findings(comparisons: Mapping[Path, Comparison]) -> Iterator[str]:
    """A sentence about each difference of the specialized system, over all directions."""
    for comparison in comparisons.values():
        for row in comparison.groups:
            if (row.system, row.metric, row.kind) == (SPECIALIZED, "bleu", "overall"):
                yield _finding(comparison, row)


def _finding(comparison: Comparison, row: GroupComparison) -> str:
    directions = [r for r in comparison.directions if (r.system, r.metric) == (row.system, row.metric)]
    seeds = [
        fmean(of) for of in zip(*([seed.difference for seed in r.seeds] for r in directions), strict=True)
    ]
    details = []
    if row.difference.std is not None:
        details.append(
            f"{', '.join(f'{value:+z.2f}' for value in seeds)} in the {len(seeds)} seeds, standard deviation "
            f"{row.difference.std:.2f}"
        )
    if row.interval:
        details.append(f"95 % interval over directions {bounds(*row.interval)}")
    p = shown_p(row.p_value)
    details.append(f"p \\< {p[1:]}" if p[0] == "<" else f"p = {p}")
    won, lost = row.holm_results["win"], row.holm_results["loss"]
    if len(seeds) > 1:
        significant = (
            f"Of the {sum(row.holm_results.values())} pairs of direction and seed it is significantly better in "
            f"{won}, worse in {lost},"
        )
    elif won or lost:
        significant = f"In {counted(won, 'direction')} it is significantly better, in {lost} worse,"
    else:
        significant = "In no single direction is the difference significant"
    return (
        f"**{plain(row.system)} against {plain(comparison.baseline)}:** {row.difference.mean:+z.2f} BLEU over "
        f"{counted(row.directions, 'direction')} ({'; '.join(details)}). {significant} after Holm's adjustment. "
        + _verdict(row, seeds, comparison.alpha)
    )


def _verdict(row: GroupComparison, seeds: Sequence[float], alpha: float) -> str:
    """What the numbers allow to say, and no more."""
    word = "better" if row.difference.mean > 0 else "worse"
    if row.p_value >= alpha:
        return "Over directions this is not more than chance."
    over = f"Over directions like these it is {word} by more than chance"
    if len(seeds) == 1:
        return f"{over}, in this one training."
    if all(value > 0 for value in seeds) or all(value < 0 for value in seeds):
        return f"{over}, and all {len(seeds)} seeds agree on that."
    return f"{over} in the mean of these seeds, but they do not agree on which is better."


def scores(run: Run, comparisons: Mapping[Path, Comparison]) -> Section:
    is_one_seed = len(run.seeds) == 1
    spreads = "." if is_one_seed else "; ± is the standard deviation over seeds."
    texts = [f"Means are unweighted over directions{spreads}"]
    if not comparisons:
        texts.append(f"Only *{plain(run.systems[0])}* was evaluated: there is nothing to compare it with.")
    by_direction = {metric: _by_direction(run, metric) for metric in METRICS}
    means = {
        name: {direction: fmean(values) for direction, values in of_system.items()}
        for name, of_system in by_direction["bleu"].items()
    }
    figure = drawn(
        "scores",
        "BLEU of each system, per direction" + ("" if is_one_seed else ", mean over seeds"),
        score_figures.scores_bars(means, "BLEU", families=run.families),
    )
    details: dict[str, list[Block]] = {
        "chrF++, means": [_means(run, "chrf")],
        **{
            f"{title}, every direction": [_per_direction(run, title, by_direction[metric])]
            for metric, title in METRICS.items()
        },
        "Off-target and empty translations": [
            Paragraph("Off-target: identified as another language than the target's."),
            _faults(run),
        ],
    }
    return Section(
        "Scores",
        [*map(Paragraph, texts), _means(run, "bleu"), figure],
        [Section(title, blocks, is_folded=True) for title, blocks in details.items()],
    )


def _means(run: Run, metric: str) -> Table:
    """Of each group of directions, tier and family; a system with several seeds has their mean."""
    summaries = [
        [
            {(row.kind, row.name, row.group): row for row in seed.evaluations[name].summary}
            for seed in run.seeds
        ]
        for name in run.systems
    ]
    rows = [
        [
            *group_cells(*key),
            *(spread(OverSeeds.of([getattr(of[key], metric) for of in seeds])) for seeds in summaries),
            row.directions,
        ]
        for key, row in summaries[0][0].items()
        if all(key in of for seeds in summaries for of in seeds)
    ]
    return Table((f"{METRICS[metric]}: mean over", "group", *run.systems, "directions"), rows)


def _by_direction(run: Run, metric: str) -> dict[str, dict[str, list[float]]]:
    """System -> direction -> a score for each seed."""
    by_system: dict[str, dict[str, list[float]]] = {name: {} for name in run.systems}
    for seed in run.seeds:
        for name, evaluation in seed.evaluations.items():
            for score in evaluation.scores:
                by_system[name].setdefault(str(score.direction), []).append(getattr(score, metric))
    return by_system


def _per_direction(run: Run, title: str, by_system: Mapping[str, Mapping[str, Sequence[float]]]) -> Table:
    rows: list[list[Cell]] = []
    for direction in by_system[run.systems[0]]:
        of = Direction.parse(direction)
        foreign = [code for code in (of.source, of.target) if not is_english(code)]  # both where neither is
        families = dict.fromkeys(map(run.family, foreign))
        of_systems = [scores.get(direction) for scores in by_system.values()]
        cells = [spread(OverSeeds.of(of_seeds)) if of_seeds else None for of_seeds in of_systems]
        rows.append([direction, ", ".join(families), *cells])
    return Table(("direction", "family", *(f"{title}, {name}" for name in by_system)), rows)


def _faults(run: Run) -> Table:
    """Hypotheses in another language than the target, and empty ones; percent, mean over directions."""
    rows: list[list[Cell]] = []
    for name in run.systems:
        overall = [
            row for seed in run.seeds for row in seed.evaluations[name].summary if row.kind == "overall"
        ]
        off = [row.off_target_fraction for row in overall if row.off_target_fraction is not None]
        empty = 100 * fmean(row.empty_fraction for row in overall)
        rows.append([name, 100 * fmean(off) if len(off) == len(overall) else None, empty])
    return Table(("system", "off-target, %", "empty, %"), rows)


def differences(comparisons: Mapping[Path, Comparison]) -> list[Section]:
    """The whole of each comparison, with its figure."""
    sections = []
    for comparison in comparisons.values():
        figure = drawn(
            f"against-{comparison.baseline}",
            f"Difference to {plain(comparison.baseline)} per direction: 95 % intervals over sentences, a dot for "
            "each seed, filled where p is small",
            score_figures.score_differences(comparison),
        )
        sections.append(Section(f"Against {comparison.baseline}", [figure], sections_of(comparison)))
    return [Section("Differences", [], sections)] if sections else []
