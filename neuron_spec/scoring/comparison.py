"""Systems against a baseline: which differences in BLEU and chrF++ (0-100) are more than chance?

Two questions, two tests, because there are two populations to draw from:

- Sentences. Would these trained models differ on other test sentences of this kind? For each direction
  and seed, the samples of sacreBLEU's paired bootstrap, but a two-sided p: sacreBLEU's is one-sided in
  effect (`bootstrap.paired_bootstrap`). The p-values are adjusted by Holm over the directions too.
- Directions. Is a system better over directions like these? For each group, a sign-flip test on the
  directions' differences, each a mean over seeds, and a bootstrap interval over directions.

Neither asks whether training again would give the same difference: the standard deviation over seeds
speaks to that. Differences are system minus baseline. The tests are ours but for sacreBLEU's; the
official code has none.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from tqdm import tqdm

from neuron_spec import artifacts
from neuron_spec.artifacts import hash_text, read_json, write_json, write_text
from neuron_spec.directions import Direction
from neuron_spec.errors import ArtifactError, DirectionError, NeuronSpecError
from neuron_spec.pages.tables import Cell, markdown_table, shown_p
from neuron_spec.scoring.bootstrap import BOOTSTRAP_SEED, PairedScore, resampled_scores
from neuron_spec.scoring.evaluation import Evaluation, grouped
from neuron_spec.statistics import (
    FEWEST_DIRECTIONS,
    OverSeeds,
    holm,
    interval,
    interval_over_directions,
    sign_flip_p_value,
)

COMPARISON = "comparison"  # .md, .csv, .json, .png, .svg
METRICS = {"bleu": "BLEU", "chrf": "chrF++"}
WIN, TIE, LOSS = "win", "tie", "loss"
SAMPLES = 1000
ALPHA = 0.05

_SCORE_TOLERANCE = 1e-6


# ------------------------------------------------------------------ what is compared


@dataclass(frozen=True)
class System:
    """One way of training, evaluated once per seed."""

    name: str
    seeds: list[Evaluation]

    def label(self, index: int) -> str:
        return self.name if len(self.seeds) == 1 else f"{self.name}, seed {index + 1}"


def comparable(systems: Sequence[System], *, common_directions: bool = False) -> list[System]:
    """The systems with all evaluations in the order of the baseline's directions; the first is the baseline.

    Args:
        common_directions: keep the directions that every evaluation has; without it all must have the same.

    Raises:
        NeuronSpecError: if there are fewer than two systems, two have one name, their numbers of seeds do
            not pair up, or they were not scored on the same texts in the same way.
        DirectionError: if the directions differ, or none is common.
    """
    names = [system.name for system in systems]
    if len(systems) < 2 or len(set(names)) < len(names):
        raise NeuronSpecError(
            "nothing to compare" if len(systems) < 2 else "two systems have one name",
            got=", ".join(names) or "no system",
            expected="a baseline and one system or more, each with a name of its own",
            mend="give NAME=DIR for each; the seeds of one system go together, NAME=DIR,DIR",
        )
    baseline = systems[0]
    for system in systems:
        if 1 != len(system.seeds) != len(baseline.seeds) != 1:
            raise NeuronSpecError(
                "numbers of seeds do not pair up",
                got=f"{len(system.seeds)} of {system.name}",
                expected=f"1 or {len(baseline.seeds)}, as of the baseline {baseline.name}",
                mend="seed i is compared with the baseline's seed i, a single one with each",
            )
    evaluations = {system.label(i): seed for system in systems for i, seed in enumerate(system.seeds)}
    directions = _shared_directions(evaluations, common_directions)
    aligned = [
        replace(system, seeds=[_in_order(seed, directions) for seed in system.seeds]) for system in systems
    ]
    labelled = [(system.label(i), seed) for system in aligned for i, seed in enumerate(system.seeds)]
    for other in labelled[1:]:
        _require_same_test(labelled[0], other)
    return aligned


def _shared_directions(evaluations: Mapping[str, Evaluation], common_directions: bool) -> list[Direction]:
    (first, reference), *others = evaluations.items()
    expected = [score.direction for score in reference.scores]
    common = set(expected)
    for name, evaluation in others:
        got = {score.direction for score in evaluation.scores}
        if got != set(expected) and not common_directions:
            raise DirectionError(
                "evaluations of different directions",
                where=f"{first}; {name}",
                got=f"only {name} has {_listed(got - set(expected))}",
                expected=f"only {first} has {_listed(set(expected) - got)}",
                mend="--common-directions compares those that all have",
            )
        common &= got
    if not common:
        raise DirectionError(
            "the evaluations have no direction in common",
            got="; ".join(
                f"{name}: {_listed(s.direction for s in e.scores)}" for name, e in evaluations.items()
            ),
        )
    return [direction for direction in expected if direction in common]


def _listed(directions: Any) -> str:
    return ", ".join(sorted(map(str, directions))) or "none"


def _in_order(evaluation: Evaluation, directions: Sequence[Direction]) -> Evaluation:
    outputs = {o.direction: o for o in evaluation.outputs}
    scores = {s.direction: s for s in evaluation.scores}
    return replace(
        evaluation, outputs=[outputs[d] for d in directions], scores=[scores[d] for d in directions]
    )


def _require_same_test(first: tuple[str, Evaluation], second: tuple[str, Evaluation]) -> None:
    (name, a), (other, b) = first, second
    where = f"{name}; {other}"
    for expected, got in zip(a.outputs, b.outputs, strict=True):
        _require_same_text("references", where, expected.direction, expected.references, got.references)
        if expected.sources is not None and got.sources is not None:
            _require_same_text("sources", where, expected.direction, expected.sources, got.sources)
    settings: list[tuple[str, str, Any, Any]] = [
        ("official scoring", where, _is_official(a), _is_official(b)),
    ]
    for x, y in zip(a.scores, b.scores, strict=True):
        settings += [
            ("BLEU signature", f"{where}, {x.direction}", x.bleu_signature, y.bleu_signature),
            ("chrF++ signature", f"{where}, {x.direction}", x.chrf_signature, y.chrf_signature),
        ]
    # The hash is of all directions' files at once, so it compares only if these are the same.
    hashes = _data_hash(a), _data_hash(b)
    if _evaluated(a) == _evaluated(b) and None not in hashes:
        settings.append(("data-bin (its text or vocabulary)", where, *hashes))
    for what, place, wanted, found in settings:
        if wanted != found:
            raise NeuronSpecError(
                f"evaluations that differ in {what} cannot be compared",
                where=place,
                got=f"{found} of {other}",
                expected=f"{wanted}, as of {name}",
                mend="evaluate both on one data-bin, with the same sacreBLEU and scoring",
            )


def _require_same_text(
    what: str, where: str, direction: Direction, expected: Sequence[str], got: Sequence[str]
) -> None:
    if list(expected) == list(got):
        return
    unequal = (i for i, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b)
    at = next(unequal, min(len(expected), len(got)))

    def shown(lines: Sequence[str]) -> str:
        text = repr(lines[at][:80]) if at < len(lines) else "nothing"
        return f"{len(lines)} lines (sha256 {hash_text(*lines)[:12]}), the {at + 1}th: {text}"

    raise NeuronSpecError(
        f"evaluations on different {what} cannot be compared",
        where=f"{where}, {direction}",
        got=shown(got),
        expected=shown(expected),
        mend="evaluate both on the same test set",
    )


def _is_official(evaluation: Evaluation) -> bool:
    return bool(evaluation.signature.get("parameters", {}).get("official_scoring", False))


def _evaluated(evaluation: Evaluation) -> set[str]:
    return set(evaluation.signature.get("parameters", {}).get("directions", ()))


def _data_hash(evaluation: Evaluation) -> str | None:
    return evaluation.signature.get("inputs", {}).get("data")


# ------------------------------------------------------------------ comparing


@dataclass(frozen=True)
class SeedResult:
    """One seed of a system beside the baseline's: scores, p-values over sentences, and what they say.

    ``low`` and ``high`` bound the 95 % bootstrap interval of the difference. ``p_value`` is two-sided,
    ``holm_p_value`` that adjusted over the directions, and ``sacrebleu_p_value`` as sacreBLEU gives it, for
    comparison. A difference is a ``win`` or ``loss`` if ``p_value`` is below alpha.
    """

    baseline: float
    score: float
    difference: float
    low: float
    high: float
    sacrebleu_p_value: float
    p_value: float
    holm_p_value: float
    result: str
    holm_result: str


@dataclass(frozen=True)
class DirectionComparison:
    """A system beside the baseline on one direction.

    ``low`` and ``high`` bound the mean difference over seeds, on the same resampled sentences for all:
    the models are taken as they are. Directions without English have neither tier nor family.
    """

    system: str
    metric: str
    direction: Direction
    group: str
    tier: str | None
    family: str | None
    baseline: OverSeeds
    score: OverSeeds
    difference: OverSeeds
    low: float
    high: float
    seeds: list[SeedResult]


@dataclass(frozen=True)
class GroupComparison:
    """A system beside the baseline over the directions of a group, named as in `GroupMean`.

    ``p_value`` and ``interval`` are over directions. ``results`` counts wins, ties and losses of all
    directions and seeds, ``holm_results`` those after Holm's adjustment over all directions.
    """

    system: str
    metric: str
    kind: str
    name: str
    group: str
    directions: int
    baseline: OverSeeds
    score: OverSeeds
    difference: OverSeeds
    interval: tuple[float, float] | None
    p_value: float
    results: dict[str, int]
    holm_results: dict[str, int]


@dataclass(frozen=True)
class Comparison:
    """All systems against the baseline, by both metrics."""

    signature: dict[str, Any]
    sacrebleu: dict[str, list[str]]
    baseline: str
    alpha: float
    directions: list[DirectionComparison] = field(default_factory=list)
    groups: list[GroupComparison] = field(default_factory=list)


def comparison_signature(systems: Sequence[System], *, samples: int, alpha: float) -> dict[str, Any]:
    """What a comparison is made from; ``systems`` as `comparable` returns them."""
    baseline, *others = systems
    return artifacts.signature(
        "compare",
        inputs={system.label(i): _sha256(seed) for system in systems for i, seed in enumerate(system.seeds)},
        parameters={
            "baseline": baseline.name,
            "systems": [system.name for system in others],
            "directions": [str(score.direction) for score in baseline.seeds[0].scores],
            "bootstrap": samples,
            "bootstrap_seed": BOOTSTRAP_SEED,
            "p_values": "two-sided",
            "alpha": alpha,
        },
    )


def _sha256(evaluation: Evaluation) -> str:
    texts = [[str(o.direction), o.hypotheses, o.references, o.sources] for o in evaluation.outputs]
    scores = [[s.bleu_signature, s.chrf_signature] for s in evaluation.scores]
    groups = [evaluation.families, evaluation.tiers, _is_official(evaluation)]
    return hash_text(json.dumps([texts, scores, groups], sort_keys=True))


def compare(
    systems: Sequence[System], *, signature: Mapping[str, Any], samples: int = SAMPLES, alpha: float = ALPHA
) -> Comparison:
    """Compare all systems but the first with the first, the baseline; they are as `comparable` returns them.

    Tiers and families are those of the baseline's first evaluation.

    Args:
        samples: how often the sentences of a direction are drawn anew.
        alpha: a p-value below it makes a win or a loss.

    Raises:
        NeuronSpecError: if no p-value could be below ``alpha``, or a tokenizer is not installed.
        ArtifactError: if an evaluation's scores are not those of its texts.
    """
    if not 0 < alpha < 1 or samples < 1 or 1 / (samples + 1) >= alpha:
        raise NeuronSpecError(
            "no p-value could be below alpha",
            got=f"alpha {alpha:g}, {samples} bootstrap samples",
            expected="0 < alpha < 1, and more samples than 1 / alpha: the smallest p is 1 / (samples + 1)",
        )
    paired = _bootstrap_all(systems, samples)
    baseline, *others = systems
    made = Comparison(
        signature=dict(signature),
        sacrebleu={
            metric: sorted({p.signature for at in paired for seeds in at.values() for p in seeds[metric]})
            for metric in METRICS
        },
        baseline=baseline.name,
        alpha=alpha,
    )
    for system in others:
        for metric in METRICS:
            made.directions.extend(
                _compare_directions(
                    baseline, system, metric, [at[system.name][metric] for at in paired], alpha
                )
            )
            rows = [row for row in made.directions if (row.system, row.metric) == (system.name, metric)]
            made.groups.extend(_compare_groups(baseline, system, metric, rows))
    return made


# Per direction: system -> metric -> one score for each pair of seeds.
_Paired = dict[str, dict[str, list[PairedScore]]]


def _bootstrap_all(systems: Sequence[System], samples: int) -> list[_Paired]:
    baseline, *others = systems
    official = _is_official(baseline.seeds[0])
    directions = [score.direction for score in baseline.seeds[0].scores]
    paired: list[_Paired] = []
    for at, direction in enumerate(bar := tqdm(directions, desc="compare", file=sys.stderr)):
        bar.set_postfix_str(str(direction))
        texts = [(system, seed) for system in systems for seed in range(len(system.seeds))]
        resampled = resampled_scores(
            [system.seeds[seed].outputs[at] for system, seed in texts], samples=samples, official=official
        )
        of = {(system.name, seed): scores for (system, seed), scores in zip(texts, resampled, strict=True)}
        for system, seed in texts:
            for metric, score in of[system.name, seed].items():
                _require_own_score(system, seed, at, metric, score.score)
        paired.append(
            {
                system.name: {
                    metric: [
                        PairedScore.of(of[baseline.name, seed][metric], of[system.name, partner][metric])
                        for seed in range(len(baseline.seeds))
                        for partner in _partners(seed, baseline, system)
                    ]
                    for metric in METRICS
                }
                for system in others
            }
        )
    return paired


def _partners(index: int, baseline: System, system: System) -> Sequence[int]:
    """Which seeds of a system are compared with the baseline's seed ``index``."""
    if len(baseline.seeds) == 1:
        return range(len(system.seeds))
    return [index if len(system.seeds) > 1 else 0]


def _require_own_score(system: System, seed: int, at: int, metric: str, found: float) -> None:
    of = system.seeds[seed].scores[at]
    if abs(getattr(of, metric) - found) > _SCORE_TOLERANCE:
        raise ArtifactError(
            "scores of an evaluation are not those of its texts",
            where=f"{system.label(seed)}, {of.direction}, {METRICS[metric]}",
            got=f"{getattr(of, metric)} in {artifacts.SCORES_JSON}",
            expected=f"{found} from its hypotheses and references",
            mend="evaluate again: its texts were changed, or it was scored by another sacreBLEU",
        )


def _compare_directions(
    baseline: System, system: System, metric: str, paired: Sequence[Sequence[PairedScore]], alpha: float
) -> list[DirectionComparison]:
    """``paired``: for each direction, one score for each pair of seeds."""
    p_values = np.array([[score.p_value for score in scores] for scores in paired])  # [directions, seeds]
    adjusted = np.stack([holm(column) for column in p_values.T], axis=1)
    reference = baseline.seeds[0]
    names = {
        kind: {
            member.direction: name
            for found, name, _, members in grouped(reference.scores, reference.families, reference.tiers)
            if found == kind
            for member in members
        }
        for kind in ("tier", "family")
    }
    compared = []
    for at, scores in enumerate(paired):
        of = reference.scores[at]
        seeds = [
            _seed_result(score, float(holm_p), alpha)
            for score, holm_p in zip(scores, adjusted[at], strict=True)
        ]
        low, high = interval(np.mean([score.resampled_differences for score in scores], axis=0))
        compared.append(
            DirectionComparison(
                system=system.name,
                metric=metric,
                direction=of.direction,
                group=of.group,
                tier=names["tier"].get(of.direction),
                family=names["family"].get(of.direction),
                baseline=_over_seeds(baseline, metric, [at]),
                score=_over_seeds(system, metric, [at]),
                difference=OverSeeds.of([seed.difference for seed in seeds]),
                low=low,
                high=high,
                seeds=seeds,
            )
        )
    return compared


def _seed_result(score: PairedScore, holm_p_value: float, alpha: float) -> SeedResult:
    difference = score.score - score.baseline_score
    if_significant = WIN if difference > 0 else LOSS
    low, high = interval(score.resampled_differences)
    return SeedResult(
        baseline=score.baseline_score,
        score=score.score,
        difference=difference,
        low=low,
        high=high,
        sacrebleu_p_value=score.sacrebleu_p_value,
        p_value=score.p_value,
        holm_p_value=holm_p_value,
        result=if_significant if score.p_value < alpha else TIE,
        holm_result=if_significant if holm_p_value < alpha else TIE,
    )


def _over_seeds(system: System, metric: str, places: Sequence[int]) -> OverSeeds:
    """The mean over directions of each seed, then over seeds; ``places`` are the directions' positions."""
    return OverSeeds.of([fmean(getattr(seed.scores[at], metric) for at in places) for seed in system.seeds])


def _compare_groups(
    baseline: System, system: System, metric: str, rows: Sequence[DirectionComparison]
) -> list[GroupComparison]:
    reference = baseline.seeds[0]
    place = {score.direction: at for at, score in enumerate(reference.scores)}
    compared = []
    for kind, name, group, members in grouped(reference.scores, reference.families, reference.tiers):
        places = [place[member.direction] for member in members]
        differences = np.array([[seed.difference for seed in rows[at].seeds] for at in places])
        of_directions = differences.mean(axis=1)  # [directions]
        seeds = [seed for at in places for seed in rows[at].seeds]
        compared.append(
            GroupComparison(
                system=system.name,
                metric=metric,
                kind=kind,
                name=name,
                group=group,
                directions=len(places),
                baseline=_over_seeds(baseline, metric, places),
                score=_over_seeds(system, metric, places),
                difference=OverSeeds.of(differences.mean(axis=0).tolist()),
                interval=interval_over_directions(of_directions),
                p_value=sign_flip_p_value(of_directions),
                results=_counted([seed.result for seed in seeds]),
                holm_results=_counted([seed.holm_result for seed in seeds]),
            )
        )
    return compared


def _counted(results: Sequence[str]) -> dict[str, int]:
    counts = Counter(results)
    return {result: counts[result] for result in (WIN, TIE, LOSS)}


# ------------------------------------------------------------------ showing


def comparison_markdown(comparison: Comparison) -> str:
    """Groups, then directions, for each system and metric; then how to read them."""
    parts = []
    for system in dict.fromkeys(row.system for row in comparison.directions):
        parts.append(f"# {system} against {comparison.baseline}")
        for metric, title in METRICS.items():
            groups = [row for row in comparison.groups if (row.system, row.metric) == (system, metric)]
            rows = [row for row in comparison.directions if (row.system, row.metric) == (system, metric)]
            names = (comparison.baseline, system, "difference", "95% interval")
            parts += [
                f"## {title}: groups",
                markdown_table(
                    ("mean over", "group", "directions", *names, "p", "win/tie/loss", "after Holm"),
                    [_group_cells(row) for row in groups],
                ),
                f"## {title}: directions",
                markdown_table(
                    ("direction", "family", *names, "sacreBLEU's p", "p", "Holm p", "result"),
                    [_direction_cells(row) for row in rows],
                ),
            ]
    parts.append("# How to read this\n\n" + "\n".join(f"- {line}" for line in _notes(comparison)))
    return "\n\n".join(parts) + "\n"


def _group_cells(row: GroupComparison) -> list[Cell]:
    return [
        row.name,
        row.group,
        row.directions,
        _score(row.baseline),
        _score(row.score),
        _difference(row.difference),
        row.interval and _bounds(*row.interval),
        shown_p(row.p_value),
        "/".join(map(str, row.results.values())),
        "/".join(map(str, row.holm_results.values())),
    ]


def _direction_cells(row: DirectionComparison) -> list[Cell]:
    return [
        str(row.direction),
        row.family,
        _score(row.baseline),
        _score(row.score),
        _difference(row.difference),
        _bounds(row.low, row.high),
        ", ".join(shown_p(seed.sacrebleu_p_value) for seed in row.seeds),
        ", ".join(shown_p(seed.p_value) for seed in row.seeds),
        ", ".join(shown_p(seed.holm_p_value) for seed in row.seeds),
        _results([seed.result for seed in row.seeds]),
    ]


def _results(results: Sequence[str]) -> str:
    """``win`` for one seed, ``2 wins, 1 tie, 0 losses`` for several."""
    if len(results) == 1:
        return results[0]
    plural = {WIN: "wins", TIE: "ties", LOSS: "losses"}
    return ", ".join(
        f"{count} {result if count == 1 else plural[result]}" for result, count in _counted(results).items()
    )


def _score(of: OverSeeds) -> Cell:
    return of.mean if of.std is None else f"{of.mean:.1f} ± {of.std:.1f}"


def _difference(of: OverSeeds) -> str:
    return f"{of.mean:+.2f}" + ("" if of.std is None else f" ± {of.std:.2f}")


def _bounds(low: float, high: float) -> str:
    return f"{low:+.2f} to {high:+.2f}"


def _notes(comparison: Comparison) -> list[str]:
    alpha, made = comparison.alpha, comparison.signature["parameters"]
    directions, samples = len(made["directions"]), made["bootstrap"]
    seeds = max(len(row.seeds) for row in comparison.directions)
    notes = [
        f"Difference: system minus {comparison.baseline}.",
        "**Directions** ask about sentences: on other test sentences of this kind, would these trained models "
        f"still differ? p and interval are of the samples of sacreBLEU's paired bootstrap ({samples}, seed "
        f"{BOOTSTRAP_SEED}). win, loss: p < {alpha:g}; Holm p is adjusted over the {directions} directions.",
        "p is ours and two-sided: how often a resampled difference is as far from their mean as the true one from 0. "
        "sacreBLEU's own, beside it, is one-sided in effect: two equally good systems had it below 0.05 in 11 % of "
        "measured cases, and p in 5 %. "
        f"Of {directions} directions without any difference, about {alpha * directions:.1f} show as win or loss.",
        "**Groups** ask about directions: is the system better over directions like these? p is of a two-sided "
        "sign-flip test on the directions' differences, the interval of a bootstrap over directions; both take "
        "directions as independent, though they share one model and often sentences, and are not adjusted "
        "for the number of groups. With n directions p is never below 2 / 2^n: "
        f"groups of fewer than {FEWEST_DIRECTIONS} cannot reach 0.05, and show no interval. That of a dozen is "
        "still somewhat narrow.",
    ]
    if seeds > 1:
        notes.append(
            "±: sample standard deviation over seeds. Wins, ties and losses count each seed. A group's p is of "
            "its directions' means over seeds."
        )
    else:
        notes.append(
            "One seed: how much a training run differs from the next is not in any of these figures."
        )
    smallest = min(1.0, directions / (samples + 1))
    if smallest >= alpha:
        notes.append(
            f"No Holm p can be below {alpha:g} with {samples} samples for {directions} directions: the smallest is "
            f"{smallest:.3f}. More --bootstrap would tell."
        )
    for metric, signatures in comparison.sacrebleu.items():
        notes += [f"{METRICS[metric]}: `{signature}`" for signature in signatures]
    return notes


# ------------------------------------------------------------------ files


def write_comparison(output_dir: str | Path, comparison: Comparison) -> None:
    """Write ``comparison.md``, ``.csv`` and, last, ``.json``: the mark of completeness."""
    path = Path(output_dir) / COMPARISON
    write_text(path.with_suffix(".md"), comparison_markdown(comparison))
    write_text(path.with_suffix(".csv"), _as_csv(comparison))
    write_json(path.with_suffix(".json"), as_plain(comparison))


def read_comparison(path: Path) -> Comparison:
    """Read a ``comparison.json``.

    Raises:
        ArtifactError: if it is missing or not of the form that neuron-spec writes.
    """
    content = read_json(path, "comparison")
    try:
        directions = [
            DirectionComparison(
                **{
                    **row,
                    **_scores_in(row),
                    "direction": Direction.parse(row["direction"]),
                    "seeds": [SeedResult(**seed) for seed in row["seeds"]],
                }
            )
            for row in content.pop("directions")
        ]
        groups = [
            GroupComparison(
                **{**row, **_scores_in(row), "interval": row["interval"] and tuple(row["interval"])}
            )
            for row in content.pop("groups")
        ]
        return Comparison(**content, directions=directions, groups=groups)
    except (AttributeError, KeyError, TypeError) as error:
        raise ArtifactError(
            "a comparison is not of the form that neuron-spec writes",
            where=path,
            got=f"{type(error).__name__}: {error}",
            mend="delete its folder; it is made again",
        ) from error


def _scores_in(row: dict[str, Any]) -> dict[str, OverSeeds]:
    return {name: OverSeeds(**row[name]) for name in ("baseline", "score", "difference")}


def as_plain(comparison: Comparison) -> dict[str, Any]:
    """What ``comparison.json`` holds."""
    plain = asdict(comparison)
    for row in plain["directions"]:
        row["direction"] = str(Direction(**row["direction"]))
    return plain


def _as_csv(comparison: Comparison) -> str:
    """A row for each system, metric, direction and seed."""
    rows = [
        {
            "system": row.system,
            "baseline_system": comparison.baseline,
            "metric": row.metric,
            "direction": str(row.direction),
            "group": row.group,
            "tier": row.tier,
            "family": row.family,
            "seed": number,
            **asdict(seed),
        }
        for row in comparison.directions
        for number, seed in enumerate(row.seeds, start=1)
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
