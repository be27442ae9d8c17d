"""``neuron_specialization``: multilingual translation whose batches hold one direction each.

fairseq's ``translation_multi_simple_epoch`` in all else; its flags are all here too.
"""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path
from typing import Any

import torch
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.tasks import register_task
from fairseq.tasks.translation_multi_simple_epoch import TranslationMultiSimpleEpochTask

from neuron_spec.arguments import MISSING_DIRECTION
from neuron_spec.backends.fairseq.batches import DirectionDatasetManager
from neuron_spec.backends.fairseq.checkpoints import (
    begin_of,
    flag_name,
    no_model,
    require_own_folder,
    require_same_sizes,
    require_same_tokens,
    require_trainable,
    starts_of,
)
from neuron_spec.backends.fairseq.data_bin import check_data_bin
from neuron_spec.backends.fairseq.finite import NotFinite
from neuron_spec.backends.fairseq.language_tokens import LanguageTokens, languages_of
from neuron_spec.backends.fairseq.logged import require_logged, require_trackers
from neuron_spec.directions import Direction, direction_id, direction_of
from neuron_spec.errors import ModelError, message_in
from neuron_spec.languages import require_fairseq_codes
from neuron_spec.models.neuron_spec_transformer import PLAIN, NeuronSpecTransformer
from neuron_spec.neurons.choices import NEURON_SETS
from neuron_spec.neurons.masks import NeuronMasks

logger = logging.getLogger(__name__)


@register_task("neuron_specialization")
class NeuronSpecializationTask(TranslationMultiSimpleEpochTask):
    """Gives every sentence its direction id, and the model its masks."""

    @staticmethod
    def add_args(parser: argparse.ArgumentParser) -> None:
        TranslationMultiSimpleEpochTask.add_args(parser)
        parser.add_argument(
            "--neuron-masks",
            metavar="FILE",
            help="specialize the model with these masks (from neuron-spec select); a specialized "
            "checkpoint carries its own",
        )
        parser.add_argument(
            "--neuron-sets", choices=NEURON_SETS, help="refuse a mask file that holds sets of the other kind"
        )
        parser.add_argument(
            "--batching",
            choices=("one-direction", "mixed"),
            default="one-direction",
            help="one direction per batch, or fairseq's own batches",
        )
        parser.add_argument(
            "--missing-direction",
            choices=MISSING_DIRECTION,
            default="error",
            help="a direction without masks is refused, takes the encoder's masks of its source and the "
            "decoder's of its target from other directions, or runs through all neurons",
        )
        parser.add_argument(
            "--allow-other-checkpoint",
            action="store_true",
            help="accept masks that were profiled on another checkpoint than training starts from",
        )
        parser.add_argument(
            "--masks-on-random-weights",
            action="store_true",
            help="train from random weights through masks; without it, masks need a checkpoint to start from, "
            "also masks that do not say what they were made from",
        )

    def __init__(self, args: argparse.Namespace, langs: list[str], dicts: Any, training: bool) -> None:
        for flag in ("enable_lang_ids", "lang_tok_replacing_bos_eos"):
            if getattr(args, flag, False):
                raise ModelError(
                    f"{flag_name(flag)} is not supported by this task",
                    mend="directions are known by id; use --encoder-langtok and --decoder-langtok",
                )
        if any(category.startswith("mono") for category in getattr(args, "extra_data", None) or {}):
            raise ModelError("monolingual --extra-data has no direction, and is not supported by this task")
        super().__init__(args, langs, dicts, training)
        # The parent's constructor names the manager's class itself.
        self.data_manager = DirectionDatasetManager(args, self.lang_pairs, langs, dicts, self.sampling_method)

    @classmethod
    def setup_task(cls, args: argparse.Namespace, **kwargs: Any) -> NeuronSpecializationTask:
        # fairseq-validate sets the task up from a checkpoint's flags, and a plain one's lack ours.
        parser = argparse.ArgumentParser(allow_abbrev=False)
        cls.add_args(parser)
        for name, value in vars(parser.parse_args([args.data])).items():
            if name not in args:
                setattr(args, name, value)
        pairs = args.lang_pairs.split(",") if isinstance(args.lang_pairs, str) else args.lang_pairs or ()
        named = [Direction.parse(pair) for pair in pairs]
        codes = [code for of in named for code in (of.source, of.target)]
        one = [code for code in (args.source_lang, args.target_lang) if code]
        require_fairseq_codes(dict.fromkeys([*(args.langs or ()), *codes, *one]))
        require_same_tokens(args)
        require_own_folder(args)
        # Resolved, so that the checkpoints of a training know their languages without a file.
        args.langs, args.lang_dict = languages_of(vars(args)), None
        require_fairseq_codes(args.langs)  # of --lang-dict too
        for direction in [Direction(*one)] if len(one) == 2 else named:
            direction_id(direction, args.langs)
        # The parent's names the manager's class itself.
        return cls(args, *DirectionDatasetManager.prepare(cls.load_dictionary, args, **kwargs))

    @property
    def directions(self) -> list[Direction]:
        return [Direction.parse(pair) for pair in self.lang_pairs]

    def load_dataset(self, split: str, epoch: int = 1, combine: bool = False, **kwargs: Any) -> None:
        paths = self.args.data.split(os.pathsep)
        # A training set in shards may hold other directions in each; the other sets are in the first path.
        is_sharded = len(paths) > 1 and split == getattr(self.args, "train_subset", None)
        if split not in self.datasets and not is_sharded and not getattr(self.args, "extra_data", None):
            check_data_bin(Path(paths[0]), self.langs, split, self.directions, self.args.fixed_dictionary)
        super().load_dataset(split, epoch, combine, **kwargs)

    def build_model(self, args: argparse.Namespace, from_checkpoint: bool = False) -> NeuronSpecTransformer:
        if from_checkpoint and getattr(args, "lang_pairs", None):
            near = next(iter(starts_of(self.args)), None)
            LanguageTokens.of(self.args).require(LanguageTokens.of(args, near), where=near)
        if not from_checkpoint:
            require_trackers(self.args)
            args.langs, args.lang_dict = list(self.langs), None  # for checkpoints, as in setup_task
        try:
            if ARCH_MODEL_REGISTRY.get(args.arch) in PLAIN:
                # A plain transformer, as stock fairseq trains it: the same model, able to take masks.
                model = NeuronSpecTransformer.build_model(args, self)
            else:
                model = super().build_model(args, from_checkpoint)
        except Exception as error:  # of flags that were changed, which fairseq does not look at, any
            if not from_checkpoint or message_in(error) is not None:
                raise
            raise no_model(error) from error
        if not isinstance(model, NeuronSpecTransformer):
            raise ModelError(
                "this task needs a transformer",
                got=f"--arch {args.arch}",
                expected="an architecture of neuron_spec_transformer or of fairseq's transformer",
            )
        model.set_languages(self.langs, self.args.missing_direction)
        if not from_checkpoint:
            is_pruned = getattr(args, "encoder_layers_to_keep", None) or getattr(
                args, "decoder_layers_to_keep", None
            )
            for start in () if is_pruned else starts_of(self.args):
                require_same_sizes(start, {key: fc1.weight for key, fc1 in model.ffn_layers().items()})
            model.start_training(args, self.directions, self.langs)
        # The file that a checkpoint was trained with is inside the checkpoint.
        is_inside = from_checkpoint and self.args.neuron_masks == getattr(args, "neuron_masks", None)
        if self.args.neuron_masks and not is_inside:
            path, wanted = self.args.neuron_masks, self.args.neuron_sets
            masks = NeuronMasks.load(path)
            if wanted not in (None, sets := masks.metadata.get("neuron_sets")):
                raise ModelError(
                    "the mask file holds sets of another kind", where=path, got=sets, expected=wanted
                )
            require_trainable(
                masks,
                self.args,
                directions=self.directions,
                langs=self.langs,
                symbols=self.source_dictionary.symbols,
                where=path,
                is_loading=from_checkpoint,
            )
            masks.require_fit(model.sites(), where=path)
            needed = masks.metadata.get("dropped_neurons")
            if needed not in (None, *(fc1.dropped_neurons for fc1 in model.ffn_layers().values())):
                raise ModelError(
                    "these masks need dropped neurons of another kind",
                    where=path,
                    got=f"--dropped-neurons {getattr(args, 'dropped_neurons', 'bias')}",
                    expected=f"--dropped-neurons {needed}",
                )
            model.set_masks(masks, self.langs)
        return model

    def begin_epoch(self, epoch: int, model: Any) -> None:
        super().begin_epoch(epoch, model)
        start = begin_of(self.args)
        if (
            epoch == 1
            and start
            and not (model.dynamics or any(side.rows is not None for side in model.sides))
        ):
            logger.info(f"no masks: training on densely from {start}")

    def train_step(self, sample: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return super().train_step(sample, *args, **kwargs)
        except NotFinite as error:
            ids = sample["net_input"].get("distinct_ids") or ()
            names = ", ".join(str(direction_of(number, self.langs)) for number in ids)
            raise NotFinite(error.place, error.found, names) from error

    def build_criterion(self, args: Any, *rest: Any) -> Any:
        criterion = super().build_criterion(args, *rest)
        require_logged(criterion, self.args)
        return criterion

    def build_dataset_for_inference(self, *args: Any, **kwargs: Any) -> Any:
        self._require_one_direction()
        return super().build_dataset_for_inference(*args, **kwargs)

    def inference_step(
        self, generator: Any, models: Any, sample: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        net_input = sample["net_input"]
        if "direction_ids" not in net_input:
            # fairseq-interactive keeps only tokens and lengths of a batch.
            number = self._require_one_direction()
            net_input["direction_ids"] = torch.full_like(net_input["src_lengths"].reshape(-1), number)
            net_input["distinct_ids"] = (number,)
        return super().inference_step(generator, models, sample, *args, **kwargs)

    def _require_one_direction(self) -> int:
        source, target = self.args.source_lang, self.args.target_lang
        if not (source and target):
            raise ModelError("which direction?", mend="give --source-lang and --target-lang")
        return direction_id(Direction(source, target), self.langs)
