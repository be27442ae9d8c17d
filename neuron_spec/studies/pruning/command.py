"""Find static subnetworks: remove each direction's or language's least important attention heads and FFN neurons,
step by step, while the validation perplexity stays within a floor (after Choenni, Garrette and Shutova 2023; the
rules are ours). The masks serve --neuron-masks.

A step costs a pass with its backward pass and one or more without. A killed run goes on after its last step.
Several models' masks, such as of several seeds, are voted on by neuron-spec masks vote.

With --fine-tune each direction's set is selected from a copy of the dense model that is fine-tuned on the direction,
once per voter, and voted; the masks are for the dense checkpoint. Complete work in --work is skipped, a killed run
goes on. Several processes may share --work if each has other --lang-pairs; run once more with all to join their
masks. Flags of fairseq-train may follow after --.

examples:
  neuron-spec prune DATA_BIN --path dense.pt --output masks.safetensors --sites heads --neuron-sets language
  neuron-spec prune DATA_BIN --path dense.pt --output masks.safetensors --fine-tune \\
    configs/homeassistant/cpu/finetune.yaml --work pruning --voters 1,2,3 --sentences 200 --cpu
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuron_spec.arguments import (
    add_output_with_summary,
    output_folder,
    real_number,
    whole_number,
    whole_numbers,
)
from neuron_spec.neurons.choices import NEURON_SETS, SITE_KINDS, SUMMARY_MARK
from neuron_spec.studies.pruning.importance_command import add_what_is_measured

if TYPE_CHECKING:
    from neuron_spec.directions import Direction
    from neuron_spec.studies.pruning.importance import ImportanceMeter


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_what_is_measured(parser)
    add_output_with_summary(parser, "masks.safetensors", SUMMARY_MARK)
    parser.add_argument(
        "--sites", choices=SITE_KINDS, default=SITE_KINDS[0], help="what is pruned (default %(default)s)"
    )
    parser.add_argument(
        "--neuron-sets",
        choices=NEURON_SETS,
        default=NEURON_SETS[0],
        help="a set per direction, or per language: the encoder's by source, the decoder's by target",
    )
    parser.add_argument(
        "--step-fraction",
        type=real_number(lambda value: 0 < value <= 1, "a fraction above 0, up to 1"),
        default=0.1,
        metavar="X",
        help="how many of a set's remaining units one step removes, of heads and of neurons (default %(default)s)",
    )
    parser.add_argument(
        "--quality-floor",
        type=real_number(lambda value: 0 < value < 1, "a fraction between 0 and 1"),
        default=0.95,
        metavar="X",
        help="least quality of every direction: the dense model's perplexity over the pruned one's (default %(default)s)",
    )
    parser.add_argument(
        "--max-steps", type=whole_number(1), metavar="N", help="stop after so many (default: at the floor)"
    )
    parser.add_argument(
        "--fine-tune", type=Path, metavar="FILE", help="prune fine-tuned copies: fairseq's flags for them"
    )
    parser.add_argument(
        "--work", type=output_folder, metavar="DIR", help="with --fine-tune: a folder per direction and voter"
    )
    parser.add_argument(
        "--voters",
        type=whole_numbers("a list of different seeds, such as 1,2,3", distinct=True),
        metavar="N,N,...",
        help="with --fine-tune: the copies' seeds of training, instead of FILE's (default 1)",
    )
    parser.add_argument(
        "--keep-checkpoints",
        action="store_true",
        help="with --fine-tune: keep the copies, so that another floor or other sites need no other training",
    )


def run(args: argparse.Namespace) -> None:
    from neuron_spec.artifacts import signature
    from neuron_spec.backends.fairseq.asked import Asked
    from neuron_spec.backends.fairseq.config import read_flags
    from neuron_spec.backends.fairseq.data_bin import data_sha256
    from neuron_spec.backends.fairseq.fine_tuning import FineTuning
    from neuron_spec.errors import ModelError
    from neuron_spec.studies.pruning.importance import ImportanceMeter
    from neuron_spec.studies.pruning.measure import Rules, Voters, prune, prune_fine_tuned

    given = {"--work": args.work, "--voters": args.voters, "--keep-checkpoints": args.keep_checkpoints}
    given["flags after --"] = args.fairseq_flags
    if args.fine_tune is None and (alone := [name for name, value in given.items() if value]):
        raise ModelError(
            "only fine-tuned copies need these flags",
            got=", ".join(alone),
            mend="give --fine-tune FILE, or leave them out",
        )
    if args.fine_tune is not None and args.work is None:
        raise ModelError("where are the fine-tuned copies to be?", mend="give --work DIR")
    rules = Rules(args.sites, args.neuron_sets, args.step_fraction, args.quality_floor, args.max_steps)
    asked = Asked.read(args.path, args.data_bin, args.gen_subset, lang_pairs=args.lang_pairs)
    if asked.is_specialized:
        raise ModelError(
            "pruning starts from a dense model",
            where=args.path,
            got="a checkpoint with masks",
            expected="a dense checkpoint, multilingual or fine-tuned",
        )

    training = None
    if args.fine_tune is not None:
        flags = [*read_flags(args.fine_tune), *(["--cpu"] if args.cpu else []), *args.fairseq_flags]
        training = FineTuning(args.path, args.data_bin, asked.directions, flags)

    def sign(some: Sequence[Direction], seeds: Sequence[int] = ()) -> dict[str, Any]:
        data = data_sha256(args.data_bin, args.gen_subset, some)
        inputs = {"checkpoint": asked.checkpoint_sha256, "data": data}
        parameters = {
            **vars(rules),
            "subset": args.gen_subset,
            "loss": "text",
            "sentences": args.sentences or "all",
            "directions": [str(direction) for direction in some],
            "dropped_neurons": args.dropped_neurons or "as trained",
        }
        if training is not None:
            inputs["training data"] = training.data_sha256(some)
            parameters |= {"flags": training.flags, "seeds": list(seeds)}
        return signature("prune", inputs=inputs, parameters=parameters)

    options = {"dropped_neurons": args.dropped_neurons, "max_tokens": args.max_tokens, "cpu": args.cpu}

    def load(path: Path, some: Sequence[Direction]) -> ImportanceMeter:
        return asked.load(ImportanceMeter, path=path, directions=some, **options)

    text: dict[str, Any] = {"subset": args.gen_subset, "sentences": args.sentences}
    if training is None:
        metadata: dict[str, Any] = {"checkpoint_sha256": asked.checkpoint_sha256, "langs": asked.langs}
        metadata["signature"] = sign(asked.directions)
        dense = partial(load, args.path, asked.directions)
        masks = prune(args.output, dense, rules=rules, metadata=metadata, **text)
    else:
        voters = Voters(training, args.work, args.voters or [1], args.keep_checkpoints)
        masks = prune_fine_tuned(args.output, voters, load, rules=rules, sign=sign, **text)
    print(f"{'dropped, percent':<32}{'min':>8}{'mean':>8}{'max':>8}", file=sys.stderr)
    for site, dropped in masks.sparsity(masks.sites).items():
        low, mean, high = (100 * float(v) for v in (dropped.min(), dropped.mean(), dropped.max()))
        print(f"{site:<32}{low:>8.1f}{mean:>8.1f}{high:>8.1f}", file=sys.stderr)
    print(args.output)
