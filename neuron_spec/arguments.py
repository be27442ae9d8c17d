"""Flags that several commands have, and what a flag's value may be. Light: ``--help`` needs no torch."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path

from neuron_spec.artifacts import read_text, require_file, require_place, require_summary_place
from neuron_spec.errors import ArtifactError, NeuronSpecError

# Of the tests that commands make, unless they are asked for others.
PERMUTATIONS = 10_000
SAMPLES = 1000  # of sentences
ALPHA = 0.05

MISSING_DIRECTION = ("error", "compose", "dense")  # what one without masks does

DATA_BIN = "fairseq data-bin; of a sharded one, the first shard with the text"

MOST = 2**31 - 1  # of a whole number, as the libraries below take it
WIDEST_BEAM = 1000
LARGEST_RATE = 1e6  # of learning
STRONGEST = 100  # of a penalty, or tokens of a translation for each of its source


# Values ---------------------------------------------------------------------------------------


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """The type of a flag: ``least`` or more, up to ``most``."""

    def parse(text: str) -> int:
        digits = len(str(MOST)) + 1  # of more, Python would not make a number
        if (
            not text.isdecimal()
            or len(text) > digits
            or not least <= int(text) <= (MOST if most is None else most)
        ):
            up_to = f"{least} or more" if most is None else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"{text!r} is not {up_to}")
        return int(text)

    return parse


def real_number(is_right: Callable[[float], bool], what: str) -> Callable[[str], float]:
    """The type of a flag: ``what`` it is, such as ``a fraction from 0 to 1``; no NaN."""

    def parse(text: str) -> float:
        try:
            value = float(text if text.isascii() and "_" not in text else "nan")
        except ValueError:
            value = float("nan")
        if value != value or not is_right(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return value

    return parse


def directions_flag(text: str) -> str:
    """The type of ``--lang-pairs``: directions, or a file of them, as fairseq's flag takes."""
    if not os.path.isfile(text):
        return text
    return ",".join(read_text(text).replace(",", " ").split())


def seed(text: str) -> int:
    """The type of ``--seed``: what every generator of random numbers takes."""
    return whole_number(0)(text)


def learning_rate(text: str) -> float:
    """The type of ``--lr``."""
    return real_number(lambda value: 0 < value <= LARGEST_RATE, f"a rate above 0, up to {LARGEST_RATE:g}")(
        text
    )


def whole_numbers(what: str, *, distinct: bool = False) -> Callable[[str], list[int]]:
    """The type of a flag: whole numbers parted by commas."""

    def parse(text: str) -> list[int]:
        parts = text.split(",")
        is_right = all(
            part.isdecimal() and len(part) <= len(str(MOST)) and int(part) <= MOST for part in parts
        )
        if not is_right or (distinct and len({*map(int, parts)}) < len(parts)):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return [int(part) for part in parts]

    return parse


# What checks the paths of the flags that are being read; None where nobody asks.
_CHECKS: ContextVar[list[Callable[[], object]] | None] = ContextVar("checks", default=None)


@contextmanager
def inputs_required() -> Iterator[None]:
    """While flags are read: once all have been, the files and folders that they name have to be there, or be possible.

    Raises:
        ArtifactError: if one is not, or a file is a Git-LFS pointer.
    """
    checks: list[Callable[[], object]] = []
    token = _CHECKS.set(checks)
    try:
        yield
    finally:
        _CHECKS.reset(token)
    for check in checks:
        check()


def _input(text: str, check: Callable[[], object]) -> Path:
    if (checks := _CHECKS.get()) is not None:
        checks.append(check)
    return Path(text)


def input_file(what: str) -> Callable[[str], Path]:
    """The type of a flag that names a file, which `inputs_required` asks for before anything slow is imported."""
    return lambda text: _input(text, partial(require_file, text, what))


def input_folder(what: str) -> Callable[[str], Path]:
    """The type of an argument that names a folder; else as `input_file`."""

    def check(text: str) -> None:
        if not Path(text).is_dir():
            got = "no folder" if Path(text).exists() else "no such folder"
            raise ArtifactError(f"{what} not found", where=text, got=got)

    return lambda text: _input(text, partial(check, text))


def output_file(text: str) -> Path:
    """The type of a flag that names a file to be written, for which there has to be room; else as `input_file`."""
    return _input(text, partial(require_place, text, is_folder=False))


def output_with_summary(mark: str | None = None) -> Callable[[str], Path]:
    """The type of a flag that names a file to be written, with a ``.json`` beside it; else as `output_file`.

    Args:
        mark: as `artifacts.require_summary_place` takes it.
    """

    def parse(text: str) -> Path:
        path = output_file(text)
        return _input(text, partial(require_summary_place, path, mark))

    return parse


def add_output_with_summary(
    parser: argparse.ArgumentParser, what: str | None = None, mark: str | None = None
) -> None:
    """``--output`` of a file with a ``.json`` beside it; ``what`` is its help, ``mark`` as in `output_with_summary`."""
    parser.add_argument("--output", type=output_with_summary(mark), required=True, metavar="FILE", help=what)


def output_folder(text: str) -> Path:
    """The type of a flag that names a folder to be written into; else as `input_file`."""
    return _input(text, partial(require_place, text, is_folder=True))


# Flags ----------------------------------------------------------------------------------------


def add_model_and_text(
    parser: argparse.ArgumentParser,
    *,
    data_bin: str = DATA_BIN,
    checkpoint: str = "the checkpoint",
    several: bool = False,
    directions: str = "default: those the checkpoint was trained on",
    subset: str | None = "valid",
    what_for: str = "the subset to measure on",
    required: bool = True,
) -> None:
    """A data-bin, ``--path``, ``--lang-pairs`` and, unless ``subset`` is None, ``--gen-subset``."""
    parser.add_argument(
        "data_bin", type=input_folder("data-bin"), nargs=None if required else "?", help=data_bin
    )
    parser.add_argument(
        "--path",
        type=input_file("checkpoint"),
        required=required,
        nargs="+" if several else None,
        metavar="FILE",
        help=checkpoint,
    )
    add_lang_pairs(parser, directions)
    if subset is not None:
        parser.add_argument("--gen-subset", default=subset, metavar="NAME", help=what_for)


def add_huggingface(parser: argparse.ArgumentParser) -> None:
    """``--hf`` and ``--text``, in place of a data-bin and ``--path``, which are then not required."""
    parser.add_argument(
        "--hf",
        metavar="MODEL",
        help="in place of DATA_BIN and --path: a model of Hugging Face, its folder or name",
    )
    parser.add_argument(
        "--text",
        nargs="+",
        metavar="FILES",
        help="with --hf, parallel files of each pair, by the tokenizer's codes: eng_Latn-deu_Latn=dev.eng,dev.deu, a .tsv "
        "of two columns, or a folder or prefix of PREFIX.en-de.en, PREFIX.en-de.de",
    )


def is_huggingface(
    args: argparse.Namespace, of_fairseq: Sequence[str], of_huggingface: Sequence[str] = ()
) -> bool:
    """Whether ``--hf`` and ``--text`` were given, or a data-bin and ``--path``.

    Args:
        of_fairseq, of_huggingface: further flags of one of the two, as attributes.

    Raises:
        NeuronSpecError: if neither is there whole, or there are flags of both.
    """
    given = args.given()
    fairseq, huggingface = (
        [name for name in names if name in given]
        for names in (("data_bin", "path", *of_fairseq), ("hf", "text", *of_huggingface))
    )
    if huggingface and getattr(args, "fairseq_flags", None):
        fairseq.append("--")
    needed = {"hf", "text"} if huggingface else {"data_bin", "path"}
    if (fairseq and huggingface) or not needed <= given:
        names = {"data_bin": "DATA_BIN", "--": "--"}
        said = [names.get(name, f"--{name.replace('_', '-')}") for name in (*fairseq, *huggingface)]
        raise NeuronSpecError(
            "a checkpoint of fairseq's on a data-bin, or a model of Hugging Face on text, is run",
            got=", ".join(said) or "neither",
            expected="DATA_BIN --path FILE, or --hf MODEL --text FILES",
        )
    return bool(huggingface)


def add_lang_pairs(parser: argparse.ArgumentParser, which: str) -> None:
    """``--lang-pairs``; ``which`` is its help."""
    parser.add_argument("--lang-pairs", type=directions_flag, metavar="de-en,...", help=which)


def add_sentences(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sentences",
        type=whole_number(1),
        metavar="N",
        help="of each direction, spread over its set (default: all)",
    )


# --tag -> what a signature says that a loss is of.
LOSS_OF = {"left-out": "text", "kept": "text and tag", "both": "text; text and tag"}


def add_tag(parser: argparse.ArgumentParser, *, both: bool = False) -> None:
    """``--tag``: whether losses are of the language token too that targets begin with.

    Args:
        both: it can be measured in both ways.
    """
    parser.add_argument(
        "--tag",
        choices=[choice for choice in LOSS_OF if both or choice != "both"],
        default="left-out",
        help="the loss is of the text alone, or of the language token too, which generation is given"
        + (", or both side by side" if both else "")
        + " (default %(default)s)",
    )


def add_device(
    parser: argparse.ArgumentParser, *, max_tokens: int | None = 4000, precision: str | None = None
) -> None:
    """``--cpu``; ``--max-tokens`` with its default; and ``--fp16`` and ``--bf16``.

    Args:
        precision: what half precision changes, if a command takes it.
    """
    if max_tokens is not None:
        parser.add_argument(
            "--max-tokens", type=whole_number(1), default=max_tokens, metavar="N", help="tokens per batch"
        )
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    if precision is None:
        return
    group = parser.add_mutually_exclusive_group()
    for name in ("fp16", "bf16"):
        group.add_argument(
            f"--{name}",
            dest="dtype",
            action="store_const",
            const=name,
            default="fp32",
            help=f"run the model in {name}, not fp32{precision}",
        )


def add_translating(parser: argparse.ArgumentParser) -> None:
    """``--beam``, ``--references``, and ``--max-tokens`` with the default of translating."""
    add_beam(parser)
    parser.add_argument(
        "--max-tokens", type=whole_number(1), default=2000, metavar="N", help="tokens per batch, translating"
    )
    parser.add_argument(
        "--references",
        choices=("raw", "data-bin"),
        default="raw",
        help="the raw text beside the data-bin, or the data-bin's targets put together again",
    )


def add_beam(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--beam",
        type=whole_number(1, WIDEST_BEAM),
        default=5,
        metavar="N",
        help="beam size (default %(default)s)",
    )


def add_masks_run_through(parser: argparse.ArgumentParser) -> None:
    """``--masks`` for a dense checkpoint, ``--overlap`` to compare with, ``--allow-other-checkpoint``, ``--seed``."""
    parser.add_argument(
        "--masks",
        type=input_file("mask file"),
        metavar="FILE",
        help="run a dense checkpoint through these masks; a specialized one runs through its own",
    )
    parser.add_argument(
        "--overlap",
        type=input_file("mask file"),
        metavar="FILE",
        help="compare with the overlap of these masks, whatever the model runs through (default: --masks)",
    )
    add_allow_other_checkpoint(parser)
    parser.add_argument("--seed", type=seed, default=1, metavar="N", help="of tests by random relabelling")


def add_missing_direction(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--missing-direction",
        choices=MISSING_DIRECTION,
        default=MISSING_DIRECTION[0],
        help="a direction without masks is refused, takes the encoder's masks of its source and the decoder's of its "
        "target from other directions, or runs through all neurons (default %(default)s)",
    )


def add_text_resources(parser: argparse.ArgumentParser, *, spm: str) -> None:
    """``--data-bin`` and ``--spm``, of a checkpoint; ``spm`` is the second's help."""
    parser.add_argument(
        "--data-bin",
        type=input_folder("data-bin"),
        metavar="DIR",
        help="for its dictionaries (default: the one that the checkpoint was trained on)",
    )
    parser.add_argument("--spm", type=input_file("SentencePiece model"), metavar="FILE", help=spm)


def add_allow_other_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-other-checkpoint",
        action="store_true",
        help="accept masks that were profiled on another dense checkpoint",
    )
