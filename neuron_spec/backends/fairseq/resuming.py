"""Where ``fairseq-train`` with our ``--user-dir`` goes on after a kill otherwise than if there had been none.

A checkpoint of two names is copied from one to the other; killed in between, fairseq leaves half a file under the name
that it resumes from. A training that had ended makes one more update when it is started again. And how often validation
had not improved, which ``--patience`` counts, is forgotten.
"""

from __future__ import annotations

import importlib
import logging
import os
import shutil
import sys
from typing import Any

from fairseq import checkpoint_utils
from fairseq.file_io import IOPathManager, PathManager

from neuron_spec.artifacts import atomic_path

logger = logging.getLogger(__name__)
_EARLY_STOP = "neuron_spec_early_stop"  # in a checkpoint's extra state
_NEVER = -1  # an epoch before all others


def go_on_as_if_never_killed() -> None:
    """Set fairseq's copying and loading of checkpoints right; once."""
    if checkpoint_utils.load_checkpoint is _load_checkpoint:
        return
    _fairseq["load_checkpoint"] = checkpoint_utils.load_checkpoint
    checkpoint_utils.load_checkpoint = _load_checkpoint
    if not IOPathManager:  # which copies in its own ways
        PathManager.copy = staticmethod(_copy)


_fairseq: dict[str, Any] = {}


def _copy(source: str, destination: str, overwrite: bool = False) -> str:
    with atomic_path(destination) as temporary:
        shutil.copyfile(source, temporary)
    return destination


def _load_checkpoint(cfg: Any, trainer: Any, **options: Any) -> Any:
    extra_state, epochs = _fairseq["load_checkpoint"](cfg, trainer, **options)
    stopping = _early_stopping()
    known = (extra_state or {}).get(_EARLY_STOP) if trainer.get_num_updates() else None
    for of in stopping:
        if known:
            of.best, of.num_runs = known["best"], known["num_runs"]
    trainer.task.get_checkpoint_dict = lambda: {_EARLY_STOP: _state(stopping)} if cfg.patience > 0 else {}
    if why := _why_complete(cfg, trainer, known):
        logger.info(f"complete already: {why}")
        trainer.cfg.optimization.max_epoch = _NEVER
        if (
            cfg.keep_interval_updates > 0 and cfg.keep_interval_updates_pattern == -1
        ):  # else removed after the next save
            kept = checkpoint_utils.checkpoint_paths(cfg.save_dir, pattern=r"checkpoint_\d+_(\d+)\.pt")
            for old in kept[cfg.keep_interval_updates :] if trainer.is_data_parallel_master else ():
                os.remove(old)
    return extra_state, epochs


def _early_stopping() -> list[Any]:
    """The function that counts, in which fairseq keeps its state; one for each name under which its command runs."""
    modules = (sys.modules.get("__main__"), importlib.import_module("fairseq_cli.train"))
    return [of for module in modules if (of := getattr(module, "should_stop_early", None)) is not None]


def _state(stopping: list[Any]) -> dict[str, float] | None:
    of = next((of for of in stopping if hasattr(of, "best")), None)
    return of and {"best": of.best, "num_runs": of.num_runs}


def _why_complete(cfg: Any, trainer: Any, early: dict[str, float] | None) -> str | None:
    updates, limits = trainer.get_num_updates(), trainer.cfg.optimization
    if 0 < limits.max_update <= updates:
        return f"{updates} updates of {limits.max_update}"
    if updates and 0 < limits.stop_time_hours * 3600 < trainer.cumulative_training_time():
        return f"{limits.stop_time_hours} hours"
    if early and 0 < cfg.patience <= early["num_runs"]:
        return f"no better validation in {cfg.patience}"
    return None
