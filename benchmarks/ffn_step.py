"""What a training micro-batch costs: specialized against dense, mask-multiply and the materialised mask.

One micro-batch is one direction's forward and backward pass, with dropout and label-smoothed
cross-entropy; directions take turns. Every system has the dense model's weights.

  dense           fairseq's own transformer
  specialized     ours, --ffn-path auto
  multiply        ours, --ffn-path multiply
  materialised    the dense model computing with mask * weight for every Linear inside its layers, from
                  dense bool masks, and reading each FFN's kept fraction back to the host: the official
                  code's way, written anew from its description
  dense, narrow   the dense model with narrower FFNs: the least that specialization could cost

The optimizer's step is the same for all. It is timed beside them, and the last column says what the
ratio is of a whole update at the literature's number of micro-batches per update.

examples:
  python benchmarks/ffn_step.py
  python benchmarks/ffn_step.py --size iwslt --repeats 12
  python benchmarks/ffn_step.py --device cuda --dtype bf16 --tokens 7680 --size big
  python benchmarks/ffn_step.py --break-even
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import measuring
import torch
import torch.nn.functional as F
from fairseq.criterions.label_smoothed_cross_entropy import label_smoothed_nll_loss
from fairseq.models.transformer import TransformerModel
from torch import Tensor, nn
from torch.nn.utils import parametrize

from neuron_spec.models.neuron_spec_transformer import NeuronSpecTransformer
from neuron_spec.modules.specialized_ffn import (
    BREAK_EVEN_TOKENS,
    WIDTH_MULTIPLE,
    Route,
    SpecializedFC1,
    SpecializedFC2,
)

DIRECTIONS = 4
COMPARED_AT = 30  # percent dropped, where the systems whose cost does not depend on it are timed
ROUNDS = {"tiny": 5, "iwslt": 4, "big": 3}
DEFAULT_TOKENS = {
    "cpu": {"tiny": 1024, "iwslt": 1024, "big": 512},
    "cuda": {"tiny": 16384, "iwslt": 16384, "big": 7680},
}


class MaterialisedMask(nn.Module):
    """``mask * weight`` anew wherever the weight is used."""

    def __init__(self, masks: Tensor, reads_ratio: bool) -> None:
        super().__init__()
        self.register_buffer("masks", masks)  # bool [directions, out, in]
        self.reads_ratio = reads_ratio
        self.direction = 0

    def forward(self, weight: Tensor) -> Tensor:
        mask = self.masks[self.direction]
        if self.reads_ratio:
            (mask.sum() / mask.numel()).item()
        return weight * mask


def materialise(model: Any, specialized: NeuronSpecTransformer) -> list[MaterialisedMask]:
    """Give a dense model the specialized one's masks, as dense masks of every Linear in its layers."""
    modules = dict(model.named_modules())
    kept = {f"{key}.fc1": fc1.neuron_mask for key, fc1 in specialized.ffn_layers().items()}
    masks = []
    for name, linear in modules.items():
        if isinstance(linear, nn.Linear) and ".layers." in name:
            shape = (DIRECTIONS, *linear.weight.shape)
            rows = kept.get(name)
            dense = torch.ones(shape, dtype=torch.bool, device=linear.weight.device)
            if rows is not None:
                dense &= rows.unsqueeze(2)
            masks.append(MaterialisedMask(dense, reads_ratio=rows is not None))
            parametrize.register_parametrization(linear, "weight", masks[-1], unsafe=True)
    return masks


def micro_batches(
    model: Any, batch: dict[str, Tensor], takes: Iterator[dict[str, Any]]
) -> Callable[[], None]:
    """A function that runs the next direction's micro-batch."""
    target = batch["target"].flatten()
    net_input = {key: value for key, value in batch.items() if key != "target"}
    model.train()

    def run() -> None:
        logits, _ = model(**net_input, **next(takes))
        log_probabilities = F.log_softmax(logits.float(), dim=-1).flatten(0, 1)
        loss, _ = label_smoothed_nll_loss(log_probabilities, target.unsqueeze(1), 0.1, ignore_index=1)
        loss.backward()

    return run


def steps_of_size(args: argparse.Namespace, size: str) -> dict[str, Any]:
    device, tokens = args.device, args.tokens or DEFAULT_TOKENS[args.device][size]
    batch = measuring.batch(size, tokens, min(args.length, tokens), device)

    def build(kind: type, **settings: Any) -> Any:
        return measuring.build_model(size, kind, device=device, dtype=args.dtype, **settings)

    dense = build(TransformerModel)
    width = dense.encoder.layers[0].fc1.out_features
    variants = {"dense": micro_batches(dense, batch, itertools.repeat({}))}

    # One set of weights for all: gradients pile up in the same place, and memory is that of one model.
    specializable = build(NeuronSpecTransformer)
    parameters = dict(dense.named_parameters(remove_duplicate=False))
    for name, module in specializable.named_modules():
        for short in [short for short, _ in module.named_parameters(recurse=False)]:
            setattr(module, short, parameters[f"{name}.{short}".lstrip(".")])

    def ours(dropped: int, ffn_path: str) -> tuple[Any, Callable[[], None]]:
        model = measuring.sharing(specializable)
        for fc1 in model.ffn_layers().values():
            fc1.ffn_path = ffn_path
        ids = measuring.specialize(model, dropped / 100, DIRECTIONS)
        takes = measuring.direction_inputs(ids, len(batch["src_tokens"]), device)
        return model, micro_batches(model, batch, itertools.cycle(takes))

    for dropped in args.sparsity:
        _, variants[f"specialized, {dropped} %"] = ours(dropped, "auto")
    specialized, variants[f"multiply, {COMPARED_AT} %"] = ours(COMPARED_AT, "multiply")
    if not args.without_materialised:
        patched = build(TransformerModel)
        masks = materialise(patched, specialized)
        # Same cost as shared weights, which a parametrized Linear cannot have.
        run = micro_batches(patched, batch, itertools.repeat({}))
        turn = itertools.cycle(range(DIRECTIONS))

        def materialised() -> None:
            direction = next(turn)
            for mask in masks:
                mask.direction = direction
            run()

        variants[f"materialised, {COMPARED_AT} %"] = materialised
    narrow = round((1 - COMPARED_AT / 100) * width / WIDTH_MULTIPLE) * WIDTH_MULTIPLE
    narrower = build(TransformerModel, encoder_ffn_embed_dim=narrow, decoder_ffn_embed_dim=narrow)
    variants[f"dense, narrow ({narrow} of {width})"] = micro_batches(narrower, batch, itertools.repeat({}))

    optimizer = torch.optim.Adam(dense.parameters(), lr=1e-6, betas=(0.9, 0.98))
    variants["dense"]()
    variants["optimizer step"] = optimizer.step
    rounds = args.repeats or ROUNDS[size]
    # On a CPU the first round costs minutes and is as good as the others; a GPU's loads its kernels.
    seconds = measuring.interleaved(variants, repeats=rounds, device=device, warmup=int(device == "cuda"))
    if device == "cuda":
        torch.cuda.empty_cache()

    adam = measuring.ratio(seconds, "optimizer step", "dense")
    batches = measuring.SIZES[size].update_freq
    found = {}
    for name in variants:
        if name != "optimizer step":
            found[name] = measuring.ratio(seconds, name, "dense")
            update = (batches * found[name]["ratio"] + adam["ratio"]) / (batches + adam["ratio"])
            found[name]["update_ratio"] = round(update, 3)
    measuring.print_table(
        f"{size}: one micro-batch of {batch['src_tokens'].numel()} source and target tokens, {args.dtype}, "
        f"vocabulary {measuring.SIZES[size].vocabulary}, {rounds} rounds",
        ["", "ms", "x dense", "least", "greatest", f"x dense, update of {batches}"],
        [
            [name, f"{row['ms']:.0f}" if row["ms"] >= 100 else f"{row['ms']:.1f}"]
            + [f"{row[key]:.2f}" for key in ("ratio", "least", "greatest", "update_ratio")]
            for name, row in found.items()
        ],
    )
    print(f"\noptimizer step (Adam): {adam['ms']:.0f} ms, {adam['ratio']:.2f} of a dense micro-batch")
    return {
        "tokens": batch["src_tokens"].numel(),
        "dtype": args.dtype,
        "rounds": rounds,
        "micro_batches_per_update": batches,
        "optimizer_step": adam,
        "variants": found,
    }


def break_even(args: argparse.Namespace, size: str) -> dict[str, Any]:
    """The FFN alone, forward and backward: from how many tokens x fraction left out gathering pays."""
    model = measuring.build_model(size, TransformerModel, device="cpu")
    dim, width = model.encoder.layers[0].embed_dim, model.encoder.layers[0].fc1.out_features
    rows = []
    for dropped, tokens in itertools.product((10, 30, 50), args.break_even_tokens):
        ffns = {}
        for path in ("gather", "multiply"):
            fc1, fc2 = SpecializedFC1(dim, width), SpecializedFC2(width, dim)
            fc2.follow(fc1)
            fc1.ffn_path, fc1.route = path, Route((0,))
            kept = torch.ones(1, width, dtype=torch.bool)
            kept[0, torch.randperm(width)[: width * dropped // 100]] = False
            ffn = nn.Sequential(fc1, nn.ReLU(), fc2).to(
                device=args.device, dtype=measuring.DTYPES[args.dtype]
            )
            fc1.set_mask(kept)
            x = torch.randn(
                tokens, dim, device=args.device, dtype=measuring.DTYPES[args.dtype], requires_grad=True
            )
            ffns[path] = lambda ffn=ffn, x=x: ffn(x).sum().backward()
        seconds = measuring.interleaved(ffns, repeats=args.repeats or 15, device=args.device, warmup=2)
        left_out = 1 - math.ceil((1 - dropped / 100) * width / WIDTH_MULTIPLE) * WIDTH_MULTIPLE / width
        rows.append(
            (dropped, tokens, round(tokens * left_out), measuring.ratio(seconds, "gather", "multiply"))
        )
    measuring.print_table(
        f"{size}, the FFN alone ({dim} x {width}, {args.dtype}): gather against multiply. "
        f"auto gathers from {BREAK_EVEN_TOKENS[args.device]} tokens x fraction left out, in training",
        ["dropped, %", "tokens", "tokens x left out", "gather x multiply"],
        [[dropped, tokens, product, f"{found['ratio']:.2f}"] for dropped, tokens, product, found in rows],
    )
    return {
        "rows": [
            {"dropped_percent": dropped, "tokens": tokens, "tokens_times_left_out": product, **found}
            for dropped, tokens, product, found in rows
        ]
    }


def main() -> None:
    parser = measuring.parser(__doc__, repeats=None)
    parser.add_argument("--size", nargs="+", choices=measuring.SIZES, default=["iwslt", "big"])
    parser.add_argument(
        "--sparsity",
        nargs="+",
        type=int,
        default=[0, 20, 30, 50, 75],
        metavar="PERCENT",
        help="neurons dropped",
    )
    parser.add_argument(
        "--tokens", type=int, metavar="N", help="per side and micro-batch (default: by size and device)"
    )
    parser.add_argument(
        "--length", type=int, default=32, metavar="N", help="tokens per sentence (default 32)"
    )
    parser.add_argument(
        "--without-materialised",
        action="store_true",
        help="leave that one out: it needs a second set of weights",
    )
    parser.add_argument("--break-even", action="store_true", help="instead, when gathering pays in one FFN")
    parser.add_argument(
        "--break-even-tokens", nargs="+", type=int, default=[32, 64, 128, 256, 512, 1024], metavar="N"
    )
    args = parser.parse_args()
    measure, name = (break_even, "break_even") if args.break_even else (steps_of_size, "ffn_step")
    for size in args.size:
        measuring.save(args, f"{name}_{size}", measure(args, size))


if __name__ == "__main__":
    main()
