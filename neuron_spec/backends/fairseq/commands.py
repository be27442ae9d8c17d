"""fairseq's own commands, called in this process with a list of flags."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.distributed import utils as distributed_utils

from neuron_spec import models as models  # registers what it holds, as tasks do
from neuron_spec import tasks as tasks
from neuron_spec.directions import Direction


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
    distributed_utils.call_main(convert_namespace_to_omegaconf(args), command.main, override_args=named)


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
    """Those of ``flags`` that ``fairseq-train`` with our task and the named ``--arch`` does not know."""
    given = ["data", *flags]
    for name, default in (("--task", "neuron_specialization"), ("--arch", "neuron_spec_transformer")):
        if name not in flags:
            given += [name, default]
    parser = options.get_training_parser()
    _, unknown = options.parse_args_and_arch(parser, input_args=given, parse_known=True)
    return [flag for flag in unknown if flag.startswith("--")]
