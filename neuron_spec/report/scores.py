"""Scores of each system, and which differences are more than chance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from neuron_spec.directions import ENGLISH
from neuron_spec.pages.page import Paragraph, Picture, Section, Table, plain
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
    text = (
        f"**{plain(row.system)} against {plain(comparison.baseline)}:** {row.difference.mean:+z.2f} BLEU over "
        f"{counted(row.directions, 'direction')}"
    )
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
    text += f" ({'; '.join(details)}). "
    if len(seeds) == 1:
        text += "In " + (
            "no single direction is the difference significant"
            if won == lost == 0
            else f"{counted(won, 'direction')} it is significantly better, in {lost} worse,"
        )
    else:
        text += (
            f"Of the {sum(row.holm_results.values())} pairs of direction and seed it is significantly better in "
            f"{won}, worse in {lost},"
        )
    return text + " after Holm's adjustment. " + _verdict(row, seeds, comparison.alpha)


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
    texts = [
        "Means are unweighted over directions"
        + ("; ± is the standard deviation over seeds." if len(run.seeds) > 1 else ".")
    ]
    if not comparisons:
        texts.append(f"Only *{plain(run.systems[0])}* was evaluated: there is nothing to compare it with.")
    sections = [
        Section("chrF++, means", [_means(run, "chrf")], is_folded=True),
        *(
            Section(f"{title}, every direction", [_per_direction(run, metric)], is_folded=True)
            for metric, title in METRICS.items()
        ),
        *_faults(run),
    ]
    return Section(
        "Scores",
        [*map(Paragraph, texts), _means(run, "bleu"), _score_figure(run)],
        sections,
    )


def _means(run: Run, metric: str) -> Table:
    """Of each group of directions, tier and family; a system with several seeds has their mean."""
    means = {
        name: [
            {(row.kind, row.name, row.group): row for row in seed.evaluations[name].summary}
            for seed in run.seeds
        ]
        for name in run.systems
    }
    return Table(
        (f"{METRICS[metric]}: mean over", "group", *run.systems, "directions"),
        [
            [
                *group_cells(row.kind, row.name, row.group),
                *(_mean_score([getattr(seed[key], metric) for seed in seeds]) for seeds in means.values()),
                row.directions,
            ]
            for key, row in means[run.systems[0]][0].items()
            if all(key in seed for seeds in means.values() for seed in seeds)
        ],
    )


def _mean_score(values: Sequence[float]) -> Cell:
    """Over seeds, with the standard deviation where there are several; None of nothing."""
    return spread(OverSeeds.of(values)) if values else None


def _per_direction(run: Run, metric: str) -> Table:
    by_system = _direction_scores(run, metric)
    return Table(
        ("direction", "family", *(f"{METRICS[metric]}, {name}" for name in by_system)),
        [
            [
                name,
                _family_of(run, name),
                *(_mean_score(scores.get(name, ())) for scores in by_system.values()),
            ]
            for name in next(iter(by_system.values()))
        ],
    )


def _direction_scores(run: Run, metric: str) -> dict[str, dict[str, list[float]]]:
    """System -> direction -> a score for each seed."""
    by_system: dict[str, dict[str, list[float]]] = {name: {} for name in run.systems}
    for seed in run.seeds:
        for name, evaluation in seed.evaluations.items():
            for score in evaluation.scores:
                by_system[name].setdefault(str(score.direction), []).append(getattr(score, metric))
    return by_system


def _family_of(run: Run, direction: str) -> str:
    """Of the language that is not English; of both where neither is."""
    codes = [code for code in direction.split("-") if code != ENGLISH]
    return ", ".join(dict.fromkeys(run.family(code) for code in codes))


def _score_figure(run: Run) -> Picture:
    means = {
        name: {direction: fmean(values) for direction, values in scores.items()}
        for name, scores in _direction_scores(run, "bleu").items()
    }
    caption = "BLEU of each system, per direction" + (", mean over seeds" if len(run.seeds) > 1 else "")
    return drawn("scores", caption, score_figures.scores_bars(means, "BLEU", families=run.families))


def _faults(run: Run) -> list[Section]:
    """Hypotheses in another language than the target, and empty ones; percent, mean over directions."""
    rows: list[list[Cell]] = []
    for name in run.systems:
        overall = [
            row for seed in run.seeds for row in seed.evaluations[name].summary if row.kind == "overall"
        ]
        off = [row.off_target_fraction for row in overall if row.off_target_fraction is not None]
        empty = 100 * fmean(row.empty_fraction for row in overall)
        rows.append([name, 100 * fmean(off) if len(off) == len(overall) else None, empty])
    table = Table(("system", "off-target, %", "empty, %"), rows)
    return [
        Section(
            "Off-target and empty translations",
            [Paragraph("Off-target: identified as another language than the target's."), table],
            is_folded=True,
        )
    ]


def differences(comparisons: Mapping[Path, Comparison]) -> list[Section]:
    """The whole of each comparison, with its figure."""
    return (
        [Section("Differences", [], [_against(each) for each in comparisons.values()])] if comparisons else []
    )


def _against(comparison: Comparison) -> Section:
    figure = drawn(
        f"against-{comparison.baseline}",
        f"Difference to {plain(comparison.baseline)} per direction: 95 % intervals over sentences, a dot for each seed, "
        "filled where p is small",
        score_figures.score_differences(comparison),
    )
    return Section(f"Against {comparison.baseline}", [figure], sections_of(comparison))
