"""``fairseq-train`` in processes of their own that do not each import fairseq: a fork server has, once."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Sequence
from pathlib import Path

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["fairseq_cli.train"])


def fairseq_train(flags: Sequence[object], log: Path) -> None:
    """Run it and wait.

    Args:
        log: where what it prints goes.
    """
    process = PROCESSES.Process(target=_train, args=([*map(str, flags)], log))
    process.start()
    process.join()
    assert process.exitcode == 0, log.read_text(encoding="utf-8")[-2000:]


def _train(flags: list[str], log: Path) -> None:
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["fairseq-train", *flags]
    from fairseq_cli.train import cli_main

    cli_main()
