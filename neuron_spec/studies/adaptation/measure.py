"""Few-shot adaptation: how far do a few training sentences take a model in a direction it never trained on?

For each direction and number of shots, a copy of the model takes a few updates on that many sentences and translates
the test set, as in the meta-test of Langedijk et al. (ACL 2022), there for parsing. Ours: the sentences are the first
of a random order drawn once per direction, so that fewer shots are part of more; every number of shots gets as many
updates, each on one batch, going through the batches again and again; 0 shots is the model as it is. Updates are by
the loss of the text, with the label smoothing of the model's own training: the language token, which translating is
given, would be most of what a new language has to learn in a few updates. A specialized model has no masks for a new language: its directions may borrow those of a relative (ours too).

    OUTPUT/qa-en/20/          an evaluation, complete when its scores are there
    OUTPUT/all/20/            those of all directions as one, for neuron-spec compare
    OUTPUT/adaptation.json    all scores
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq import tasks, utils

from neuron_spec.artifacts import (
    ADAPTATION,
    SCORES_JSON,
    command_line,
    completed,
    hash_state,
    hash_text,
    is_made_from,
    signature,
    signature_in,
    write_json,
)
from neuron_spec.backends.fairseq.batches import cut
from neuron_spec.backends.fairseq.checkpoints import (
    load_model,
    masks_of,
    read_checkpoint,
    task_args,
    weights_sha256,
)
from neuron_spec.backends.fairseq.data_bin import check_data_bin, data_sha256, folder_with
from neuron_spec.backends.fairseq.generation import Translator
from neuron_spec.criterions.label_smoothed_cross_entropy_text import TextCriterion
from neuron_spec.directions import Direction
from neuron_spec.errors import CorpusError, DirectionError, NeuronSpecError
from neuron_spec.scoring.endpoints import OF_TEXTS
from neuron_spec.scoring.evaluation import (
    ALL,
    Evaluation,
    evaluate,
    read_evaluation,
    write_evaluation,
)
from neuron_spec.scoring.joining import joined, write_joined
from neuron_spec.scoring.metrics import Outputs
from neuron_spec.studies.meta.inner_steps import restored

OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
_TRAIN = "train"


@dataclass(frozen=True)
class Updates:
    """How a copy adapts.

    Attributes:
        steps: updates, each on one batch.
        rate: the learning rate, constant, for the mean loss per token of the text.
        optimizer: plain ``sgd``, as the inner steps of meta-learning are, or ``adam``.
        max_tokens: of a batch.
        seed: of the order of the sentences, and of dropout.

    Raises:
        NeuronSpecError: if a value makes no sense.
    """

    steps: int
    rate: float
    optimizer: str = "sgd"
    max_tokens: int = 1000
    seed: int = 1

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("rate", 0), ("max_tokens", 1)):
            if not least <= getattr(self, name) < float("inf"):
                raise NeuronSpecError(
                    f"{name} of an adaptation", got=getattr(self, name), expected=f"a number from {least}"
                )
        if self.optimizer not in OPTIMIZERS:
            raise NeuronSpecError("unknown optimizer", got=self.optimizer, expected=", ".join(OPTIMIZERS))


@dataclass(frozen=True)
class Test:
    """What every copy translates: sources and references of each direction, and how.

    Attributes:
        texts: raw sources and references, for directions that have them; the data-bin's references for others.
        flags: of ``fairseq-generate``.
        families, tiers: of languages, by which scores are summed up; None: those of the language table, and none.
    """

    __test__ = False  # no test of pytest's

    subset: str
    texts: Mapping[Direction, tuple[list[str], list[str]]]
    flags: Sequence[str]
    families: Mapping[str, str] | None = None
    tiers: Mapping[str, str] | None = None


class Adaptation:
    """A checkpoint, the directions it is to learn, and with how many sentences each."""

    def __init__(
        self,
        path: Path,
        data_bin: Path,
        directions: Sequence[Direction],
        shots: Sequence[int],
        updates: Updates,
        test: Test,
        borrow: Mapping[str, str] | None = None,
    ) -> None:
        """Check everything, then load the model.

        Args:
            borrow: language -> the one whose masks its directions run through.

        Raises:
            ArtifactError: if the checkpoint or a data file is missing or damaged.
            CorpusError: if a direction has fewer training sentences than shots.
            DirectionError: if the checkpoint lacks a language.
            ModelError: if masks are to be borrowed that are not there, or by a direction that has its own.
            NeuronSpecError: if the numbers of shots make no sense, or no direction has a language that borrows.
        """
        if not shots or min(shots) < 0 or len(set(shots)) < len(shots):
            raise NeuronSpecError(
                "numbers of shots", got=", ".join(map(str, shots)) or "none", expected="each once, from 0"
            )
        state = read_checkpoint(path)
        trained = task_args(state, path)
        self._borrow = dict(borrow or {})
        self.lenders = lenders_of(directions, self._borrow)
        require_languages(directions, trained.langs, path)
        check_data_bin(data_bin, trained.langs, _TRAIN, directions)
        self.directions, self.shots, self.updates, self.test = list(directions), sorted(shots), updates, test
        self.trained = [Direction.parse(pair) for pair in trained.lang_pairs]
        self._borrowed = {str(direction): str(lender) for direction, lender in self.lenders.items()}
        self._flags = [flag for flag in test.flags if flag != "--cpu"]
        self._inputs = {"checkpoint": weights_sha256(state), "masks": hash_state(masks_of(state))}
        self._data_bin = data_bin
        self._translator = Translator(path, data_bin, directions, test.subset, test.flags)
        self._device = next(self._translator.models[0].parameters()).device
        # The translator's model is made for inference: this one learns.
        task = self._task(directions[0])
        overrides = self._translator.overrides
        model, trained_cfg = load_model(path, task, overrides)
        self._model = model.to(self._device).train()
        smoothing = getattr(trained_cfg.criterion, "label_smoothing", None) or 0.0
        self._criterion = TextCriterion(task, False, smoothing, loss_without_tag=True).to(self._device)
        for direction, lender in self.lenders.items():
            for model in (self._model, *self._translator.models):
                model.borrow(direction, lender, trained.langs)
        self._training_sets = {}
        for direction in directions:
            task = self._task(direction)
            task.load_dataset(_TRAIN)
            self._training_sets[direction] = task.dataset(_TRAIN)
            sentences = len(self._pool(direction))
            if sentences < max(self.shots):
                raise CorpusError(
                    "fewer training sentences than shots",
                    where=f"{direction} in {folder_with(data_bin, _TRAIN)}",
                    got=f"{sentences} sentences that fit into the model and into {updates.max_tokens} tokens",
                    expected=f"{max(self.shots)} or more",
                    mend="ask for fewer --shots",
                )

    def run(self, output: Path) -> dict[Direction, dict[int, Evaluation]]:
        """Every direction's evaluation at every number of shots, and theirs as one; what is complete is read.

        Raises:
            ArtifactError: if ``output`` holds an evaluation of something else.
        """
        signatures = {(d, n): self._signature(d, n) for d in self.directions for n in self.shots}
        folders = {(d, n): output / str(d) / str(n) for d, n in signatures}
        # All are asked before any work is done.
        missing = {
            key: folder
            for key, folder in folders.items()
            if not completed(folder / SCORES_JSON, signatures[key], what="adaptation", where=folder)
        }
        for key, folder in missing.items():
            write_evaluation(folder, self._evaluate(*key, signatures[key]))
        results = {d: {n: read_evaluation(folders[d, n]) for n in self.shots} for d in self.directions}
        for shots in self.shots:
            together, folder = joined([curve[shots] for curve in results.values()]), output / ALL / str(shots)
            # One of other directions is overwritten, as it holds nothing else than its parts.
            if not is_made_from(signature_in(folder / SCORES_JSON, "scores"), together.signature):
                write_joined(folder, together)
        write_json(output / f"{ADAPTATION}.json", self._as_plain(results))
        return results

    def sentences(self, direction: Direction, shots: int) -> list[int]:
        """Which training sentences a direction adapts to, as positions in its training set."""
        pool = self._pool(direction)
        order = np.random.default_rng(self.updates.seed).permutation(len(pool))
        return [int(i) for i in pool[order[:shots]]]

    def learn(self, direction: Direction, shots: int) -> list[float]:
        """Update the model on so many sentences; the mean loss per token before each update."""
        if shots == 0:
            return []
        dataset = self._training_sets[direction]
        chosen = np.asarray(self.sentences(direction, shots), dtype=np.int64)
        lengths = np.take(dataset.sizes, chosen, axis=0)
        batches = [
            dataset.collater([dataset[int(i)] for i in batch])
            for batch in cut(chosen, lengths, max_tokens=self.updates.max_tokens)
        ]
        optimizer = OPTIMIZERS[self.updates.optimizer](self._parameters, lr=self.updates.rate)
        torch.manual_seed(self.updates.seed)
        losses = []
        for sample in islice(cycle(batches), self.updates.steps):
            batch = utils.move_to_cuda(sample) if self._device.type == "cuda" else sample
            optimizer.zero_grad()
            total, size, _ = self._criterion(self._model, batch)
            (total / size).backward()
            optimizer.step()
            losses.append(float(total.detach() / size))
        optimizer.zero_grad()
        return losses

    def _evaluate(self, direction: Direction, shots: int, its_signature: Mapping[str, Any]) -> Evaluation:
        translator = self._translator
        print(f"{direction}, {shots} shots", file=sys.stderr)
        with restored(self._parameters):
            self.learn(direction, shots)
            translator.models[0].load_state_dict(self._model.state_dict())
        sources, references = self.test.texts.get(direction) or (None, translator.references(direction))
        outputs = Outputs(direction, translator.translate(direction), references, sources)
        families, tiers = self.test.families, self.test.tiers
        return evaluate([outputs], signature=its_signature, families=families, tiers=tiers)

    @property
    def _parameters(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self._model.parameters() if parameter.requires_grad]

    def _task(self, direction: Direction) -> Any:
        args = copy.deepcopy(self._translator.cfg.task)
        args.source_lang, args.target_lang = direction.source, direction.target
        args.data = str(folder_with(self._data_bin, _TRAIN))
        return tasks.setup_task(args)

    def _pool(self, direction: Direction) -> np.ndarray:
        """Positions of the training sentences that fit into the model and a batch, int `[N]`."""
        task = self._task(direction)
        limits = utils.resolve_max_positions(task.max_positions(), self._model.max_positions())
        most = np.minimum(limits, self.updates.max_tokens)
        return np.flatnonzero((np.asarray(self._training_sets[direction].sizes) <= most).all(axis=1))

    def _signature(self, direction: Direction, shots: int) -> dict[str, Any]:
        texts = self.test.texts.get(direction)
        return signature(
            "adapt",
            inputs={
                **self._inputs,
                "training data": data_sha256(self._data_bin, _TRAIN, [direction]),
                "data": data_sha256(self._data_bin, self.test.subset, [direction]),
                "references": hash_text(*texts[1]) if texts else "data-bin",
            },
            parameters={
                "direction": str(direction),
                "shots": shots,
                **asdict(self.updates),
                "loss": "text",
                "subset": self.test.subset,
                "fairseq_flags": self._flags,
                # Of all directions: --missing-direction compose may take one's for another.
                **({"borrowed": self._borrowed} if self.lenders else {}),
            },
        )

    def _as_plain(self, results: Mapping[Direction, Mapping[int, Evaluation]]) -> dict[str, Any]:
        return {
            **({"command": command} if (command := command_line()) else {}),
            "checkpoint_sha256": self._inputs["checkpoint"],
            "updates": asdict(self.updates),
            "loss": "text",
            "subset": self.test.subset,
            "fairseq_flags": self._flags,
            "references": "raw" if self.test.texts else "data-bin",
            "borrow": self._borrow,
            "borrowed": self._borrowed,
            "directions": {
                str(direction): {
                    "in_training": direction in self.trained,
                    "shots": {
                        str(n): {each.key: getattr(of.scores[0], each.key) for each in OF_TEXTS}
                        for n, of in curve.items()
                    },
                }
                for direction, curve in results.items()
            },
        }


def lenders_of(directions: Sequence[Direction], borrow: Mapping[str, str]) -> dict[Direction, Direction]:
    """Direction -> the one whose masks it borrows, for those with a language that does: en-nl -> en-de.

    Args:
        borrow: language -> its lender.

    Raises:
        NeuronSpecError: if a language that borrows is in no direction.
    """
    if idle := borrow.keys() - {lang for d in directions for lang in (d.source, d.target)}:
        raise NeuronSpecError(
            "a language that borrows masks is in no direction",
            got=", ".join(sorted(idle)),
            expected=f"languages of {', '.join(map(str, directions))}",
            mend="name its directions in --lang-pairs, or leave it out of --borrow",
        )
    return {
        d: Direction(borrow.get(d.source, d.source), borrow.get(d.target, d.target))
        for d in directions
        if borrow.keys() & {d.source, d.target}
    }


def require_languages(directions: Sequence[Direction], langs: Sequence[str], where: object) -> None:
    """Raises: DirectionError if the checkpoint was trained without the language tokens of a direction."""
    for lang, direction in ((lang, d) for d in directions for lang in (d.source, d.target)):
        if lang not in langs:
            raise DirectionError(
                "the checkpoint has no language token of a language, and cannot learn it",
                where=where,
                got=f"{lang} in {direction}",
                expected=f"one of its --langs {','.join(langs)}",
                mend="train the model with --langs that hold the language, and with --lang-pairs that leave it out",
            )
