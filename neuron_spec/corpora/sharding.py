"""Parallel text too large for memory: scanned once, then read part by part in several processes."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from multiprocessing import connection
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from neuron_spec.corpora.checks import decoded_text
from neuron_spec.errors import CorpusError

_MEND = "convert the file, such as with iconv, or get it again"
_SECONDS_BETWEEN_LOOKS = 0.5

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True)
class ScannedText:
    """A text file cut into parts of equally many lines.

    ``first_lines`` and ``offsets`` hold, per part, the number of its first line and that line's byte.
    """

    path: str
    bytes: int
    modified_ns: int
    sha256: str
    lines: int
    first_lines: list[int]
    offsets: list[int]

    def is_current(self) -> bool:
        """Whether the file still has the size and the time that it had when scanned."""
        stat = os.stat(self.path)
        return (stat.st_size, stat.st_mtime_ns) == (self.bytes, self.modified_ns)

    def lines_in(self, number: int) -> int:
        """How many lines a part has."""
        ends = [*self.first_lines[1:], self.lines]
        return ends[number] - self.first_lines[number]

    def part(self, number: int) -> Iterator[str]:
        """The lines of one part, with their line ends. Only ``\\n`` ends a line."""
        with open(self.path, "rb") as file:
            file.seek(self.offsets[number])
            for line in islice(file, self.lines_in(number)):
                yield line.decode("utf-8")


def scan(path: Path, parts: int) -> ScannedText:
    """Read a file once: its lines, its hash, and where each of its parts begins.

    What it keeps in memory is 8 bytes a line.

    Raises:
        CorpusError: if it is not UTF-8 text, or has fewer lines than parts.
    """
    stat = path.stat()
    digest = hashlib.sha256()
    starts = array("q", [0])  # of every line, and of the one that would follow
    with path.open("rb") as file:
        for line in file:
            text = decoded_text(line, where=path, mend=_MEND, lines_before=len(starts) - 1)
            if "\0" in text:
                where = f"{path}, line {len(starts)}"
                raise CorpusError("not UTF-8 text", where=where, got="a zero byte", mend=_MEND)
            digest.update(line)
            starts.append(starts[-1] + len(line))
    lines = len(starts) - 1
    if lines < parts:
        raise CorpusError("too few lines to cut", where=path, got=lines, expected=f"at least {parts}")
    first_lines = [part * lines // parts for part in range(parts)]
    offsets = [starts[line] for line in first_lines]
    return ScannedText(
        str(path), stat.st_size, stat.st_mtime_ns, digest.hexdigest(), lines, first_lines, offsets
    )


# ------------------------------------------------------------------ several processes

_task: Callable[[Any], Any]  # of a worker process, set once when it starts
_count: Callable[[int], object] = lambda number: None  # noqa: E731


def report_progress(number: int) -> None:
    """Called by a task: so many more lines are done."""
    _count(number)


def _start_worker(task: Callable[[Any], Any], counter: Any) -> None:
    global _task, _count

    def count(number: int) -> None:
        with counter.get_lock():
            counter.value += number

    def exit_with_parent() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        connection.wait([parent.sentinel])
        os._exit(1)

    _task, _count = task, count
    # A parent that is killed cannot stop its workers: they stop by themselves.
    threading.Thread(target=exit_with_parent, daemon=True).start()


def _run_task(job: Any) -> Any:
    return _task(job)


def in_processes(
    task: Callable[[Job], Result], jobs: Sequence[Job], *, workers: int, lines: int, description: str
) -> Iterator[tuple[Job, Result]]:
    """Run ``task`` on every job and yield each result as it comes, in no fixed order.

    ``task`` is inherited by the processes, not pickled, so it may hold large objects. With one worker it
    runs in this process. An error in a task stops all.

    Args:
        lines: how many lines the tasks report in all, for the progress bar.
    """
    global _count
    with tqdm(total=lines, desc=description, unit=" lines", unit_scale=True, mininterval=1) as bar:
        if workers == 1:
            _count = bar.update
            for job in jobs:
                yield job, task(job)
            return
        context = multiprocessing.get_context("fork")
        counter = context.Value("q", 0)
        with ProcessPoolExecutor(
            workers, mp_context=context, initializer=_start_worker, initargs=(task, counter)
        ) as pool:
            waiting = {pool.submit(_run_task, job): job for job in jobs}
            try:
                while waiting:
                    done, _ = wait(waiting, timeout=_SECONDS_BETWEEN_LOOKS, return_when=FIRST_COMPLETED)
                    bar.update(counter.value - bar.n)
                    for future in done:
                        yield waiting.pop(future), future.result()
            finally:
                pool.shutdown(cancel_futures=True)
