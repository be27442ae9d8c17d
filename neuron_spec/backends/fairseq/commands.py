"""fairseq's own commands, called in this process with a list of flags."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch.distributed
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.distributed import utils as distributed_utils

from neuron_spec import models as models  # registers what it holds, as tasks do
from neuron_spec import tasks as tasks
from neuron_spec.directions import Direction
from neuron_spec.errors import ModelError


def validate(flags: Sequence[str]) -> None:
    """Run ``fairseq-validate``."""
    if "--langs" in flags and "--lang-dict" not in flags:
        flags = [*flags, "--lang-dict", ""]  # else the checkpoint's own would count too
    # The command's module sets up logging on import, so only here.
    from fairseq_cli import validate as command

    args = options.parse_args_and_arch(options.get_validation_parser(), input_args=list(flags))
    # fairseq-validate runs with the checkpoint's settings, but for what the command line names.
    named = options.parse_args_and_arch(
        options.get_validation_parser(), input_args=list(flags), suppress_defaults=True
    )
    call_main(args, command.main, override_args=named)


def train(flags: Sequence[str]) -> None:
    """Run ``fairseq-train``, with its own log."""
    if "fairseq_cli.train" not in sys.modules:
        logging.getLogger().handlers.clear()  # of fairseq's modules, which log while they are imported
    from fairseq_cli import train as command  # sets up logging, as above

    args = options.parse_args_and_arch(options.get_training_parser(), input_args=list(flags))
    call_main(args, command.main)


def call_main(args: argparse.Namespace, main: Callable[..., Any], **settings: Any) -> None:
    """What fairseq's own entry does, and end the threads of ``torch.distributed``, which fairseq leaves: a process
    that ends with them still there may be aborted by the C++ runtime, its work done."""
    distributed_utils.call_main(convert_namespace_to_omegaconf(args), main, **settings)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def parsed(
    parser: argparse.ArgumentParser, words: Sequence[str], flags: Sequence[str], of: str
) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Flags of fairseq that a user gave, after words of ours: everything together, and what they name themselves.

    Args:
        parser: of fairseq's command; it gains the flags of the model, task and so on that are named.
        of: the command's name, for messages.

    Returns:
        The namespace of all, and attribute -> value of those that ``flags`` name.

    Raises:
        ModelError: if fairseq does not know a flag or its value, or would do something at once: print help and end, or
            run code.
    """
    for flag in flags:
        if flag in ("-h", "--help") or flag.partition("=")[0] == "--user-dir":
            refuse(f"{flag} after the --", of)
    parser.error = lambda message: refuse(message, of)  # type: ignore[method-assign]
    try:
        everything, _ = options.parse_args_and_arch(parser, input_args=[*words, *flags], parse_known=True)
    except ValueError as error:  # flags that exclude each other
        refuse(str(error), of)
    # What is in the namespace before has no default: so what is named shows.
    nothing = object()
    blank = argparse.Namespace(**{action.dest: nothing for action in parser._actions})
    named, unknown = parser.parse_known_args(["data", *flags], blank)
    if unknown:
        refuse(f"unrecognized: {' '.join(unknown)}", of)
    return everything, {
        name: value for name, value in vars(named).items() if value is not nothing and name != "data"
    }


def refuse(message: str, of: str) -> NoReturn:
    """Raises: ModelError about flags that a command of fairseq does not take."""
    raise ModelError(f"flags that {of} does not take", got=message, mend=f"see {of} --help")


def fixed_dictionary_in(flags: Sequence[str]) -> str | None:
    """The file of ``--fixed-dictionary``, if flags name one."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--fixed-dictionary")
    file: str | None = parser.parse_known_args(list(flags))[0].fixed_dictionary
    return file


def missing_direction_in(flags: Sequence[str]) -> tuple[str | None, list[str]]:
    """The value of ``--missing-direction``, if flags name one, and the others."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--missing-direction")
    found, others = parser.parse_known_args(list(flags))
    return found.missing_direction, others


def generation_config(
    path: Path, folder: Path, directions: Sequence[Direction], token_flags: Sequence[str], *flags: str
) -> Any:
    """The configuration that ``fairseq-generate`` would run a checkpoint with, by our task.

    Args:
        folder: a data-bin, or a shard of one.
        token_flags: of the checkpoint, as `checkpoints.token_flags` returns them.
    """
    given = [str(folder), "--path", str(path), "--task", "neuron_specialization"]
    given += ["--lang-pairs", ",".join(map(str, directions)), *token_flags, *flags]
    args = options.parse_args_and_arch(options.get_generation_parser(), input_args=given)
    return convert_namespace_to_omegaconf(args)


def unknown_training_flags(flags: Sequence[str]) -> list[str]:
    """Those of ``flags`` that ``fairseq-train`` with our task and the named ``--arch`` does not know.

    Raises:
        ModelError: if one has no such value.
    """
    given = ["data", *flags]
    for name, default in (("--task", "neuron_specialization"), ("--arch", "neuron_spec_transformer")):
        if name not in flags:
            given += [name, default]
    parser = options.get_training_parser()
    parser.error = lambda message: refuse(message, "fairseq-train")
    _, unknown = options.parse_args_and_arch(parser, input_args=given, parse_known=True)
    return [flag for flag in unknown if flag.startswith("--")]
