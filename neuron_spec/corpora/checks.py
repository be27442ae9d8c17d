"""What every corpus checks of what it is given."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from neuron_spec.errors import CorpusError


def some(names: Sequence[str], at_most: int = 5) -> str:
    """A list short enough for a message."""
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return (", ".join(names[:at_most]) or "nothing") + more


def require_known(langs: Iterable[str], available: Collection[str], what: str) -> None:
    """Raises: CorpusError, saying ``what``, if a language is not among those of a corpus."""
    if unknown := [lang for lang in langs if lang not in available]:
        raise CorpusError(what, got=", ".join(unknown), expected=f"some of {', '.join(available)}")


def require_equal(counts: Mapping[str, int], what: str, *, where: object, mend: str) -> int:
    """The count that all have, such as the lines of two sides.

    Raises:
        CorpusError: saying ``what``, if they differ.
    """
    if len(set(counts.values())) > 1:
        got = ", ".join(f"{name}: {count}" for name, count in counts.items())
        raise CorpusError(what, where=where, got=got, mend=mend)
    return next(iter(counts.values()))


def decoded_text(content: bytes, *, where: object, mend: str, lines_before: int = 0) -> str:
    """The text of a file, or of a part that ``lines_before`` precede, without a byte order mark.

    Raises:
        CorpusError: if it is not UTF-8; names the line.
    """
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = lines_before + content.count(b"\n", 0, error.start) + 1
        got = f"byte {content[error.start]:#04x}"
        raise CorpusError("not UTF-8 text", where=f"{where}, line {line}", got=got, mend=mend) from error


def check_disk(folder: Path, needed_bytes: int) -> None:
    """Raises: CorpusError if the disk of ``folder`` has not that much free."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < needed_bytes:
        raise CorpusError(
            "too little disk space",
            where=folder,
            got=f"{free / 1e9:.2f} GB free",
            expected=f"{needed_bytes / 1e9:.2f} GB",
            mend="free some, name an --output on another disk, or fewer --langs",
        )
