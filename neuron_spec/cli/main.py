"""``neuron-spec COMMAND ...``: exit code 0 done, 2 bad input (one message), 130 and 143 stopped, 1 a bug of ours."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import copy_context
from functools import partial
from itertools import pairwise
from types import FrameType

from neuron_spec import __version__
from neuron_spec.arguments import inputs_required
from neuron_spec.errors import message_in
from neuron_spec.studies import STUDIES

COMMANDS = {
    "data": "prepare a corpus: raw text, SentencePiece model, data-bin, corpus card",
    "profile": "count how often each neuron is active, per direction and layer",
    "select": "select each direction's specialized neurons from a profile",
    "specialize": "go on training from a dense checkpoint, with masks or without",
    "tune": "train a model of Hugging Face: specialized neurons of all directions, or deltas of some",
    "masks": "vote over several mask files; read and write those of the official code",
    "export": "a direction as a model of its own, without masks: for CTranslate2, stock fairseq, or as safetensors",
    "translate": "translate lines of text, by a checkpoint or an export",
    "evaluate": "translate and score all directions, or score existing fairseq-generate output",
    "compare": "compare evaluated systems: differences, significance, wins and losses",
    "report": "write a run's report: tables, figures, sample translations",
    "flags": "print the fairseq flags of a config file",
    "checkpoint": "average checkpoints, make one small, compare one with a corpus, read one of the official code",
    "init": "write the scripts, configs, notebook and small dense checkpoint of this version into a folder",
    "quickstart": "the whole method on real text, to a report",
    "user-dir": "print the folder to pass to fairseq's --user-dir",
}
_STUDIES = {study.command: study for study in STUDIES if study.command}
COMMANDS |= {name: study.question for name, study in _STUDIES.items()}
_PASS_ON = {"profile", "specialize", "evaluate", "quickstart"} | {
    name for name, study in _STUDIES.items() if study.passes_on
}


def module_of(command: str) -> str:
    """The full name of the module that has a command's flags and runs it."""
    if command in _STUDIES:
        return _STUDIES[command].module(_STUDIES[command].command_module)
    return f"neuron_spec.cli.{command.replace('-', '_')}"


def _given(command: argparse.ArgumentParser, words: Sequence[str], parsed: argparse.Namespace) -> set[str]:
    """Which of a command's values were given: such a one may be the default, but is set in a second parse too."""
    unset = object()
    # Flags that may be given again add to a list.
    start = {name: None if isinstance(value, list) else unset for name, value in vars(parsed).items()}
    again = vars(command.parse_args(words, argparse.Namespace(**start)))
    return {name for name, value in again.items() if value is not unset and value is not None}


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

    # fairseq logs its whole configuration, several screens of it; LOGLEVEL=INFO shows it, as where a model trains.
    level = (os.environ.get("LOGLEVEL") or ("INFO" if args.command == "specialize" else "WARNING")).upper()
    if level not in logging.getLevelNamesMapping():
        parser.error(
            f"LOGLEVEL={level} in the environment: expected {', '.join(logging.getLevelNamesMapping())}"
        )
    os.environ["LOGLEVEL"] = level  # which fairseq reads
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
    end = arguments.index("--") if "--" in arguments else len(arguments)
    fairseq_flags = arguments[end + 1 :]
    if fairseq_flags and args.command not in _PASS_ON:
        command.error("takes no flags after --")
    for before, word in pairwise(arguments[:end]):
        if not word or re.fullmatch(r"--[a-z-]+=", word):  # such as of a shell's variable that is not set
            command.error(f"an empty value: {word or before} ''; expected a value, or to leave it out")
    try:
        with inputs_required():
            parsed = command.parse_args(arguments[1:end], argparse.Namespace(fairseq_flags=fairseq_flags))
        parsed.given = partial(_given, command, arguments[1:end], parsed)
        from neuron_spec.artifacts import running

        with running(["neuron-spec", *arguments], getattr(parsed, "output", None)), _stoppable(arguments):
            copy_context().run(module.run, parsed)  # what a command sets, such as the pivot, ends with it
            if sys.stdout is not None:
                sys.stdout.flush()  # what fails when it is written fails here
    except BrokenPipeError:  # whoever read our output, such as head, has seen enough
        _end_output()
        return 128 + signal.SIGPIPE
    except Exception as error:
        if (message := message_in(error)) is None:
            raise
        print(f"neuron-spec {args.command}: {message}", file=sys.stderr)
        try:
            if sys.stdout is not None:
                sys.stdout.flush()
        except OSError:  # the disk is full behind it, which was said
            _end_output()
        return 2
    except (KeyboardInterrupt, _Stopped) as stop:
        by = signal.SIGINT if isinstance(stop, KeyboardInterrupt) else signal.SIGTERM
        print(f"neuron-spec {args.command}: stopped by {by.name}; run it again to go on", file=sys.stderr)
        return 128 + by
    return 0


def _end_output() -> None:
    """Let what is still to be written go nowhere: Python would try once more as it ends, and say so."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        # Closed before we began, or no stream of the system.
        with suppress(AttributeError, OSError, ValueError):
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


class _Stopped(BaseException):
    """SIGTERM came."""


@contextmanager
def _stoppable(words: Sequence[str]) -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, its temporary files removed, unless others would wait for it.

    A process that trains with others may be inside one of torch's calls, which no handler of Python's ends.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise _Stopped

    is_alone = "WORLD_SIZE" not in os.environ and not any("--distributed-" in word for word in words)
    is_ours = threading.current_thread() is threading.main_thread() and is_alone
    if not is_ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
