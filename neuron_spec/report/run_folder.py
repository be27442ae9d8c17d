"""What a finished run left in its folder. Two layouts are known:

- one run, as the quickstart's: ``corpus/``, ``masks.safetensors``, ``evaluation/SYSTEM/``;
- several seeds, as the built-in experiments': ``corpus/`` and for each seed ``seed-N/masks/SYSTEM.safetensors``
  and ``seed-N/evaluation/SYSTEM/``. The report's sets are the specialized system's, or else the static one's.

Beside these, in the run's folder or a seed's, may stand what studies leave (`studies.STUDIES`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neuron_spec.artifacts import CORPUS_CARD, SCORES_JSON
from neuron_spec.corpora.build import read_card
from neuron_spec.errors import ArtifactError
from neuron_spec.languages import family_of, set_pivot
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.scoring.comparison_files import COMPARISON
from neuron_spec.scoring.evaluation import Evaluation, read_evaluation
from neuron_spec.scoring.systems import (
    CONTINUATION,
    DENSE,
    OTHER,
    RANDOM,
    SPECIALIZED,
    STATIC,
    System,
    comparable,
    place,
)

PROFILE = "profile.safetensors"


@dataclass(frozen=True)
class Seed:
    """One dense model and what was trained on from it.

    Attributes:
        number: of the seed; None in the layout of one run.
        masks_file: of the specialized or static system.
        evaluations: system -> its scores and texts.
    """

    number: int | None
    folder: Path
    masks_file: Path
    masks: NeuronMasks
    evaluations: dict[str, Evaluation]


@dataclass(frozen=True)
class Run:
    """A run; ``left_out`` names the seeds that are not finished, and says what they lack.

    ``card`` is None where there is none, as of a corpus made elsewhere.
    """

    folder: Path
    card: dict[str, Any] | None
    seeds: list[Seed]
    left_out: list[str] = field(default_factory=list)

    @property
    def systems(self) -> list[str]:
        return list(self.seeds[0].evaluations)

    @property
    def has_seeds(self) -> bool:
        """Whether the layout is that of several seeds."""
        return self.seeds[0].number is not None

    @property
    def families(self) -> dict[str, str] | None:
        """Language -> family, by the card, or else by the evaluations; None: those of the language table."""
        of_evaluations = self.seeds[0].evaluations[self.systems[0]].families
        return dict(self.card["families"]) if self.card is not None else of_evaluations or None

    def family(self, code: str) -> str:
        return family_of(code, self.families)

    def holding(self, pattern: str) -> dict[str, Path]:
        """Folders with a file in the run or a seed of it, such as ``ablation*/ablation.json``; by path below the run."""
        roots = dict.fromkeys([self.folder, *(seed.folder for seed in self.seeds)])
        folders = [path.parent for root in roots for path in sorted(root.glob(pattern))]
        return {str(folder.relative_to(self.folder)): folder for folder in folders}


def read_run(folder: Path) -> Run:
    """Read a run of either layout.

    Raises:
        ArtifactError: if the folder has neither layout or both, or something in it is missing or damaged.
    """
    numbers = {of: of.name.removeprefix("seed-") for of in folder.glob("seed-*")}
    numbered = {of: int(number) for of, number in numbers.items() if number.isdecimal()}
    alone = _evaluated(folder)
    seeds = {of: _evaluated(of) for of in sorted(numbered, key=numbered.__getitem__)}
    if bool(alone) == any(seeds.values()):
        raise ArtifactError(
            "two runs in one folder" if alone else "no evaluated run in this folder",
            where=folder,
            got=", ".join(sorted(path.name for path in folder.iterdir())) or "an empty folder"
            if folder.is_dir()
            else "no such folder",
            expected="one run: corpus/corpus.json, masks.safetensors, evaluation/SYSTEM/scores.json; or several "
            "seeds: corpus/corpus.json, seed-N/masks/specialized.safetensors (or static.safetensors), "
            "seed-N/evaluation/SYSTEM/scores.json",
            mend="report on a folder with one of these; a sweep has neuron-spec sweep"
            if alone
            else "run the stages to neuron-spec evaluate first; a sweep has neuron-spec sweep",
        )
    card = _read_card(folder / "corpus" / CORPUS_CARD)
    set_pivot(card)
    if alone:
        return Run(folder, card, [_read_seed(folder, None, folder / "masks.safetensors", alone)])
    every = sorted({system for systems in seeds.values() for system in systems}, key=place)
    specialized = STATIC if STATIC in every and SPECIALIZED not in every else SPECIALIZED
    whole = [of for of, systems in seeds.items() if systems == every]
    if not whole:
        raise ArtifactError(
            "no seed has all systems",
            where=folder,
            got="; ".join(f"{of.name}: {', '.join(systems) or 'none'}" for of, systems in seeds.items()),
            expected=f"one seed or more with {', '.join(every)}",
            mend="evaluate what is missing",
        )
    return Run(
        folder,
        card,
        [_read_seed(of, numbered[of], of / "masks" / f"{specialized}.safetensors", every) for of in whole],
        [
            f"{of.name}, where {', '.join(s for s in every if s not in systems)} is not evaluated yet"
            for of, systems in seeds.items()
            if of not in whole
        ],
    )


def _evaluated(folder: Path) -> list[str]:
    return sorted((path.parent.name for path in folder.glob(f"evaluation/*/{SCORES_JSON}")), key=place)


def _read_card(path: Path) -> dict[str, Any] | None:
    needed = ("name", "lang_pairs", "pairs", "families", "tiers", "sources", "leak_report", "signature")
    return read_card(path, *needed) if path.is_file() else None


def _read_seed(folder: Path, number: int | None, masks: Path, systems: Sequence[str]) -> Seed:
    evaluations = {name: read_evaluation(folder / "evaluation" / name) for name in systems}
    return Seed(number, folder, masks, NeuronMasks.load(masks), evaluations)


def planned_comparisons(run: Run) -> dict[Path, list[System]]:
    """Folder -> what is compared there, the baseline first; as the experiment's script names them.

    Every system is compared with the dense continuation, or where there is none with the dense model; the
    specialized one also with as many neurons at random, and with those of another direction.

    Raises:
        NeuronSpecError: as `comparison.comparable`.
    """
    if len(run.systems) < 2:
        return {}
    first = CONTINUATION if CONTINUATION in run.systems else run.systems[0]
    order = [name for name in (first, SPECIALIZED, RANDOM, OTHER, DENSE) if name in run.systems]
    plans = [list(dict.fromkeys([*order, *run.systems]))]
    if run.has_seeds and SPECIALIZED in run.systems:
        plans += [[control, SPECIALIZED] for control in (RANDOM, OTHER) if control in run.systems]
    numbers = "-".join(str(seed.number) for seed in run.seeds)
    root = run.folder / (f"{COMPARISON}-seeds-{numbers}" if run.has_seeds else COMPARISON)
    return {
        root / f"against-{names[0]}": comparable(
            [System(name, [seed.evaluations[name] for seed in run.seeds]) for name in names]
        )
        for names in plans
    }
