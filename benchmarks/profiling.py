"""What counting active neurons adds to a pass over validation data.

Each pass is one batch of one direction: forward in evaluation, and label-smoothed cross-entropy.

  validation      no counting
  profiling       ours: real tokens, on the model's device
  host copies     for every FFN, which entries of the hidden vectors are not zero is copied to the host and
                  summed there, over all positions: the official code's way, written anew from its
                  description

examples:
  python benchmarks/profiling.py
  python benchmarks/profiling.py --device cuda --dtype bf16 --size big
"""

from __future__ import annotations

import argparse
from types import SimpleNamespace
from typing import Any

import measuring
import torch
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion
from torch import Tensor

from neuron_spec.backends.fairseq.profiling import NeuronCounter
from neuron_spec.directions import direction_id
from neuron_spec.models.neuron_spec_transformer import NeuronSpecTransformer

BASELINE = "validation"
DEFAULT_TOKENS = {
    "cpu": {"tiny": 4000, "iwslt": 4000, "big": 1000},
    "cuda": {"tiny": 30000, "iwslt": 30000, "big": 30000},
}


class HostCopies:
    """Counts on the host, where a pass runs while ``counts`` is not None."""

    def __init__(self, model: NeuronSpecTransformer) -> None:
        self.counts: dict[str, Tensor] | None = None
        modules = dict(model.named_modules())
        for key in model.ffn_layers():

            def copy(module: Any, inputs: tuple[Tensor, ...], key: str = key) -> None:
                if self.counts is not None:
                    active = (inputs[0] != 0).cpu()
                    self.counts[key] = self.counts.get(key, 0) + active.sum(dim=(0, 1))

            modules[f"{key}.fc2"].register_forward_pre_hook(copy)


def pad(batch: dict[str, Tensor], padding: int) -> float:
    """Shorten the sentences to between 3/4 and all of their length, as fairseq pads; the padded fraction."""
    sentences, length = batch["src_tokens"].shape
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(length * 3 // 4, length + 1, (sentences,), generator=generator)
    lengths[0] = length
    column, lengths = torch.arange(length), lengths.unsqueeze(1)
    before = (column < length - lengths).to(batch["src_tokens"].device)
    after = (column >= lengths).to(before.device)
    batch["src_lengths"] = lengths.flatten().to(before.device)
    batch["src_tokens"].masked_fill_(before, padding)
    for name in ("prev_output_tokens", "target"):
        batch[name].masked_fill_(after, padding)
    return float(after.float().mean())


def passes_of_size(args: argparse.Namespace, size: str) -> dict[str, Any]:
    device, tokens = args.device, args.tokens or DEFAULT_TOKENS[args.device][size]
    model = measuring.build_model(size, NeuronSpecTransformer, device=device, dtype=args.dtype).eval()
    langs, directions = measuring.languages(2)
    net_input: dict[str, Any] = measuring.batch(size, tokens, min(args.length, tokens), device)
    padding = pad(net_input, model.encoder.padding_idx)
    target, (sentences, _) = net_input.pop("target"), net_input["src_tokens"].shape
    (ids,) = measuring.direction_inputs([direction_id(directions[0], langs)], sentences, device)
    sample = {"net_input": {**net_input, **ids}, "target": target, "ntokens": target.numel()}
    criterion = LabelSmoothedCrossEntropyCriterion(
        SimpleNamespace(target_dictionary=model.decoder.dictionary), sentence_avg=False, label_smoothing=0.1
    )
    counter, host = NeuronCounter(model, directions, langs), HostCopies(model)

    @torch.no_grad()
    def validation() -> None:
        criterion(model, sample)

    def profiling() -> None:
        with counter.counting(sample["net_input"]):
            validation()

    def host_copies() -> None:
        host.counts = {}
        validation()
        host.counts = None

    variants = {BASELINE: validation, "profiling": profiling, "host copies": host_copies}
    seconds = measuring.interleaved(variants, repeats=args.repeats, device=device)
    found = {name: measuring.ratio(seconds, name, BASELINE) for name in variants}
    positions = net_input["src_tokens"].numel()
    measuring.print_table(
        f"{size}: a pass over {positions} source and target positions, {100 * padding:.0f} % padding, "
        f"{args.dtype}, vocabulary {measuring.SIZES[size].vocabulary}, {args.repeats} rounds",
        ["", "ms", "x validation", "least", "greatest"],
        [
            [name, f"{row['ms']:.0f}" if row["ms"] >= 100 else f"{row['ms']:.1f}"]
            + [f"{row[key]:.3f}" for key in ("ratio", "least", "greatest")]
            for name, row in found.items()
        ],
    )
    return {
        "positions": positions,
        "padding_fraction": round(padding, 3),
        "dtype": args.dtype,
        "rounds": args.repeats,
        "variants": found,
    }


def main() -> None:
    parser = measuring.parser(__doc__, repeats=7)
    parser.add_argument("--size", nargs="+", choices=measuring.SIZES, default=["iwslt", "big"])
    parser.add_argument(
        "--tokens",
        type=int,
        metavar="N",
        help="positions per side and batch (default: by size on a CPU, 30000 on a GPU)",
    )
    parser.add_argument(
        "--length", type=int, default=32, metavar="N", help="of the longest sentence (default 32)"
    )
    args = parser.parse_args()
    measuring.save(args, "profiling", {"sizes": {size: passes_of_size(args, size) for size in args.size}})


if __name__ == "__main__":
    main()
