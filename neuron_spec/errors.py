"""Errors a user can mend. Every other exception is a bug of ours."""

from __future__ import annotations


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
