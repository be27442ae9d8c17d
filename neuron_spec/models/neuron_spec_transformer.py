"""``neuron_spec_transformer``: fairseq's transformer whose FFNs and attentions are specialized per direction.

Without masks it is the plain transformer, and its checkpoints have the plain transformer's keys. Masks
are buffers, so a specialized checkpoint carries them and needs no mask file to translate.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from fairseq.models import register_model, register_model_architecture
from fairseq.models.bart import BARTModel
from fairseq.models.transformer import (
    TransformerDecoderBase,
    TransformerEncoderBase,
    TransformerModel,
    transformer_legacy,
)
from fairseq.modules.checkpoint_activations import checkpoint_wrapper
from fairseq.modules.transformer_layer import TransformerDecoderLayerBase, TransformerEncoderLayerBase
from torch import Tensor, nn

from neuron_spec.directions import Direction, direction_id, direction_of
from neuron_spec.errors import ModelError
from neuron_spec.modules.finite import not_finite
from neuron_spec.modules.specialized_attention import SpecializedAttention
from neuron_spec.modules.specialized_ffn import Route, SpecializedFC1, SpecializedFC2
from neuron_spec.neurons.activations import ATTENTIONS
from neuron_spec.neurons.choices import DROPPED_NEURONS, FFN_PATHS, FROZEN_WEIGHTS, SIDES
from neuron_spec.neurons.masks import NeuronMasks

# fairseq's own models that are this one without masks: mBART's differs in how it classifies, which translates nothing.
PLAIN = (TransformerModel, BARTModel)
_MISSING = -1
_ROWS = "mask_rows"
_NEURON_MASK, _HEAD_MASK = "neuron_mask", "head_mask"


def rows_of(directions: Sequence[Direction], langs: Sequence[str]) -> Tensor:
    """Direction id -> its place among ``directions``, int64 ``[langs * langs]``; -1 where it has none.

    Raises:
        DirectionError: if one names a language that is not in ``langs``.
    """
    rows = torch.full((len(langs) ** 2,), _MISSING)
    for row, direction in enumerate(directions):
        rows[direction_id(direction, langs)] = row
    return rows


def mask_state(masks: NeuronMasks, langs: Sequence[str]) -> dict[str, Tensor]:
    """What a specialized checkpoint holds beside a dense one's weights, of masks of neurons.

    Raises:
        DirectionError: if they name a language that is not in ``langs``.
    """
    kept = {f"{layer}.fc1.{_NEURON_MASK}": masks.kept[layer] for layer in masks.layers}
    return kept | dict.fromkeys((f"{side}.{_ROWS}" for side in SIDES), rows_of(masks.directions, langs))


@dataclass
class Running:
    """The route of one side's running forward pass, shared with its layers."""

    route: Route | None = None


class _SpecializedLayer:
    """Mixin for fairseq's layers: an FFN made of our two Linears, and our attentions."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # fairseq 0.12.2 has a fast path in evaluation that reads the raw weights, past our Linears.
        self.can_use_fastpath = False
        self.fc1.activation = self.activation_fn  # type: ignore[attr-defined]
        self.fc1.activation_dropout = self.activation_dropout_module.p  # type: ignore[attr-defined]
        self.fc2.follow(self.fc1)  # type: ignore[attr-defined]
        present = [name for name in ATTENTIONS if getattr(self, name, None) is not None]
        self.attentions = {name: SpecializedAttention.of(getattr(self, name)) for name in present}
        self.specialized = (self.fc1, *self.attentions.values())  # type: ignore[attr-defined]
        self.running = Running()
        # Before forward, which activation checkpointing wraps: so the route is among the arguments that
        # it keeps for the second forward.
        self.register_forward_pre_hook(  # type: ignore[attr-defined]
            lambda layer, args, kwargs: (args, {"route": layer.running.route, **kwargs}), with_kwargs=True
        )

    def forward(self, *args: Any, route: Route | None = None, **kwargs: Any) -> Any:
        """As the parent, its FFN and attentions along ``route``."""
        for part in self.specialized:
            part.route = route
        try:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        finally:
            for part in self.specialized:
                part.route = None

    def build_fc1(self, input_dim: int, output_dim: int, *quant_noise: Any) -> SpecializedFC1:
        return SpecializedFC1(input_dim, output_dim)

    def build_fc2(self, input_dim: int, output_dim: int, *quant_noise: Any) -> SpecializedFC2:
        return SpecializedFC2(input_dim, output_dim)


class SpecializedEncoderLayer(_SpecializedLayer, TransformerEncoderLayerBase):
    """An encoder layer with a specialized FFN."""


class SpecializedDecoderLayer(_SpecializedLayer, TransformerDecoderLayerBase):
    """A decoder layer with a specialized FFN."""


class _SpecializedSide:
    """Mixin for the encoder and the decoder: finds each sentence's mask row and routes the layers.

    A model of other parts than masks, such as adapters, names them, and has a buffer of its own for their rows.

    Attributes:
        mask_rows: buffer, int64 ``[langs * langs]``: direction id -> mask row, -1 where it has none.
    """

    side: str
    parts = "masks"
    rows_buffer = _ROWS
    mask_rows: Tensor | None
    layer_class: type[_SpecializedLayer]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in (_ROWS, self.rows_buffer):
            self.register_buffer(name, None)  # type: ignore[attr-defined]
        self.running = Running()
        self.langs: Sequence[str] = ()
        self.missing_direction = "error"
        # The last item only holds mask_rows, so that no later one gets its id.
        self._lookup: tuple[tuple[Any, ...], list[int], Tensor, Tensor] | None = None
        for layer in self.numbered_layers().values():
            layer.running = self.running

    @property
    def rows(self) -> Tensor | None:
        """The buffer of rows; None in a dense model."""
        rows: Tensor | None = getattr(self, self.rows_buffer)
        return rows

    def numbered_layers(self) -> dict[str, Any]:
        """Layer key (``encoder.layers.0``) -> the layer."""
        # Not by iterating self.layers, which skips layers at random under layer drop.
        layers = self.layers.named_children()  # type: ignore[attr-defined]
        return {f"{self.side}.layers.{number}": layer for number, layer in layers}

    @contextmanager
    def routed(self, direction_ids: Tensor | None, distinct_ids: Sequence[int]) -> Iterator[None]:
        """Send the forward pass inside the block through its sentences' neurons.

        Args:
            direction_ids: int64 ``[B]``, on the model's device.
            distinct_ids: the same ids, each once, on the host.

        Raises:
            ModelError: if no ids came, or a direction has no parts and ``missing_direction`` says error.
        """
        previous, self.running.route = self.running.route, self._route(direction_ids, distinct_ids)
        try:
            yield
        finally:
            self.running.route = previous

    def _route(self, direction_ids: Tensor | None, distinct_ids: Sequence[int]) -> Route | None:
        if self.rows is None:
            return None
        if direction_ids is None:
            raise ModelError(
                f"a specialized model was run without direction ids, which would ignore its {self.parts}",
                where=self.side,
                mend="use --task neuron_specialization, which gives every sentence its direction",
            )
        # On the CPU nothing is waited for, and a mistake is found before it reaches a GPU.
        if direction_ids.device.type == "cpu" and not {*direction_ids.tolist()} <= {*distinct_ids}:
            raise ModelError(
                "distinct_ids are not those of direction_ids",
                where=self.side,
                got=f"distinct_ids {list(distinct_ids)}, direction_ids {direction_ids.unique().tolist()}",
                mend="set both, or leave out distinct_ids",
            )
        on_host, on_device = self._rows_of_directions(self.rows)
        distinct = tuple(sorted({on_host[i] for i in distinct_ids}))
        if _MISSING in distinct:
            missing = [self._name(i) for i in distinct_ids if on_host[i] == _MISSING]
            raise ModelError(
                f"directions without {self.parts}",
                where=self.side,
                got=", ".join(missing),
                expected=self.known(),
                mend=f"pass --missing-direction compose (the encoder's {self.parts} of another direction from the "
                "same source, the decoder's of another into the same target) or dense",
            )
        return Route(distinct, None if len(distinct) == 1 else on_device[direction_ids])

    def row_of(self, number: int) -> int:
        """The row of the masks that a direction's sentences take, one past the last where it keeps all.

        Raises:
            ModelError: as `routed`.
        """
        route = self._route(torch.tensor([number]), [number])
        assert route is not None
        return route.distinct[0]

    def _name(self, number: int) -> str:
        return str(direction_of(number, self.langs)) if self.langs else f"direction id {number}"

    def known(self) -> str:
        """The names of the directions that have parts."""
        assert self.rows is not None
        return ", ".join(self._name(i) for i in (self.rows >= 0).nonzero().flatten().tolist())

    def _rows_of_directions(self, mask_rows: Tensor) -> tuple[list[int], Tensor]:
        """``mask_rows`` on the host and on the device, missing ones filled in as ``missing_direction`` says."""
        key = (id(mask_rows), mask_rows._version, mask_rows.device, self.missing_direction)
        if self._lookup is None or self._lookup[0] != key:
            rows = mask_rows.cpu().clone()
            if self.missing_direction == "dense":
                rows[rows == _MISSING] = int(rows.max()) + 1  # one past the last: the dense layer
            elif self.missing_direction == "compose":
                # A missing x-z takes the encoder's masks of x-y and the decoder's of y-z, for the first such y.
                known = mask_rows.cpu().view(int(len(rows) ** 0.5), -1)  # source, target
                for source, target in (known == _MISSING).nonzero().tolist():
                    candidates = known[source] if self.side == "encoder" else known[:, target]
                    if len(lenders := candidates[candidates >= 0]):
                        rows.view_as(known)[source, target] = lenders[0]
            self._lookup = key, rows.tolist(), rows.to(mask_rows.device), mask_rows
        return self._lookup[1], self._lookup[2]


class SpecializedEncoder(_SpecializedSide, TransformerEncoderBase):
    """Stores the direction ids in its output, for the decoder and through beam search."""

    side = "encoder"
    layer_class = SpecializedEncoderLayer

    def build_encoder_layer(self, cfg: Any) -> SpecializedEncoderLayer:
        return _checkpointed(self.layer_class(cfg, return_fc=self.return_fc), cfg)

    def forward(
        self,
        src_tokens: Tensor,
        *args: Any,
        direction_ids: Tensor | None = None,
        distinct_ids: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> dict[str, list[Any]]:
        """As the parent; ids as `NeuronSpecTransformer.forward` takes them."""
        if distinct_ids is None and direction_ids is not None and self.rows is not None:
            distinct_ids = direction_ids.unique().tolist()
        with self.routed(direction_ids, distinct_ids or ()):
            out: dict[str, list[Any]] = super().forward(src_tokens, *args, **kwargs)
        out["direction_ids"] = [] if direction_ids is None else [direction_ids]
        out["distinct_ids"] = list(distinct_ids or ())
        return out

    def reorder_encoder_out(
        self, encoder_out: dict[str, list[Any]], new_order: Tensor
    ) -> dict[str, list[Any]]:
        out: dict[str, list[Any]] = super().reorder_encoder_out(encoder_out, new_order)
        out["direction_ids"] = [ids.index_select(0, new_order) for ids in encoder_out["direction_ids"]]
        out["distinct_ids"] = encoder_out["distinct_ids"]  # of these or more
        return out


class SpecializedDecoder(_SpecializedSide, TransformerDecoderBase):
    """Reads the direction ids from the encoder's output, at every step of the beam search too."""

    side = "decoder"
    layer_class = SpecializedDecoderLayer

    def build_decoder_layer(self, cfg: Any, no_encoder_attn: bool = False) -> SpecializedDecoderLayer:
        return _checkpointed(self.layer_class(cfg, no_encoder_attn), cfg)

    def extract_features(
        self,
        prev_output_tokens: Tensor,
        encoder_out: dict[str, list[Any]] | None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        carried = encoder_out or {}
        ids = carried.get("direction_ids")
        with self.routed(ids[0] if ids else None, carried.get("distinct_ids", ())):
            return super().extract_features(prev_output_tokens, encoder_out, *args, **kwargs)


def _checkpointed(layer: Any, cfg: Any) -> Any:
    """With --checkpoint-activations, what a layer computes is not kept, and computed again for the backward pass."""
    if cfg.checkpoint_activations:
        layer = checkpoint_wrapper(layer, offload_to_cpu=cfg.offload_activations)
    return layer


def sides_of(layer: type, **attributes: str) -> tuple[type[SpecializedEncoder], type[SpecializedDecoder]]:
    """Our encoder and decoder of layers with a mixin, and with other ``attributes``, such as ``parts``."""
    encoder, decoder = (
        type(
            side.__name__,
            (side,),
            {"layer_class": type(layer.__name__, (layer, side.layer_class), {}), **attributes},
        )
        for side in (SpecializedEncoder, SpecializedDecoder)
    )
    return encoder, decoder


@register_model("neuron_spec_transformer")
class NeuronSpecTransformer(TransformerModel):
    """fairseq's transformer with specialized FFNs and attentions.

    Attributes:
        no_masks: why neuron masks are refused, by a model of other parts.
        dynamics: what moves the masks in training, if anything; its state travels in checkpoints.
    """

    masks_flag = "--neuron-masks"
    no_masks: str | None = None
    encoder_class: type[SpecializedEncoder] = SpecializedEncoder
    decoder_class: type[SpecializedDecoder] = SpecializedDecoder
    dynamics: nn.Module | None

    @classmethod
    def add_args(cls, parser: argparse.ArgumentParser) -> None:
        super().add_args(parser)
        parser.add_argument(
            "--dropped-neurons",
            choices=DROPPED_NEURONS,
            default="bias",
            help="what a dropped neuron emits: its constant act(bias), as in the official code, or zero; frozen: "
            "what it computes, as in the dense model, but no direction that drops it updates it",
        )
        parser.add_argument(
            "--frozen-weights",
            default=",".join(FROZEN_WEIGHTS),
            metavar="WEIGHT,...",
            help="with --dropped-neurons frozen: what of a dropped neuron is not updated (default: %(default)s)",
        )
        parser.add_argument(
            "--ffn-path",
            choices=FFN_PATHS,
            default="auto",
            help="gather the kept neurons, multiply by the mask, or choose per batch and layer; batches of "
            "several directions, and training with --activation-dropout, always multiply",
        )

    @classmethod
    def build_model(cls, args: argparse.Namespace, task: Any) -> NeuronSpecTransformer:
        model: NeuronSpecTransformer = super().build_model(args, task)
        model.register_module("dynamics", None)
        if getattr(args, "scale_fc", False):
            raise ModelError("--scale-fc is not supported by this model")
        if getattr(args, "quant_noise_pq", 0):
            raise ModelError("quantization noise overwrites weights in place, and is not supported")
        dropped_neurons = getattr(args, "dropped_neurons", "bias")
        everything = ",".join(FROZEN_WEIGHTS)
        frozen = (getattr(args, "frozen_weights", None) or everything).split(",")
        if not {*frozen} <= {*FROZEN_WEIGHTS} or (
            dropped_neurons != "frozen" and {*frozen} != {*FROZEN_WEIGHTS}
        ):
            raise ModelError(
                "--frozen-weights cannot be heeded",
                got=f"--frozen-weights {','.join(frozen)} with --dropped-neurons {dropped_neurons}",
                expected=f"some of {everything}, with --dropped-neurons frozen",
            )
        for fc1 in model.ffn_layers().values():
            fc1.dropped_neurons, fc1.frozen_weights = dropped_neurons, frozen
            fc1.ffn_path = getattr(args, "ffn_path", "auto")
        return model

    @classmethod
    def build_encoder(cls, cfg: Any, src_dict: Any, embed_tokens: Any) -> SpecializedEncoder:
        return cls.encoder_class(cfg, src_dict, embed_tokens)

    @classmethod
    def build_decoder(cls, cfg: Any, tgt_dict: Any, embed_tokens: Any) -> SpecializedDecoder:
        return cls.decoder_class(cfg, tgt_dict, embed_tokens, no_encoder_attn=cfg.no_cross_attention)

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor,
        prev_output_tokens: Tensor,
        direction_ids: Tensor | None = None,
        distinct_ids: Sequence[int] | None = None,
        return_all_hiddens: bool = True,
        **decoder_options: Any,
    ) -> Any:
        """As the parent; ``direction_ids`` int64 ``[B]`` say which neurons each sentence runs through.

        ``distinct_ids`` are the same on the host, each once; without them the pass waits for the device.
        """
        encoder_out = self.encoder(
            src_tokens,
            src_lengths=src_lengths,
            return_all_hiddens=return_all_hiddens,
            direction_ids=direction_ids,
            distinct_ids=distinct_ids,
        )
        return self.decoder(
            prev_output_tokens, encoder_out=encoder_out, src_lengths=src_lengths, **decoder_options
        )

    @property
    def sides(self) -> tuple[_SpecializedSide, _SpecializedSide]:
        return self.encoder, self.decoder

    def numbered_layers(self) -> dict[str, Any]:
        """Layer key (``encoder.layers.0``) -> the layer, of both sides."""
        return self.encoder.numbered_layers() | self.decoder.numbered_layers()

    def ffn_layers(self) -> dict[str, SpecializedFC1]:
        """Layer key -> its ``fc1``."""
        return {key: layer.fc1 for key, layer in self.numbered_layers().items()}

    def attentions(self) -> dict[str, SpecializedAttention]:
        """Site (``decoder.layers.0.encoder_attn``) -> its attention."""
        layers = self.numbered_layers().items()
        return {f"{key}.{name}": module for key, layer in layers for name, module in layer.attentions.items()}

    def sites(self) -> dict[str, int]:
        """Every site that can be masked -> how many neurons or heads it has."""
        neurons = {key: fc1.out_features for key, fc1 in self.ffn_layers().items()}
        return neurons | {site: attention.num_heads for site, attention in self.attentions().items()}

    @property
    def has_masks(self) -> bool:
        return self.encoder.mask_rows is not None

    def require_relu(self) -> None:
        """Raises: ModelError if "active" (> 0) means nothing for this model's activation."""
        if (name := self.cfg.activation_fn) != "relu":
            raise ModelError(
                "neurons are active where ReLU lets them through; this model has another activation",
                got=name,
                expected="relu",
            )

    def set_languages(self, langs: Sequence[str], missing_direction: str = "error") -> None:
        """Say what the direction ids stand for, and what to do with directions that have no masks."""
        for side in self.sides:
            side.langs = list(langs)
            side.missing_direction = missing_direction

    def start_training(
        self, args: argparse.Namespace, directions: Sequence[Direction], langs: Sequence[str]
    ) -> None:
        """For models that add parts of their own: called before training only, as a checkpoint brings its parts."""

    def require_takes_masks(self, got: str) -> None:
        """Raises: ModelError if a model of other parts, such as adapters, is given neuron masks."""
        if self.no_masks is not None:
            raise ModelError(self.no_masks, got=got, mend="use an architecture of neuron_spec_transformer")

    def set_masks(self, masks: NeuronMasks, langs: Sequence[str]) -> None:
        """Specialize the model, at all sites: those that the masks do not name become dense.

        Raises:
            ModelError: if the masks are for other sites or sizes, or of neurons and the activation is not ReLU; or
                if the model takes none.
            DirectionError: if the masks name a language that is not in ``langs``.
        """
        self.require_takes_masks("--neuron-masks")
        if masks.layers:
            self.require_relu()
        masks.require_fit(self.sites())
        self.set_mask_rows(masks.directions, langs)
        for layer, fc1 in self.ffn_layers().items():
            fc1.neuron_mask = None
            if layer in masks.kept:
                fc1.set_mask(masks.kept[layer])
        for site, attention in self.attentions().items():
            attention.set_mask(masks.kept.get(site))

    def set_mask_rows(self, directions: Sequence[Direction], langs: Sequence[str]) -> None:
        """Send each direction through the row of the masks that is its place among ``directions``.

        Raises:
            DirectionError: if one names a language that is not in ``langs``.
        """
        rows = rows_of(directions, langs)
        for side in self.sides:
            side.mask_rows = rows.to(next(self.parameters()).device)

    def borrow(self, direction: Direction, lender: Direction, langs: Sequence[str]) -> None:
        """Send a direction without masks through another's, as if they were its own.

        Raises:
            DirectionError: if one names a language that is not in ``langs``.
            ModelError: if the model is dense, the direction has masks, or the lender has none.
        """
        borrows, lends = direction_id(direction, langs), direction_id(lender, langs)
        request = f"{direction} to borrow those of {lender}"
        for side in self.sides:
            rows = side.rows
            if rows is None:
                raise ModelError(
                    f"a dense model has no {side.parts} to borrow",
                    got=request,
                    mend="name a specialized checkpoint, or borrow nothing",
                )
            borrower_row, lender_row = rows[[borrows, lends]].tolist()
            if borrower_row != _MISSING:
                raise ModelError(
                    f"a direction with {side.parts} of its own needs no others",
                    got=request,
                    mend=f"leave {direction} out of what is borrowed",
                )
            if lender_row == _MISSING:
                raise ModelError(
                    f"a direction without {side.parts} cannot lend any",
                    got=request,
                    expected=f"one of {side.known()}",
                    mend="name another lender",
                )
        for side in self.sides:  # after all checks: the sides may share one tensor
            assert side.rows is not None
            side.rows[borrows] = side.rows[lends]

    def masked_directions(self, langs: Sequence[str]) -> tuple[list[Direction], Tensor]:
        """The directions that have masks, and the row of each, int64 on the CPU. Raises: ModelError if there are none."""
        rows = self.encoder.mask_rows
        if rows is None:
            raise ModelError("a dense model has no masks")
        ids = (rows >= 0).nonzero().flatten().tolist()
        return [direction_of(i, langs) for i in ids], rows[ids].cpu()

    def masks(self, langs: Sequence[str]) -> NeuronMasks:
        """The masks that the model carries. Raises: ModelError if it has none."""
        directions, order = self.masked_directions(langs)
        return NeuronMasks(directions, {site: mask.cpu()[order] for site, mask in self.kept_units().items()})

    def kept_units(self) -> dict[str, Tensor]:
        """Site -> the model's own mask, bool ``[N, F]``, of the sites that have one; rows as in ``mask_rows``."""
        masks = {layer: fc1.neuron_mask for layer, fc1 in self.ffn_layers().items()}
        masks |= {site: attention.head_mask for site, attention in self.attentions().items()}
        return {site: mask for site, mask in masks.items() if mask is not None}

    def mask_buffers(self) -> dict[str, tuple[nn.Module, str]]:
        """Key in a checkpoint -> the module and the name of its buffer."""
        buffers: dict[str, tuple[nn.Module, str]] = {}
        fc1s, attentions = self.ffn_layers().items(), self.attentions().items()
        buffers |= {f"{layer}.fc1.{_NEURON_MASK}": (fc1, _NEURON_MASK) for layer, fc1 in fc1s}
        return buffers | {f"{site}.{_HEAD_MASK}": (module, _HEAD_MASK) for site, module in attentions}

    def load_state_dict(self, state_dict: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """As the parent.

        Raises:
            ModelError: as `upgrade_state_dict_named`, or if weights are missing, too many, of another shape or not finite.
        """
        if found := not_finite(state_dict):
            raise ModelError(
                "the checkpoint has weights that are no numbers",
                where=found[0],
                got=found[1],
                mend="its training diverged: take an earlier checkpoint, or train with a lower --lr",
            )
        try:
            return super().load_state_dict(state_dict, *args, **kwargs)
        except RuntimeError as error:  # torch's, of all keys
            _, *faults = str(error).split("\n\t")
            raise ModelError(
                "the checkpoint lacks weights of the model that its flags describe, or has others",
                got="; ".join(fault if len(fault) < 200 else f"{fault[:200]} ..." for fault in faults[:3]),
                mend="it is damaged or was changed: copy or train it again",
            ) from error

    def upgrade_state_dict_named(self, state_dict: dict[str, Tensor], name: str) -> None:
        """Let a dense checkpoint start a specialized model, and a specialized one load without a mask file.

        Masks that move in training go on from the checkpoint's; a model without dynamics needs no state of theirs. Masks
        of more directions than the checkpoint's, which they have as they are there, take its place.

        Raises:
            ModelError: if model and checkpoint both have masks, and they differ, or if their
                vocabularies differ in size, or if masks moved by another rule.
        """
        super().upgrade_state_dict_named(state_dict, name)
        prefix = f"{name}." if name else ""
        for side in self.sides:
            trained = state_dict.get(f"{prefix}{side.side}.embed_tokens.weight")
            entries = len(side.embed_tokens.weight)  # type: ignore[attr-defined]
            if trained is not None and len(trained) != entries:
                raise ModelError(
                    "the checkpoint was trained with another dictionary than the data-bin's",
                    where=side.side,
                    got=f"{entries} entries with the language tokens",
                    expected=f"{len(trained)}, as in the checkpoint",
                    mend="use the data-bin made with the checkpoint's vocabulary, or that as --fixed-dictionary; its "
                    "--langs; and --task neuron_specialization",
                )
        buffers = self.mask_buffers()
        buffers |= {f"{side.side}.{_ROWS}": (side, _ROWS) for side in self.sides}  # type: ignore[misc]
        moved_on = self._take_dynamics(state_dict, f"{prefix}dynamics.")
        theirs_are_masked = any(prefix + key in state_dict for key in buffers)
        both_have_masks = self.has_masks and theirs_are_masked and not moved_on
        if both_have_masks and self._has_the_masks_of(state_dict, prefix):
            both_have_masks = False
            for key in buffers:
                state_dict.pop(prefix + key, None)
        for key, (module, buffer) in buffers.items():
            ours, theirs = getattr(module, buffer), state_dict.get(prefix + key)
            if ours is None and theirs is None:
                continue
            if not both_have_masks and theirs is not None:
                setattr(module, buffer, theirs.to(next(self.parameters()).device, copy=True))
            elif not both_have_masks:
                state_dict[prefix + key] = ours
            elif ours is None or theirs is None or not torch.equal(ours.cpu(), theirs.cpu()):
                raise ModelError(
                    f"the checkpoint was specialized with other masks than {self.masks_flag}",
                    where=key,
                    got="a checkpoint whose masks differ from the file's",
                    mend=f"drop {self.masks_flag} to go on with the checkpoint's own, or start from a dense checkpoint in another --save-dir",
                )

    def _has_the_masks_of(self, state_dict: dict[str, Tensor], prefix: str) -> bool:
        """Whether every direction that a checkpoint has masks for has the same here, at the same sites."""
        ours, theirs = self.encoder.mask_rows, state_dict.get(f"{prefix}encoder.{_ROWS}")
        if ours is None or theirs is None or len(ours) != len(theirs):
            return False
        known = theirs.cpu() >= 0
        here, there = ours.cpu()[known], theirs.cpu()[known]
        if (here == _MISSING).any():
            return False
        for key, (module, buffer) in self.mask_buffers().items():
            mask, its = getattr(module, buffer), state_dict.get(prefix + key)
            if (mask is None) != (its is None):
                return False
            if mask is not None and its is not None and not torch.equal(mask.cpu()[here], its.cpu()[there]):
                return False
        return True

    def _take_dynamics(self, state_dict: dict[str, Tensor], prefix: str) -> bool:
        """Make the checkpoint's state of dynamics fit ours; whether it has some, and we too."""
        ours = {} if self.dynamics is None else self.dynamics.state_dict(prefix=prefix)
        theirs = [key for key in state_dict if key.startswith(prefix)]
        if not ours:
            for key in theirs:
                del state_dict[key]
        elif not theirs:
            state_dict.update(ours)
        elif {*ours} != {*theirs}:
            raise ModelError(
                "the checkpoint's masks moved by another rule",
                got=", ".join(sorted(theirs)[:3]),
                expected=", ".join(sorted(ours)[:3]),
                mend="go on with the checkpoint's --dynamic-masks, or start from a checkpoint without dynamic masks",
            )
        return bool(ours and theirs)


# Size -> what both sides have, and what the model shares; the rest as in the original transformer, 6+6/512/2048/8.
_TIED_DECODER = ("share_decoder_input_output_embed",)
SIZES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "": ({}, ()),
    # For CPUs: 3+3/128/512/4, pre-norm, all embeddings shared.
    "_tiny": (
        {"layers": 3, "embed_dim": 128, "ffn_embed_dim": 512, "attention_heads": 4, "normalize_before": True},
        ("share_all_embeddings",),
    ),
    # The paper's mT-small, 6+6/512/1024/4, decoder embeddings tied.
    "_iwslt": ({"ffn_embed_dim": 1024, "attention_heads": 4}, _TIED_DECODER),
    # The paper's model for EC30, 6+6/1024/4096/16, pre-norm, decoder embeddings tied.
    "_big": (
        {"embed_dim": 1024, "ffn_embed_dim": 4096, "attention_heads": 16, "normalize_before": True},
        _TIED_DECODER,
    ),
}


def register_architectures(model: str) -> None:
    """Name an architecture of each of the `SIZES` of a registered model."""

    def fill_in(defaults: dict[str, Any], args: argparse.Namespace) -> None:
        for name, value in defaults.items():
            setattr(args, name, getattr(args, name, value))
        transformer_legacy.base_architecture(args)

    for size, (of_sides, shared) in SIZES.items():
        defaults = {f"{side}_{name}": value for side in SIDES for name, value in of_sides.items()}
        defaults |= dict.fromkeys(shared, True)
        register_model_architecture(model, f"{model}{size}")(partial(fill_in, defaults))


register_architectures("neuron_spec_transformer")
