"""Systems: what they are called, and which evaluations of them can be compared."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from neuron_spec.artifacts import differences, hash_text
from neuron_spec.directions import Direction
from neuron_spec.errors import DirectionError, NeuronSpecError
from neuron_spec.scoring.endpoints import COMET, NLL, OF_TEXTS, Endpoint, Ratio
from neuron_spec.scoring.evaluation import Evaluation

DENSE, CONTINUATION, SPECIALIZED = "dense", "dense-continuation", "specialized"
RANDOM, OTHER = "matched-random", "other-direction"  # controls, of which sets and of whose
FULL, FULL_LONGER, STATIC, DYNAMIC = "full", "full-longer", "static", "dynamic"
META = "meta-"  # before the name of a system: the same one, trained by episodes
# The order of columns; others follow by name.
SYSTEMS = (
    *(DENSE, CONTINUATION, SPECIALIZED, RANDOM, OTHER, FULL, FULL_LONGER, STATIC, DYNAMIC),
    *(META + name for name in (FULL, STATIC, DYNAMIC)),
)


def place(system: str) -> tuple[int, str]:
    """By which systems are sorted."""
    return SYSTEMS.index(system) if system in SYSTEMS else len(SYSTEMS), system


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
            not pair up or are copies of one training, or they were not scored on the same texts in the same way.
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
        made_of = [(seed.signature.get("inputs"), seed.signature.get("parameters")) for seed in system.seeds]
        if any(one[0] and one in made_of[:number] for number, one in enumerate(made_of)):
            raise NeuronSpecError(
                "two seeds are one training: what another would change is in neither",
                got=f"{system.name}: evaluations of the same checkpoint",
                expected="an evaluation of each seed's own",
                mend="name each training once",
            )
    evaluations = {system.label(i): seed for system in systems for i, seed in enumerate(system.seeds)}
    if len(pivots := {seed.pivot for seed in evaluations.values()}) > 1:
        raise NeuronSpecError(
            "evaluations group directions around different languages",
            got=", ".join(f"{label}: {seed.pivot or 'none'}" for label, seed in evaluations.items()),
            expected=f"one, and not {len(pivots)}",
            mend="evaluate again beside a corpus card with the same pivot",
        )
    directions = _shared_directions(evaluations, common_directions)
    aligned = []
    for system in systems:
        seeds = []
        for seed in system.seeds:
            outputs, scores = {o.direction: o for o in seed.outputs}, {s.direction: s for s in seed.scores}
            of_directions = [outputs[d] for d in directions], [scores[d] for d in directions]
            seeds.append(replace(seed, outputs=of_directions[0], scores=of_directions[1]))
        aligned.append(replace(system, seeds=seeds))
    first, *others = ((system.label(i), seed) for system in aligned for i, seed in enumerate(system.seeds))
    for other in others:
        _require_same_test(first, other)
    for system in aligned[1:]:
        _warn_of_other_decoding(aligned[0], system)
    return aligned


def common_endpoints(systems: Sequence[System]) -> tuple[list[Endpoint], dict[str, str]]:
    """By what all evaluations can be compared, and why not by the others that some of them have: key -> reason.

    Likelihood first, as it is what differences show in first.

    Args:
        systems: as `comparable` returns them.

    Raises:
        NeuronSpecError: if a sentence has a likelihood in some evaluations and in others not, as where it is too
            long for one of them.
    """
    named = [(system.label(i), seed) for system in systems for i, seed in enumerate(system.seeds)]
    left_out = {}
    for endpoint in (NLL, COMET):
        ratios = [
            [sentence_scores(seed, at, endpoint) for at in range(len(seed.scores))] for _, seed in named
        ]
        if any(ratio for of_evaluation in ratios for ratio in of_evaluation):
            reason = _what_is_missing(named, ratios) or (
                _other_model(named) if endpoint is COMET else _other_vocabulary(named, ratios)
            )
            if reason:
                left_out[endpoint.key] = reason
            else:
                _require_same_sentences(named, ratios, endpoint)
        else:
            left_out[endpoint.key] = ""
    order = [endpoint for endpoint in (NLL, *OF_TEXTS, COMET) if endpoint.key not in left_out]
    return order, {key: reason for key, reason in left_out.items() if reason}


def sentence_scores(evaluation: Evaluation, at: int, endpoint: Endpoint) -> Ratio | None:
    """Of the direction at this place; None where they or their mean are not known, and by what is of whole texts."""
    if endpoint in OF_TEXTS:
        return None
    score = evaluation.scores[at]
    of_sentences = evaluation.sentences.get(score.direction)
    ratio = of_sentences and of_sentences.ratio(endpoint.key)
    return ratio if ratio and ratio.known.any() and getattr(score, endpoint.key) is not None else None


_Named = Sequence[tuple[str, Evaluation]]
_Ratios = Sequence[Sequence[Ratio | None]]  # of each evaluation and direction


def _what_is_missing(named: _Named, ratios: _Ratios) -> str | None:
    """Which evaluations have none, of which directions."""
    missing = []
    for (name, evaluation), of_evaluation in zip(named, ratios, strict=True):
        pairs = zip(evaluation.scores, of_evaluation, strict=True)
        directions = [str(score.direction) for score, ratio in pairs if ratio is None]
        if directions:
            missing.append(
                name if len(directions) == len(of_evaluation) else f"{name} for {', '.join(directions)}"
            )
    return f"not known of {'; '.join(missing)}" if missing else None


def _other_model(named: _Named) -> str | None:
    models = {name: of.signature.get("parameters", {}).get(COMET.key) for name, of in named}
    if len(set(map(str, models.values()))) == 1:
        return None
    return "by different models: " + ", ".join(f"{model} of {name}" for name, model in models.items())


def _other_vocabulary(named: _Named, ratios: _Ratios) -> str | None:
    """A likelihood a token depends on what a token is."""
    (name, evaluation), first = named[0], ratios[0]
    for (other, _), second in zip(named, ratios, strict=True):
        for score, a, b in zip(evaluation.scores, first, second, strict=True):
            assert a and b
            differing = np.flatnonzero(a.known & b.known & (a.denominators != b.denominators))
            if len(differing):
                at = differing[0]
                return (
                    f"other vocabularies: sentence {at + 1} of {score.direction} has {a.denominators[at]:g} target "
                    f"tokens for {name}, {b.denominators[at]:g} for {other}"
                )
    return None


def _require_same_sentences(named: _Named, ratios: _Ratios, endpoint: Endpoint) -> None:
    (name, evaluation), first = named[0], ratios[0]
    for (other, _), second in zip(named, ratios, strict=True):
        for score, a, b in zip(evaluation.scores, first, second, strict=True):
            assert a and b
            differing = np.flatnonzero(a.known != b.known)
            if len(differing):
                at = differing[0]
                has, lacks = (name, other) if a.known[at] else (other, name)
                raise NeuronSpecError(
                    f"{endpoint.title} of different sentences cannot be compared",
                    where=f"{name}; {other}, {score.direction}, sentence {at + 1}",
                    got=f"a value of {has}, none of {lacks} (a sentence longer than a model's positions has none)",
                    expected="the same sentences in all evaluations",
                    mend="evaluate all with the same --max-source-positions and --max-target-positions, or without "
                    "likelihoods (--no-likelihood)",
                )


def _shared_directions(evaluations: Mapping[str, Evaluation], common_directions: bool) -> list[Direction]:
    by_name = {name: [score.direction for score in of.scores] for name, of in evaluations.items()}
    first, expected = next(iter(by_name.items()))
    for name, directions in by_name.items():
        if set(directions) != set(expected) and not common_directions:
            raise DirectionError(
                "evaluations of different directions",
                where=f"{first}; {name}",
                got=f"only {name} has {_listed(set(directions) - set(expected))}",
                expected=f"only {first} has {_listed(set(expected) - set(directions))}",
                mend="--common-directions compares those that all have",
            )
    common = [d for d in expected if all(d in directions for directions in by_name.values())]
    if not common:
        raise DirectionError(
            "the evaluations have no direction in common",
            got="; ".join(f"{name}: {_listed(directions)}" for name, directions in by_name.items()),
        )
    return common


def _listed(directions: Iterable[Direction]) -> str:
    return ", ".join(sorted(map(str, directions))) or "none"


def _require_same_test(first: tuple[str, Evaluation], second: tuple[str, Evaluation]) -> None:
    (name, a), (other, b) = first, second
    where = f"{name}; {other}"
    for wanted, got in zip(a.outputs, b.outputs, strict=True):
        _require_same_text("references", where, wanted.direction, wanted.references, got.references)
        if wanted.sources is not None and got.sources is not None:
            _require_same_text("sources", where, wanted.direction, wanted.sources, got.sources)
    settings: list[tuple[str, str, Any, Any]] = [("official scoring", where, is_official(a), is_official(b))]
    for x, y in zip(a.scores, b.scores, strict=True):
        place = f"{where}, {x.direction}"
        settings += [
            ("BLEU signature", place, x.bleu_signature, y.bleu_signature),
            ("chrF++ signature", place, x.chrf_signature, y.chrf_signature),
        ]
    # The hash is of all directions' files at once, so it compares only if these are the same.
    directions = [set(of.signature.get("parameters", {}).get("directions", ())) for of in (a, b)]
    hashes = [of.signature.get("inputs", {}).get("data") for of in (a, b)]
    if directions[0] == directions[1] and None not in hashes:
        settings.append(("data-bin (its text or vocabulary)", where, hashes[0], hashes[1]))
    for what, place, expected, got_setting in settings:
        if expected != got_setting:
            raise NeuronSpecError(
                f"evaluations that differ in {what} cannot be compared",
                where=place,
                got=f"{got_setting} of {other}",
                expected=f"{expected}, as of {name}",
                mend="evaluate both on one data-bin, with the same sacreBLEU and scoring",
            )


def _warn_of_other_decoding(baseline: System, system: System) -> None:
    """Seed by seed, as they are compared; logs do not say how they were translated."""
    for i in range(max(len(baseline.seeds), len(system.seeds))):
        pair = [(of.label(i % len(of.seeds)), of.seeds[i % len(of.seeds)]) for of in (baseline, system)]
        made = [of.signature.get("parameters", {}) for _, of in pair]
        if not all("beam" in parameters for parameters in made):
            continue
        ways = [{key: of[key] for key in ("beam", "lenpen", "fairseq_flags") if key in of} for of in made]
        if ways[0] != ways[1]:
            apart = differences(ways[1], ways[0])
            print(
                f"warning: {pair[1][0]} was translated otherwise than {pair[0][0]}: {apart['got']}, not "
                f"{apart['expected']}; their scores differ by that too",
                file=sys.stderr,
            )
            return


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


def is_official(evaluation: Evaluation) -> bool:
    """Whether it was scored as the official figures were: detokenized."""
    return bool(evaluation.signature.get("parameters", {}).get("official_scoring", False))
