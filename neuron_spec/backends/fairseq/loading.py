"""A checkpoint and the text of several directions in memory, run teacher-forced: losses, and their gradients.

The loss is the mean negative log-likelihood of a token of the target text in nats, without label smoothing. End of
sentence is among the tokens, the language token that targets begin with is not (`language_tags`), unless a caller asks
for it. The model is in evaluation mode throughout, so that nothing is dropped out. Losses and gradients do not depend
on how the text is batched, beyond rounding.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from fairseq import tasks, utils
from fairseq.criterions.cross_entropy import CrossEntropyCriterion
from torch import Tensor, nn
from tqdm import tqdm

from neuron_spec.artifacts import completed, hash_text, read_json, write_json
from neuron_spec.backends.fairseq.checkpoints import load_model
from neuron_spec.backends.fairseq.commands import generation_config
from neuron_spec.backends.fairseq.data_bin import check_data_bin, folder_with, shards_of
from neuron_spec.backends.fairseq.language_tags import language_tags, text_positions
from neuron_spec.directions import Direction, direction_id
from neuron_spec.errors import ModelError
from neuron_spec.neurons.choices import WHOLE, Part
from neuron_spec.neurons.masks import NeuronMasks

Model = TypeVar("Model")


@dataclass(frozen=True)
class Text:
    """Sentences of a subset, in batches of one direction.

    Attributes:
        tokens: target tokens of each direction that its loss is the mean of.
        batches: the row of its direction, and the batch; on the model's device.
        sentences: how many each direction's set has, those that are not in the batches too.
    """

    tokens: list[int]
    batches: list[tuple[int, dict[str, Any]]]
    sentences: list[int]

    def of(self, row: int) -> list[dict[str, Any]]:
        """The batches of one direction."""
        return [batch for of_row, batch in self.batches if of_row == row]


@dataclass(frozen=True)
class SentenceLikelihoods:
    """What a checkpoint makes of each sentence of one direction's set, float64 ``[sentences]``, in the set's order.

    NaN in all three where a sentence was not run: too long for the model, or not in the sample.

    Attributes:
        text_nats: negative log-likelihood of the text, its end of sentence included, summed over its tokens.
        text_tokens: how many those are.
        tag_nats: that of the language token; NaN where a target has none.
    """

    text_nats: np.ndarray
    text_tokens: np.ndarray
    tag_nats: np.ndarray


class TeacherForced:
    """A checkpoint in memory, to be run on any text of its directions.

    A specialized checkpoint runs through its own masks, a dense one through those that it is given.

    Attributes:
        directions: the D directions, naming the rows.
        trained: name -> parameter, those that training moved: adapters alone where the rest was frozen.
    """

    def __init__(
        self,
        path: Path,
        data_bin: Path,
        directions: Sequence[Direction],
        *,
        token_flags: Sequence[str],
        dictionary_sha256: str | None = None,
        masks: NeuronMasks | None = None,
        with_tag: bool = False,
        model: Any = None,
        flags: Sequence[str] = (),
        max_tokens: int = 4000,
        dtype: torch.dtype = torch.float32,
        cpu: bool = False,
    ) -> None:
        """Load the checkpoint once.

        Args:
            token_flags: of the checkpoint, as `checkpoints.token_flags` returns them.
            dictionary_sha256: of the dictionary that masks were made with.
            masks: for a dense checkpoint to run through.
            with_tag: losses and gradients are of the language token too, as fairseq's are.
            model: what the checkpoint holds, in memory already and as it is to run; then ``dtype`` and ``cpu`` are its own.
            flags: further flags of ``fairseq-generate``, such as ``--max-source-positions``.

        Raises:
            ModelError: if the data-bin has another dictionary, or masks lack a direction or do not fit.
        """
        folder = (shards_of(data_bin) or [data_bin])[0]
        cfg = generation_config(path, folder, directions, token_flags, *flags)
        self._task = task = tasks.setup_task(cfg.task)
        if dictionary_sha256 not in (None, dictionary := hash_text(*task.source_dictionary.symbols)):
            raise ModelError(
                "the masks are for another dictionary",
                where=data_bin,
                got=f"sha256 {dictionary[:12]}",
                expected=f"sha256 {str(dictionary_sha256)[:12]}",
                mend="use the data-bin that was profiled",
            )
        is_frozen = False
        if model is None:
            model, saved = load_model(path, task)
            is_frozen = getattr(saved.model, "base", None) == "frozen"
            if masks is not None:
                model.set_masks(masks, task.langs)
            model.eval().to(dtype=dtype, device="cuda" if torch.cuda.is_available() and not cpu else "cpu")
            if model.has_masks:
                model.masks(task.langs).require_directions(directions, where=path)
        self.model = model
        self.device = next(model.parameters()).device
        self._criterion = CrossEntropyCriterion(task, sentence_avg=False)
        self._tags, self._with_tag = language_tags(task).to(self.device), with_tag
        self._data_bin, self._max_tokens, self.directions = data_bin, max_tokens, list(directions)
        self.trained: dict[str, nn.Parameter] = {
            name: parameter
            for name, parameter in self.model.named_parameters()
            if ".adapter." in name or not is_frozen
        }

    def by_name(self, values: Iterable[Any]) -> dict[str, Any]:
        """Direction -> its value."""
        return dict(zip(map(str, self.directions), values, strict=True))

    def read(self, subset: str, *, sentences: int | None = None, part: Part = WHOLE) -> Text:
        """The text of a subset; kept on the device, as it is small beside the model.

        Of a sharded data-bin, the first shard's that has the subset.

        Args:
            sentences: at most so many of each direction, spread evenly over its set; None: all.
            part: of those, in turns.

        Raises:
            ArtifactError: if the data-bin lacks a direction's set.
            ModelError: if a direction has no text.
        """
        task = self._task
        check_data_bin(self._data_bin, task.langs, subset, self.directions, task.args.fixed_dictionary)
        task.args.data = str(folder_with(self._data_bin, subset))
        # As a set for validation, each sentence once: training sets are else sampled by temperature.
        dataset = task.data_manager.load_dataset(subset, training=False, epoch=1)
        start, spread = 0, []
        for size in map(len, dataset.datasets):
            count = size if sentences is None else min(size, sentences)
            turns = torch.arange(count)
            spread.append(start + (turns * size // max(1, count))[part.holds(turns)].numpy())
            start += size
        chosen = np.concatenate(spread)
        longest = utils.resolve_max_positions(task.max_positions(), self.model.max_positions())
        chosen = task.filter_indices_by_size(chosen, dataset, longest, ignore_invalid_inputs=True)
        row_of = {direction_id(d, task.langs): row for row, d in enumerate(self.directions)}
        sizes = {row_of[of.direction_id]: len(of) for of in dataset.datasets}
        text = Text([0] * len(self.directions), [], [sizes[row] for row in range(len(sizes))])
        for indices in dataset.batch_by_size(chosen, max_tokens=self._max_tokens):
            batch = dataset.collater([dataset[index] for index in indices])
            row = row_of[batch["net_input"]["distinct_ids"][0]]
            batch = utils.move_to_cuda(batch) if self.device.type == "cuda" else batch
            text.tokens[row] += int(self._counted(batch).sum())
            text.batches.append((row, batch))
        if empty := [str(d) for d, n in zip(self.directions, text.tokens, strict=True) if not n]:
            raise ModelError(
                "no text to measure a loss on",
                where=self._data_bin,
                got=f"0 tokens for {', '.join(empty)} in {subset}, or only sentences too long for the model",
                mend="name another subset, more sentences, or fewer --lang-pairs",
            )
        return text

    @torch.no_grad()
    def sentence_likelihoods(
        self, text: Text, row: int, each_batch: Callable[[], Any] = lambda: None
    ) -> SentenceLikelihoods:
        """Of a direction's set, the text and its tag apart.

        Raises:
            ModelError: if a likelihood is NaN or infinite.
        """
        likelihoods = SentenceLikelihoods(*np.full((3, text.sentences[row]), np.nan))
        for batch in text.of(row):
            nats, is_text = self._token_nats(batch).double(), self._is_text(batch)
            is_tag = batch["target"].ne(self._padding) & ~is_text
            sums = torch.stack(
                [
                    nats.where(is_text, 0).sum(dim=1),
                    is_text.sum(dim=1),
                    nats.where(is_tag, 0).sum(dim=1).where(is_tag.any(dim=1), torch.nan),
                ]
            )
            place = batch["id"].cpu().numpy()
            self._require_finite(sums[:2].sum(), row)
            for values, found in zip(vars(likelihoods).values(), sums.cpu().numpy(), strict=True):
                values[place] = found
            each_batch()
        return likelihoods

    @torch.no_grad()
    def mean_losses(self, text: Text, each_batch: Callable[[], Any] = lambda: None) -> list[float]:
        """Each direction's loss; nothing waits for the device before the end.

        Raises:
            ModelError: if one is NaN or infinite.
        """
        sums = torch.zeros(len(self.directions), dtype=torch.float64, device=self.device)
        for row, batch in text.batches:
            sums[row] += self._loss(batch)
            each_batch()
        for row, total in enumerate(sums):
            self._require_finite(total, row)
        return [total / tokens for total, tokens in zip(sums.tolist(), text.tokens, strict=True)]

    def _require_finite(self, loss: Tensor, row: int) -> None:
        """Raises: ModelError if a direction's loss is NaN or infinite."""
        if not bool(loss.isfinite()):
            raise ModelError(
                "not a number: the loss of a direction",
                where=str(self.directions[row]),
                got=float(loss),
                mend="half precision overflows at 65504: leave out --fp16; else the checkpoint is damaged",
            )

    def gradients(
        self, text: Text, row: int, each_batch: Callable[[], Any] = lambda: None
    ) -> dict[str, Tensor]:
        """Of a direction's mean loss: name of a trained parameter -> its gradient, of the parameter's shape.

        The tensors are the parameters' own ``grad``: the next call overwrites them.
        """
        for parameter in self.trained.values():
            parameter.grad = torch.zeros_like(parameter)
        for batch in text.of(row):
            # So divided, half precision would not overflow; the sum over batches is the mean over tokens.
            (self._loss(batch) / text.tokens[row]).backward(inputs=list(self.trained.values()))
            each_batch()
        return {
            name: parameter.grad for name, parameter in self.trained.items() if parameter.grad is not None
        }

    def _loss(self, batch: dict[str, Any]) -> Tensor:
        """The batch's sum, in nats."""
        return self._token_nats(batch).where(self._counted(batch), 0).sum()

    def _token_nats(self, batch: dict[str, Any]) -> Tensor:
        """Of each target token its negative log-likelihood, `[B, T]`; 0 of padding."""
        loss: Tensor = self._criterion(self.model, batch, reduce=False)[0]
        return loss.view_as(batch["target"])

    def _is_text(self, batch: dict[str, Any]) -> Tensor:
        return text_positions(batch["target"], self._tags, padding=self._padding)

    def _counted(self, batch: dict[str, Any]) -> Tensor:
        """Which target tokens the loss is of, bool `[B, T]`."""
        return batch["target"].ne(self._padding) if self._with_tag else self._is_text(batch)

    @property
    def _padding(self) -> int:
        return int(self._criterion.padding_idx)


def measured_rows(
    names: Iterable[str],
    folder: Path,
    sign: Callable[[str], Mapping[str, Any]],
    load: Callable[[], Model],
    *,
    batches: Callable[[Model, str], int],
    measure: Callable[[Model, str, Callable[[], Any]], Mapping[str, Any]],
    what: str,
) -> dict[str, Any]:
    """Rows of measurements, one JSON each; what is in the folder already is not measured again.

    Args:
        folder: where each finished row is written at once, so that a killed run goes on.
        sign: the signature of a row.
        load: the model; called if a row is missing.
        batches: how many a row takes.
        measure: a row; calls what it is given after each batch.
        what: the kind of row, for messages.

    Raises:
        ArtifactError: if a row was measured on something else.
    """
    signatures = {name: sign(name) for name in names}
    paths = {name: folder / f"{name}.json" for name in signatures}
    missing = [name for name in paths if not completed(paths[name], signatures[name], what=what, quiet=True)]
    if missing:
        model = load()
        total = sum(batches(model, name) for name in missing)
        with tqdm(total=total, unit="batch", file=sys.stderr) as bar:
            for number, name in enumerate(missing, start=1):
                bar.set_description(f"{what}: {name} ({number}/{len(missing)})")
                row = measure(model, name, bar.update)
                write_json(paths[name], {"signature": signatures[name], **row})
    return {name: read_json(path, what) for name, path in paths.items()}
