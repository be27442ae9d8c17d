"""Translating whole test sets, many directions with one model load."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils, tasks, utils
from fairseq.data import Dictionary
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
        task = self._task(direction)
        task.load_dataset(self.subset)
        dataset = task.dataset(self.subset)
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
        hypotheses = [""] * len(dataset)
        with tqdm(total=len(dataset), desc=f"translate {direction}", unit="sent", file=sys.stderr) as bar:
            for batch in batches:
                batch = utils.move_to_cuda(batch) if self._cuda else batch
                for number, beams in zip(
                    batch["id"].tolist(), task.inference_step(generator, self.models, batch), strict=True
                ):
                    hypotheses[number] = _text(beams[0]["tokens"], task.target_dictionary, strip)
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


def _text(tokens: torch.Tensor, dictionary: Dictionary, strip: set[int]) -> str:
    text: str = dictionary.string(tokens.int().cpu(), "sentencepiece", extra_symbols_to_ignore=strip)
    return text
