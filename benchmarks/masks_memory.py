"""What the masks of all directions take: in memory, on disk, in a checkpoint.

  in memory        every tensor that specializing a model and running it brings into being: the masks, the
                   table of directions, and the neurons' order for the direction that ran last
  on disk          the mask file, one bit per neuron, and the summary beside it
  in a checkpoint  what a specialized one has and a dense one has not
  dense masks      for comparison: a bool per weight of every fc1 and direction, the official code's form;
                   one direction's are made, and counted times the directions

Measured on a real model with random masks. Sparsity changes no size but that of the gathered weights, which
evaluation keeps for one direction: that line below the table.

examples:
  python benchmarks/masks_memory.py
  python benchmarks/masks_memory.py --size iwslt --directions 16
"""

from __future__ import annotations

import argparse
import gc
import io
import tempfile
from pathlib import Path
from typing import Any

import measuring
import torch

from neuron_spec.models.neuron_spec_transformer import NeuronSpecTransformer

SENTENCES, LENGTH = 16, 16


def alive() -> int:
    """Bytes of all tensors that Python can reach, each storage once; a compiler's fake tensors hold none."""
    gc.collect()
    storages = {}
    for found in gc.get_objects():
        if type(found) in (torch.Tensor, torch.nn.Parameter):
            storage = found.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


@torch.no_grad()
def run(model: NeuronSpecTransformer, batch: dict[str, torch.Tensor], ids: list[int], device: str) -> None:
    """A batch of each of two directions. Without gradients, only what the model itself keeps outlives it."""
    for inputs in measuring.direction_inputs(ids[:2], SENTENCES, device):
        model(**batch, **inputs)


def measure(args: argparse.Namespace, plain: NeuronSpecTransformer, directions: int) -> dict[str, Any]:
    model = measuring.sharing(plain)
    batch = measuring.batch(args.size, SENTENCES * LENGTH, LENGTH, args.device)
    del batch["target"]
    before = alive()
    ids = measuring.specialize(model, args.sparsity / 100, directions)
    run(model.train(), batch, ids, args.device)
    memory = alive() - before
    run(model.eval(), batch, ids, args.device)
    gathered = alive() - before - memory

    added = model.state_dict().keys() - plain.state_dict().keys()
    checkpoint = io.BytesIO()
    torch.save({key: model.state_dict()[key].cpu() for key in added}, checkpoint)
    langs, _ = measuring.languages(directions)
    masks = model.masks(langs)
    with tempfile.TemporaryDirectory() as folder:
        masks.save(Path(folder) / "masks.safetensors")
        disk = sum(file.stat().st_size for file in Path(folder).iterdir())

    dense = 0
    for key, fc1 in model.ffn_layers().items():
        kept = masks.kept[key][0]
        dense += kept.unsqueeze(1).expand(fc1.weight.shape).contiguous().nbytes
    dense *= directions
    return {
        "directions": directions,
        "mask_bytes": sum(kept.nbytes for kept in masks.kept.values()),
        "memory_bytes": memory,
        "disk_bytes": disk,
        "checkpoint_bytes": len(checkpoint.getbuffer()),
        "dense_masks_bytes": dense,
        "ratio": round(memory / dense, 6),
        "gathered_weights_bytes": gathered,
    }


def main() -> None:
    parser = measuring.parser(__doc__, repeats=1)
    parser.add_argument("--size", choices=measuring.SIZES, default="big")
    parser.add_argument("--directions", nargs="+", type=int, default=[2, 8, 60, 300], metavar="N")
    parser.add_argument(
        "--sparsity",
        type=int,
        default=25,
        metavar="PERCENT",
        help="neurons dropped (default %(default)s, about what k = 95 gives)",
    )
    args = parser.parse_args()
    plain = measuring.build_model(args.size, NeuronSpecTransformer, device=args.device, dtype=args.dtype)
    rows = [measure(args, plain, directions) for directions in args.directions]

    def megabytes(number: int) -> str:
        return f"{number / 1e6:,.2f}"

    sizes = ("memory_bytes", "disk_bytes", "checkpoint_bytes", "dense_masks_bytes")
    measuring.print_table(
        f"{args.size}: masks of all directions, MB",
        ["directions", "in memory", "on disk", "in a checkpoint", "dense masks", "memory x dense masks"],
        [
            [row["directions"], *(megabytes(row[key]) for key in sizes), f"1/{1 / row['ratio']:.0f}"]
            for row in rows
        ],
    )
    print(
        f"\ngathered weights, kept in evaluation for one direction: "
        f"{megabytes(rows[-1]['gathered_weights_bytes'])} MB in {args.dtype}"
    )
    measuring.save(
        args,
        "masks_memory",
        {"size": args.size, "dtype": args.dtype, "dropped_percent": args.sparsity, "rows": rows},
    )


if __name__ == "__main__":
    main()
