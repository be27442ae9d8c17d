"""What ``fairseq-*`` commands with our ``--user-dir`` say of mistakes: our message alone, last, and exit code 2; 130 after Ctrl-C.

``LOGLEVEL=DEBUG`` shows Python's traceback too.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from fairseq.tasks import TASK_REGISTRY
from fairseq.tasks.translation_multi_simple_epoch import TranslationMultiSimpleEpochTask

from neuron_spec.errors import ModelError, message_in

# Of those that fairseq's task of that name adds, its own translation task has the others too.
_MULTILINGUAL = {"--langs", "--lang-dict", "--lang-pairs", "--encoder-langtok", "--decoder-langtok"}
_BAD_INPUT = 2
_before = sys.excepthook


def say_ours_last() -> None:
    """Let an error of ours end the process with its message, also where fairseq has raised another in its place."""
    sys.excepthook = _excepthook


def _excepthook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    is_stopped = isinstance(error, KeyboardInterrupt)
    message = "stopped by SIGINT; run it again to go on" if is_stopped else None
    if isinstance(error, Exception):
        message = message_in(error)
    if message is None or os.environ.get("LOGLEVEL", "").upper() == "DEBUG":
        _before(kind, error, traceback)
    if message is not None:
        sys.stdout.flush()
        print(f"{Path(sys.argv[0]).stem}: {message}", file=sys.stderr)
        sys.exit(128 + signal.SIGINT if is_stopped else _BAD_INPUT)


def require_task(add_args: Callable[[argparse.ArgumentParser], None]) -> None:
    """That a ``fairseq-*`` command which names flags of a multilingual task, or of ours, names that task.

    fairseq prints its usage, several screens of it, and calls the flags unrecognized.

    Args:
        add_args: adds the flags of our task.

    Raises:
        ModelError: if it names none, or fairseq's own with flags of ours.
    """
    program, *words = sys.argv
    if not (Path(program).name.startswith("fairseq-") or Path(program).parent.name == "fairseq_cli"):
        return
    ours = _flags(add_args) - _flags(TranslationMultiSimpleEpochTask.add_args)
    given = {word.partition("=")[0] for word in words}
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--task")
    task = parser.parse_known_args(words)[0].task
    unknown = given & (ours | _MULTILINGUAL if task is None else ours)
    takes_ours = task is not None and (
        task not in TASK_REGISTRY or _flags(TASK_REGISTRY[task].add_args) >= ours
    )
    if unknown and not takes_ours:
        raise ModelError(
            "these flags are of another task than the command's",
            got=f"{', '.join(sorted(unknown))} with {f'--task {task}' if task else 'no --task'}",
            expected="--task neuron_specialization",
        )


def _flags(add_args: Callable[[argparse.ArgumentParser], None]) -> set[str]:
    parser = argparse.ArgumentParser(add_help=False)
    add_args(parser)
    return {flag for action in parser._actions for flag in action.option_strings}
