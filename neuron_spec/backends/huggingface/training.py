"""`SpecializedTrainer`: transformers' Seq2SeqTrainer on batches of one direction, and the loss of the text.

What is trained is what has gradients. Of a model with masks all that is shared, and of each direction's neurons by that
direction alone (the paper's stage 2); of one with deltas (`deltas`) these alone; of a plain one everything.

Axis letters: B sentences, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerCallback

from neuron_spec.artifacts import differences, load_saved, read_json, write_json
from neuron_spec.backends.huggingface.deltas import delta_parameters, restore_delta, save_delta
from neuron_spec.backends.huggingface.directed_text import DirectedBatches, DirectedText, cut
from neuron_spec.backends.huggingface.loading import save_specialized, save_tokenizer
from neuron_spec.backends.huggingface.profiling import shifted
from neuron_spec.backends.huggingface.specialization import specialization_of, through
from neuron_spec.directions import Direction
from neuron_spec.errors import ArtifactError, CorpusError, ModelError
from neuron_spec.forms import number, require_form

__all__ = ["Seq2SeqTrainingArguments", "SpecializedTrainer", "TextLoss", "freeze_all_but", "text_loss"]

TRAINED_ON = "neuron_training.json"  # in a checkpoint, beside what transformers writes
DELTA = ".delta.safetensors"  # behind the name of its direction
EVAL_TOKENS = 4000  # of a batch, with padding


@dataclass(frozen=True)
class TextLoss:
    """Negative log-likelihood of a direction's text in nats, and its target tokens without the language token."""

    nats: float
    tokens: int

    @property
    def per_token(self) -> float:
        return self.nats / self.tokens


def logits_of(model: Any, batch: dict[str, Any], runs: Any = None) -> Tensor:
    """A batch's logits ``[B, T, V]``, teacher-forced. Args: runs: the model as it is wrapped, for DDP."""
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    with through(model, batch["direction"]):
        out = (runs or model)(**inputs, decoder_input_ids=shifted(model, batch["labels"]), use_cache=False)
    logits: Tensor = out.logits
    return logits


def nats_of(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of each label in nats, ``[B, T]``; 0 of padding."""
    flat = F.cross_entropy(
        logits.flatten(0, 1).float(),
        labels.flatten(),
        reduction="none",
        ignore_index=-100,
        label_smoothing=smoothing,
    )
    return flat.view_as(labels)


def text_loss(
    model: Any,
    text: DirectedText,
    *,
    max_tokens: int = EVAL_TOKENS,
    each_batch: Callable[[], Any] = lambda: None,
) -> dict[Direction, TextLoss]:
    """The loss of each direction's text, through its own neurons; without dropout or label smoothing.

    Args:
        text: held out, tokenized for the model.
        max_tokens: of a batch, with padding.
        each_batch: is called after each.

    Raises:
        CorpusError: if a direction has no target tokens but language tokens.
        DirectionError: if the model has masks, and a direction has none.
        ModelError: if a loss is NaN or infinite.
    """
    _require_text(text)
    sums = _text_sums(model, text, max_tokens, each_batch=each_batch)
    return {
        one: TextLoss(float(nats), int(tokens))
        for one, (nats, tokens) in zip(text.directions, sums.tolist(), strict=True)
    }


def _require_text(text: object) -> None:
    """Raises: CorpusError if this is no tokenized text, or a direction's is nothing that a loss could be of."""
    if not isinstance(text, DirectedText):
        raise CorpusError(
            "not tokenized text", got=repr(text)[:80], expected="DirectedText(text, tokenizer, model)"
        )
    for one, tokens in text.text_tokens.items():
        if not tokens:
            raise CorpusError(
                "no text to measure a loss on",
                where=one,
                got="labels that are all -100 or a language token",
                expected="target tokens",
            )


def _text_sums(
    model: Any,
    text: DirectedText,
    max_tokens: int,
    rank: int = 0,
    processes: int = 1,
    each_batch: Callable[[], Any] = lambda: None,
) -> Tensor:
    """Nats and tokens of each direction, float64 ``[R, 2]``; of every so-many-th batch.

    Raises:
        ModelError: if a sum is NaN or infinite.
    """
    device, was_training = next(model.parameters()).device, model.training
    sums = torch.zeros(len(text.directions), 2, dtype=torch.float64, device=device)
    model.eval()
    try:
        with torch.no_grad():
            for row, batch in list(in_order(text, max_tokens))[rank::processes]:
                inputs = _on(device, text.batch([text[row, place] for place in batch]))
                where = text.text_positions(inputs["labels"])
                nats = nats_of(logits_of(model, inputs), inputs["labels"])
                sums[row] += torch.stack([(nats * where).sum(dtype=torch.float64), where.sum().double()])
                each_batch()
    finally:
        model.train(was_training)
    for one, nats in zip(text.directions, sums[:, 0].tolist(), strict=True):
        if not math.isfinite(nats):
            raise ModelError(
                "not a number: the loss of a direction",
                where=one,
                got=nats,
                mend="half precision overflows at 65504: take float32 or bfloat16; else the model is damaged",
            )
    return sums


def in_order(text: DirectedText, max_tokens: int) -> Iterator[tuple[int, list[int]]]:
    """Rows of directions, and the places of the pairs of a batch: the longest first."""
    for row in range(len(text.directions)):
        lengths = text.lengths(row)
        for batch in cut(
            lengths, (-lengths).argsort(kind="stable").tolist(), sentences=None, max_tokens=max_tokens
        ):
            yield row, batch


def _on(device: torch.device, batch: dict[str, Any]) -> dict[str, Any]:
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def freeze_all_but(model: Any, trained: Collection[str]) -> None:
    """Of a model's parameters train these alone, by their names in ``named_parameters``: such as those of deltas."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)


class _Loader(DataLoader[Any]):
    """Batches whose order the epoch decides."""

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]


class SpecializedTrainer(Seq2SeqTrainer):
    """Trains a model on text of several directions, a direction a batch.

    Beside transformers' loss, which holds the language token and label smoothing, it logs ``text_loss``: that of the text,
    in nats a token. `evaluate` gives it for each direction, and as ``eval_loss``. Gradients of one step are accumulated
    over directions, each token counting the same, in all processes; resuming is exact, and refused on other text.

    Examples:
        >>> text = DirectedText({"eng_Latn-deu_Latn": (english, german)}, tokenizer, model)    # doctest: +SKIP
        >>> specialize(model, masks)                                                           # doctest: +SKIP
        >>> args = Seq2SeqTrainingArguments("out", learning_rate=1e-4, max_steps=2000)         # doctest: +SKIP
        >>> SpecializedTrainer(model, args, text, max_tokens=4000, temperature=2).train()      # doctest: +SKIP
    """

    loss_is_scaled_for_ga = True  # by the tokens of all batches of a step
    control: Any  # transformers'

    def __init__(
        self,
        model: Any,
        args: Any,
        train_dataset: DirectedText,
        eval_dataset: DirectedText | None = None,
        *,
        max_tokens: int | None = None,
        temperature: float = 1.0,
        processing_class: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        """
        Args:
            args: transformers' ``Seq2SeqTrainingArguments``.
            max_tokens: of a batch, with padding, on either side; None: ``per_device_train_batch_size`` sentences.
            temperature: how much more of small directions is drawn (`DirectedBatches`).
            processing_class: the tokenizer, saved in each checkpoint.

        Raises:
            ModelError: if an argument asks for what would not be heeded.
            DirectionError: if a direction of the text has no masks or no delta.
        """
        _require_args(args, max_tokens, temperature)
        for text in (train_dataset, *([] if eval_dataset is None else [eval_dataset])):
            _require_text(text)
        for one in (*train_dataset.directions, *(eval_dataset.directions if eval_dataset else ())):
            if (state := specialization_of(model)) is not None:
                state.row(one)
        if state is not None and state.deltas:
            _require_args_of_deltas(args)
            args.ddp_find_unused_parameters = (
                True  # a batch has gradients for its own direction's delta alone
            )
            of_each = [delta_parameters(model, one) for one in train_dataset.directions]
            freeze_all_but(model, {name for parameters in of_each for name in parameters})
        self.max_tokens, self.temperature = max_tokens, temperature
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            data_collator=train_dataset.batch,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.model_accepts_loss_kwargs = True  # a step's target tokens are counted over its batches
        self._text = torch.zeros(2, dtype=torch.float64)  # nats and tokens since they were logged last

    # Batches ---------------------------------------------------------------------------------

    def order(self) -> DirectedBatches:
        """The order of this process's batches."""
        args = self.args
        return DirectedBatches(
            self.train_dataset,
            sentences=self._train_batch_size if self.max_tokens is None else None,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            seed=args.seed if args.data_seed is None else args.data_seed,
            rank=args.process_index,
            processes=args.world_size,
        )

    def get_train_dataloader(self) -> DataLoader[Any]:
        args, workers = self.args, self.args.dataloader_num_workers
        return _Loader(
            self.train_dataset,
            batch_sampler=self.order(),
            collate_fn=self.data_collator,
            num_workers=workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
        )

    # Loss ------------------------------------------------------------------------------------

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The sum over a batch's tokens, divided by those of all batches of the step, in all processes."""
        labels, smoothing = inputs["labels"], self.args.label_smoothing_factor
        logits = logits_of(self.model, inputs, model)
        nats = nats_of(logits, labels, smoothing)
        with torch.no_grad():
            plain = nats if smoothing == 0 else nats_of(logits, labels)
            where = self.train_dataset.text_positions(labels)
            self._text = self._text.to(plain.device)
            self._text += torch.stack([(plain * where).sum(dtype=torch.float64), where.sum().double()])
        if num_items_in_batch is None:
            loss = nats.sum() / labels.ne(-100).sum()
        else:
            # Of several processes the mean of their gradients is taken.
            times = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            loss = nats.sum() / num_items_in_batch * times
        return (loss, {"logits": logits}) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            nats, tokens = self.accelerator.reduce(self._text.to(self.args.device), "sum").tolist()
            logs = {**logs, **({"text_loss": nats / tokens} if tokens else {})}
            self._text.zero_()
        super().log(logs, start_time)

    def evaluate(
        self,
        eval_dataset: DirectedText | None = None,
        ignore_keys: Any = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """The text's loss per token, ``eval_loss``, and of each direction, ``eval_text_loss_eng_Latn-deu_Latn``.

        Raises:
            ModelError: if there is no text to evaluate on.
        """
        text = self.eval_dataset if eval_dataset is None else eval_dataset
        if text is None:
            raise ModelError("no text to evaluate on", mend="give eval_dataset, a DirectedText")
        sums = _text_sums(
            self.model, text, self.max_tokens or EVAL_TOKENS, self.args.process_index, self.args.world_size
        )
        found = self.accelerator.reduce(sums, "sum")
        nats, tokens = found.sum(0).tolist()
        metrics = {f"{metric_key_prefix}_loss": nats / tokens}
        metrics |= {
            f"{metric_key_prefix}_text_loss_{one}": of[0] / of[1]
            for one, of in zip(text.directions, found.tolist(), strict=True)
        }
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # Checkpoints -----------------------------------------------------------------------------

    def trained_on(self) -> dict[str, Any]:
        """What has to be the same when training goes on: with other values it would be another training."""
        args, state = self.args, specialization_of(self.model)
        masks = None if state is None or state.masks is None else state.masks.fingerprint
        return {
            "text_sha256": self.train_dataset.sha256,
            "masks": masks,
            "deltas": [] if state is None else list(map(str, state.deltas)),
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "sentences": self._train_batch_size if self.max_tokens is None else None,
            "seed": args.seed if args.data_seed is None else args.data_seed,
            "processes": args.world_size,
            "gradient_accumulation_steps": args.gradient_accumulation_steps,
        }

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """What `load_specialized` or `load_delta` reads; of a plain model, what transformers writes."""
        folder, state = Path(output_dir or self.args.output_dir), specialization_of(self.model)
        if not self.args.should_save:
            return
        if state is not None and state.deltas:
            folder.mkdir(parents=True, exist_ok=True)
            for one in self.train_dataset.directions:
                save_delta(self.model, one, folder / f"{one}{DELTA}")
        elif state is not None and state.masks is not None:
            save_specialized(self.model, folder, self.processing_class)
        else:
            super()._save(output_dir, state_dict)
            if self.processing_class is not None:
                save_tokenizer(self.processing_class, folder)
        write_json(folder / TRAINED_ON, self.trained_on())

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder, ours = Path(resume_from_checkpoint), self.trained_on()
        if not (folder / TRAINED_ON).is_file():
            raise ArtifactError("not a checkpoint of SpecializedTrainer", where=folder, expected=TRAINED_ON)
        saved = read_json(folder / TRAINED_ON, "checkpoint")
        require_form(saved, {}, "a checkpoint", folder / TRAINED_ON)
        if any(ours[key] != saved.get(key) for key in ours):
            raise ArtifactError(
                "the checkpoint is of another training",
                where=folder,
                **differences(ours, saved, at_most=4),
                mend="resume with the same text, masks and arguments, or start anew in another folder",
            )
        if ours["deltas"]:
            self._restore_deltas(folder)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if self.trained_on()["deltas"]:
            self._restore_deltas(Path(self.state.best_model_checkpoint))
        else:
            super()._load_best_model()

    def _restore_deltas(self, folder: Path) -> None:
        """Into the parameters that are there, so that optimizers keep theirs."""
        for one in self.train_dataset.directions:
            restore_delta(self.model, folder / f"{one}{DELTA}")


def require_checkpoint(folder: Path, updates: int) -> None:
    """That what a training of so many updates goes on from can be read, before transformers reads it, and leaves out what is
    not there.

    Raises:
        ArtifactError: if a file of a checkpoint is missing or damaged.
    """
    mend = "delete this checkpoint: the training goes on from the one before, or starts anew"
    state = folder / "trainer_state.json"
    form = {"global_step": number(1, updates, whole=True), "epoch": number(0), "log_history": [{}]}
    require_form(read_json(state, "state of a training"), form, "the state of a training", state, mend=mend)
    for name in ("optimizer.pt", "scheduler.pt"):
        how = {"holds": "state of an optimizer", "expected": "a file of transformers' Trainer", "mend": mend}
        load_saved(folder / name, "checkpoint", **how)


def _require_args(args: Any, max_tokens: int | None, temperature: float) -> None:
    """Raises: ModelError if transformers' arguments ask for what would not be heeded."""
    default = 8  # transformers'
    unheeded = {
        "per_device_train_batch_size, with max_tokens": max_tokens is not None
        and args.per_device_train_batch_size != default,
        "auto_find_batch_size, with max_tokens": max_tokens is not None and args.auto_find_batch_size,
        "predict_with_generate": getattr(args, "predict_with_generate", False),
        "dataloader_drop_last": args.dataloader_drop_last,
        "fsdp": bool(args.fsdp),
        "deepspeed": bool(args.deepspeed),
        "several GPUs in one process": args.n_gpu > 1,
    }
    if asked := [name for name, is_asked in unheeded.items() if is_asked]:
        raise ModelError(
            "arguments that SpecializedTrainer does not heed",
            got=", ".join(asked),
            expected="one GPU a process (torchrun --nproc-per-node N), DDP; batches by max_tokens or by sentences",
        )
    if not temperature >= 1:
        raise ModelError("no such temperature", got=temperature, expected="1 (as there is text) or more")
    if max_tokens is not None and max_tokens < 1:
        raise ModelError("no such size of a batch", got=max_tokens, expected="1 token or more")


def _require_args_of_deltas(args: Any) -> None:
    """Raises: ModelError if transformers' arguments would leave deltas without gradients, or processes waiting."""
    kwargs = getattr(args, "gradient_checkpointing_kwargs", None) or {}
    if args.gradient_checkpointing and kwargs.get("use_reentrant"):
        raise ModelError(
            "reentrant checkpointing hands on no gradients where inputs have none, as with a frozen base",
            got="use_reentrant True",
            expected="use_reentrant False, which is the default",
        )
    if args.ddp_find_unused_parameters is False:
        raise ModelError(
            "a batch of one direction leaves the other deltas unused",
            got="ddp_find_unused_parameters False",
            mend="leave it out",
        )
