"""Everything that makes fairseq work on current Python and torch, each with its reason."""

from __future__ import annotations

import argparse
import collections
import importlib
import typing

import torch

# Since torch 2.6 torch.load unpickles only tensors and names allowed here. Every checkpoint of fairseq holds its
# arguments, and resuming under distributed training broadcasts the built config as well. Nothing is patched and
# weights_only stays on.
_SAFE: list[typing.Any] = [argparse.Namespace, collections.defaultdict, typing.Any, dict, list, int]
for _module, _names in {
    "omegaconf.base": ("ContainerMetadata", "Metadata"),
    "omegaconf.dictconfig": ("DictConfig",),
    "omegaconf.listconfig": ("ListConfig",),
    "omegaconf.nodes": ("AnyNode",),
    "fairseq.distributed.utils": ("_TensorPlaceholder",),
}.items():
    _imported = importlib.import_module(_module)
    _SAFE += [getattr(_imported, name) for name in _names if hasattr(_imported, name)]
torch.serialization.add_safe_globals(_SAFE)


def gather_without_gpu(size: int, processes: int) -> None:
    """Let fairseq's ``all_gather_list`` work on CPUs: it makes CUDA buffers, under gloo too, unless it has
    buffers already.

    Args:
        size: ``--all-gather-list-size``, in bytes.
    """
    if torch.cuda.is_available():
        return
    gather = importlib.import_module("fairseq.distributed.utils").all_gather_list
    gather._buffer = torch.zeros(size * processes, dtype=torch.uint8)
    gather._cpu_buffer = torch.zeros(size, dtype=torch.uint8)


def add_over_processes(counts: torch.Tensor) -> torch.Tensor:
    """Add up the counts of all processes, in place; as they are where there is one."""
    if torch.distributed.is_initialized():
        distributed = importlib.import_module("fairseq.distributed.utils")
        distributed.all_reduce(counts, group=distributed.get_data_parallel_group())
    return counts
