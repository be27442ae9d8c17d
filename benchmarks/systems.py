"""What the trained systems of one seed cost beside each other: training, translating, memory.

Every system is the checkpoint that was trained, with its own masks or adapters. All see the same batches:
random sentences of one length, so without padding, a direction each, the directions in turns.

  training      target tokens/s of a whole update: a micro-batch of each of four directions, forward and
                backward, and Adam's step over what the system trains
  generation    tokens/s of fairseq's beam search, every output of one length
  peak memory   of two such updates, each system in a process of its own: on a GPU what torch allocated, on
                the CPU what the process grew by

example:
  python benchmarks/systems.py runs/homeassistant-cpu/seed-1 --data-bin runs/homeassistant-cpu/corpus/data-bin
"""

from __future__ import annotations

import argparse
import itertools
import logging
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import measuring
import torch
from fairseq import checkpoint_utils
from ffn_step import micro_batches
from generation import translating
from torch import Tensor

from neuron_spec import tasks as tasks_of_ours
from neuron_spec.backends.fairseq.checkpoints import read_checkpoint, task_args
from neuron_spec.directions import direction_id, parse_directions
from neuron_spec.errors import ArtifactError
from neuron_spec.models.neuron_spec_transformer import NeuronSpecTransformer
from neuron_spec.neurons.counting import DTYPES
from neuron_spec.studies.systems.measure import has_frozen_base

assert tasks_of_ours  # registered

BASELINE = "dense"
# The same computation as another system: without masks, and each of the bilingual models.
LIKE_DENSE = ("dense-continuation", "bilingual")
DIRECTIONS = 4  # of one update


def load(path: Path, args: argparse.Namespace) -> Any:
    """The model, with what its training froze frozen."""
    state = read_checkpoint(path)
    pairs = ",".join(task_args(state, path).lang_pairs)
    overrides = {"data": str(args.data_bin), "lang_pairs": pairs}
    (model,), _, _ = checkpoint_utils.load_model_ensemble_and_task([str(path)], arg_overrides=overrides)
    if has_frozen_base(state):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".adapter." in name)
    return model.to(device=args.device, dtype=DTYPES[args.dtype])


def batch_of(args: argparse.Namespace, vocabulary: int, sentences: int) -> dict[str, Tensor]:
    """``[sentences, length]`` random tokens on each side."""
    generator = torch.Generator().manual_seed(1)
    source, previous, target = (
        torch.randint(4, vocabulary, (sentences, args.length), generator=generator).to(args.device)
        for _ in range(3)
    )
    lengths = torch.full((sentences,), args.length, device=args.device)
    return {"src_tokens": source, "src_lengths": lengths, "prev_output_tokens": previous, "target": target}


def takes(path: Path, model: Any, args: argparse.Namespace, sentences: int) -> Iterator[dict[str, Any]]:
    """What the batches of the first directions have beyond tokens, over and over."""
    if not isinstance(model, NeuronSpecTransformer):
        return itertools.repeat({})
    trained = task_args(read_checkpoint(path), path)
    directions = parse_directions(trained.lang_pairs)[:DIRECTIONS]
    ids = [direction_id(direction, trained.langs) for direction in directions]
    return itertools.cycle(measuring.direction_inputs(ids, sentences, args.device))


def updating(path: Path, model: Any, args: argparse.Namespace) -> Callable[[], None]:
    """A function that makes one update."""
    sentences = max(1, args.tokens // args.length)
    batch = batch_of(args, len(model.decoder.dictionary), sentences)
    micro_batch = micro_batches(model, batch, takes(path, model, args, sentences))
    # So small a rate that weights stay as good as they are; the usual eps is zero in half precision.
    moved = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(moved, lr=1e-8, eps=1e-4)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        for _ in range(DIRECTIONS):
            micro_batch()
        optimizer.step()

    return run


def peak_bytes(path: Path, args: argparse.Namespace) -> int:
    """The most memory of two updates, in a process of its own."""
    if args.device == "cuda":
        return _peak_on_gpu(path, args)
    before = _status("VmRSS")
    update = updating(path, load(path, args), args)
    # Reading a checkpoint is no part of it: the most so far is forgotten.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    update()
    update()
    return _status("VmHWM") - before


def _peak_on_gpu(path: Path, args: argparse.Namespace) -> int:
    update = updating(path, load(path, args), args)
    torch.cuda.reset_peak_memory_stats()
    update()
    update()
    return int(torch.cuda.max_memory_allocated())


def _status(name: str) -> int:
    """Bytes that the kernel counts for this process."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise ArtifactError(f"/proc/self/status has no {name}", mend="peak memory is measured on Linux alone")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    paths = {path.parent.name: path for path in sorted(args.seed.glob(f"*/{args.checkpoint}"))}
    paths = {name: path for name, path in paths.items() if name not in LIKE_DENSE}
    if BASELINE not in paths:
        raise ArtifactError("no dense model", where=args.seed, expected=f"{BASELINE}/{args.checkpoint}")
    peaks = {}
    for name, path in paths.items():
        # Forked, before anything runs here: so no process loads the libraries again.
        with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as process:
            peaks[name] = process.submit(peak_bytes, path, args).result()

    models = {name: load(path, args) for name, path in paths.items()}
    updates = {name: updating(paths[name], model, args) for name, model in models.items()}
    training = measuring.interleaved(updates, repeats=args.repeats, device=args.device)
    del updates
    tokens = DIRECTIONS * max(1, args.tokens // args.length) * args.length

    sources = batch_of(args, len(models[BASELINE].decoder.dictionary), args.sentences)
    translate = {}
    for name, model in models.items():
        model.zero_grad(set_to_none=True)
        inputs = takes(paths[name], model, args, args.sentences)
        # One direction, as in fairseq-generate.
        translate[name] = translating(model, sources, itertools.repeat(next(inputs)), args.beam, args.length)
    translated = {name: run() for name, run in translate.items()}
    generation = measuring.interleaved(translate, repeats=args.repeats, device=args.device, warmup=0)

    speed = partial(_speed, baseline=BASELINE)
    found = {
        name: {
            "training": speed(training, name, tokens),
            "generation": speed(generation, name, translated[name]),
            "peak_bytes": peaks[name],
        }
        for name in paths
    }
    measuring.print_table(
        f"{args.seed}: {tokens} target tokens an update; beam {args.beam}, {args.sentences} sentences of "
        f"{args.length} tokens; {args.dtype}, {args.repeats} rounds",
        ["", "training tokens/s", "x dense", "generation tokens/s", "x dense", "peak MB"],
        [
            [
                name,
                *(
                    cell
                    for of in ("training", "generation")
                    for cell in (f"{row[of]['tokens_per_s']:.0f}", f"{row[of]['ratio']:.2f}")
                ),
                f"{row['peak_bytes'] / 1e6:.0f}",
            ]
            for name, row in found.items()
        ],
    )
    keys = ("tokens", "length", "sentences", "beam", "dtype", "repeats")
    return {**{key: getattr(args, key) for key in keys}, "systems": found}


def _speed(seconds: dict[str, list[float]], name: str, tokens: int, *, baseline: str) -> dict[str, float]:
    # Tokens per second over the dense model's: dense seconds over this one's.
    compared = measuring.ratio(seconds, baseline, name)
    milliseconds = measuring.ratio(seconds, name, name)["ms"]
    return {**compared, "ms": milliseconds, "tokens_per_s": round(1000 * tokens / milliseconds, 1)}


def main() -> None:
    parser = measuring.parser(__doc__, repeats=5)
    parser.add_argument("seed", type=Path, help="a folder with SYSTEM/checkpoint_last.pt")
    parser.add_argument("--data-bin", type=Path, required=True, metavar="DIR", help="for its dictionaries")
    parser.add_argument("--checkpoint", default="checkpoint_last.pt", metavar="NAME")
    parser.add_argument(
        "--tokens", type=int, default=1000, metavar="N", help="target tokens of a micro-batch"
    )
    parser.add_argument("--length", type=int, default=20, metavar="N", help="tokens of a sentence")
    parser.add_argument("--sentences", type=int, default=32, metavar="N", help="translated in a batch")
    parser.add_argument("--beam", type=int, default=5, metavar="N")
    args = parser.parse_args()
    logging.getLogger("fairseq").setLevel(logging.WARNING)  # it tells of every dictionary, for every model
    measuring.save(args, "systems", measure(args))


if __name__ == "__main__":
    main()
