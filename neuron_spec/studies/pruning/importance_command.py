"""Measure how much each attention head and FFN neuron matters to each direction: the mean absolute gradient of a
sentence's loss, without the language token, with respect to the unit's mask (Michel, Levy and Neubig 2019).

One teacher-forced pass with its backward pass over the validation set, in single precision; a specialized
checkpoint runs through its own masks.

example:
  neuron-spec importance DATA_BIN --path dense.pt --output importance.safetensors
"""

from __future__ import annotations

import argparse
import sys

from neuron_spec.arguments import add_device, add_model_and_text, add_sentences, output_file
from neuron_spec.neurons.choices import SILENCED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_what_is_measured(parser)
    parser.add_argument(
        "--output", type=output_file, required=True, metavar="FILE", help="importance.safetensors"
    )


def add_what_is_measured(parser: argparse.ArgumentParser) -> None:
    """What is measured, and on what: also for neuron-spec prune."""
    add_model_and_text(parser, data_bin="fairseq data-bin")
    add_sentences(parser)
    parser.add_argument(
        "--dropped-neurons",
        choices=SILENCED,
        help="what a dropped neuron would emit: its constant act(bias), or zero "
        f"(default: as the checkpoint was trained; {SILENCED[0]} for one of plain fairseq)",
    )
    add_device(parser)


def run(args: argparse.Namespace) -> None:
    import torch
    from tqdm import tqdm

    from neuron_spec.artifacts import completed, hash_text, signature
    from neuron_spec.backends.fairseq.asked import Asked
    from neuron_spec.studies.pruning.importance import Importance, ImportanceMeter

    asked = Asked.read(args.path, args.data_bin, args.gen_subset, lang_pairs=args.lang_pairs)
    whole = signature(
        "importance",
        inputs=asked.inputs,
        parameters={
            **asked.parameters,
            "loss": "text",
            "sentences": args.sentences or "all",
            "dropped_neurons": args.dropped_neurons or "as trained",
        },
    )
    if not completed(args.output, whole, what="file of importance"):
        meter = asked.load(
            ImportanceMeter, dropped_neurons=args.dropped_neurons, max_tokens=args.max_tokens, cpu=args.cpu
        )
        text = meter.read(args.gen_subset, sentences=args.sentences)
        with tqdm(total=len(text.batches), unit="batch", file=sys.stderr, desc="importance") as bar:
            sums = meter.importance(text, each_batch=bar.update)
        metadata = {
            "checkpoint_sha256": asked.checkpoint_sha256,
            "dictionary_sha256": hash_text(*meter.model.encoder.dictionary.symbols),
            "langs": asked.langs,
            "signature": whole,
        }
        Importance(asked.directions, sums, torch.tensor(text.tokens), metadata).save(args.output)
    importance = Importance.load(args.output)
    print(f"{'milli-nats per token':<32}{'min':>9}{'mean':>9}{'max':>9}", file=sys.stderr)
    for site, values in importance.per_token().items():
        low, mean, high = (1000 * float(v) for v in (values.min(), values.mean(), values.max()))
        print(f"{site:<32}{low:>9.4f}{mean:>9.4f}{high:>9.4f}", file=sys.stderr)
    print(args.output)
