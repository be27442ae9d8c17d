"""Systems against a baseline: which differences are more than chance, and which could have been seen?

By BLEU and chrF++ (0-100), and likelihood and COMET where all evaluations have them (`systems.common_endpoints`). Two
questions, because there are two populations to draw from:

- Sentences. Would these trained models differ on other test sentences of this kind? For each direction
  and seed, the samples of sacreBLEU's paired bootstrap, but a two-sided p: sacreBLEU's is one-sided in
  effect (`bootstrap.PairedScore`). The p-values are adjusted by Holm over the directions too. For each group, the
  mean over its directions and seeds on one joint draw: directions whose test sets are the same sentences have them
  drawn together (`bootstrap.Draws`), others by themselves.
- Trainings. Would training again give the same difference? For each group Student's t over three seeds or more.

Directions are no sample: they were chosen, and share a model and mostly their sentences. A sign-flip test says no more
than whether their differences are of one sign. Differences are system minus baseline. The tests are ours but for
sacreBLEU's; the official code has none.
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
from neuron_spec.arguments import ALPHA, SAMPLES
from neuron_spec.artifacts import hash_text
from neuron_spec.directions import Direction
from neuron_spec.errors import ArtifactError, NeuronSpecError
from neuron_spec.languages import ENGLISH
from neuron_spec.scoring.bootstrap import (
    BOOTSTRAP_SEED,
    Draws,
    Floats,
    PairedScore,
    resampled_ratio,
    resampled_scores,
)
from neuron_spec.scoring.endpoints import BLEU, CHRF, ENDPOINTS, NLL, Endpoint
from neuron_spec.scoring.evaluation import ALL, family_in, grouped, tier_in
from neuron_spec.scoring.metrics import Outputs
from neuron_spec.scoring.systems import System, common_endpoints, is_official, sentence_scores
from neuron_spec.statistics import OverSeeds, Uncertainty, holm, interval, sign_flip_p_value

WIN, TIE, LOSS = "win", "tie", "loss"

# A bootstrap takes the sentences for all there are. Of equal systems (normal differences of sentences, 1,000 samples, 3,000
# test sets) p was below 0.05 in 14.9 % at 5 sentences, 10.3 % at 10, 7.1 % at 20, 5.2 % at 50.
FEW_SENTENCES = 50

_SCORE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class SeedResult:
    """One seed of a system beside the baseline's: scores, p-values over sentences, and what they say.

    ``low`` and ``high`` bound the 95 % bootstrap interval of the difference. ``p_value`` is two-sided,
    ``holm_p_value`` that adjusted over the directions, and ``sacrebleu_p_value`` as sacreBLEU gives it, for
    comparison, None by what is not sacreBLEU's. A difference is a ``win`` or ``loss`` if ``p_value`` is below alpha; by
    likelihood a negative one is a win.
    """

    baseline: float
    score: float
    difference: float
    low: float
    high: float
    sacrebleu_p_value: float | None
    p_value: float
    holm_p_value: float
    result: str
    holm_result: str

    @classmethod
    def of(cls, pair: PairedScore, endpoint: Endpoint, holm_p_value: float, alpha: float) -> SeedResult:
        difference = pair.score - pair.baseline_score
        if_significant = WIN if endpoint.is_better(difference) else LOSS
        return cls(
            *(pair.baseline_score, pair.score, difference),
            *interval(pair.resampled_differences),
            sacrebleu_p_value=pair.sacrebleu_p_value,
            p_value=pair.p_value,
            holm_p_value=holm_p_value,
            result=if_significant if pair.p_value < alpha else TIE,
            holm_result=if_significant if holm_p_value < alpha else TIE,
        )


@dataclass(frozen=True)
class DirectionComparison:
    """A system beside the baseline on one direction; ``metric`` is the key of an endpoint.

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

    Attributes:
        over_sentences: of the mean over directions and seeds, on one joint draw; None in files of earlier versions.
        over_seeds: of the mean over directions; None for fewer than three pairs of seeds, or where the seeds share an
            evaluation.
        sign_flip_p_value: whether the directions' differences, each a mean over seeds, are of one sign.
        results: wins, ties and losses of all directions and seeds.
        holm_results: those after Holm's adjustment over all directions.
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
    over_sentences: Uncertainty | None
    over_seeds: Uncertainty | None
    sign_flip_p_value: float
    results: dict[str, int]
    holm_results: dict[str, int]


@dataclass(frozen=True)
class Comparison:
    """All systems against the baseline, by all endpoints that every evaluation has.

    Attributes:
        left_out: key of an endpoint that only some evaluations have, or not comparably -> why.
        draws: directions whose sentences are drawn together.
        partly_shared: as in `Draws`.
        unknown_sources: directions whose sources no evaluation has; what they share on that side is not known.
        few_sentences: directions with fewer than `FEW_SENTENCES`, and how many: ``en-de (12)``.
    """

    signature: dict[str, Any]
    sacrebleu: dict[str, list[str]]
    baseline: str
    alpha: float
    directions: list[DirectionComparison] = field(default_factory=list)
    groups: list[GroupComparison] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    draws: list[list[str]] = field(default_factory=list)
    partly_shared: list[str] = field(default_factory=list)
    unknown_sources: list[str] = field(default_factory=list)
    few_sentences: list[str] = field(default_factory=list)

    @property
    def endpoints(self) -> list[Endpoint]:
        return [ENDPOINTS[key] for key in dict.fromkeys(row.metric for row in self.directions)]

    def is_noise(self, system: str, endpoint: Endpoint) -> bool:
        """Whether Holm's adjustment leaves no direction of any seed that differs significantly."""
        rows = [row for row in self.directions if (row.system, row.metric) == (system, endpoint.key)]
        return all(seed.holm_result == TIE for row in rows for seed in row.seeds)

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
        uncertainty: of that, on one joint draw of sentences, if nothing else is said.
        nll_difference: in nats a target token, negative where the system is better; None where likelihoods are not
            known.
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
    uncertainty: Uncertainty | None = None
    wins: int | None = None
    losses: int | None = None
    nll: float | None = None
    nll_difference: float | None = None
    nll_uncertainty: Uncertainty | None = None

    @property
    def low(self) -> float | None:
        return self.uncertainty.low if self.uncertainty else None

    @property
    def high(self) -> float | None:
        return self.uncertainty.high if self.uncertainty else None

    @property
    def p_value(self) -> float | None:
        return self.uncertainty.p_value if self.uncertainty else None

    @property
    def nll_low(self) -> float | None:
        return self.nll_uncertainty.low if self.nll_uncertainty else None

    @property
    def nll_high(self) -> float | None:
        return self.nll_uncertainty.high if self.nll_uncertainty else None

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
        by_place: dict[tuple[str, str, str, str], dict[str, GroupComparison]] = {}
        for of in comparison.groups:
            by_place.setdefault((of.system, of.kind, of.name, of.group), {})[of.metric] = of
        rows: dict[tuple[str, str], Self] = {}
        for (system, kind, name, group), of_endpoints in by_place.items():
            if kind not in kinds or group not in (ALL, name):
                continue
            bleu, chrf, nll = (of_endpoints.get(endpoint.key) for endpoint in (BLEU, CHRF, NLL))
            assert bleu and chrf
            over, base = (comparison.baseline, name, bleu.directions), bleu.baseline
            scores = (comparison.baseline, *over, base.mean, chrf.baseline.mean, base.std)
            first = cls(*scores, nll=nll.baseline.mean if nll else None, **more)
            rows.setdefault((first.system, name), first)
            rows[system, name] = cls(
                *(system, *over, bleu.score.mean, chrf.score.mean, bleu.score.std),
                difference=bleu.difference.mean,
                chrf_difference=chrf.difference.mean,
                uncertainty=bleu.over_sentences,
                wins=bleu.holm_results[WIN],
                losses=bleu.holm_results[LOSS],
                nll=nll.score.mean if nll else None,
                nll_difference=nll.difference.mean if nll else None,
                nll_uncertainty=nll.over_sentences if nll else None,
                **more,
            )
        return list(rows.values())


def comparison_signature(systems: Sequence[System], *, samples: int, alpha: float) -> dict[str, Any]:
    """What a comparison is made from; ``systems`` as `comparable` returns them.

    Raises:
        NeuronSpecError: as `common_endpoints`.
    """
    baseline, *others = systems
    endpoints, _ = common_endpoints(systems)
    inputs = {}
    for system in systems:
        for i, seed in enumerate(system.seeds):
            texts = [[str(o.direction), o.hypotheses, o.references, o.sources] for o in seed.outputs]
            scores = [[s.bleu_signature, s.chrf_signature] for s in seed.scores]
            around = [seed.pivot] if seed.pivot != ENGLISH else []
            groups = [seed.families, seed.tiers, is_official(seed), *around]
            known = [sentence_scores(seed, at, e) for e in endpoints for at in range(len(seed.scores))]
            sentences = [[values.tolist() for values in ratio] for ratio in known if ratio]
            content = json.dumps([texts, scores, groups, *sentences], sort_keys=True)
            inputs[system.label(i)] = hash_text(content)
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
            "groups": "joint draws",
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
        NeuronSpecError: if no p-value could be below ``alpha``, a test set is one sentence, or a tokenizer is not
            installed; as `common_endpoints`.
        ArtifactError: if an evaluation's scores are not those of its texts.
    """
    if not 0 < alpha < 1 or samples < 1 or 1 / (samples + 1) >= alpha:
        raise NeuronSpecError(
            "no p-value could be below alpha",
            got=f"alpha {alpha:g}, {samples} bootstrap samples",
            expected="0 < alpha < 1, and more samples than 1 / alpha: the smallest p is 1 / (samples + 1)",
        )
    if alone := [str(of.direction) for of in systems[0].seeds[0].outputs if len(of.references) < 2]:
        raise NeuronSpecError(
            "no other sentences can be drawn from one, so that any difference would be significant",
            got=f"one test sentence of {', '.join(alone)}",
            expected="test sets of hundreds of sentences",
            mend="evaluate more sentences, or leave the direction out",
        )
    endpoints, left_out = common_endpoints(systems)
    paired = _paired_scores(systems, endpoints, samples)
    signatures: dict[str, set[str]] = {}
    for (_, metric), of in paired.items():
        found = {pair.signature for at in of for pair in at if pair.signature}
        signatures.setdefault(metric, set()).update(found)
    baseline, *others = systems
    test_sets = _with_known_sources(systems)
    draws = Draws.of(test_sets)
    together: dict[int, list[str]] = {}
    for number, test_set in zip(draws.numbers, test_sets, strict=True):
        together.setdefault(number, []).append(str(test_set.direction))
    comparison = Comparison(
        dict(signature),
        {metric: sorted(of) for metric, of in signatures.items() if of},
        baseline.name,
        alpha,
        left_out=left_out,
        draws=list(together.values()),
        partly_shared=draws.partly_shared,
        unknown_sources=[str(test_set.direction) for test_set in test_sets if test_set.sources is None],
        few_sentences=[
            f"{of.direction} ({len(of.references)})" for of in test_sets if len(of.references) < FEW_SENTENCES
        ],
    )
    for system in others:
        for endpoint in endpoints:
            of_system = paired[system.name, endpoint.key]
            rows = _compare_directions(baseline, system, endpoint, of_system, alpha)
            resampled = [np.mean([pair.resampled_differences for pair in of], axis=0) for of in of_system]
            comparison.directions.extend(rows)
            comparison.groups.extend(
                _compare_groups(baseline, system, endpoint, rows, draws, resampled, alpha)
            )
    return comparison


def is_same_score(stored: Any, score: float) -> bool:
    """Whether what a file says is a score that was computed, but for rounding."""
    return isinstance(stored, int | float) and abs(stored - score) <= _SCORE_TOLERANCE


def _with_known_sources(systems: Sequence[System]) -> list[Outputs]:
    """Of each direction the first evaluation that knows its sources; the baseline's first if none does."""
    seeds = [seed for system in systems for seed in system.seeds]
    return [
        next((of for seed in seeds if (of := seed.outputs[at]).sources is not None), outputs)
        for at, outputs in enumerate(seeds[0].outputs)
    ]


def _paired_scores(
    systems: Sequence[System], endpoints: Sequence[Endpoint], samples: int
) -> dict[tuple[str, str], list[list[PairedScore]]]:
    """Of each system and endpoint: for each direction, one score for each pair of seeds."""
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
            of_text = by_text[system.name, seed]
            for endpoint in endpoints:
                if ratio := sentence_scores(system.seeds[seed], at, endpoint):
                    of_text[endpoint.key] = resampled_ratio(ratio, samples)
                stored = getattr(system.seeds[seed].scores[at], endpoint.key)
                score = of_text[endpoint.key].score
                if not is_same_score(stored, score):
                    raise ArtifactError(
                        "scores of an evaluation are not those of its texts",
                        where=f"{system.label(seed)}, {outputs.direction}, {endpoint.title}",
                        got=f"{stored} in {artifacts.SCORES_JSON}",
                        expected=f"{score} from its texts and sentence scores",
                        mend="evaluate again: its files were changed, or it was scored by another sacreBLEU",
                    )
        for system in others:
            # Seed by seed; a single one is compared with each.
            pairs = max(len(baseline.seeds), len(system.seeds))
            first = [by_text[baseline.name, i % len(baseline.seeds)] for i in range(pairs)]
            second = [by_text[system.name, i % len(system.seeds)] for i in range(pairs)]
            for endpoint in endpoints:
                key = endpoint.key
                scores = [PairedScore.of(a[key], b[key]) for a, b in zip(first, second, strict=True)]
                paired.setdefault((system.name, key), []).append(scores)
    return paired


def _compare_directions(
    baseline: System,
    system: System,
    endpoint: Endpoint,
    paired: Sequence[Sequence[PairedScore]],
    alpha: float,
) -> list[DirectionComparison]:
    p_values = np.array([[score.p_value for score in scores] for scores in paired])  # [directions, seeds]
    adjusted = np.stack([holm(column) for column in p_values.T], axis=1)
    reference = baseline.seeds[0]
    compared = []
    for at, scores in enumerate(paired):
        direction = reference.scores[at].direction
        low, high = interval(np.mean([score.resampled_differences for score in scores], axis=0))
        seeds = [
            SeedResult.of(score, endpoint, float(p), alpha)
            for score, p in zip(scores, adjusted[at], strict=True)
        ]
        compared.append(
            DirectionComparison(
                system=system.name,
                metric=endpoint.key,
                direction=direction,
                group=direction.group.code,
                tier=tier_in(reference.tiers, direction) if reference.tiers else None,
                family=family_in(reference.families, direction),
                baseline=_over_seeds(baseline, endpoint, [at]),
                score=_over_seeds(system, endpoint, [at]),
                difference=OverSeeds.of([seed.difference for seed in seeds]),
                low=low,
                high=high,
                seeds=seeds,
            )
        )
    return compared


def _over_seeds(system: System, endpoint: Endpoint, places: Sequence[int]) -> OverSeeds:
    """The mean over directions of each seed, then over seeds; ``places`` are the directions' positions."""
    return OverSeeds.of(
        [fmean(getattr(seed.scores[at], endpoint.key) for at in places) for seed in system.seeds]
    )


def _compare_groups(
    baseline: System,
    system: System,
    endpoint: Endpoint,
    rows: Sequence[DirectionComparison],
    draws: Draws,
    resampled: Sequence[Floats],
    alpha: float,
) -> list[GroupComparison]:
    """``resampled``: of each direction the differences on the drawn sentences, means over seeds."""
    reference = baseline.seeds[0]
    # A single evaluation beside several would pass for as many independent ones.
    is_paired = len(baseline.seeds) == len(system.seeds)
    place_of = {score.direction: at for at, score in enumerate(reference.scores)}
    compared = []
    for kind, name, group, members in grouped(reference.scores, reference.families, reference.tiers):
        places = [place_of[member.direction] for member in members]
        seeds = [rows[at].seeds for at in places]
        differences = np.array([[seed.difference for seed in of] for of in seeds])  # [directions, seeds]
        of_seeds = differences.mean(axis=0).tolist()
        joint = draws.mean([resampled[at] for at in places], places)
        compared.append(
            GroupComparison(
                *(system.name, endpoint.key, kind, name, group, len(places)),
                baseline=_over_seeds(baseline, endpoint, places),
                score=_over_seeds(system, endpoint, places),
                difference=OverSeeds.of(of_seeds),
                over_sentences=Uncertainty.of_samples(float(differences.mean()), joint, alpha),
                over_seeds=Uncertainty.over_seeds(of_seeds, alpha) if is_paired else None,
                sign_flip_p_value=sign_flip_p_value(differences.mean(axis=1)),
                results=counted_results([seed.result for of in seeds for seed in of]),
                holm_results=counted_results([seed.holm_result for of in seeds for seed in of]),
            )
        )
    return compared


def counted_results(results: Sequence[str]) -> dict[str, int]:
    """How many wins, ties and losses."""
    return {result: results.count(result) for result in (WIN, TIE, LOSS)}
