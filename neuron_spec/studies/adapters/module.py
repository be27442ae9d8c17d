"""Bottleneck adapters: a few weights of its own, after each layer, for every group of directions.

``x + Up(ReLU(Down(LayerNorm(x))))``, as in Bapna and Firat, *Simple, Scalable Adaptation for Neural Machine
Translation* (EMNLP 2019). Up starts at zero, so that a model with new adapters is the model without them.

All groups' weights are stacked in one tensor, for which an absent group's gradient is zero, not missing. Under
Adam its weights thus go on with their momentum in updates that hold none of its directions, as they would
not if every adapter were a parameter of its own, or trained alone. Stacked, they behave the same in one
process and in many, in full and in half precision (which give every parameter a gradient in any case), and
just as dropped neurons do in the systems they are compared with. `--update-freq` brings many directions
into each update.

Axis letters: G groups, T tokens, B sentences, D model, A bottleneck.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuron_spec.directions import ENGLISH, UNKNOWN, Direction, direction_id
from neuron_spec.errors import ModelError
from neuron_spec.modules.specialized_ffn import Route
from neuron_spec.neurons.activations import language_of

ADAPTERS = ("pair", "direction", "family", "language")


@dataclass(frozen=True)
class AdapterGroups:
    """Which directions share an adapter, on one side of the model.

    Attributes:
        names: the groups, in the order of their rows.
        rows: int64 ``[langs * langs]``: direction id -> group, -1 where it has none.
    """

    names: tuple[str, ...]
    rows: Tensor


def adapter_groups(
    kind: str, side: str, directions: Sequence[Direction], langs: Sequence[str], families: Mapping[str, str]
) -> AdapterGroups:
    """Group directions.

    Args:
        kind: one of `ADAPTERS`. *direction*: each has its own. *pair*: both directions of two languages share
            (ours: the paper says "language pair"). *language*: the encoder's by source, the decoder's by target
            (as Philip et al. 2020). *family*: the same by the language's family, English being one of its own
            (families as Chronopoulou et al. 2023; that both sides choose for themselves is ours).
        side: ``encoder`` or ``decoder``.
        families: language -> family; read for *family* alone.

    Raises:
        ModelError: if a language has no family.
        DirectionError: if a direction's language is not in ``langs``.
    """
    group_of = {direction: _group(kind, side, direction, families) for direction in directions}
    names = tuple(dict.fromkeys(group_of.values()))
    rows = torch.full((len(langs) ** 2,), -1)
    for direction, name in group_of.items():
        rows[direction_id(direction, langs)] = names.index(name)
    return AdapterGroups(names, rows)


def _group(kind: str, side: str, direction: Direction, families: Mapping[str, str]) -> str:
    lang = language_of(direction, side)
    if kind == "direction":
        return str(direction)
    if kind == "pair":
        return "-".join(sorted((direction.source, direction.target)))
    if kind == "language" or lang == ENGLISH:
        return lang
    if (family := families.get(lang, UNKNOWN)) == UNKNOWN:
        raise ModelError(
            "a language without a family",
            got=lang,
            expected="a family for every language",
            mend='name them: --adapter-families FILE, JSON such as {"de": "Germanic"}, or a corpus card',
        )
    return family


class Adapter(nn.Module):
    """One layer's adapters, of all groups."""

    def __init__(self, groups: int, model_dim: int, size: int) -> None:
        super().__init__()
        self.norm_weight = nn.Parameter(torch.ones(groups, model_dim))
        self.norm_bias = nn.Parameter(torch.zeros(groups, model_dim))
        bound = model_dim**-0.5  # what torch's Linear draws from
        self.down_weight = nn.Parameter(torch.empty(groups, size, model_dim).uniform_(-bound, bound))
        self.down_bias = nn.Parameter(torch.zeros(groups, size))
        self.up_weight = nn.Parameter(torch.zeros(groups, model_dim, size))
        self.up_bias = nn.Parameter(torch.zeros(groups, model_dim))

    def forward(self, x: Tensor, route: Route) -> Tensor:
        """``[T, B, D]`` to ``[T, B, D]``; sentences of row G, one past the last, stay as they are."""
        if len(route.distinct) == 1:
            (group,) = route.distinct
            return x if group == len(self.down_weight) else self._one_group(x, group)
        assert route.rows is not None
        return self._per_sentence(x, route.rows)

    def _one_group(self, x: Tensor, group: int) -> Tensor:
        hidden = F.layer_norm(x, x.shape[-1:], self.norm_weight[group], self.norm_bias[group])
        hidden = F.relu(F.linear(hidden, self.down_weight[group], self.down_bias[group]))
        return x + F.linear(hidden, self.up_weight[group], self.up_bias[group])

    def _per_sentence(self, x: Tensor, rows: Tensor) -> Tensor:
        last = len(self.down_weight) - 1
        group = rows.clamp(max=last)
        hidden = F.layer_norm(x, x.shape[-1:]) * self.norm_weight[group] + self.norm_bias[group]
        hidden = torch.einsum("tbd,bad->tba", hidden, self.down_weight[group]) + self.down_bias[group]
        added = torch.einsum("tba,bda->tbd", F.relu(hidden), self.up_weight[group]) + self.up_bias[group]
        return x + added * (rows <= last).unsqueeze(1)
