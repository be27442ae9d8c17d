"""fairseq's own commands, called in this process with a list of flags."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.distributed import utils as distributed_utils


def validate(flags: Sequence[str]) -> None:
    """Run ``fairseq-validate``."""
    # The command's module sets up logging on import, so only here.
    from fairseq_cli import validate as command

    args = options.parse_args_and_arch(options.get_validation_parser(), input_args=list(flags))
    # fairseq-validate runs with the checkpoint's settings, but for what the command line names.
    named = options.parse_args_and_arch(
        options.get_validation_parser(), input_args=list(flags), suppress_defaults=True
    )
    distributed_utils.call_main(convert_namespace_to_omegaconf(args), command.main, override_args=named)


def generation_config(flags: Sequence[str]) -> Any:
    """The configuration that ``fairseq-generate`` would run with."""
    parser = options.get_generation_parser()
    return convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, input_args=list(flags)))


def unknown_training_flags(flags: Sequence[str]) -> list[str]:
    """Those of ``flags`` that ``fairseq-train`` with our task and the named ``--arch`` does not know."""
    from neuron_spec import models, tasks

    assert models  # both registered by their import
    assert tasks
    given = ["data", *flags]
    for name, default in (("--task", "neuron_specialization"), ("--arch", "neuron_spec_transformer")):
        if name not in flags:
            given += [name, default]
    parser = options.get_training_parser()
    _, unknown = options.parse_args_and_arch(parser, input_args=given, parse_known=True)
    return [flag for flag in unknown if flag.startswith("--")]
