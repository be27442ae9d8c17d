"""What the benchmarks share: models of the paper's sizes, synthetic batches, interleaved timing, output.

A figure here is a ratio: each round times every variant once, in an order that turns from round to round,
and a variant's ratio is the median over rounds of its time over the baseline's in the same round. A
machine that is busy or changes its clock moves both.
"""

from __future__ import annotations

import argparse
import copy
import csv
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY
from tqdm import tqdm

from neuron_spec import __version__
from neuron_spec import models as models  # registers
from neuron_spec.artifacts import write_json
from neuron_spec.directions import Direction
from neuron_spec.models.neuron_spec_transformer import NeuronSpecTransformer
from neuron_spec.neurons.counting import DTYPES
from neuron_spec.neurons.masks import NeuronMasks

RESULTS = Path(__file__).resolve().parent.parent / "results" / "benchmarks"


@dataclass(frozen=True)
class Size:
    """A model size of the paper, with the vocabulary of the corpus it is used on."""

    arch: str
    vocabulary: int
    update_freq: int  # of the literature's recipe


SIZES = {
    "tiny": Size("neuron_spec_transformer_tiny", 6000, 4),
    "iwslt": Size("neuron_spec_transformer_iwslt", 30000, 4),
    "big": Size("neuron_spec_transformer_big", 64000, 21),
}


def parser(description: str | None, repeats: int | None) -> argparse.ArgumentParser:
    """Flags that every benchmark has."""
    flags = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    flags.add_argument("--dtype", choices=DTYPES, default="fp32", help="of weights and activations")
    flags.add_argument(
        "--repeats", type=int, default=repeats, metavar="N", help=f"rounds (default: {repeats or 'by size'})"
    )
    flags.add_argument("--output", type=Path, default=RESULTS, metavar="DIR", help="where the JSON goes")
    return flags


def machine(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    processor = platform.processor()
    for line in _lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
            break
    found = {"processor": processor, "threads": torch.get_num_threads()}
    if device == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
    # What sets threads and how memory is had from the system.
    set_by = {name: value for name, value in os.environ.items() if name.startswith(("OMP_", "MALLOC_"))}
    return {
        **found,
        **({"environment": set_by} if set_by else {}),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "neuron_spec": __version__,
    }


def _lines(path: str) -> Iterator[str]:
    try:
        with open(path, encoding="utf-8") as file:
            yield from file
    except OSError:  # no such file outside Linux
        return


# --- models and batches -------------------------------------------------------------------------------


def build_model(
    size: str, kind: type, *, device: str, dtype: str = "fp32", seed: int = 1, **settings: Any
) -> Any:
    """A randomly initialised model of one of SIZES; ``settings`` overrule the architecture's.

    Args:
        kind: fairseq's ``TransformerModel`` or `NeuronSpecTransformer`.
    """
    args = argparse.Namespace(
        dropout=0.1, attention_dropout=0.1, max_source_positions=1024, max_target_positions=1024
    )
    vars(args).update(settings)
    ARCH_CONFIG_REGISTRY[SIZES[size].arch](args)
    dictionary = Dictionary()
    for number in range(SIZES[size].vocabulary - len(dictionary)):
        dictionary.add_symbol(str(number))
    torch.manual_seed(seed)
    model = kind.build_model(
        args, SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)
    )
    return model.to(device=device, dtype=DTYPES[dtype])


def languages(directions: int) -> tuple[list[str], list[Direction]]:
    """Languages, and so many English-centric directions between them: the language table's, then made-up ones."""
    table = files("neuron_spec").joinpath("languages.csv").read_text(encoding="utf-8")
    known = [row["code"] for row in csv.DictReader(table.splitlines())]
    known = [
        code for code in known if code not in ("en", "ja", "ko")
    ]  # BLEU of the latter needs further packages
    foreign = [*known, *(f"l{number}" for number in range(directions))][: (directions + 1) // 2]
    pairs = [pair for lang in foreign for pair in (Direction("en", lang), Direction(lang, "en"))]
    return ["en", *foreign], pairs[:directions]


def random_masks(
    model: Any, directions: Sequence[Direction], dropped: float, *, seed: int = 1
) -> NeuronMasks:
    """Masks that drop exactly the fraction ``dropped`` of each layer's neurons, drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    kept = {}
    for key, fc1 in model.ffn_layers().items():
        draws = torch.rand(len(directions), fc1.out_features, generator=generator)
        rank = draws.argsort(dim=1).argsort(dim=1)
        kept[key] = rank >= round(dropped * fc1.out_features)
    return NeuronMasks(list(directions), kept)


def specialize(model: NeuronSpecTransformer, dropped: float, directions: int) -> list[int]:
    """Give the model random masks; returns the directions' ids."""
    langs, pairs = languages(directions)
    model.set_languages(langs)
    model.set_masks(random_masks(model, pairs, dropped), langs)
    return [langs.index(d.source) * len(langs) + langs.index(d.target) for d in pairs]


def sharing(model: NeuronSpecTransformer) -> NeuronSpecTransformer:
    """A copy that has its own masks and the same parameters."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def direction_inputs(ids: Sequence[int], sentences: int, device: str) -> list[dict[str, Any]]:
    """For each direction, what its batches have in ``net_input`` beyond a plain model's."""
    return [
        {"direction_ids": torch.full((sentences,), number, device=device), "distinct_ids": (number,)}
        for number in ids
    ]


def batch(size: str, tokens: int, length: int, device: str, *, seed: int = 1) -> dict[str, torch.Tensor]:
    """Random sentences of one length without padding: ``tokens`` of them on each side."""
    generator = torch.Generator().manual_seed(seed)
    shape = (max(1, tokens // length), length)
    source, previous, target = (
        torch.randint(4, SIZES[size].vocabulary, shape, generator=generator).to(device) for _ in range(3)
    )
    lengths = torch.full((shape[0],), length, device=device)
    return {"src_tokens": source, "src_lengths": lengths, "prev_output_tokens": previous, "target": target}


# --- timing -------------------------------------------------------------------------------------------


def interleaved(
    variants: Mapping[str, Callable[[], Any]], *, repeats: int, device: str, warmup: int = 1
) -> dict[str, list[float]]:
    """Seconds of every variant in every round."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    for turn in tqdm(range(-warmup, repeats), desc="rounds", leave=False, disable=None):
        for place in range(len(names)):
            name = names[(place + turn) % len(names)]
            with timed(device) as elapsed:
                variants[name]()
            if turn >= 0:
                seconds[name].append(elapsed[0])
    return seconds


@contextmanager
def timed(device: str) -> Iterator[list[float]]:
    """The block's seconds, in a list that is filled at its end."""
    elapsed: list[float] = []
    _wait(device)
    start = time.perf_counter()
    yield elapsed
    _wait(device)
    elapsed.append(time.perf_counter() - start)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def ratio(seconds: Mapping[str, Sequence[float]], name: str, baseline: str) -> dict[str, float]:
    """Median, least and greatest of the rounds' ratios, and the median milliseconds."""
    rounds = [a / b for a, b in zip(seconds[name], seconds[baseline], strict=True)]
    return {
        "ratio": round(statistics.median(rounds), 3),
        "least": round(min(rounds), 3),
        "greatest": round(max(rounds), 3),
        "ms": round(1000 * statistics.median(seconds[name]), 3),
    }


# --- output -------------------------------------------------------------------------------------------


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A Markdown table on stdout."""
    cells = [[str(cell) for cell in row] for row in (columns, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(columns))]
    print(f"\n{title}\n")
    for number, row in enumerate(cells):
        texts = [
            cell.ljust(w) if place == 0 else cell.rjust(w) for place, (cell, w) in enumerate(zip(row, widths))
        ]
        print("| " + " | ".join(texts) + " |")
        if number == 0:
            print(
                "|"
                + "|".join(
                    "-" * (w + 2) if place == 0 else "-" * (w + 1) + ":" for place, w in enumerate(widths)
                )
                + "|"
            )


def save(args: argparse.Namespace, name: str, found: Mapping[str, Any]) -> None:
    """Write ``NAME.DEVICE.json`` with the figures, the machine and the command."""
    path = args.output / f"{name}.{args.device}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    write_json(path, {"command": command, "machine": machine(args.device), **found})
    print(f"\n{path}")
