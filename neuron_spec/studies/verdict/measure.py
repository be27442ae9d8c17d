"""Comparisons read by rules: is there interference, is there something to gain, does specialization gain it?

By the likelihood of the text alone, in nats a target token without the language token; a negative difference is a gain
of the system. The rules, and their bounds, were written before any system was trained that they judge; they are ours.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal

from neuron_spec.artifacts import hash_file
from neuron_spec.backends.fairseq.training_log import Curve, read_log
from neuron_spec.errors import ArtifactError, NeuronSpecError
from neuron_spec.forms import well_formed
from neuron_spec.scoring.comparison import Comparison
from neuron_spec.scoring.comparison_files import COMPARISON, read_comparison
from neuron_spec.scoring.endpoints import BLEU, CHRF, NLL
from neuron_spec.scoring.evaluation import ALL
from neuron_spec.scoring.systems import CONTINUATION, DENSE, OTHER, RANDOM, SPECIALIZED
from neuron_spec.statistics import OverSeeds, Uncertainty

# Nats a target token.
FLAT = 0.01  # what the last tenth of stage 1 may still buy
INTERFERENCE = 0.01
TO_GAIN, NOTHING_TO_GAIN = -0.03, -0.01
GAIN = -0.01

BILINGUAL, CEILING = "bilingual", "ceiling"
DECODER, FROZEN, SHARED_CORE = "decoder", "frozen", "shared-core"
LONG = "-long"  # after the name of a system: trained longer, and compared with a baseline that was

Reading = Literal["yes", "no", "undecided"]


def reads_interference(differences: Sequence[float]) -> Reading:
    """Are bilingual models better than the dense one?

    Args:
        differences: bilingual minus dense, one for each seed.
    """
    mean = fmean(differences)
    return "yes" if mean <= -INTERFERENCE else "no" if mean >= 0 else "undecided"


def reads_ceiling(differences: Sequence[float]) -> Reading:
    """Is there something to gain: is the ceiling better than dense continuation?"""
    mean = fmean(differences)
    return "yes" if mean <= TO_GAIN else "no" if mean >= NOTHING_TO_GAIN else "undecided"


def reads_gain(differences: Sequence[float]) -> Reading:
    """Is a system better than dense continuation in every seed?"""
    return "yes" if max(differences) <= GAIN else "no" if fmean(differences) >= 0 else "undecided"


def reads_loss(differences: Sequence[float]) -> Reading:
    """Is a control worse than what it is the control of, in every seed?"""
    return "yes" if min(differences) > 0 else "no"


@dataclass(frozen=True)
class Rule:
    """What a system beside a baseline is asked, and how the differences in NLL, one for each seed, answer."""

    question: str
    reads: Callable[[Sequence[float]], Reading]


_WORKS = "does it gain over dense continuation?"
_SETS = "are the sets the reason: is the control worse?"
# (kind of the baseline, kind of the system) -> its rule, in the order of the page; the kind is the name without k and
# length.
RULES: Mapping[tuple[str, str], Rule] = {
    (DENSE, BILINGUAL): Rule("is there interference?", reads_interference),
    (CONTINUATION, CEILING): Rule("is there something to gain?", reads_ceiling),
    (CONTINUATION, SPECIALIZED): Rule("does specialization gain it?", reads_gain),
    (CONTINUATION, DECODER): Rule(_WORKS, reads_gain),
    (CONTINUATION, FROZEN): Rule(_WORKS, reads_gain),
    (CONTINUATION, SHARED_CORE): Rule(_WORKS, reads_gain),
    (SPECIALIZED, RANDOM): Rule(_SETS, reads_loss),
    (SPECIALIZED, OTHER): Rule(_SETS, reads_loss),
}
_NAME = re.compile(rf"(.+?)(?:-(\d+(?:\.\d+)?))?({LONG})?")


def _parts(system: str) -> tuple[str, str | None, str | None]:
    match = _NAME.fullmatch(system)
    assert match
    return match[1], match[2], match[3]


def kind_of(system: str) -> str:
    """``specialized`` of ``specialized-70-long``."""
    return _parts(system)[0]


def rule_of(baseline: str, system: str) -> Rule | None:
    """The rule that is for the two: of one length, a control of the k that it is the control of."""
    (beside, beside_k, beside_length), (kind, k, length) = _parts(baseline), _parts(system)
    is_apart = length != beside_length or (beside == SPECIALIZED and k != beside_k)
    return None if is_apart else RULES.get((beside, kind))


@dataclass(frozen=True)
class Outcome:
    """A system beside a baseline over all directions: differences, system minus baseline, and what a rule says.

    Attributes:
        question, reading: None where no rule is for the two.
        seeds: difference in NLL of each seed, the mean over directions.
        nll: their mean.
        over_sentences, over_seeds: of the mean, as in `GroupComparison`.
        bleu, chrf: differences, points.
        disagree: endpoints that call the system better where NLL calls it worse, or the other way round.
    """

    comparison: str
    system: str
    baseline: str
    question: str | None
    reading: Reading | None
    seeds: list[float]
    nll: OverSeeds
    over_sentences: Uncertainty | None
    over_seeds: Uncertainty | None
    bleu: OverSeeds
    chrf: OverSeeds
    disagree: list[str]

    @property
    def is_long(self) -> bool:
        return self.system.endswith(LONG)


@dataclass(frozen=True)
class Outcomes:
    """All of them, questions first; ``inputs``: comparison -> hash of its file."""

    rows: list[Outcome]
    inputs: dict[str, str]

    def of(self, kind: str, *, is_long: bool) -> list[Outcome]:
        """Those of a kind of system that a rule was for, after training of one length."""
        return [
            row for row in self.rows if row.reading and kind_of(row.system) == kind and row.is_long == is_long
        ]


def conclusions(outcomes: Outcomes) -> list[str]:
    """What the answers say together, a sentence for each length of stage 2 and system that is specialized."""
    interference = next((row.reading for row in outcomes.of(BILINGUAL, is_long=False)), None)
    sentences = []
    for is_long in (False, True):
        ceiling = next((row.reading for row in outcomes.of(CEILING, is_long=is_long)), None)
        specialized = outcomes.of(SPECIALIZED, is_long=is_long)
        nothing_to_cure = interference == ceiling == "no"
        if specialized and nothing_to_cure:
            sentences.append(
                f"{', '.join(row.system for row in specialized)}: there is nothing to cure: no interference, and "
                "nothing to gain by sharing no FFN. It would have to be forced: a narrower model, more languages."
            )
        for row in specialized:
            if row.reading == "yes":
                sentences.append(f"{row.system} works.")
            elif row.reading == "undecided":
                sentences.append(f"Whether {row.system} gains is undecided.")
            elif ceiling == "yes":
                sentences.append(f"There is something to gain, and {row.system} does not gain it.")
            elif ceiling != "no":
                sentences.append(
                    f"{row.system} does not gain; whether there is something to gain is undecided."
                )
            elif not nothing_to_cure:
                sentences.append(f"{row.system} does not gain, nor would sharing no FFN.")
    return sentences


def read_outcomes(comparisons: Path) -> Outcomes:
    """All comparisons in a folder, ``NAME/comparison.json``, read by `RULES`.

    Raises:
        ArtifactError: if there is none, one is not of the form that neuron-spec writes, or two are of the same systems.
        NeuronSpecError: if a comparison has no likelihoods.
    """
    files = sorted(comparisons.glob(f"[!.]*/{COMPARISON}.json"))
    if not files:
        raise ArtifactError(
            "no comparison to read",
            where=comparisons,
            expected=f"folders of neuron-spec compare's, each with {COMPARISON}.json",
            mend="run the experiment up to its first comparison",
        )
    order = list(RULES)
    rows = [row for file in files for row in _outcomes(file.parent.name, file, read_comparison(file))]
    of_pair: dict[tuple[str, str], str] = {}
    for row in rows:
        first = of_pair.setdefault((row.system, row.baseline), row.comparison)
        if first != row.comparison:
            raise ArtifactError(
                "two comparisons of the same systems, of which the verdict would take either",
                where=comparisons,
                got=f"{row.system} - {row.baseline} in {first} and in {row.comparison}",
                mend="move one of them elsewhere",
            )

    def place(row: Outcome) -> tuple[int, bool]:
        kinds = (kind_of(row.baseline), kind_of(row.system))
        return (order.index(kinds) if row.question else len(order), row.is_long)

    return Outcomes(sorted(rows, key=place), {file.parent.name: hash_file(file) for file in files})


def _outcomes(name: str, file: Path, comparison: Comparison) -> list[Outcome]:
    if NLL not in comparison.endpoints:
        raise NeuronSpecError(
            "a comparison without likelihoods, which decide",
            where=file,
            got=", ".join(endpoint.title for endpoint in comparison.endpoints),
            expected=NLL.title,
            mend="evaluate all of its systems without --no-likelihood, and compare them again",
        )
    overall = {
        (row.system, row.metric): row
        for row in comparison.groups
        if row.kind == "overall" and row.group in (ALL, row.name)
    }
    outcomes = []
    for system in comparison.systems:
        with well_formed("a comparison", file):
            nll, bleu, chrf = (overall[system, endpoint.key] for endpoint in (NLL, BLEU, CHRF))
            seeds = _each_seed(comparison, system)
            if not math.isclose(fmean(seeds), nll.difference.mean, abs_tol=1e-9):
                raise ValueError(
                    f"{system}: {fmean(seeds):g} nats in the mean of its directions, {nll.difference.mean:g} over all"
                )
        rule = rule_of(comparison.baseline, system)
        better = nll.difference.mean < 0
        disagree = [
            endpoint.title
            for endpoint, group in ((BLEU, bleu), (CHRF, chrf))
            if group.difference.mean and (group.difference.mean > 0) != better
        ]
        outcomes.append(
            Outcome(
                *(name, system, comparison.baseline),
                question=rule.question if rule else None,
                reading=rule.reads(seeds) if rule else None,
                seeds=seeds,
                nll=nll.difference,
                over_sentences=nll.over_sentences,
                over_seeds=nll.over_seeds,
                bleu=bleu.difference,
                chrf=chrf.difference,
                disagree=disagree,
            )
        )
    return outcomes


def _each_seed(comparison: Comparison, system: str) -> list[float]:
    """Difference in NLL of each seed, the mean over directions."""
    rows = [row for row in comparison.directions if (row.system, row.metric) == (system, NLL.key)]
    of_directions = {row.direction: [seed.difference for seed in row.seeds] for row in rows}
    if len(of_directions) < len(rows):
        raise ValueError(f"{system}: a direction twice")
    return [fmean(of_seed) for of_seed in zip(*of_directions.values(), strict=True)]


# Trainings ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trainings:
    """NLL of the validation text in nats a token, as training logged it, to three decimals of a bit.

    Attributes:
        dense: seed's folder -> update -> NLL, of stage 1.
        continued: system -> seed's folder -> the same, of stage 2.
    """

    dense: dict[str, Curve]
    continued: dict[str, dict[str, Curve]]

    def last_tenth(self, seed: str) -> float | None:
        """What the last tenth of stage 1's updates bought, in nats; negative = it cost; None: not validated before it."""
        curve = self.dense[seed]
        end = max(curve)
        before = max((update for update in curve if update <= 0.9 * end), default=None)
        return None if before is None else curve[before] - curve[end]

    def against_continuation(self) -> dict[str, dict[str, dict[int, float]]]:
        """Length -> system -> update -> its NLL minus dense continuation's, mean over the seeds that have both.

        Length is empty or `LONG`; only updates that every such seed has validated on both sides.
        """
        found: dict[str, dict[str, dict[int, float]]] = {}
        order = [system for _, system in RULES]
        places = {
            name: order.index(kind) if (kind := kind_of(name)) in order else -1 for name in self.continued
        }
        for system in sorted(self.continued, key=lambda name: (places[name], len(name))):
            curves = self.continued[system]
            length = LONG if system.endswith(LONG) else ""
            base = self.continued.get(CONTINUATION + length, {})
            seeds = [seed for seed in curves if seed in base]
            if system == CONTINUATION + length or not seeds:
                continue
            updates = set.intersection(*({*curves[seed]} & {*base[seed]} for seed in seeds))
            found.setdefault(length, {})[system] = {
                update: fmean(curves[seed][update] - base[seed][update] for seed in seeds)
                for update in sorted(updates)
            }
        return found


def read_trainings(seeds: Sequence[Path]) -> Trainings:
    """The validations in ``SEED/SYSTEM/train.log`` of all systems there.

    Raises:
        ArtifactError: if a seed's dense model has no log, or one without the likelihood of validation text.
        NeuronSpecError: if two folders have one name.
    """
    dense: dict[str, Curve] = {}
    continued: dict[str, dict[str, Curve]] = {}
    for seed in seeds:
        if seed.name in dense:
            raise NeuronSpecError(
                "two seeds of one name", got=seed, expected="folders such as seed-1 and seed-2, each once"
            )
        log = seed / DENSE / "train.log"
        dense[seed.name] = _validations(log)
        if not dense[seed.name]:
            raise ArtifactError(
                "a training log without the likelihood of validation text",
                where=log,
                expected="lines of valid with text_nll_loss, as --criterion label_smoothed_cross_entropy_text logs",
                mend="name the folder of a seed whose stage 1 has validated",
            )
        for log in sorted(seed.glob("*/train.log")):
            if log.parent.name != DENSE and (curve := _validations(log)):
                continued.setdefault(log.parent.name, {})[seed.name] = curve
    return Trainings(dense, continued)


def _validations(log: Path) -> Curve:
    measure = "text_nll_loss"
    bits = read_log(log, [measure], "valid").get(measure, {})
    return {update: value * math.log(2) for update, value in bits.items() if math.isfinite(value)}
