"""``neuron_spec_adapters``: fairseq's transformer with a bottleneck adapter after each layer.

A baseline: what a direction may keep to itself are added weights, not neurons of the model. Directions find
their adapters as they find their masks. A checkpoint carries adapters and groups, and needs no flags to translate.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from fairseq.models import register_model
from torch import Tensor

from neuron_spec.artifacts import CORPUS_CARD, read_json
from neuron_spec.directions import Direction, language
from neuron_spec.errors import ModelError
from neuron_spec.models.neuron_spec_transformer import (
    NeuronSpecTransformer,
    SpecializedDecoder,
    SpecializedDecoderLayer,
    SpecializedEncoder,
    SpecializedEncoderLayer,
    register_architectures,
)
from neuron_spec.modules.specialized_ffn import Route
from neuron_spec.studies.adapters.module import ADAPTERS, Adapter, adapter_groups

BASE = ("frozen", "trained")
_ROWS = "adapter_rows"


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


class AdaptedEncoderLayer(_AdaptedLayer, SpecializedEncoderLayer):
    """An encoder layer with an adapter."""


class AdaptedDecoderLayer(_AdaptedLayer, SpecializedDecoderLayer):
    """A decoder layer with an adapter."""


class _AdaptedSide:
    """Mixin for our encoder and decoder: routes by groups of directions.

    Attributes:
        adapter_rows: buffer, int64 ``[langs * langs]``: direction id -> group, -1 where it has none.
    """

    parts = "adapters"
    rows_buffer = _ROWS
    adapter_rows: Tensor | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer(_ROWS, None)  # type: ignore[attr-defined]

    def set_adapters(self, rows: Tensor, groups: int, size: int) -> None:
        """Give every layer new adapters, which change nothing yet; ``rows`` as `AdapterGroups.rows`."""
        for layer in self.numbered_layers().values():  # type: ignore[attr-defined]
            weight = layer.fc1.weight
            layer.adapter = Adapter(groups, weight.size(1), size).to(weight)
        self.adapter_rows = rows.to(weight.device)


class AdaptedEncoder(_AdaptedSide, SpecializedEncoder):
    """Routes by the encoder's groups."""

    layer_class = AdaptedEncoderLayer


class AdaptedDecoder(_AdaptedSide, SpecializedDecoder):
    """Routes by the decoder's groups."""

    layer_class = AdaptedDecoderLayer


@register_model("neuron_spec_adapters")
class NeuronSpecAdapters(NeuronSpecTransformer):
    """fairseq's transformer with adapters."""

    no_masks = "this model has adapters, and takes no masks"
    encoder_class = AdaptedEncoder
    decoder_class = AdaptedDecoder

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
            side.set_adapters(groups.rows, len(groups.names), args.adapter_size)
        if args.base == "frozen":
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(".adapter." in name)

    @property
    def sides(self) -> tuple[AdaptedEncoder, AdaptedDecoder]:
        return self.encoder, self.decoder

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
            self._take_the_shapes_of(state_dict, prefix)
        else:
            self._require_the_same(state_dict, prefix)

    def _take_the_shapes_of(self, state_dict: Mapping[str, Tensor], prefix: str) -> None:
        for side in self.sides:
            groups, size, _ = state_dict[f"{prefix}{side.side}.layers.0.adapter.down_weight"].shape
            side.set_adapters(state_dict[f"{prefix}{side.side}.{_ROWS}"].clone(), groups, size)

    def _require_the_same(self, state_dict: Mapping[str, Tensor], prefix: str) -> None:
        for key, ours in self.state_dict().items():
            theirs = state_dict.get(prefix + key)
            if not _is_adapters(key) or theirs is None:  # a missing key is fairseq's to report
                continue
            is_other = (
                not torch.equal(ours.cpu(), theirs.cpu())
                if key.endswith(_ROWS)
                else ours.shape != theirs.shape
            )
            if is_other:
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
    content = read_json(path, "families of the languages")
    families = content.get("families", content) if isinstance(content, dict) else None
    if not isinstance(families, dict) or not all(isinstance(family, str) for family in families.values()):
        raise ModelError(
            "not a file of families", where=path, expected='JSON such as {"de": "Germanic"}, or a corpus card'
        )
    return families


register_architectures("neuron_spec_adapters")
