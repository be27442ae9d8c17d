"""Errors a user can mend. Every other exception is a bug of ours."""

from __future__ import annotations

import re

# As Python ends the traceback of one of ours: class, message, and then the end or an empty line.
_IN_TRACEBACK = re.compile(rf"^{re.escape(__name__)}\.\w+: (.+?)(?=\n\n|\n?\Z)", re.DOTALL | re.MULTILINE)


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
        parts = [what]
        for label, value in (("where", where), ("got", got), ("expected", expected), ("mend", mend)):
            if value is not None:
                parts.append(f"  {label + ':':<10}{value}")
        super().__init__("\n".join(parts))


def message_in(error: BaseException) -> str | None:
    """The message for the user behind an exception, if that is a `NeuronSpecError` or was raised in the place of one.

    fairseq raises a bare ``Exception`` where a model cannot be loaded, and a process that started others one that holds
    the text of theirs. Another exception, while ours was handled, is a bug.
    """
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, NeuronSpecError):
        inner = inner.__context__ if type(inner) is Exception else None
    if inner is not None:
        return str(inner)
    of_another_process = _IN_TRACEBACK.search(str(error))
    return of_another_process.group(1) if of_another_process else None


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
