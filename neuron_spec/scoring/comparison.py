"""Systems against a baseline: which differences in BLEU and chrF++ (0-100) are more than chance?

Two questions, two tests, because there are two populations to draw from:

- Sentences. Would these trained models differ on other test sentences of this kind? For each direction
  and seed, the samples of sacreBLEU's paired bootstrap, but a two-sided p: sacreBLEU's is one-sided in
  effect (`bootstrap.PairedScore`). The p-values are adjusted by Holm over the directions too.
- Directions. Is a system better over directions like these? For each group, a sign-flip test on the
  directions' differences, each a mean over seeds, and a bootstrap interval over directions.

Neither asks whether training again would give the same difference: the standard deviation over seeds
speaks to that. Differences are system minus baseline. The tests are ours but for sacreBLEU's; the
official code has none.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Self

import numpy as np
from tqdm import tqdm

from neuron_spec import artifacts
from neuron_spec.artifacts import hash_text
from neuron_spec.directions import Direction
from neuron_spec.errors import ArtifactError, NeuronSpecError
from neuron_spec.scoring.bootstrap import BOOTSTRAP_SEED, PairedScore, resampled_scores
from neuron_spec.scoring.evaluation import ALL, family_in, grouped, tier_in
from neuron_spec.scoring.systems import System, is_official
from neuron_spec.statistics import OverSeeds, holm, interval, interval_over_directions, sign_flip_p_value

METRICS = {"bleu": "BLEU", "chrf": "chrF++"}
WIN, TIE, LOSS = "win", "tie", "loss"
SAMPLES = 1000
ALPHA = 0.05

_SCORE_TOLERANCE = 1e-6


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

    @classmethod
    def of(cls, pair: PairedScore, holm_p_value: float, alpha: float) -> SeedResult:
        difference = pair.score - pair.baseline_score
        if_significant = WIN if difference > 0 else LOSS
        return cls(
            *(pair.baseline_score, pair.score, difference),
            *interval(pair.resampled_differences),
            *(pair.sacrebleu_p_value, pair.p_value, holm_p_value),
            result=if_significant if pair.p_value < alpha else TIE,
            holm_result=if_significant if holm_p_value < alpha else TIE,
        )


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

    @property
    def systems(self) -> list[str]:
        """Those that are compared with the baseline."""
        return list(dict.fromkeys(row.system for row in self.directions))

    @property
    def seeds(self) -> int:
        return max(len(row.seeds) for row in self.directions)


@dataclass(frozen=True)
class Difference:
    """A system beside a baseline over some directions: means over directions and seeds, BLEU and chrF++ 0-100.

    Of the baseline itself, all but its scores is None.

    Attributes:
        name, directions: over which, a family or group of directions, or ``all``; and how many.
        bleu_std: over seeds; None for one.
        difference: in BLEU, system minus baseline.
        low, high: bounds of its 95 % interval over directions; None for fewer than 6.
        p_value: two-sided, over directions.
        wins, losses: directions of all seeds that differ significantly over sentences, after Holm's adjustment; None
            where that was not tested.
    """

    system: str
    baseline: str
    name: str
    directions: int
    bleu: float
    chrf: float
    bleu_std: float | None = None
    difference: float | None = None
    chrf_difference: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    wins: int | None = None
    losses: int | None = None

    def values(self, columns: Mapping[str, str]) -> dict[str, Any]:
        """Some fields, as files name them: name in the file -> field."""
        return {name: getattr(self, field) for name, field in columns.items()}

    @classmethod
    def of_groups(
        cls, comparison: Comparison, kinds: Iterable[str] = ("overall",), **more: Any
    ) -> list[Self]:
        """The baseline and each system over groups of directions, the baseline first.

        Args:
            kinds: of groups, as in `GroupMean`; of each name those over all its directions.
            more: fields of a subclass.
        """
        rows: dict[tuple[str, str], Self] = {}
        by_metric = ([row for row in comparison.groups if row.metric == metric] for metric in METRICS)
        for bleu, chrf in zip(*by_metric, strict=True):
            if bleu.kind in kinds and bleu.group == ALL:
                over, base = (comparison.baseline, bleu.name, bleu.directions), bleu.baseline
                baseline = cls(comparison.baseline, *over, base.mean, chrf.baseline.mean, base.std, **more)
                rows.setdefault((baseline.system, bleu.name), baseline)
                low, high = bleu.interval or (None, None)
                rows[bleu.system, bleu.name] = cls(
                    *(bleu.system, *over, bleu.score.mean, chrf.score.mean, bleu.score.std),
                    difference=bleu.difference.mean,
                    chrf_difference=chrf.difference.mean,
                    low=low,
                    high=high,
                    p_value=bleu.p_value,
                    wins=bleu.holm_results.get(WIN, 0),
                    losses=bleu.holm_results.get(LOSS, 0),
                    **more,
                )
        return list(rows.values())

    @classmethod
    def over_directions(
        cls,
        system: str,
        baseline: str,
        name: str,
        scores: Sequence[Mapping[str, tuple[float, float]]],
        **more: Any,
    ) -> Self:
        """Of one training each, or of means over seeds, without a test over sentences.

        Args:
            scores: of each direction ``bleu`` and ``chrf``, of the system and of the baseline.
            more: fields of a subclass.
        """
        bleu, chrf = ([of[metric][0] - of[metric][1] for of in scores] for metric in METRICS)
        low, high = interval_over_directions(bleu) or (None, None)
        return cls(
            *(system, baseline, name, len(scores)),
            bleu=fmean(of["bleu"][0] for of in scores),
            chrf=fmean(of["chrf"][0] for of in scores),
            difference=fmean(bleu),
            chrf_difference=fmean(chrf),
            low=low,
            high=high,
            p_value=sign_flip_p_value(bleu),
            **more,
        )


def comparison_signature(systems: Sequence[System], *, samples: int, alpha: float) -> dict[str, Any]:
    """What a comparison is made from; ``systems`` as `comparable` returns them."""
    baseline, *others = systems
    inputs = {}
    for system in systems:
        for i, seed in enumerate(system.seeds):
            texts = [[str(o.direction), o.hypotheses, o.references, o.sources] for o in seed.outputs]
            scores = [[s.bleu_signature, s.chrf_signature] for s in seed.scores]
            groups = [seed.families, seed.tiers, is_official(seed)]
            inputs[system.label(i)] = hash_text(json.dumps([texts, scores, groups], sort_keys=True))
    return artifacts.signature(
        "compare",
        inputs=inputs,
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
    paired = _paired_scores(systems, samples)
    signatures = {
        metric: sorted(
            {pair.signature for (_, m), of in paired.items() if m == metric for at in of for pair in at}
        )
        for metric in METRICS
    }
    baseline, *others = systems
    comparison = Comparison(dict(signature), signatures, baseline.name, alpha)
    for system in others:
        for metric in METRICS:
            rows = _compare_directions(baseline, system, metric, paired[system.name, metric], alpha)
            comparison.directions.extend(rows)
            comparison.groups.extend(_compare_groups(baseline, system, metric, rows))
    return comparison


def _paired_scores(systems: Sequence[System], samples: int) -> dict[tuple[str, str], list[list[PairedScore]]]:
    """Of each system and metric: for each direction, one score for each pair of seeds."""
    baseline, *others = systems
    reference = baseline.seeds[0]
    paired: dict[tuple[str, str], list[list[PairedScore]]] = {}
    for at, outputs in enumerate(bar := tqdm(reference.outputs, desc="compare", file=sys.stderr)):
        bar.set_postfix_str(str(outputs.direction))
        texts = [(system, seed) for system in systems for seed in range(len(system.seeds))]
        resampled = resampled_scores(
            [system.seeds[seed].outputs[at] for system, seed in texts],
            samples=samples,
            official=is_official(reference),
        )
        by_text = {(system.name, seed): of for (system, seed), of in zip(texts, resampled, strict=True)}
        for system, seed in texts:
            for metric, score in by_text[system.name, seed].items():
                stored = getattr(system.seeds[seed].scores[at], metric)
                if abs(stored - score.score) > _SCORE_TOLERANCE:
                    raise ArtifactError(
                        "scores of an evaluation are not those of its texts",
                        where=f"{system.label(seed)}, {outputs.direction}, {METRICS[metric]}",
                        got=f"{stored} in {artifacts.SCORES_JSON}",
                        expected=f"{score.score} from its hypotheses and references",
                        mend="evaluate again: its texts were changed, or it was scored by another sacreBLEU",
                    )
        for system in others:
            # Seed by seed; a single one is compared with each.
            pairs = max(len(baseline.seeds), len(system.seeds))
            first = [by_text[baseline.name, i % len(baseline.seeds)] for i in range(pairs)]
            second = [by_text[system.name, i % len(system.seeds)] for i in range(pairs)]
            for metric in METRICS:
                scores = [PairedScore.of(a[metric], b[metric]) for a, b in zip(first, second, strict=True)]
                paired.setdefault((system.name, metric), []).append(scores)
    return paired


def _compare_directions(
    baseline: System, system: System, metric: str, paired: Sequence[Sequence[PairedScore]], alpha: float
) -> list[DirectionComparison]:
    p_values = np.array([[score.p_value for score in scores] for scores in paired])  # [directions, seeds]
    adjusted = np.stack([holm(column) for column in p_values.T], axis=1)
    reference = baseline.seeds[0]
    compared = []
    for at, scores in enumerate(paired):
        direction = reference.scores[at].direction
        low, high = interval(np.mean([score.resampled_differences for score in scores], axis=0))
        seeds = [SeedResult.of(score, float(p), alpha) for score, p in zip(scores, adjusted[at], strict=True)]
        compared.append(
            DirectionComparison(
                system=system.name,
                metric=metric,
                direction=direction,
                group=direction.group.code,
                tier=tier_in(reference.tiers, direction) if reference.tiers else None,
                family=family_in(reference.families, direction),
                baseline=_over_seeds(baseline, metric, [at]),
                score=_over_seeds(system, metric, [at]),
                difference=OverSeeds.of([seed.difference for seed in seeds]),
                low=low,
                high=high,
                seeds=seeds,
            )
        )
    return compared


def _over_seeds(system: System, metric: str, places: Sequence[int]) -> OverSeeds:
    """The mean over directions of each seed, then over seeds; ``places`` are the directions' positions."""
    return OverSeeds.of([fmean(getattr(seed.scores[at], metric) for at in places) for seed in system.seeds])


def _compare_groups(
    baseline: System, system: System, metric: str, rows: Sequence[DirectionComparison]
) -> list[GroupComparison]:
    reference = baseline.seeds[0]
    compared = []
    for kind, name, group, members in grouped(reference.scores, reference.families, reference.tiers):
        places = [reference.scores.index(member) for member in members]
        seeds = [rows[at].seeds for at in places]
        differences = np.array([[seed.difference for seed in of] for of in seeds])  # [directions, seeds]
        of_directions = differences.mean(axis=1)
        compared.append(
            GroupComparison(
                *(system.name, metric, kind, name, group, len(places)),
                baseline=_over_seeds(baseline, metric, places),
                score=_over_seeds(system, metric, places),
                difference=OverSeeds.of(differences.mean(axis=0).tolist()),
                interval=interval_over_directions(of_directions),
                p_value=sign_flip_p_value(of_directions),
                results=counted_results([seed.result for of in seeds for seed in of]),
                holm_results=counted_results([seed.holm_result for of in seeds for seed in of]),
            )
        )
    return compared


def counted_results(results: Sequence[str]) -> dict[str, int]:
    """How many wins, ties and losses."""
    return {result: results.count(result) for result in (WIN, TIE, LOSS)}
