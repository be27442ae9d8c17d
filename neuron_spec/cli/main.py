"""``neuron-spec COMMAND ...``: exit code 0 done, 2 bad input (one message), 1 a bug of ours."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Sequence

from neuron_spec import __version__
from neuron_spec.errors import NeuronSpecError

COMMANDS = {
    "data": "prepare a corpus: raw text, SentencePiece model, data-bin, corpus card",
    "profile": "count how often each neuron is active, per direction and layer",
    "select": "select each direction's specialized neurons from a profile",
    "importance": "how much each attention head and neuron matters to each direction, by gradient",
    "prune": "static subnetworks: remove each set's least important heads and neurons while it stays good",
    "masks": "vote over several mask files",
    "lass": "the LaSS baseline's weight masks: fine-tune per direction, drop the smallest weights",
    "analyze": "how far the sets overlap, by layer and language family; sparsity, dendrograms, stability",
    "adapt": "adapt a model to directions with few training sentences: scores against shots",
    "ablate": "switch off each direction's specialized neurons: what does every direction lose?",
    "conflict": "do directions' gradients point apart? cosines by layer and group of parameters",
    "transfer": "what a training step on one direction does to every direction's loss",
    "evaluate": "translate and score all directions, or score existing fairseq-generate output",
    "compare": "compare evaluated systems: differences, significance, wins and losses",
    "bilingual": "the bilingual baseline: how long each direction's model trains, all their scores as one",
    "systems": "one table of what systems score and cost",
    "subnetworks": "one page of what subnetworks and meta-learning do for known and new languages",
    "sweep": "table and figure of a sweep over k or depth",
    "report": "write a run's report: tables, figures, sample translations",
    "flags": "print the fairseq flags of a config file",
    "checkpoint": "make a checkpoint small, or compare it with a corpus",
    "user-dir": "print the folder to pass to fairseq's --user-dir",
}

_STUDIES: dict[str, str] = {
    "analyze": "studies.analysis.command",
    "subnetworks": "studies.subnetworks.command",
    "systems": "studies.systems.command",
    "sweep": "studies.sweep.command",
    "bilingual": "studies.bilingual.command",
    "lass": "studies.lass.command",
    "adapt": "studies.adaptation.command",
    "prune": "studies.pruning.command",
    "importance": "studies.pruning.importance_command",
    "transfer": "studies.transfer.command",
    "conflict": "studies.conflict.command",
    "ablate": "studies.ablation.command",
}  # command of a study -> its module
_PASS_ON = ("profile", "prune", "lass", "evaluate", "adapt")  # what follows -- goes to fairseq


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    width = max(map(len, COMMANDS))
    parser = argparse.ArgumentParser(
        prog="neuron-spec",
        description="Specialized neurons for multilingual machine translation on fairseq.",
        epilog="commands:\n"
        + "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
        + "\n\n'neuron-spec COMMAND --help' explains each.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"neuron-spec {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those below")
    args = parser.parse_args(arguments[:1])

    # fairseq logs its whole configuration, several screens of it; LOGLEVEL=INFO shows it.
    level = os.environ.setdefault("LOGLEVEL", "WARNING").upper()
    for library in ("fairseq", "hydra", "matplotlib"):
        logging.getLogger(library).setLevel(level)
    # What current hydra and torch say about fairseq's way of using them, over and over.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(hydra|fairseq|torch|neuron_spec)\b")
    # Only the command asked for is imported: fairseq alone takes seconds.
    module = importlib.import_module(module_of(args.command))
    command = argparse.ArgumentParser(
        prog=f"neuron-spec {args.command}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(command)
    own, fairseq_flags = _split(arguments[1:])
    parsed = command.parse_args(own, argparse.Namespace(fairseq_flags=fairseq_flags))
    if fairseq_flags and args.command not in _PASS_ON:
        command.error("takes no flags after --")
    try:
        module.run(parsed)
    except NeuronSpecError as error:
        print(f"neuron-spec {args.command}: {error}", file=sys.stderr)
        return 2
    return 0


def module_of(command: str) -> str:
    return f"neuron_spec.{_STUDIES.get(command, f'cli.{command}'.replace('-', '_'))}"


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """What stands before and after ``--``."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:at], arguments[at + 1 :]
