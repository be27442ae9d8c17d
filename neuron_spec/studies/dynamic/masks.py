"""Masks that move while the model trains: what they follow, and how.

Choenni, Garrette and Shutova (2023) update subnetworks jointly with the model; their exact rules are not public.
Both rules here are ours:

- `RunningCounts`: on how many recent training tokens each neuron would be active if none were dropped. Masks are
  selected from it anew, now and then.
- `Scores`: a real number per direction and unit, trained like a weight. The mask is the top of the scores, as many
  as a fixed budget says, after every update; `straight_through` gives the scores their gradient.

Both are modules, so that their state travels in checkpoints.

Axis letters: N directions, T tokens, B sentences, F units of a site: neurons or heads. True = kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

# Counts decay in integers, which half precision leaves alone: in these parts of an active token.
_PARTS = 2**16


def top(values: Tensor, budget: Tensor) -> Tensor:
    """The largest of each row, bool ``[N, F]``; of equal values the first.

    Args:
        values: ``[N, F]``.
        budget: int64 ``[N]``, how many of each row.
    """
    order = values.argsort(dim=1, descending=True, stable=True)
    place = torch.arange(values.size(1), device=values.device)
    return torch.zeros_like(values, dtype=torch.bool).scatter_(1, order, place < budget[:, None])


def budgets(kept: Mapping[str, Tensor], percent: Fraction | None = None) -> dict[str, Tensor]:
    """Site -> int64 ``[N]``, how many units each direction keeps: as many as in ``kept``, or ``percent`` rounded up."""
    return {
        site: rows.sum(dim=1)
        if percent is None
        else torch.full((len(rows),), math.ceil(percent * rows.size(1) / 100), device=rows.device)
        for site, rows in kept.items()
    }


class _State(nn.Module):
    """A tensor per site."""

    def name(self, site: str) -> str:
        """Its name in a checkpoint: it tells states of two kinds apart, and has no dots, which torch forbids."""
        return f"{type(self).__name__}-{site.replace('.', '-')}"

    def __getitem__(self, site: str) -> Tensor:
        tensor: Tensor = getattr(self, self.name(site))
        return tensor


class RunningCounts(_State):
    """Activation counts that forget: per layer a buffer, int64 ``[N, F]``, in parts of an active token.

    Attributes:
        pending: layer -> int64 ``[N, F]``, counted in the running update; not in checkpoints, as an update is
            `folded` before one is written.
    """

    def __init__(self, widths: Mapping[str, int], directions: int, decay: float) -> None:
        """``decay``, 0-1: what is left of a direction's counts when it is counted again."""
        super().__init__()
        self.layers = list(widths)
        self.decay = decay
        self.pending: dict[str, Tensor] = {}
        for layer, width in widths.items():
            self.register_buffer(self.name(layer), torch.zeros(directions, width, dtype=torch.int64))

    def seed(self, counts: Mapping[str, Tensor]) -> None:
        """Begin with these counts, layer -> int64 ``[N, F]``."""
        for layer, rows in counts.items():
            self[layer].copy_(rows * _PARTS)

    def count(self, layer: str, preactivation: Tensor, real: Tensor, rows: Tensor) -> None:
        """Count the tokens on which each neuron is > 0, dropped ones too.

        Args:
            preactivation: ``[T, B, F]``, before ReLU and without a mask.
            real: bool ``[T, B]``, False for padding.
            rows: int64 ``[B]`` or ``[1]``: each sentence's direction, or that of all.
        """
        active, counted = (preactivation > 0).float(), real.float()
        # Sums of 0/1 are exact in fp32 below 2**24 tokens a batch; autocast would round them to half precision.
        with torch.autocast(preactivation.device.type, enabled=False):
            if len(rows) == 1:
                sums = (counted.flatten() @ active.flatten(0, 1))[None]
            else:
                sums = torch.einsum("tb,tbf->bf", counted, active)
        if layer not in self.pending:
            self.pending[layer] = torch.zeros_like(self[layer])
        self.pending[layer].index_add_(0, rows, sums.long())

    def fold(self, add_over_processes: Callable[[Tensor], Tensor] = lambda counts: counts) -> None:
        """Take in what the running update counted, in all its batches and all processes."""
        counted = [self.pending.get(layer, torch.zeros_like(self[layer])) for layer in self.layers]
        sums = add_over_processes(torch.cat([rows.flatten() for rows in counted]))
        sizes = [self[layer].numel() for layer in self.layers]
        for layer, flat in zip(self.layers, sums.split(sizes), strict=True):
            before, new = self[layer], flat.view_as(self[layer])
            decayed = (before.double() * self.decay).long()
            was_counted = new.any(dim=1, keepdim=True)  # one that had no batch forgets nothing
            before.copy_(torch.where(was_counted, decayed + new * _PARTS, before))
        self.pending.clear()

    def select(
        self, kept: Mapping[str, Tensor], choose: Callable[[str, int, Tensor], Tensor]
    ) -> dict[str, Tensor]:
        """New masks, site -> bool ``[N, F]``, on the CPU.

        Args:
            kept: the present masks. They stay where there is no count: of heads, and of a direction in a layer
                before its first count.
            choose: layer, row and its counts, int64 ``[F]``, to bool ``[F]``.
        """
        selected = {site: rows.cpu().clone() for site, rows in kept.items()}
        for layer in selected.keys() & self.layers:
            for row, counts in enumerate(self[layer].cpu()):
                if counts.any():
                    selected[layer][row] = choose(layer, row, counts)
        return selected


class Scores(_State):
    """Learned masks: per site a parameter ``[N, F]`` whose largest entries are kept.

    Attributes:
        budget: site -> int64 ``[N]``, how many units each direction keeps.
    """

    def __init__(
        self,
        kept: Mapping[str, Tensor],
        budget: Mapping[str, Tensor],
        gap: float,
        counts: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Start at given masks.

        Args:
            kept: site -> bool ``[N, F]``; exactly these are kept at the start where the budget is as large.
            gap: between the scores of kept and dropped units. Only its ratio to the learning rate matters: under
                Adam a score moves by about the learning rate per update.
            counts: layer -> ``[N, F]``: spread the kept, and the dropped, by the order of these.
        """
        super().__init__()
        self.budget = dict(budget)
        for site, rows in kept.items():
            scores = gap * (rows.float() - 0.5)
            if counts is not None and site in counts:
                order = counts[site].argsort(dim=1, descending=True, stable=True)
                place = torch.empty_like(scores).scatter_(
                    1, order, torch.arange(rows.size(1)).float().expand_as(scores)
                )
                # A little less than half a gap each way, so that no dropped unit passes a kept one.
                scores = scores + 0.99 * gap * (0.5 - place / rows.size(1))
            self.register_parameter(self.name(site), nn.Parameter(scores))

    def masks(self) -> dict[str, Tensor]:
        """Site -> bool ``[N, F]``; every row keeps exactly its budget."""
        return {
            site: top(self[site].detach(), budget.to(self[site].device))
            for site, budget in self.budget.items()
        }


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, emitted: Tensor, scores: Tensor, effect: Tensor) -> Tensor:
        ctx.save_for_backward(effect)
        ctx.shape, ctx.dtype = scores.shape, scores.dtype
        return emitted.view_as(emitted)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (effect,) = ctx.saved_tensors
        units = ctx.shape[-1]
        product = (grad.float() * effect.float()).unflatten(-1, (units, -1)).sum(dim=(0, -1))  # [B, F]
        of_scores = product.sum(0) if len(ctx.shape) == 1 else product
        return grad, of_scores.to(ctx.dtype), None


def straight_through(emitted: Tensor, scores: Tensor, effect: Tensor) -> Tensor:
    """``emitted``, bit for bit; the gradient of the loss by the mask goes to the scores.

    The mask xi of a unit stands between what it emits dropped and kept: ``dropped + xi * effect``. So dL/dxi is
    ``effect`` times the gradient of what is emitted, summed, whether the unit is kept or not: a dropped neuron whose
    constant is 0 would have no gradient by a mask on W1 x, and could never return.

    Args:
        emitted: ``[T, B, F * d]``, what the units emit under their masks; d = 1 for neurons, a head's width for heads.
        scores: ``[F]`` of all sentences, or ``[B, F]``.
        effect: ``[T, B, F * d]``, what a unit emits more when kept than when dropped; no gradient goes there.
    """
    out: Tensor = _StraightThrough.apply(emitted, scores, effect)
    return out
