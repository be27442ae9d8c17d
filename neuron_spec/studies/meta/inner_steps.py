"""Meta-learning without fairseq: inner steps that adapt the weights, and what they leave for the outer step.

First-order MAML (Finn, Abbeel and Levine 2017) takes the outer gradient at the adapted weights, as Langedijk et al.
(ACL 2022) do for low-resource parsing; Reptile (Nichol, Achiam and Schulman 2018) takes the way there. The inner
optimizer is plain SGD.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

# The loss summed over tokens, a scalar, and over how many: fairseq's pair of loss and sample size.
Loss = Callable[[], tuple[Tensor, float]]
Gradients = Sequence[Tensor | None]


@contextmanager
def restored(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Put the weights back, bit for bit, however the block ends."""
    saved = [parameter.detach().clone() for parameter in parameters]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, before in zip(parameters, saved, strict=True):
                parameter.copy_(before)


def adapt(
    parameters: Sequence[Tensor],
    loss: Loss,
    *,
    steps: int,
    rate: float,
    seen: Callable[[Gradients], None] | None = None,
) -> Tensor:
    """Inner steps, in place: ``steps`` times ``p -= rate * gradient``, of the mean loss per token.

    ``p.grad`` is neither read nor written. A weight whose gradient is zero, such as a row that a mask drops,
    keeps its bits.

    Args:
        seen: called before each step with the gradients of the loss' sum, None for a parameter it does not use.

    Returns:
        The mean loss per token before each step, `[steps]`.
    """
    losses = []
    for _ in range(steps):
        total, size = loss()
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
        losses.append(total.detach() / size)
        if seen is not None:
            seen(gradients)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    parameter.sub_(gradient, alpha=rate / size)
    return torch.stack(losses)


def accumulate(parameters: Sequence[Tensor], gradients: Gradients, scale: float) -> None:
    """Add ``scale`` times the gradients to ``p.grad``, as a backward pass would."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None and parameter.grad is not None:
            parameter.grad.add_(gradient, alpha=scale)
        elif gradient is not None:
            parameter.grad = gradient * scale


def reptile(parameters: Sequence[Tensor], loss: Loss, *, steps: int, rate: float) -> Tensor:
    """`adapt`, adding Reptile's gradient to ``p.grad``: the mean of the gradients along the way.

    That is ``(before - after) / (rate * steps)`` times the loss' size, without the rounding of the difference
    (ours: Reptile itself leaves the scale to the outer rate). So one step gives the ordinary gradient, bit for
    bit, and clipping and the outer learning rate mean what they do in ordinary training.
    """
    add = partial(accumulate, parameters, scale=1 / steps)
    return adapt(parameters, loss, steps=steps, rate=rate, seen=add)
