"""Errors a user can mend. Every other exception is a bug of ours."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

# As Python ends the traceback of one of ours: class, message, and then the end or an empty line.
_IN_TRACEBACK = re.compile(rf"^{re.escape(__name__)}\.\w+: (.+?)(?=\n\n|\n?\Z)", re.DOTALL | re.MULTILINE)
# What torch says of the others where processes work together, and one of them is gone.
_LOST = re.compile(
    r"gloo.*?(?:Connection (?:closed|reset) by peer|Timed out waiting)|Connection was likely closed",
    re.DOTALL,
)
_ROOM = "make room, and run the command again: what is complete is kept"
# What a disk or the system refuses; of other errors of the system we do not know that the user can mend them.
_OF_SYSTEM = {
    errno.ENOSPC: ("the disk is full", _ROOM),
    errno.EDQUOT: ("the disk quota is used up", _ROOM),
    errno.EFBIG: ("a file may not grow any larger here", "raise `ulimit -f`, and run the command again"),
    errno.EROFS: ("the disk is read-only", "name another folder"),
    errno.EACCES: ("no permission", "name another folder, or have its permissions changed"),
    errno.EPERM: ("no permission", "name another folder, or have its permissions changed"),
    errno.ENOTDIR: ("a file stands where a folder is needed", "name another folder"),
    errno.ENAMETOOLONG: ("a name is longer than the disk allows", "give it a shorter one"),
    errno.ELOOP: ("a link leads to itself", "name what it should lead to"),
    errno.EISDIR: ("a folder stands where a file is needed", "name another file"),
}


def some(names: Sequence[str], at_most: int = 5, *, between: str = ", ") -> str:
    """A list short enough for a message."""
    more = f"{between.strip(', ')} and {len(names) - at_most} more" if len(names) > at_most else ""
    return (between.join(names[:at_most]) or "nothing") + more


class NeuronSpecError(Exception):
    """Bad input, said in one message: what, where, got, expected, and how to mend it.

    Command lines print the message and exit with code 2.
    """

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        got: object = None,
        expected: object = None,
        mend: str | None = None,
    ) -> None:
        self._parts = {"where": where, "got": got, "expected": expected, "mend": mend}
        self._what = what
        super().__init__(self._text())

    def _text(self) -> str:
        said = {label: value for label, value in self._parts.items() if value is not None}
        return "\n".join([self._what, *(f"  {label + ':':<10}{value}" for label, value in said.items())])

    def found_in(self, file: object) -> None:
        """Say that this is about a file, where the message names none yet."""
        where = self._parts["where"]
        if str(file) not in str(where):
            self._parts["where"] = file if where is None else f"{file}: {where}"
            self.args = (self._text(),)


@contextmanager
def in_file(path: object) -> Iterator[None]:
    """Inside the block, which looks at what a file holds, an error of ours names the file."""
    try:
        yield
    except NeuronSpecError as error:
        error.found_in(path)
        raise


def message_in(error: BaseException) -> str | None:
    """The message for the user behind an exception, if that is a `NeuronSpecError` or was raised in the place of one, or
    says that a disk is full and the like.

    fairseq raises a bare ``Exception`` where a model cannot be loaded, torch a ``RuntimeError`` where a file cannot be
    written, and a process that started others one that holds the text of theirs. Another exception, while ours was handled,
    is a bug.
    """
    inner: BaseException | None = error
    is_behind_torch = False
    while inner is not None:
        if isinstance(inner, NeuronSpecError) and not is_behind_torch:
            return str(inner)
        if isinstance(inner, OSError) and inner.errno in _OF_SYSTEM:
            what, mend = _OF_SYSTEM[inner.errno]
            return str(NeuronSpecError(what, where=inner.filename2 or inner.filename, mend=mend))
        # Files of ours are UTF-8.
        if isinstance(inner, UnicodeEncodeError) and not inner.encoding.startswith("utf"):
            mend = "export PYTHONIOENCODING=utf-8, and run the command again: what is complete is kept"
            got = f"{inner.encoding}, and {inner.object[inner.start]!a}"
            return str(NeuronSpecError("standard output has no such character", got=got, mend=mend))
        if type(inner).__name__ == "OutOfMemoryError":  # torch's, of a GPU
            mend = "give fewer --max-tokens, or --cpu, and run the command again: what is complete is kept"
            got = str(inner).partition(". ")[0]
            return str(NeuronSpecError("the GPU's memory is used up", got=got, mend=mend))
        if isinstance(inner, RuntimeError) and _LOST.search(str(inner)):
            return str(_lost(inner))
        is_behind_torch |= isinstance(inner, RuntimeError)
        inner = inner.__context__ if type(inner) in (Exception, RuntimeError) else None
    of_another_process = _IN_TRACEBACK.search(str(error))
    return of_another_process.group(1) if of_another_process else None


def _lost(error: RuntimeError) -> NeuronSpecError:
    return NeuronSpecError(
        "another of the processes that work together has ended",
        got=str(error).splitlines()[0],
        mend="see what that one said, and start all of them again: a training goes on from its last checkpoint",
    )


class ArtifactError(NeuronSpecError):
    """A file is missing, truncated, or was made from something else."""


class DirectionError(NeuronSpecError):
    """A language or direction is malformed or unknown."""


class ModelError(NeuronSpecError):
    """A model has a shape or setting that the method cannot be applied to."""


class CorpusError(NeuronSpecError):
    """A corpus cannot be read or built as asked."""


class SelectionError(NeuronSpecError):
    """Counts or thresholds from which no neurons can be selected."""
