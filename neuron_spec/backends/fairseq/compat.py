"""Everything that makes fairseq work on current Python and torch, each with its reason."""

from __future__ import annotations

import argparse
import ast
import collections
import importlib
import sys
import typing

import torch

from neuron_spec.errors import ModelError

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


def value_of(text: typing.Any, *_: object) -> typing.Any:
    """What a Python expression of plain values says, such as ``(0.9, 0.98)`` or ``[(256, 3)] * 4``; no other is run.

    Raises:
        ModelError: if it is another.
        TypeError: if it is no text, as ``eval`` does.
    """
    if not isinstance(text, str):
        raise TypeError("no text")
    try:
        return _evaluated(ast.parse(text.strip(), mode="eval").body)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise ModelError(
            "a flag's value is no plain value",
            got=text if len(text) <= 80 else f"{text[:80]}...",
            expected="a number, True, False, a word in quotes, or a tuple, list or dictionary of such; no code is run",
        ) from error


def _evaluated(node: ast.expr) -> typing.Any:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _evaluated(node.left) + _evaluated(node.right)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        values, times = ast.literal_eval(node.left), ast.literal_eval(node.right)
        if not isinstance(values, list) or times not in range(1000):
            raise ValueError("a product")
        return values * times
    return ast.literal_eval(node)


# Some flags' values fairseq runs as Python (--left-pad-source, --langtoks, --adam-betas, --adaptive-softmax-cutoff), and they
# come from checkpoints and configs too, whoever made them. In its modules, all of which are loaded by now, the name of
# the builtin stands for what runs nothing.
for _name, _loaded in [*sys.modules.items()]:
    if _name.startswith("fairseq."):
        vars(_loaded)["eval"] = value_of


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
