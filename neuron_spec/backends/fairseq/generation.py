"""Translating whole test sets, many directions with one model load."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq import checkpoint_utils, tasks, utils
from fairseq.data import BaseWrapperDataset, Dictionary
from tqdm import tqdm

from neuron_spec.backends.fairseq.asked import Asked
from neuron_spec.backends.fairseq.checkpoints import token_flags
from neuron_spec.backends.fairseq.commands import generation_config
from neuron_spec.backends.fairseq.data_bin import folder_with
from neuron_spec.directions import Direction
from neuron_spec.errors import ModelError


class Translator:
    """A checkpoint ready to translate any of its directions, as ``fairseq-generate`` would.

    Language flags are read from the checkpoint.
    """

    def __init__(
        self, path: Path, data_bin: Path, directions: Sequence[Direction], subset: str, flags: Sequence[str]
    ) -> None:
        """Check everything, then load the model once.

        Args:
            flags: further flags of ``fairseq-generate``, such as ``--beam 5``. Unlike that command this one
                heeds ``--bf16``.

        Raises:
            ArtifactError: if the checkpoint or a data file is missing or damaged.
            DirectionError: if the checkpoint does not know a language.
            ModelError: if the flags name two precisions.
        """
        if {"--fp16", "--bf16"} <= set(flags):
            raise ModelError("two precisions", got="--fp16 and --bf16", mend="give one of the two, or none")
        asked = Asked.read(path, data_bin, subset, lang_pairs=directions)
        self.subset = subset
        self.cfg = generation_config(
            path,
            folder_with(data_bin, subset),
            directions,
            token_flags(asked.trained),
            *("--source-lang", directions[0].source, "--target-lang", directions[0].target),
            *("--gen-subset", subset, "--skip-invalid-size-inputs-valid-test", *flags),
        )
        common = self.cfg.common
        dtype = torch.float16 if common.fp16 else torch.bfloat16 if common.bf16 else torch.float32
        self._cuda = torch.cuda.is_available() and not common.cpu
        self.models, _ = checkpoint_utils.load_model_ensemble([str(path)], task=self._task(directions[0]))
        for model in self.models:
            model.prepare_for_inference_(self.cfg)
            model.to(dtype)
            if self._cuda:
                model.cuda()

    def _task(self, direction: Direction) -> Any:
        args = copy.deepcopy(self.cfg.task)
        args.source_lang, args.target_lang = direction.source, direction.target
        return tasks.setup_task(args)

    def translate(self, direction: Direction) -> list[str]:
        """The best hypotheses for a direction's test set, in its order, SentencePiece joined to words.

        A sentence longer than the model's positions has an empty hypothesis.
        """
        return [texts[0] if texts else "" for texts in self._searched(direction, lambda beams: beams[:1])]

    def translate_by_lenpen(
        self, direction: Direction, lenpens: Sequence[float], positions: Sequence[int]
    ) -> list[list[str]]:
        """The best hypotheses of some sentences with each ``--lenpen``, from one search ``[lenpens][positions]``.

        What beam search finds does not depend on the length penalty, only which of it is best: fairseq divides a finished
        hypothesis's log-likelihood by a power of its length, and ends when as many are finished as the beam is wide.
        The translator must have been given ``--lenpen 0``, with which scores are not divided.
        """

        def best(beams: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
            return [max(beams, key=lambda one: one["score"] / len(one["tokens"]) ** x) for x in lenpens]

        texts = self._searched(direction, best, positions)
        chosen = [texts[position] or [""] * len(lenpens) for position in positions]
        return [list(of_lenpen) for of_lenpen in zip(*chosen, strict=True)]

    def _searched(
        self,
        direction: Direction,
        choose: Callable[[Sequence[dict[str, Any]]], Sequence[dict[str, Any]]],
        positions: Sequence[int] | None = None,
    ) -> list[list[str]]:
        """Of each sentence of the set the hypotheses chosen from those found; none where it was not translated."""
        task = self._task(direction)
        task.load_dataset(self.subset)
        dataset = task.dataset(self.subset)
        if positions is not None:
            dataset = _Sample(dataset, positions)
        generator = task.build_generator(self.models, self.cfg.generation)
        batches = task.get_batch_iterator(
            dataset,
            max_tokens=self.cfg.dataset.max_tokens,
            max_sentences=self.cfg.dataset.batch_size,
            max_positions=utils.resolve_max_positions(
                task.max_positions(), *(model.max_positions() for model in self.models)
            ),
            ignore_invalid_inputs=True,
        ).next_epoch_itr(shuffle=False)
        strip = {generator.eos, *getattr(generator, "symbols_to_strip_from_output", ())}
        hypotheses: list[list[str]] = [[] for _ in range(len(dataset))]
        total = len(dataset if positions is None else positions)
        with tqdm(total=total, desc=f"translate {direction}", unit="sent", file=sys.stderr) as bar:
            for batch in batches:
                batch = utils.move_to_cuda(batch) if self._cuda else batch
                for number, beams in zip(
                    batch["id"].tolist(), task.inference_step(generator, self.models, batch), strict=True
                ):
                    chosen = (one["tokens"] for one in choose(beams))
                    hypotheses[number] = [_text(tokens, task.target_dictionary, strip) for tokens in chosen]
                bar.update(len(batch["id"]))
        return hypotheses

    def references(self, direction: Direction) -> list[str]:
        """The data-bin's own targets, SentencePiece joined to words; unknown pieces stay ``<unk>``."""
        task = self._task(direction)
        task.load_dataset(self.subset)
        dataset = task.dataset(self.subset)
        _, specification = task.args.langtoks["main"]
        language_token = task.data_manager.get_decoder_langtok(direction.target, specification)
        strip = {task.target_dictionary.eos(), language_token} - {None}
        return [_text(dataset[i]["target"], task.target_dictionary, strip) for i in range(len(dataset))]


class _Sample(BaseWrapperDataset):
    """Some sentences of a set, which keep their numbers."""

    def __init__(self, dataset: Any, positions: Sequence[int]) -> None:
        super().__init__(dataset)
        self._positions = np.asarray(positions)

    def ordered_indices(self) -> np.ndarray:
        order = np.asarray(self.dataset.ordered_indices())
        return order[np.isin(order, self._positions)]


def _text(tokens: torch.Tensor, dictionary: Dictionary, strip: set[int]) -> str:
    text: str = dictionary.string(tokens.int().cpu(), "sentencepiece", extra_symbols_to_ignore=strip)
    return text
