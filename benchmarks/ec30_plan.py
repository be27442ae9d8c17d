"""What the EC30 experiment takes, in memory and time; and, on paper, one with more languages.

Measured on this machine, on a randomly initialised model and synthetic sentences without padding:

  state        bytes of weights, gradients, copies and Adam's moments after an update by fairseq's own optimizer
  activations  bytes that the forward pass saves for the backward pass, by saved-tensor hooks at --tokens and at
               half of them: what grows by token, in the layers and with the vocabulary (last dimension), and
               the rest, which does not grow (gathered weights). Attention's part grows with --length too
  micro-batch  forward and backward pass, dense (no masks) and specialized, directions in turns; peak memory of
               an update of two micro-batches on a GPU
  data         bytes of fairseq's mmap data-bin, and of the data set in the memory of every training process

The published update is 645,120 tokens: --max-tokens 7680 x --update-freq 21 x 4 GPUs. How many updates were made
is not known, only that they are at most 900,000, so hours are per 10,000. For 4 and 8 GPUs they are one GPU's
divided, without communication: the least. Without a GPU there are none; a CPU's time of an update is
extrapolated from one micro-batch, and says so.

examples:
  python benchmarks/ec30_plan.py
  python benchmarks/ec30_plan.py --device cuda --dtype fp16
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import measuring
import numpy as np
import torch
from fairseq import optim, options
from fairseq.data import indexed_dataset
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.optim.fp16_optimizer import FP16Optimizer
from ffn_step import micro_batches
from torch import Tensor

from neuron_spec.backends.fairseq.batches import OneDirectionEpochDataset
from neuron_spec.models.neuron_spec_transformer import NeuronSpecTransformer

MAX_TOKENS = 7680
UPDATE_TOKENS = 645_120
UPDATES_AT_MOST = 900_000
GPUS = (1, 4, 8)
PAIRS = 61_000_000  # of EC30
LANGUAGES = 30  # of EC30, beside English
PLANS = ((LANGUAGES, 64_000), (100, 128_000), (300, 256_000))  # languages, vocabulary
DEFAULT_TOKENS = {"cpu": 512, "cuda": MAX_TOKENS}

# Bytes per parameter. fairseq's FP16Optimizer keeps float32 copies of weights and gradients beside the model's.
STATE = {
    "fp32": {"weights": 4, "gradients": 4, "weight_copies": 0, "gradient_copies": 0, "adam": 8},
    "fp16": {"weights": 2, "gradients": 2, "weight_copies": 4, "gradient_copies": 4, "adam": 8},
    "bf16": {"weights": 2, "gradients": 2, "weight_copies": 4, "gradient_copies": 4, "adam": 8},
}


# --- state --------------------------------------------------------------------------------------------


def build_optimizer(model: Any, dtype: str) -> Any:
    """fairseq's Adam, as ``fairseq-train`` would build it for this precision."""
    flags = ["data", "--arch", "transformer", "--optimizer", "adam", "--adam-betas", "(0.9, 0.98)"]
    flags += ["--lr", "1e-6", "--update-freq", "21"] + ([] if dtype == "fp32" else [f"--{dtype}"])
    parser = options.get_training_parser()
    cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, input_args=flags))
    parameters = list(model.parameters())
    if dtype == "fp32":
        return optim.build_optimizer(cfg.optimizer, parameters)
    return FP16Optimizer.build_optimizer(cfg, parameters)


def update(optimizer: Any) -> None:
    """The optimizer's part of an update, gradients copied first where it keeps copies."""
    optimizer._needs_sync = True  # what its own backward() would say
    optimizer.step()


def state_bytes(model: Any, optimizer: Any) -> dict[str, int]:
    """Bytes of all that lives from one update to the next; the keys are STATE's."""
    parameters = list(model.parameters())
    copies = getattr(optimizer, "fp32_params", [])
    copies = list(copies.values()) if isinstance(copies, dict) else copies
    moments = [value for state in optimizer.optimizer.state.values() for value in state.values()]
    return {
        "weights": sum(p.nbytes for p in parameters),
        "gradients": sum(p.grad.nbytes for p in parameters if p.grad is not None),
        "weight_copies": sum(p.nbytes for p in copies),
        "gradient_copies": sum(p.grad.nbytes for p in copies),
        "adam": sum(value.nbytes for value in moments if isinstance(value, Tensor)),
    }


def count_parameters(model: Any, vocabulary: int) -> dict[str, int]:
    """Parameters of the embedding tables (and their number), of the FFNs, and of all."""
    parameters = list(model.parameters())
    tables = [p for p in parameters if len(p) == vocabulary]
    ffns = [fc1.weight.numel() for fc1 in model.ffn_layers().values()]
    return {
        "all": sum(p.numel() for p in parameters),
        "embeddings": sum(p.numel() for p in tables),
        "embedding_tables": len(tables),
        "ffn_weights": 2 * sum(ffns),
        "neurons": sum(fc1.out_features for fc1 in model.ffn_layers().values()),
    }


# --- activations --------------------------------------------------------------------------------------


@contextmanager
def saved_for_backward(model: Any, vocabulary: int) -> Iterator[dict[str, int]]:
    """Bytes that forward passes in the block save: ``layers``, and ``vocabulary`` for the output's tensors."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, tuple[str, int]] = {}  # each storage once

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kind = "vocabulary" if tensor.shape[-1:] == (vocabulary,) else "layers"
            saved[storage.data_ptr()] = kind, storage.nbytes()
        return tensor

    found = {"layers": 0, "vocabulary": 0}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found
    for kind, size in saved.values():
        found[kind] += size


class System:
    """A model, dense or specialized, and its micro-batches of any size."""

    def __init__(self, args: argparse.Namespace, model: NeuronSpecTransformer, ids: list[int]) -> None:
        self.args, self.model, self.ids = args, model.train(), ids

    def micro_batches(self, tokens: int) -> Any:
        batch = measuring.batch(self.args.size, tokens, min(self.args.length, tokens), self.args.device)
        inputs = measuring.direction_inputs(self.ids, len(batch["src_tokens"]), self.args.device)
        return micro_batches(self.model, batch, itertools.cycle(inputs or [{}]))

    def activations(self, vocabulary: int) -> dict[str, float]:
        """Bytes per token, and bytes that do not grow with the tokens."""
        whole, half = self.args.tokens, self.args.tokens // 2
        found = {}
        for tokens in (half, whole):
            run = self.micro_batches(tokens)
            with saved_for_backward(self.model, vocabulary) as found[tokens]:
                run()
        slopes = {kind: (found[whole][kind] - found[half][kind]) / (whole - half) for kind in found[whole]}
        fixed = sum(found[whole].values()) - whole * sum(slopes.values())
        return {**{f"{kind}_bytes_per_token": s for kind, s in slopes.items()}, "fixed_bytes": fixed}

    def peak_bytes(self, optimizer: Any) -> int | None:
        """Most memory that tensors take during an update of two micro-batches, on a GPU."""
        if self.args.device != "cuda":
            return None
        run = self.micro_batches(self.args.tokens)
        optimizer.zero_grad()
        torch.cuda.reset_peak_memory_stats()
        run()
        run()
        update(optimizer)
        return torch.cuda.max_memory_allocated()


def measure(args: argparse.Namespace) -> dict[str, Any]:
    vocabulary = measuring.SIZES[args.size].vocabulary
    plain = measuring.build_model(args.size, NeuronSpecTransformer, device=args.device, dtype=args.dtype)
    masked = measuring.sharing(plain)
    ids = measuring.specialize(masked, args.sparsity / 100, 2 * LANGUAGES)
    systems = {"dense": System(args, plain, []), "specialized": System(args, masked, ids)}
    optimizer = build_optimizer(plain, args.dtype)

    found = {name: system.activations(vocabulary) for name, system in systems.items()}
    update(optimizer)
    state = state_bytes(plain, optimizer)
    peaks = {name: system.peak_bytes(optimizer) for name, system in systems.items()}
    variants: dict[str, Any] = {name: system.micro_batches(args.tokens) for name, system in systems.items()}
    variants["optimizer step"] = lambda: update(optimizer)
    seconds = measuring.interleaved(
        variants, repeats=args.repeats, device=args.device, warmup=int(args.device == "cuda")
    )
    for name in systems:
        timed = measuring.ratio(seconds, name, "dense")
        tokens_per_s = round(1000 * args.tokens / timed["ms"], 1)
        found[name] = {**timed, "tokens_per_s": tokens_per_s, "peak_bytes": peaks[name], **found[name]}
    return {
        "parameters": count_parameters(plain, vocabulary),
        "state_bytes": state,
        "optimizer_step": measuring.ratio(seconds, "optimizer step", "dense"),
        "variants": found,
    }


# --- data ---------------------------------------------------------------------------------------------


class _Lengths:
    """As much of a fairseq data set of sentence pairs as sampling and batching read."""

    def __init__(self, rng: np.random.Generator, sentences: int, length: int) -> None:
        source, target = rng.integers(length // 2, 3 * length // 2 + 1, (2, sentences), dtype=np.int32)
        self.sizes = np.vstack((source, target)).T  # kept, as fairseq's LanguagePairDataset keeps it

    def __len__(self) -> int:
        return len(self.sizes)


def data_bytes(vocabulary: int, length: int, sentences: int) -> dict[str, float]:
    """Of the data-bin, per token and per sentence; in a training process, per sampled sentence pair."""
    sizes = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in (sentences, 2 * sentences):
            prefix = Path(folder) / str(number)
            builder = indexed_dataset.make_builder(f"{prefix}.bin", impl="mmap", vocab_size=vocabulary)
            for _ in range(number):
                builder.add_item(torch.zeros(length, dtype=torch.int32))
            builder.finalize(f"{prefix}.idx")
            sizes[number] = [Path(f"{prefix}.{end}").stat().st_size for end in ("bin", "idx")]
    tokens, index = ((sizes[2 * sentences][i] - sizes[sentences][i]) / sentences for i in (0, 1))
    return {"per_token": tokens / length, "per_sentence": index}


def process_bytes(length: int, pairs: int, directions: int) -> dict[str, float]:
    """Per sampled sentence pair, in every training process: kept, and at most while an epoch is made ready."""
    rng = np.random.default_rng(1)
    ratios = [1 / directions] * directions
    tracemalloc.start()
    try:
        parts = [_Lengths(rng, pairs // directions, length) for _ in range(directions)]
        dataset = OneDirectionEpochDataset(parts, sampling_ratios=ratios, split="train")
        batches = dataset.batch_by_size(dataset.ordered_indices(), max_tokens=MAX_TOKENS)
        kept, most = tracemalloc.get_traced_memory()
        assert batches
    finally:
        tracemalloc.stop()
    return {"kept": kept / len(dataset), "most": most / len(dataset)}


# --- on paper -----------------------------------------------------------------------------------------


def hours(found: dict[str, Any], tokens: int, gpus: int, system: str) -> float:
    """Hours of 10,000 published updates, without communication."""
    batches = UPDATE_TOKENS / tokens / gpus
    ms = batches * found["variants"][system]["ms"] + found["optimizer_step"]["ms"]
    return 10_000 * ms / 3.6e6


def plan(
    args: argparse.Namespace, parameters: dict[str, int], languages: int, vocabulary: int
) -> dict[str, Any]:
    """The formulas of docs/scale.md for so many languages beside English, of a model of this width and depth."""
    tables = parameters["embedding_tables"]
    dim = parameters["embeddings"] // tables // measuring.SIZES[args.size].vocabulary
    layers = parameters["all"] - parameters["embeddings"]
    count = layers + tables * vocabulary * dim
    # Multiply-adds per source and target token: each weight once, embeddings none, the output layer all.
    work = layers + vocabulary * dim
    directions, among_all = 2 * languages, languages * (languages + 1)
    batches = UPDATE_TOKENS // MAX_TOKENS
    token_bytes = np.dtype(indexed_dataset.best_fitting_int_dtype(vocabulary)).itemsize
    return {
        "languages": languages,
        "directions": directions,
        "vocabulary": vocabulary,
        "parameters": count,
        "state_bytes": {dtype: count * sum(parts.values()) for dtype, parts in STATE.items()},
        "log_probabilities_bytes": 4 * MAX_TOKENS * vocabulary,
        "mask_bytes": directions * parameters["neurons"],
        "mask_bytes_among_all": among_all * parameters["neurons"],
        "dense_mask_bytes": directions * parameters["ffn_weights"] // 2,
        "output_layer_work_percent": round(100 * vocabulary * dim / work, 1),
        "least_step_ratio": round(1 - args.sparsity / 100 * parameters["ffn_weights"] / work, 3),
        "directions_per_update": round(directions * (1 - (1 - 1 / directions) ** batches), 1),
        "data_bin_token_bytes": token_bytes,
    }


# --- output -------------------------------------------------------------------------------------------


def gigabytes(number: float | None) -> str:
    return "" if number is None else f"{number / 1e9:,.2f}"


def print_report(args: argparse.Namespace, found: dict[str, Any]) -> None:
    parameters, variants = found["parameters"], found["variants"]
    measured = found["state_bytes"]
    measuring.print_table(
        f"{args.size}: {parameters['all']:,} parameters, {parameters['embeddings']:,} of them embeddings; "
        f"state, GB. Measured here, {args.dtype}: {gigabytes(sum(measured.values()))}",
        ["precision", *(name.replace("_", " ") for name in measured), "all", "bytes per parameter"],
        [
            [
                dtype,
                *(gigabytes(parameters["all"] * b) for b in parts.values()),
                gigabytes(parameters["all"] * sum(parts.values())),
                sum(parts.values()),
            ]
            for dtype, parts in STATE.items()
        ],
    )
    measuring.print_table(
        f"one micro-batch of {args.tokens} tokens a side, {args.length} a sentence, {args.dtype}, "
        f"{args.sparsity} % dropped, {args.repeats} rounds; KB saved for the backward pass",
        [
            "",
            "ms",
            "x dense",
            "tokens/s",
            "layers, per token",
            "vocabulary, per token",
            "fixed, MB",
            "peak, GB",
        ],
        [
            [name, f"{row['ms']:.0f}", f"{row['ratio']:.2f}", f"{row['tokens_per_s']:,.0f}"]
            + [f"{row[f'{kind}_bytes_per_token'] / 1e3:,.0f}" for kind in ("layers", "vocabulary")]
            + [f"{row['fixed_bytes'] / 1e6:.0f}", gigabytes(row["peak_bytes"])]
            for name, row in variants.items()
        ],
    )
    print(f"\noptimizer step: {found['optimizer_step']['ms']:.0f} ms")
    measuring.print_table(
        f"hours per 10,000 updates of {UPDATE_TOKENS:,} tokens, without communication; the number of updates "
        f"is not known, at most {UPDATES_AT_MOST:,}",
        ["GPUs", *variants],
        [
            [row["gpus"], *("" if row[name] is None else f"{row[name]:.1f}" for name in variants)]
            for row in found["hours_per_10k_updates"]
        ],
    )
    if found["extrapolated_update_hours"]:
        of = ", ".join(f"{name} {value:.2f}" for name, value in found["extrapolated_update_hours"].items())
        print(
            f"\nextrapolated from one micro-batch: hours of one update of {UPDATE_TOKENS:,} tokens here: {of}"
        )
    data, process = found["data_bin_bytes"], found["process_bytes"]
    print(
        f"\ndata-bin: {data['per_token']:g} bytes per token, {data['per_sentence']:g} per sentence and side; at "
        f"{args.length} tokens a sentence EC30's {PAIRS:,} pairs are {gigabytes(found['ec30_data_bin_bytes'])} GB"
        f"\nin every training process, per sampled sentence pair: {process['kept']:.0f} bytes kept, "
        f"{process['most']:.0f} while an epoch is made ready"
    )
    measuring.print_table(
        f"on paper, {args.size}'s layers; English-centric; log-probabilities at {MAX_TOKENS} tokens, GB",
        [
            "languages",
            "directions",
            "vocabulary",
            "parameters, M",
            "state fp32, GB",
            "fp16, bf16",
            "log-probabilities",
            "masks, MB",
            "among all, MB",
            "as weights, GB",
            "output layer's work, %",
            "least step x dense",
            "directions per update",
            "bytes per token",
        ],
        [
            [row["languages"], row["directions"], f"{row['vocabulary']:,}", f"{row['parameters'] / 1e6:.0f}"]
            + [gigabytes(row["state_bytes"][dtype]) for dtype in ("fp32", "fp16")]
            + [gigabytes(row["log_probabilities_bytes"])]
            + [f"{row[key] / 1e6:,.1f}" for key in ("mask_bytes", "mask_bytes_among_all")]
            + [gigabytes(row["dense_mask_bytes"]), row["output_layer_work_percent"]]
            + [row[k] for k in ("least_step_ratio", "directions_per_update", "data_bin_token_bytes")]
            for row in found["plans"]
        ],
    )


def main() -> None:
    parser = measuring.parser(__doc__, repeats=3)
    parser.add_argument("--size", choices=measuring.SIZES, default="big")
    parser.add_argument(
        "--tokens", type=int, metavar="N", help=f"per side and micro-batch (default {DEFAULT_TOKENS})"
    )
    parser.add_argument(
        "--length", type=int, default=32, metavar="N", help="tokens per sentence (default %(default)s)"
    )
    parser.add_argument(
        "--sparsity",
        type=int,
        default=30,
        metavar="PERCENT",
        help="neurons dropped (default %(default)s)",
    )
    parser.add_argument(
        "--pairs",
        type=int,
        default=300_000,
        metavar="N",
        help="sentence pairs of the synthetic data set (default %(default)s)",
    )
    args = parser.parse_args()
    args.tokens = args.tokens or DEFAULT_TOKENS[args.device]
    if args.tokens % (2 * args.length):
        parser.error(f"--tokens {args.tokens} is not an even number of sentences of {args.length} tokens")
    if args.dtype == "fp16" and args.device == "cpu":
        parser.error("fairseq's fp16 optimizer needs a GPU: --device cuda, or --dtype fp32 or bf16")

    vocabulary = measuring.SIZES[args.size].vocabulary
    process = process_bytes(args.length, args.pairs, 2 * LANGUAGES)
    data = data_bytes(vocabulary, args.length, sentences=200)
    found = measure(args)
    on_gpu = args.device == "cuda"
    found |= {
        "hours_per_10k_updates": [
            {
                "gpus": gpus,
                **{n: hours(found, args.tokens, gpus, n) if on_gpu else None for n in found["variants"]},
            }
            for gpus in GPUS
        ],
        "extrapolated_update_hours": None
        if on_gpu
        else {name: hours(found, args.tokens, 1, name) / 10_000 for name in found["variants"]},
        "data_bin_bytes": data,
        "ec30_data_bin_bytes": 2 * PAIRS * (data["per_token"] * args.length + data["per_sentence"]),
        "process_bytes": process,
        "plans": [plan(args, found["parameters"], *shape) for shape in PLANS],
    }
    print_report(args, found)
    measuring.save(
        args,
        "ec30_plan",
        {
            "size": args.size,
            "dtype": args.dtype,
            "tokens": args.tokens,
            "length": args.length,
            "dropped_percent": args.sparsity,
            "rounds": args.repeats,
            **found,
        },
    )


if __name__ == "__main__":
    main()
