"""``neuron_spec_adapters``: fairseq's transformer with bottleneck adapters: a few weights of its own, after each layer,
for every group of directions.

``x + Up(ReLU(Down(LayerNorm(x))))``, as in Bapna and Firat, *Simple, Scalable Adaptation for Neural Machine
Translation* (EMNLP 2019). Up starts at zero, so that a model with new adapters is the model without them. Directions
find their adapters as they find their masks. A checkpoint carries adapters and groups, and needs no flags to translate.

All groups' weights are stacked in one tensor, for which an absent group's gradient is zero, not missing. Under
Adam its weights thus go on with their momentum in updates that hold none of its directions, as they would
not if every adapter were a parameter of its own, or trained alone. Stacked, they behave the same in one
process and in many, in full and in half precision (which give every parameter a gradient in any case), and
just as dropped neurons do in the systems they are compared with. `--update-freq` brings many directions
into each update.

Axis letters: G groups, T tokens, B sentences, D model, A bottleneck.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from fairseq.models import register_model
from torch import Tensor, nn

from neuron_spec.artifacts import CORPUS_CARD
from neuron_spec.corpora.build import read_families
from neuron_spec.directions import Direction, direction_id
from neuron_spec.errors import ModelError
from neuron_spec.languages import UNKNOWN, is_english, language
from neuron_spec.models.neuron_spec_transformer import (
    NeuronSpecTransformer,
    register_architectures,
    sides_of,
)
from neuron_spec.modules.specialized_ffn import Route
from neuron_spec.neurons.activations import language_of

ADAPTERS = ("pair", "direction", "family", "language")
BASE = ("frozen", "trained")
_ROWS = "adapter_rows"


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
    if kind == "language" or is_english(lang):
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
        last = len(self.down_weight) - 1
        if route.rows is None:
            (group,) = route.distinct
            if group > last:
                return x
            hidden = F.layer_norm(x, x.shape[-1:], self.norm_weight[group], self.norm_bias[group])
            hidden = F.relu(F.linear(hidden, self.down_weight[group], self.down_bias[group]))
            return x + F.linear(hidden, self.up_weight[group], self.up_bias[group])
        groups = route.rows.clamp(max=last)  # [B]
        hidden = F.layer_norm(x, x.shape[-1:]) * self.norm_weight[groups] + self.norm_bias[groups]
        hidden = torch.einsum("tbd,bad->tba", hidden, self.down_weight[groups]) + self.down_bias[groups]
        added = torch.einsum("tba,bda->tbd", F.relu(hidden), self.up_weight[groups]) + self.up_bias[groups]
        return x + added * (route.rows <= last).unsqueeze(1)


def _let_gradients_through(layer: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    # A checkpointed layer is computed again only where its input wants a gradient, and a frozen
    # embedding's output does not.
    x, *others = args
    if torch.is_grad_enabled() and not x.requires_grad:
        x = x.detach().requires_grad_()
    return (x, *others)


class _AdaptedLayer:
    """Mixin for our layers: an adapter on the output."""

    adapter: Adapter | None

    def __init__(self, cfg: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(cfg, *args, **kwargs)  # type: ignore[call-arg]
        self.adapter = None
        if cfg.checkpoint_activations:
            self.register_forward_pre_hook(_let_gradients_through)  # type: ignore[attr-defined]

    def forward(self, *args: Any, route: Route | None = None, **kwargs: Any) -> Any:
        """As the parent, then through the adapters that ``route`` says."""
        out = super().forward(*args, **kwargs)  # type: ignore[misc]
        if self.adapter is None:
            return out
        assert route is not None
        if isinstance(out, Tensor):
            return self.adapter(out, route)
        x, *others = out
        return (self.adapter(x, route), *others)


@register_model("neuron_spec_adapters")
class NeuronSpecAdapters(NeuronSpecTransformer):
    """fairseq's transformer with adapters; each side's buffer ``adapter_rows`` is as `AdapterGroups.rows`."""

    no_masks = "this model has adapters, and takes no masks"
    encoder_class, decoder_class = sides_of(_AdaptedLayer, parts="adapters", rows_buffer=_ROWS)

    @classmethod
    def add_args(cls, parser: argparse.ArgumentParser) -> None:
        super().add_args(parser)
        parser.add_argument(
            "--adapters",
            choices=ADAPTERS,
            default="pair",
            help="who shares one: both directions of a pair, nobody, or in the encoder the directions from a "
            "language or family, in the decoder those into one (default %(default)s)",
        )
        parser.add_argument(
            "--adapter-size", type=int, default=64, metavar="N", help="bottleneck (default %(default)s)"
        )
        parser.add_argument(
            "--base",
            choices=BASE,
            default="frozen",
            help="train the adapters alone, as in the literature, or all weights (default %(default)s)",
        )
        parser.add_argument(
            "--adapter-families",
            default=None,  # said, because fairseq else leaves the flag out where it was not given
            metavar="FILE",
            help="JSON of language to family, or a corpus card; default: the card beside the data-bin, "
            "else the language table",
        )

    def start_training(
        self, args: argparse.Namespace, directions: Sequence[Direction], langs: Sequence[str]
    ) -> None:
        """Add new adapters for ``directions``, and freeze the rest of the model unless told otherwise.

        Raises:
            ModelError: if a language has no family, or the bottleneck no width.
            ArtifactError: if the file of families cannot be read.
        """
        if args.adapter_size < 1:
            raise ModelError("an adapter needs a bottleneck", got=f"--adapter-size {args.adapter_size}")
        families = _families(args, langs) if args.adapters == "family" else {}
        for side in self.sides:
            groups = adapter_groups(args.adapters, side.side, directions, langs, families)
            self._add_adapters(side, groups.rows, len(groups.names), args.adapter_size)
        if args.base == "frozen":
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(".adapter." in name)

    def _add_adapters(self, side: Any, rows: Tensor, groups: int, size: int) -> None:
        """New ones in every layer of a side, which change nothing yet."""
        for layer in side.numbered_layers().values():
            weight = layer.fc1.weight
            layer.adapter = Adapter(groups, weight.size(1), size).to(weight)
        setattr(side, _ROWS, rows.to(weight.device))

    def adapter_layers(self) -> dict[str, Adapter]:
        """Layer key (``encoder.layers.0``) -> its adapters; empty before there are any."""
        adapters = {key: layer.adapter for key, layer in self.numbered_layers().items()}
        return {key: adapter for key, adapter in adapters.items() if adapter is not None}

    def upgrade_state_dict_named(self, state_dict: dict[str, Tensor], name: str) -> None:
        """Let a dense checkpoint start a model with adapters, and one with adapters load without flags.

        Raises:
            ModelError: as the parent, or if model and checkpoint both have adapters, of other directions
                or sizes.
        """
        super().upgrade_state_dict_named(state_dict, name)
        if self.has_masks:
            self.require_takes_masks("a checkpoint with neuron masks")
        prefix = f"{name}." if name else ""
        if f"{prefix}encoder.{_ROWS}" not in state_dict:
            ours = self.state_dict()
            state_dict.update({prefix + key: value for key, value in ours.items() if _is_adapters(key)})
        elif not self.adapter_layers():
            for side in self.sides:
                groups, size, _ = state_dict[f"{prefix}{side.side}.layers.0.adapter.down_weight"].shape
                self._add_adapters(side, state_dict[f"{prefix}{side.side}.{_ROWS}"].clone(), groups, size)
        else:
            self._require_the_same(state_dict, prefix)

    def _require_the_same(self, state_dict: Mapping[str, Tensor], prefix: str) -> None:
        for key, ours in self.state_dict().items():
            theirs = state_dict.get(prefix + key)
            if not _is_adapters(key) or theirs is None:  # a missing key is fairseq's to report
                continue
            is_the_same = (
                torch.equal(ours.cpu(), theirs.cpu()) if key.endswith(_ROWS) else ours.shape == theirs.shape
            )
            if not is_the_same:
                raise ModelError(
                    "the checkpoint has adapters of other directions or another size",
                    where=key,
                    got=f"{_describe(theirs)} in the checkpoint",
                    expected=f"{_describe(ours)}, from --langs, --lang-pairs, --adapters and --adapter-size",
                    mend="give the flags it was trained with, or start from a dense checkpoint",
                )


def _is_adapters(key: str) -> bool:
    return ".adapter." in key or key.endswith(f".{_ROWS}")


def _describe(tensor: Tensor) -> str:
    if tensor.dtype != torch.int64:
        return "x".join(map(str, tensor.shape))
    return f"{int((tensor >= 0).sum())} directions in {int(tensor.max()) + 1} groups"


def _families(args: argparse.Namespace, langs: Sequence[str]) -> dict[str, str]:
    """Language -> family, from the file named, the card beside the data-bin, or the language table."""
    above = Path(args.data.split(os.pathsep)[0]).absolute().parents[:2]  # of a shard: two levels up
    path = args.adapter_families or next(
        (folder / CORPUS_CARD for folder in above if (folder / CORPUS_CARD).is_file()), None
    )
    if path is None:
        return {code: language(code).family for code in langs}
    return read_families(path)


register_architectures("neuron_spec_adapters")
