"""How the cost of a specialized training micro-batch grows: with directions, layers and width.

A micro-batch is one direction's forward and backward pass, as in ffn_step.py; directions take turns. Each
ratio is to the dense model of the same shape. One thing is varied at a time; the others are as in BASE.
Beside it, what the masks cost: reading the file and setting them, once per run, and their memory.

The vocabulary is small, so that the layers, where the systems differ, dominate.

examples:
  python benchmarks/scaling.py
  python benchmarks/scaling.py --device cuda --dtype bf16 --dim 1024 --tokens 8192 --ffn 1024 4096 8192
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
from pathlib import Path
from typing import Any

import measuring
from fairseq.models.transformer import TransformerModel
from ffn_step import micro_batches

from neuron_spec.models.neuron_spec_transformer import NeuronSpecTransformer
from neuron_spec.neurons.masks import NeuronMasks

SIZE = "tiny"  # for its vocabulary
BASE = {"directions": 60, "layers": 3, "ffn": 1024}  # layers of the encoder and of the decoder


def compare(args: argparse.Namespace, layers: int, ffn: int, directions: list[int]) -> list[dict[str, Any]]:
    """A model of one shape, with masks for so many directions: a row for each number of them."""
    device = args.device
    batch = measuring.batch(SIZE, args.tokens, min(args.length, args.tokens), device)

    def build(kind: type) -> Any:
        shape = {"layers": layers, "embed_dim": args.dim, "ffn_embed_dim": ffn}
        sides = {f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in shape.items()}
        return measuring.build_model(SIZE, kind, device=device, dtype=args.dtype, **sides)

    dense, plain = build(TransformerModel), build(NeuronSpecTransformer)
    plain.load_state_dict(dense.state_dict())
    variants = {"dense": micro_batches(dense, batch, itertools.repeat({}))}
    setting = {}
    for number in directions:
        model = measuring.sharing(plain)
        ids = measuring.specialize(model, args.sparsity / 100, number)
        takes = itertools.cycle(measuring.direction_inputs(ids, len(batch["src_tokens"]), device))
        setting[number] = setting_masks(model, number, args)
        variants[str(number)] = micro_batches(model, batch, takes)
    seconds = measuring.interleaved(variants, repeats=args.repeats, device=device)
    dense_ms = measuring.ratio(seconds, "dense", "dense")["ms"]
    return [
        {
            "directions": number,
            "layers": layers,
            "ffn": ffn,
            **measuring.ratio(seconds, str(number), "dense"),
            "dense_ms": dense_ms,
            **setting[number],
        }
        for number in directions
    ]


def setting_masks(model: NeuronSpecTransformer, directions: int, args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds to read the masks from a file and make the model ready with them, and their bytes."""
    langs, _ = measuring.languages(directions)
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "masks.safetensors"
        model.masks(langs).save(path)
        for _ in range(args.repeats):
            with measuring.timed(args.device) as elapsed:
                model.set_masks(NeuronMasks.load(path), langs)
                for fc1 in model.ffn_layers().values():
                    fc1.keeps_all(0)  # counts the kept, as the first pass would
            seconds += elapsed
    masks = [fc1.neuron_mask for fc1 in model.ffn_layers().values()]
    return {
        "setting_ms": round(1000 * statistics.median(seconds), 3),
        "mask_bytes": sum(mask.nbytes for mask in masks if mask is not None),
    }


def sweep(args: argparse.Namespace, varied: str, values: list[int]) -> list[dict[str, Any]]:
    if varied == "directions":
        rows = compare(args, BASE["layers"], BASE["ffn"], values)
    else:
        shapes = [{**BASE, varied: value} for value in values]
        rows = [
            row
            for shape in shapes
            for row in compare(args, shape["layers"], shape["ffn"], [shape["directions"]])
        ]
    constant = ", ".join(f"{key} {value}" for key, value in {"d": args.dim, **BASE}.items() if key != varied)
    measuring.print_table(
        f"{varied} varied; {constant}; {args.tokens} tokens, {args.sparsity} % dropped, {args.dtype}, "
        f"{args.repeats} rounds",
        [varied, "dense, ms", "ms", "x dense", "least", "greatest", "setting masks, ms", "masks, MB"],
        [
            [row[varied], f"{row['dense_ms']:.1f}", f"{row['ms']:.1f}"]
            + [f"{row[key]:.2f}" for key in ("ratio", "least", "greatest")]
            + [f"{row['setting_ms']:.1f}", f"{row['mask_bytes'] / 1e6:.2f}"]
            for row in rows
        ],
    )
    return rows


def main() -> None:
    parser = measuring.parser(__doc__, repeats=7)
    parser.add_argument("--directions", nargs="+", type=int, default=[2, 8, 60, 300], metavar="N")
    parser.add_argument("--layers", nargs="+", type=int, default=[1, 3, 6], metavar="N", help="per side")
    parser.add_argument("--ffn", nargs="+", type=int, default=[512, 1024, 2048, 4096], metavar="N")
    parser.add_argument("--dim", type=int, default=512, metavar="N", help="model width (default 512)")
    parser.add_argument(
        "--sparsity",
        type=int,
        default=30,
        metavar="PERCENT",
        help="neurons dropped (default %(default)s)",
    )
    parser.add_argument(
        "--tokens", type=int, default=512, metavar="N", help="per side and micro-batch (default 512)"
    )
    parser.add_argument(
        "--length", type=int, default=32, metavar="N", help="tokens per sentence (default 32)"
    )
    args = parser.parse_args()
    rows = {varied: sweep(args, varied, getattr(args, varied)) for varied in BASE}
    measuring.save(
        args,
        "scaling",
        {
            "dim": args.dim,
            "tokens": args.tokens,
            "dropped_percent": args.sparsity,
            "dtype": args.dtype,
            "rounds": args.repeats,
            "base": BASE,
            "varied": rows,
        },
    )


if __name__ == "__main__":
    main()
