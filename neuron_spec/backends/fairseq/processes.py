"""Processes that train together find each other in time, or end: fairseq, and torch for it, would wait half an hour."""

from __future__ import annotations

import importlib
import os
import socket
import warnings
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import torch
from torch.distributed.rendezvous import rendezvous

from neuron_spec.backends.fairseq import plugin
from neuron_spec.errors import NeuronSpecError

SECONDS = "NEURON_SPEC_RENDEZVOUS_SECONDS"
_HERE, _ELSEWHERE = 45, 600  # where all are on one machine; where somebody has to start them on several
_AFTERWARDS = timedelta(minutes=30)  # torch's own
_fairseq: dict[str, Any] = {}


def meet_in_time() -> None:
    """Give fairseq's processes a time limit to find each other; once.

    Of those that are started each by itself (``--distributed-no-spawn``, ``tcp://``). torchrun, and fairseq where it starts
    them, end the others when one ends.
    """
    utils: Any = importlib.import_module("fairseq.distributed.utils")
    if utils.distributed_init is not _distributed_init:
        _fairseq["distributed_init"] = utils.distributed_init
        utils.distributed_init = _distributed_init


def _distributed_init(cfg: Any) -> Any:
    found = _init_in_time(cfg)
    # torch's hook, which puts the rank before each line, loses what is said where the hook ends the process.
    plugin.say_ours_last()
    return found


def _init_in_time(cfg: Any) -> Any:
    of = cfg.distributed_training
    method = of.distributed_init_method or ""
    if not method.startswith("tcp://") or torch.distributed.is_initialized():
        return _fairseq["distributed_init"](cfg)
    limit = timedelta(seconds=_limit(urlsplit(method).hostname))
    rank, size = of.distributed_rank, of.distributed_world_size
    try:
        store, rank, size = next(rendezvous(method, rank, size, timeout=limit))
        store.set_timeout(limit)
        torch.distributed.init_process_group(of.distributed_backend, store=store, rank=rank, world_size=size)
        store.set_timeout(_AFTERWARDS)
    except RuntimeError as error:  # torch's DistStoreError and DistNetworkError, and gloo's
        raise NeuronSpecError(
            "not all processes came together",
            where=method,
            got=str(error).splitlines()[0],
            expected=f"{size} processes within {limit.seconds} s",
            mend=f"see whether one has failed, and start all again; {SECONDS}=N waits longer",
        ) from error
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Distributed is already initialized")
        return _fairseq["distributed_init"](cfg)


def _limit(host: str | None) -> float:
    if asked := os.environ.get(SECONDS):
        try:
            return float(asked)
        except ValueError:
            raise NeuronSpecError("bad time limit", where=SECONDS, got=asked, expected="seconds") from None
    return _HERE if host in ("localhost", "127.0.0.1", "::1", socket.gethostname()) else _ELSEWHERE
