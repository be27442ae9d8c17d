"""Scores of each system, and which differences are more than chance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from neuron_spec.directions import Direction
from neuron_spec.languages import is_pivot
from neuron_spec.pages.page import Block, Paragraph, Section, Table, plain
from neuron_spec.pages.style import drawn
from neuron_spec.pages.tables import Cell, bounds, counted, fixed, shown_p
from neuron_spec.report.run_folder import Run
from neuron_spec.scoring import figures as score_figures
from neuron_spec.scoring.comparison import Comparison, GroupComparison
from neuron_spec.scoring.comparison_files import group_cells, sections_of, spread
from neuron_spec.scoring.endpoints import BLEU, CHRF, COMET, ENDPOINTS, NLL, OF_TEXTS, Endpoint
from neuron_spec.scoring.evaluation import Evaluation, GroupMean
from neuron_spec.scoring.systems import SPECIALIZED
from neuron_spec.statistics import OverSeeds, Uncertainty


def findings(comparisons: Mapping[Path, Comparison]) -> Iterator[str]:
    """A sentence about each difference of the specialized system, over all directions, by likelihood and by BLEU."""
    for comparison in comparisons.values():
        for row in comparison.groups:
            shown = row.metric in (NLL.key, BLEU.key)
            if shown and (row.system, row.kind) == (SPECIALIZED, "overall"):
                yield _finding(comparison, row)


def _finding(comparison: Comparison, row: GroupComparison) -> str:
    endpoint = ENDPOINTS[row.metric]
    directions = [r for r in comparison.directions if (r.system, r.metric) == (row.system, row.metric)]
    seeds = [
        fmean(of) for of in zip(*([seed.difference for seed in r.seeds] for r in directions), strict=True)
    ]
    details = []
    if row.difference.std is not None:
        listed = ", ".join(f"{value:+z.{endpoint.decimals}f}" for value in seeds)
        details.append(
            f"{listed} in the {len(seeds)} seeds, standard deviation {row.difference.std:.{endpoint.decimals}f}"
        )
    for of, what in ((row.over_sentences, "over sentences"), (row.over_seeds, "by t over seeds")):
        if of:
            details.append(f"95 % interval {what} {bounds(of.low, of.high, endpoint.decimals)}, {_p(of)}")
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
    lower = " (lower is better)" if endpoint.lower_is_better else ""
    return (
        f"**{plain(row.system)} against {plain(comparison.baseline)}, {endpoint.title}{lower}:** "
        f"{row.difference.mean:+z.{endpoint.decimals}f} over {counted(row.directions, 'direction')} "
        f"({'; '.join(details)}). {_verdict(row, seeds, comparison.alpha)} {significant} after Holm's adjustment."
    )


def _p(of: Uncertainty) -> str:
    p = shown_p(of.p_value)
    return f"p \\< {p[1:]}" if p[0] == "<" else f"p = {p}"


def _verdict(row: GroupComparison, seeds: Sequence[float], alpha: float) -> str:
    """What the numbers allow to say, and no more."""
    endpoint, of = ENDPOINTS[row.metric], row.over_sentences
    if of is None:
        return "The comparison is of an earlier version and has no joint interval: make it again."
    if of.p_value >= alpha:
        visible = f"{of.smallest_visible:.{endpoint.decimals}f}"
        if float(visible) == 0:  # as where all are zero: it would read as the finest of measurements
            return "The scores do not differ, whatever the test sentences; all zero, they say nothing."
        return (
            "This is not more than the choice of test sentences can give; a true difference below "
            f"{visible} could hardly have been seen."
        )
    word = "better" if endpoint.is_better(row.difference.mean) else "worse"
    these = f"On sentences like these it is {word} by more than chance"
    if len(seeds) == 1:
        return f"{these}, in this one training."
    if row.over_seeds:
        again = row.over_seeds.p_value < alpha
        return f"{these}, and {'so' if again else 'not so'} over trainings, by t over {len(seeds)} seeds."
    if all(value > 0 for value in seeds) or all(value < 0 for value in seeds):
        return f"{these}, and all {len(seeds)} seeds agree on that, too few for more."
    return f"{these} in the mean of these seeds, but they do not agree on which is better."


def scores(run: Run, comparisons: Mapping[Path, Comparison]) -> Section:
    is_one_seed = len(run.seeds) == 1
    spreads = "." if is_one_seed else "; ± is the standard deviation over seeds."
    texts = [f"Means are unweighted over directions{spreads}"]
    if not comparisons:
        texts.append(f"Only *{plain(run.systems[0])}* was evaluated: there is nothing to compare it with.")
    further = [endpoint for endpoint in (NLL, COMET) if _is_known(run, endpoint)]
    by_direction = {endpoint: _by_direction(run, endpoint) for endpoint in (*OF_TEXTS, *further)}
    means = {
        name: {direction: fmean(values) for direction, values in of_system.items()}
        for name, of_system in by_direction[BLEU].items()
    }
    figure = drawn(
        "scores",
        "BLEU of each system, per direction" + ("" if is_one_seed else ", mean over seeds"),
        score_figures.scores_bars(means, BLEU.title, families=run.families),
    )
    details: dict[str, list[Block]] = {
        **{f"{endpoint.title}, means": [_means(run, endpoint)] for endpoint in (CHRF, *further)},
        **{
            f"{endpoint.title}, every direction": [_per_direction(run, endpoint, of_endpoint)]
            for endpoint, of_endpoint in by_direction.items()
        },
        "Off-target and empty translations": [
            Paragraph("Off-target: identified as another language than the target's."),
            _faults(run),
        ],
        "Likelihood and length": [
            Paragraph(
                "NLL: of the references, teacher-forced, in nats a target token; the language token (tag) is left out, "
                "its own is in nats a sentence. Length ratio: of hypotheses to references, in words."
            ),
            _likelihood_and_length(run),
        ],
    }
    return Section(
        "Scores",
        [*map(Paragraph, texts), _means(run, BLEU), figure],
        [Section(title, blocks, is_folded=True) for title, blocks in details.items()],
    )


def _is_known(run: Run, endpoint: Endpoint) -> bool:
    """Whether every evaluation has it, of every direction."""
    return all(
        getattr(score, endpoint.key) is not None
        for seed in run.seeds
        for evaluation in seed.evaluations.values()
        for score in evaluation.scores
    )


def _decimals(endpoint: Endpoint) -> int:
    """Of a score, which BLEU and chrF++ do not have two of."""
    return 1 if endpoint in OF_TEXTS else endpoint.decimals


def _means(run: Run, endpoint: Endpoint) -> Table:
    """Of each group of directions, tier and family; a system with several seeds has their mean."""

    def of_groups(evaluation: Evaluation) -> dict[tuple[str, str, str], GroupMean]:
        return {(row.kind, row.name, row.group): row for row in evaluation.summary}

    summaries = [[of_groups(seed.evaluations[name]) for seed in run.seeds] for name in run.systems]
    lower = " (lower is better)" if endpoint.lower_is_better else ""
    rows = [
        [
            *group_cells(*key),
            *(
                spread(OverSeeds.of([getattr(of[key], endpoint.key) for of in seeds]), _decimals(endpoint))
                for seeds in summaries
            ),
            of_first.directions,
        ]
        for key, of_first in summaries[0][0].items()
        if all(key in of for seeds in summaries for of in seeds)
    ]
    return Table((f"{endpoint.title}{lower}: mean over", "group", *run.systems, "directions"), rows)


def _by_direction(run: Run, endpoint: Endpoint) -> dict[str, dict[str, list[float]]]:
    """System -> direction -> a score for each seed."""
    by_system: dict[str, dict[str, list[float]]] = {name: {} for name in run.systems}
    for seed in run.seeds:
        for name, evaluation in seed.evaluations.items():
            for score in evaluation.scores:
                scores = by_system[name].setdefault(str(score.direction), [])
                scores.append(getattr(score, endpoint.key))
    return by_system


def _per_direction(
    run: Run, endpoint: Endpoint, by_system: Mapping[str, Mapping[str, Sequence[float]]]
) -> Table:
    rows: list[list[Cell]] = []
    for direction in by_system[run.systems[0]]:
        of = Direction.parse(direction)
        foreign = [code for code in (of.source, of.target) if not is_pivot(code)]  # both where neither is
        families = dict.fromkeys(map(run.family, foreign))
        of_systems = [scores.get(direction) for scores in by_system.values()]
        cells = [
            spread(OverSeeds.of(of_seeds), _decimals(endpoint)) if of_seeds else None
            for of_seeds in of_systems
        ]
        rows.append([direction, ", ".join(families), *cells])
    return Table(("direction", "family", *(f"{endpoint.title}, {name}" for name in by_system)), rows)


def _faults(run: Run) -> Table:
    """Hypotheses in another language than the target, and empty ones; percent, mean over directions."""
    keys = ("off_target_fraction", "empty_fraction")
    fractions = {name: [_over_all(run, name, key) for key in keys] for name in run.systems}
    rows = [[name, *(None if of is None else 100 * of for of in both)] for name, both in fractions.items()]
    return Table(("system", "off-target, %", "empty, %"), rows)


def _likelihood_and_length(run: Run) -> Table:
    """Means over directions and seeds; of evaluations of which they are known."""
    columns = {
        "nll": "NLL",
        "bits_per_character": "bits per character",
        "tag_nll": "NLL of the tag",
        "length_ratio": "length ratio",
        "brevity_penalty": "brevity penalty",
    }
    rows = [[name, *(fixed(_over_all(run, name, key), 3) for key in columns)] for name in run.systems]
    return Table(("system", *columns.values()), rows)


def _over_all(run: Run, name: str, key: str) -> float | None:
    """A system's mean over directions and seeds; None where one of its evaluations lacks the figure."""
    summaries = [seed.evaluations[name].summary for seed in run.seeds]
    values = [getattr(row, key) for summary in summaries for row in summary if row.kind == "overall"]
    return None if None in values else fmean(values)


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
