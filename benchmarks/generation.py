"""Tokens per second of beam search with fairseq's own generator, specialized against dense.

A batch is of one direction, as fairseq-generate's are. Every output has the same length, so that all do
equal work, and all models have the same weights.

  dense                              fairseq's own transformer
  specialized                        ours, --ffn-path auto: what a direction keeps is gathered in its first
                                     batch, and reused in all steps and later batches
  specialized, a new direction each  ours, where no batch has the direction of the one before: each gathers
  multiply                           ours, --ffn-path multiply

examples:
  python benchmarks/generation.py
  python benchmarks/generation.py --device cuda --dtype fp16 --size big --sentences 64
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import measuring
from fairseq.models.transformer import TransformerModel
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor

from neuron_spec.models.neuron_spec_transformer import NeuronSpecTransformer

DIRECTIONS = 4
COMPARED_AT = 30  # percent dropped, of the variants that are timed at one sparsity
DEFAULT_SENTENCES = {"cpu": {"tiny": 32, "iwslt": 16, "big": 4}, "cuda": {"tiny": 64, "iwslt": 64, "big": 64}}


def translating(
    model: Any, batch: dict[str, Tensor], takes: Iterator[dict[str, Any]], beam: int, length: int
) -> Callable[[], int]:
    """A function that translates the next direction's batch, and returns how many tokens came out."""
    model.make_generation_fast_(need_attn=False)  # as fairseq-generate does
    generator = SequenceGenerator(
        [model],
        model.decoder.dictionary,
        beam_size=beam,
        max_len_b=length,
        min_len=length,  # no hypothesis ends earlier
    )
    source = {key: batch[key] for key in ("src_tokens", "src_lengths")}

    def run() -> int:
        hypotheses = generator.generate([model], {"net_input": {**source, **next(takes)}})
        return sum(len(beams[0]["tokens"]) for beams in hypotheses)

    return run


def measure(args: argparse.Namespace, size: str) -> dict[str, Any]:
    device, sentences = args.device, args.sentences or DEFAULT_SENTENCES[args.device][size]
    batch = measuring.batch(size, sentences * args.length, args.length, device)

    def build(kind: type) -> Any:
        return measuring.build_model(size, kind, device=device, dtype=args.dtype)

    def variant(model: Any, takes: Iterator[dict[str, Any]]) -> Callable[[], int]:
        return translating(model, batch, takes, args.beam, args.length)

    dense, plain = build(TransformerModel), build(NeuronSpecTransformer)
    plain.load_state_dict(dense.state_dict())

    def ours(dropped: int, ffn_path: str = "auto") -> tuple[NeuronSpecTransformer, list[dict[str, Any]]]:
        model = measuring.sharing(plain)
        for fc1 in model.ffn_layers().values():
            fc1.ffn_path = ffn_path
        ids = measuring.specialize(model, dropped / 100, DIRECTIONS)
        return model, measuring.direction_inputs(ids, sentences, device)

    variants = {"dense": variant(dense, itertools.repeat({}))}
    for dropped in args.sparsity:
        model, inputs = ours(dropped)
        variants[f"specialized, {dropped} %"] = variant(model, itertools.repeat(inputs[0]))
    model, inputs = ours(COMPARED_AT)
    variants[f"specialized, {COMPARED_AT} %, a new direction each"] = variant(model, itertools.cycle(inputs))
    model, inputs = ours(COMPARED_AT, "multiply")
    variants[f"multiply, {COMPARED_AT} %"] = variant(model, itertools.repeat(inputs[0]))

    tokens = {name: run() for name, run in variants.items()}
    seconds = measuring.interleaved(variants, repeats=args.repeats, device=device, warmup=0)
    found = {}
    for name in variants:
        # Tokens per second over the dense model's: dense seconds over this one's.
        compared = measuring.ratio(seconds, "dense", name)
        milliseconds = measuring.ratio(seconds, name, name)["ms"]
        per_second = round(1000 * tokens[name] / milliseconds, 1)
        found[name] = {**compared, "ms": milliseconds, "tokens": tokens[name], "tokens_per_s": per_second}
    measuring.print_table(
        f"{size}: beam {args.beam}, {sentences} sentences of {args.length} tokens, {args.dtype}, "
        f"vocabulary {measuring.SIZES[size].vocabulary}, {args.repeats} rounds",
        ["", "tokens/s", "x dense", "least", "greatest"],
        [
            [
                name,
                f"{row['tokens_per_s']:.0f}",
                *(f"{row[key]:.2f}" for key in ("ratio", "least", "greatest")),
            ]
            for name, row in found.items()
        ],
    )
    return {
        "sentences": sentences,
        "length": args.length,
        "beam": args.beam,
        "dtype": args.dtype,
        "rounds": args.repeats,
        "variants": found,
    }


def main() -> None:
    parser = measuring.parser(__doc__, repeats=5)
    parser.add_argument("--size", nargs="+", choices=measuring.SIZES, default=["iwslt", "big"])
    parser.add_argument(
        "--sparsity",
        nargs="+",
        type=int,
        default=[0, 20, 30, 50, 75],
        metavar="PERCENT",
        help="neurons dropped",
    )
    parser.add_argument("--sentences", type=int, metavar="N", help="in a batch (default: by size and device)")
    parser.add_argument(
        "--length", type=int, default=24, metavar="N", help="tokens of a source and of an output (default 24)"
    )
    parser.add_argument("--beam", type=int, default=5, metavar="N")
    args = parser.parse_args()
    measuring.save(args, "generation", {"sizes": {size: measure(args, size) for size in args.size}})


if __name__ == "__main__":
    main()
