"""What does a training step on one direction do to the loss of every other?

Transfer, after the lookahead of Fifty et al. (2021): how the validation loss of every direction changes with a
step on the training text of one. Ours in the step: plain gradient descent of a fixed length in the space of
parameters, so that directions with steep losses do not look more influential.

Gradients go through a checkpoint's masks where it has any. It needs single precision.

Axis letters: D directions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neuron_spec.errors import ModelError
from neuron_spec.neurons.choices import Part
from neuron_spec.neurons.pairs import Compared, by_name, by_names, mean_known

if TYPE_CHECKING:  # a report starts without fairseq
    from neuron_spec.backends.fairseq.loading import TeacherForced

INTACT = "intact"


class Lookahead:
    """A checkpoint, text to step on and text to measure on.

    Attributes:
        steps: one text per step.
        valid: what losses are measured on.
        norm: the length of all trained parameters taken as one vector.
    """

    def __init__(
        self, model: TeacherForced, *, train_subset: str, gen_subset: str, steps: int, sentences: int
    ) -> None:
        """``sentences`` are those of a direction in one step, its steps taken from one sample in turns."""
        self.model = model
        self.steps = [
            model.read(train_subset, sentences=steps * sentences, part=Part(number, steps))
            for number in range(1, steps + 1)
        ]
        self.valid = model.read(gen_subset)
        self._before = {name: p.detach().clone() for name, p in model.trained.items()}
        self.norm = _length(self._before)

    def losses(self, row: int | None, lr: float, each_batch: Callable[[], Any] = lambda: None) -> list[float]:
        """Every direction's loss on the validation text, nats per token, after the steps on one direction.

        The checkpoint is as before afterwards.

        Args:
            row: of the direction that is stepped on; None: no step.
            lr: the length of a step, in the Euclidean norm over all trained parameters.
        """
        try:
            for text in self.steps if row is not None else ():
                assert row is not None
                gradient = self.model.gradients(text, row, each_batch)
                length = _length(gradient)
                if not 0 < length < float("inf"):
                    raise ModelError(
                        "a gradient without a direction to step in",
                        where=self.model.directions[row],
                        got=f"length {length}",
                    )
                with torch.no_grad():
                    for name, parameter in self.model.trained.items():
                        parameter.sub_(gradient[name], alpha=lr / length)
            return self.model.mean_losses(self.valid, each_batch)
        finally:
            with torch.no_grad():
                for name, parameter in self.model.trained.items():
                    parameter.copy_(self._before[name])


def _length(tensors: Mapping[str, Tensor]) -> float:
    return torch.stack([t.double().norm() for t in tensors.values()]).norm().item()


def transfer_rows(
    folder: Path,
    names: Sequence[str],
    sign: Callable[[str], Mapping[str, Any]],
    load: Callable[[], Lookahead],
    lr: float,
) -> dict[str, Any]:
    """Every direction's loss after no step, ``intact``, and after steps on each direction.

    Args:
        folder, sign, load: as `measured_rows` takes them.
        names: of the D directions.

    Returns:
        ``intact`` and the directions' names -> ``nats``, direction -> its loss per target token, and besides
        ``tokens``, ``step_tokens`` and ``norm``.
    """
    from neuron_spec.backends.fairseq.loading import measured_rows

    rows: dict[str, int | None] = {INTACT: None, **{name: row for row, name in enumerate(names)}}

    def batches(ahead: Lookahead, name: str) -> int:
        row = rows[name]
        return len(ahead.valid.batches) + sum(len(t.of(row)) for t in ahead.steps if row is not None)

    def measure(ahead: Lookahead, name: str, each_batch: Callable[[], Any]) -> dict[str, Any]:
        row = rows[name]
        return {
            "nats": ahead.model.by_name(ahead.losses(row, lr, each_batch)),
            "tokens": ahead.model.by_name(ahead.valid.tokens),
            "step_tokens": [] if row is None else [text.tokens[row] for text in ahead.steps],
            "norm": ahead.norm,
        }

    what = "row of a transfer"
    return measured_rows(rows, folder, sign, load, batches=batches, measure=measure, what=what)


@dataclass(frozen=True)
class Transfer:
    """Losses before and after steps.

    Attributes:
        tokens: target tokens of each direction's validation text.
        intact: float64 `[D]`, nats per token before.
        after: float64 `[D, D]`, after steps on the direction of the row, of that of the column.
        norm: the length of the parameters, beside which a step is small.
    """

    tokens: Sequence[int]
    intact: Tensor
    after: Tensor
    norm: float

    @property
    def change(self) -> Tensor:
        """float64 `[D, D]`, nats per token; negative = transfer helps."""
        return self.after - self.intact

    @property
    def relative(self) -> Tensor:
        """float64 `[D, D]`, change over what the row's own direction gains: -1 on the diagonal.

        NaN in rows whose own direction gains nothing.
        """
        gain = -self.change.diagonal()
        return self.change / gain.where(gain > 0, torch.nan)[:, None]


def summarize_transfer(compared: Compared, transfer: Transfer, *, seed: int) -> dict[str, Any]:
    """What stands in ``transfer.json``, without its signature.

    Args:
        seed: of random relabellings.
    """
    names, change = compared.names, transfer.change
    return {
        "unit": "nats per target token",
        "tokens": dict(zip(names, transfer.tokens, strict=True)),
        "parameter_norm": transfer.norm,
        "intact": by_name(names, transfer.intact),
        "change": by_names(names, names, change),
        "relative": by_names(names, names, transfer.relative),
        "groups": {
            kind: {
                "pairs": int(pairs.sum()),
                "own": mean_known(change.diagonal()[pairs.any(dim=1)]),
                "others": mean_known(change[pairs]),
                "relative": mean_known(transfer.relative[pairs]),
                "harmed_fraction": mean_known((change[pairs] > 0).double()),
            }
            for kind, pairs in compared.pairs().items()
        },
        "families": compared.family_tests(-change, seed),
        "overlap": compared.overlap_tests(-change, seed),
    }
