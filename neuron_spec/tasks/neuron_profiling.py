"""``neuron_profiling``: counts active neurons while ``fairseq-validate`` runs over the validation set.

All directions in one pass, on the model's device; under ``torch.distributed`` the processes' counts
are added, and equal those of a single process. ``neuron-spec profile`` calls it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from fairseq.distributed import utils as distributed_utils
from fairseq.tasks import register_task

from neuron_spec.artifacts import hash_text
from neuron_spec.backends.fairseq.checkpoints import checkpoint_sha256
from neuron_spec.backends.fairseq.compat import add_over_processes, gather_without_gpu
from neuron_spec.backends.fairseq.data_bin import data_sha256
from neuron_spec.backends.fairseq.profiling import NeuronCounter
from neuron_spec.errors import ModelError
from neuron_spec.models.neuron_spec_transformer import NeuronSpecTransformer
from neuron_spec.neurons.choices import WHOLE, Part, part_flag
from neuron_spec.neurons.counting import DTYPES, profile_signature
from neuron_spec.tasks.neuron_specialization import NeuronSpecializationTask


@register_task("neuron_profiling")
class NeuronProfilingTask(NeuronSpecializationTask):
    """Validation that leaves a profile."""

    @staticmethod
    def add_args(parser: argparse.ArgumentParser) -> None:
        NeuronSpecializationTask.add_args(parser)
        parser.add_argument("--profile-output", metavar="FILE", help="where to write the profile (needed)")
        parser.add_argument(
            "--count-padding",
            action="store_true",
            help="count padding positions too, as the official code does; the result then depends on batch sizes",
        )
        parser.add_argument(
            "--profile-part",
            type=part_flag,
            default=str(WHOLE),
            metavar="I/N",
            help="count only every Nth sentence of each direction, from the Ith on (default: %(default)s, all)",
        )
        parser.add_argument(
            "--profile-dtype",
            choices=DTYPES,
            help="precision of the forward pass (default: fp32, or fp16 with --fp16; fairseq-validate "
            "does not heed --bf16)",
        )

    def __init__(self, args: argparse.Namespace, langs: list[str], dicts: Any, training: bool) -> None:
        super().__init__(args, langs, dicts, training)
        if args.batching != "one-direction":
            raise ModelError(
                "profiling counts per direction", got="--batching mixed", expected="one-direction"
            )
        if not args.profile_output:
            raise ModelError("no file to write the profile to", mend="give --profile-output FILE")
        self._counter: NeuronCounter | None = None

    def build_model(self, args: argparse.Namespace, from_checkpoint: bool = False) -> NeuronSpecTransformer:
        # args.fp16 and args.bf16 may be those of training: a flag of our own says what to profile in.
        model = super().build_model(args, from_checkpoint)
        return model.to(DTYPES[self.args.profile_dtype or "fp32"])

    def train_step(self, *args: Any, **kwargs: Any) -> Any:
        raise ModelError(
            "this task only profiles", mend="run it with fairseq-validate, or neuron-spec profile"
        )

    def valid_step(self, sample: dict[str, Any], model: Any, criterion: Any) -> Any:
        if self._counter is None:
            assert isinstance(model, NeuronSpecTransformer)
            if torch.distributed.is_initialized():
                gather_without_gpu(self.args.all_gather_list_size, torch.distributed.get_world_size())
            what = {"count_padding": self.args.count_padding, "part": Part.parse(self.args.profile_part)}
            self._counter = NeuronCounter(model, self.directions, self.langs, **what)
            if (dtype := self._counter.dtype) != DTYPES.get(self.args.profile_dtype, dtype):
                raise ModelError(
                    "--profile-dtype and fairseq's --fp16 name different precisions",
                    got=f"a model in {dtype}",
                    expected=self.args.profile_dtype,
                    mend="give one of the two; to neuron-spec profile, --fp16 or --bf16 before the --",
                )
        if not sample:  # what a process gets when there are fewer batches than processes
            return torch.zeros(()), 0, {}
        with self._counter.counting(sample["net_input"], sample["id"]):
            return super().valid_step(sample, model, criterion)

    def reduce_metrics(self, logging_outputs: list[dict[str, Any]], criterion: Any) -> None:
        super().reduce_metrics([log for log in logging_outputs if log], criterion)
        if self._counter is None:
            raise ModelError(
                "no batch to profile", where=self.args.data, mend="give each process at least one batch"
            )
        profile = self._counter.result(add_over_processes)
        if torch.distributed.is_initialized() and distributed_utils.get_data_parallel_rank() > 0:
            return
        profile.require_tokens()
        profile.metadata = profile_signature(
            checkpoint=checkpoint_sha256(self.args.path),
            data=data_sha256(Path(self.args.data), self.args.valid_subset, self.directions),
            subset=self.args.valid_subset,
            directions=self.directions,
            count_padding=self.args.count_padding,
            dtype=self._counter.dtype,
            part=self._counter.part,
            missing_direction=self.args.missing_direction,
        ) | {
            "dictionary_sha256": hash_text(*self.source_dictionary.symbols),
            "langs": list(self.langs),
        }
        profile.save(self.args.profile_output)
