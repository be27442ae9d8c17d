"""``neuron_spec_meta``: training by episodes, so that a few updates adapt the model to a new direction.

An episode is one update of fairseq: its micro-batches (``--update-freq`` times the processes), each of one direction.
On each, the weights take ``--inner-steps`` steps of SGD, leave their gradient for the outer step, and are put back.
The outer step is fairseq's own: optimizer, clipping, schedule, accumulation, reduction over processes.

fomaml    First-order MAML. Every other sentence of the micro-batch is its support, on which the weights adapt; the
          gradient is that of the other sentences, the query, at the adapted weights. The micro-batch as episode, and
          its split, are ours.
reptile   All sentences are support; the gradient is the mean over the inner steps.
none      The baseline without episodes: ordinary training on the same micro-batches.

Masks may move meanwhile (``--dynamic-masks``; not by default), once per update, after the outer step: an episode runs
through the masks it began with. They follow, ours, the passes that the outer gradient is of: for fomaml the query's
at the adapted weights, for Reptile those of all inner steps, each counted. Inner steps leave scores as they are.

In all three ``--max-update`` counts outer steps, and each sees the same sentences. Inner steps come on top: with N of
them and a support fraction f, an update of fomaml computes N f + 1 - f times the gradients of an ordinary one (with
``--query all`` N f + 1), one of reptile N times. To compare at equal computation, give ``none`` as many times the
updates.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from fairseq.logging import metrics
from fairseq.tasks import register_task
from torch import Tensor

from neuron_spec.errors import ModelError
from neuron_spec.studies.dynamic.task import (
    HALF,
    RECOMPUTED,
    Batch,
    NeuronSpecDynamicTask,
    refuse,
    require_absent,
    require_backend,
)
from neuron_spec.studies.meta.inner_steps import adapt, reptile, restored

METHODS = ("fomaml", "reptile", "none")
QUERIES = ("rest", "all")
_SUPPORT_FRACTION = 0.5
# What an inner step does not go together with, and why.
_REFUSED = {
    **dict.fromkeys((*HALF, "amp"), "inner steps are taken in single precision"),
    **dict.fromkeys(RECOMPUTED, "recomputed activations cannot give the gradients of inner steps"),
    "tpu": "inner steps were never run there",
    "use_bmuf": "it averages weights over processes by itself",
}
# Gradients are reduced once, at the end of an update; the others reduce during each backward pass.
_DDP_BACKENDS = ("legacy_ddp", "no_c10d")


@register_task("neuron_spec_meta")
class NeuronSpecMetaTask(NeuronSpecDynamicTask):
    """Training by episodes; masks of any kind, how they move, validation and generation are the parent's."""

    @staticmethod
    def add_args(parser: argparse.ArgumentParser) -> None:
        NeuronSpecDynamicTask.add_args(parser)
        parser.set_defaults(dynamic_masks="none")
        parser.add_argument(
            "--meta", choices=METHODS, default=METHODS[0], help="how an update is made (default: %(default)s)"
        )
        parser.add_argument(
            "--inner-steps",
            type=int,
            default=3,
            metavar="N",
            help="SGD steps per micro-batch (default: %(default)s)",
        )
        parser.add_argument(
            "--inner-lr",
            type=float,
            metavar="X",
            help="their learning rate, for the mean loss per token (needed)",
        )
        parser.add_argument(
            "--support-fraction",
            type=float,
            metavar="X",
            help=f"fomaml: which fraction of a micro-batch's sentences is support (default: {_SUPPORT_FRACTION})",
        )
        parser.add_argument(
            "--query",
            choices=QUERIES,
            help=f"fomaml: the outer gradient is of the other sentences, or of all (default: {QUERIES[0]})",
        )

    def __init__(self, args: argparse.Namespace, langs: list[str], dicts: Any, training: bool) -> None:
        super().__init__(args, langs, dicts, training)
        if training:
            _require_valid(args)

    def train_step(
        self,
        sample: Batch,
        model: Any,
        criterion: Any,
        optimizer: Any,
        update_num: int,
        ignore_grad: bool = False,
    ) -> tuple[Tensor, Any, Batch]:
        """As fairseq's: adds a gradient to ``p.grad``; returns loss, sample size and what is logged of them.

        They are of the query at the adapted weights, or, for Reptile, of the first inner step. ``inner_loss`` is
        the mean over the inner steps.
        """
        ordinary = partial(
            super().train_step,
            model=model,
            criterion=criterion,
            optimizer=optimizer,
            update_num=update_num,
            ignore_grad=ignore_grad,
        )
        if self.args.meta == "none":
            return ordinary(sample)
        support = query = sample  # of Reptile, and of a single sentence
        if self.args.meta == "fomaml" and (number := len(sample["target"])) > 1:
            chosen = support_rows(number, self.args.support_fraction or _SUPPORT_FRACTION)
            padding = self.target_dictionary.pad()
            support = rows_of(sample, chosen, padding=padding)
            if self.args.query != "all":
                query = rows_of(sample, ~chosen, padding=padding)
        if ignore_grad:  # a batch that only fills a gap: its gradient is zero
            loss, size, log = ordinary(query)
            return loss, size, log | {"inner_loss": torch.zeros_like(loss), "inner_size": 0.0}
        model.train()
        model.set_num_updates(update_num)
        # Scores of masks are among them: nothing reads those in an episode, and they are put back with the weights.
        parameters = [p for p in model.parameters() if p.requires_grad]
        steps, rate = self.args.inner_steps, self.args.inner_lr
        before: list[tuple[Tensor, Any, Batch]] = []  # of the first inner step

        def loss_of_support() -> tuple[Tensor, float]:
            loss, size, log = criterion(model, support)
            if not before:
                before.append((loss.detach(), size, log))
            return loss, float(size)

        with restored(parameters):
            if self.args.meta == "reptile":
                with self.watching(support, model, update_num):
                    losses = reptile(parameters, loss_of_support, steps=steps, rate=rate)
                loss, size, log = before[0]
            else:
                # So that the query's dropout is that of ordinary training.
                with _forked_random_numbers(parameters[0].device):
                    losses = adapt(parameters, loss_of_support, steps=steps, rate=rate)
                loss, size, log = ordinary(query)
        inner_size = float(before[0][1])
        return loss, size, log | {"inner_loss": losses.mean() * inner_size, "inner_size": inner_size}

    def reduce_metrics(self, logging_outputs: list[Batch], criterion: Any) -> None:
        super().reduce_metrics(logging_outputs, criterion)
        if size := sum(log.get("inner_size", 0) for log in logging_outputs):
            total = sum(log.get("inner_loss", 0) for log in logging_outputs)
            # In bits, as fairseq logs its losses.
            metrics.log_scalar("inner_loss", total / size / math.log(2), size, round=3)


def support_rows(size: int, fraction: float) -> Tensor:
    """Which of a batch's sentences are support, bool `[size]`: evenly spread, at least one, and not all.

    A batch is sorted by length, so both parts hold long and short sentences alike.
    """
    number = min(max(1, round(size * fraction)), size - 1)
    place = torch.arange(size)
    return (place + 1) * number // size > place * number // size


def rows_of(batch: Batch, rows: Tensor, *, padding: int) -> Batch:
    """Those sentences of a batch where ``rows``, bool `[B]`, is True; as long as the longest of all."""

    def chosen(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[rows.to(value.device)]
        return {key: chosen(inner) for key, inner in value.items()} if isinstance(value, dict) else value

    part: Batch = chosen(batch)
    return part | {"nsentences": len(part["target"]), "ntokens": int(part["target"].ne(padding).sum())}


@contextmanager
def _forked_random_numbers(device: torch.device) -> Iterator[None]:
    """Random numbers for a block that leave those after it as they would be without the block."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        # Seeded by the state of the generator that dropout draws from, which differs between micro-batches.
        torch.manual_seed(int(torch.randint(2**62, (), device=device)))
        yield


def _require_valid(args: argparse.Namespace) -> None:
    """Raises: ModelError if the flags name what cannot be trained so, or say nothing to the method."""
    if args.meta != "fomaml":
        what = f"only fomaml parts support and query, not --meta {args.meta}"
        require_absent(args, ("support_fraction", "query"), what)
    if args.meta == "none":
        return
    checks: list[tuple[str, Any, str, Callable[[Any], bool]]] = [
        ("--inner-steps", args.inner_steps, "1 or more", lambda n: n >= 1),
        ("--inner-lr", args.inner_lr, "a number from 0", lambda x: x is not None and 0 <= x < math.inf),
        ("--support-fraction", args.support_fraction, "between 0 and 1", lambda x: x is None or 0 < x < 1),
        ("--batching", args.batching, "one-direction", lambda kind: kind == "one-direction"),
    ]
    for flag, got, expected, is_valid in checks:
        if not is_valid(got):
            raise ModelError(f"{flag} does not fit --meta {args.meta}", got=got, expected=expected)
    refuse(args, f"--meta {args.meta}", _REFUSED)
    why = f"--meta {args.meta} on several processes needs gradients that are reduced at the end of an update"
    require_backend(args, _DDP_BACKENDS, why)
