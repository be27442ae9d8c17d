"""How often each FFN neuron is active, per translation direction and layer.

Axis letters: N directions, F ffn.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from neuron_spec.directions import Direction, as_directions
from neuron_spec.errors import ArtifactError, SelectionError, in_file
from neuron_spec.neurons.by_direction import ByDirection
from neuron_spec.neurons.choices import SIDES

ATTENTIONS = ("self_attn", "encoder_attn")
_SITE = re.compile(rf"({'|'.join(SIDES)})\.layers\.(\d+)(?:\.({'|'.join(ATTENTIONS)}))?")
_TOKENS = "tokens."
MOST_TOKENS = 2**40  # of a direction: sums over the neurons of a layer stay far below 2**63
TOKENS_AT_LEAST = {"tokens": "at least"}  # in the metadata of counts that do not say of how many tokens


def side_of(site: str) -> str:
    """``encoder`` or ``decoder``, of a site such as ``encoder.layers.0`` or ``decoder.layers.1.self_attn``."""
    return site.partition(".")[0]


def language_of(direction: Direction, site: str) -> str:
    """Whose sets a site holds if they are per language: the encoder reads the source, the decoder writes the target."""
    return direction.source if side_of(site) == "encoder" else direction.target


def is_head_site(site: str) -> bool:
    """Whether a site is the heads of an attention, such as ``encoder.layers.0.self_attn``, and no FFN."""
    return site.endswith(ATTENTIONS)


def layer_order(site: str) -> tuple[int, int, int]:
    """Sort key: encoder, then decoder, each by layer; of a layer its FFN, then its attentions.

    Raises:
        ArtifactError: if it is no site of a transformer.
    """
    if (match := _SITE.fullmatch(site)) is None:
        raise ArtifactError(
            "not a site of a transformer",
            got=repr(site),
            expected="a layer's FFN, such as encoder.layers.0, or one of its attentions, such as "
            "decoder.layers.0.encoder_attn",
        )
    side, number, attention = match.groups()
    return SIDES.index(side), int(number), 1 + ATTENTIONS.index(attention) if attention else 0


@dataclass(repr=False)  # tensors of all directions would fill pages
class ActivationCounts(ByDirection):
    """A profile: on how many tokens each neuron was active (> 0 after ReLU), by direction and layer.

    Attributes:
        directions: the N directions, naming the rows.
        counts: layer key (``encoder.layers.0``) -> int64 ``[N, F]``; layers may differ in width.
        tokens: ``encoder`` and ``decoder`` -> int64 ``[N]``, the tokens looked at.
        metadata: how the counts were made; with `TOKENS_AT_LEAST`, there may have been more tokens; its ``checkpoint_sha256`` says from which weights.

    Examples:
        Two directions, one layer of three neurons, ten tokens each:

        >>> import torch
        >>> from neuron_spec import ActivationCounts, parse_directions
        >>> profile = ActivationCounts.zeros(parse_directions("en-de,en-ru"), {"encoder.layers.0": 3})
        >>> profile.counts["encoder.layers.0"] += torch.tensor([[9, 5, 0], [0, 5, 9]])
        >>> profile.tokens["encoder"] += 10
        >>> profile.names, profile.widths
        (['en-de', 'en-ru'], {'encoder.layers.0': 3})
        >>> (profile + profile).of(["en-ru"]).counts["encoder.layers.0"].tolist()
        [[0, 10, 18]]
    """

    what, command = "profile", "profile"
    form = {"tokens?": str, "part?": str}

    directions: list[Direction]
    counts: dict[str, Tensor]
    tokens: dict[str, Tensor]
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.directions = as_directions(self.directions)
        self.require_counts()

    def require_counts(self) -> None:
        """That these can be counts: of the right shape, and none below 0 or above its direction's tokens.

        On a device they are still being counted, and to look would wait for it.

        Raises:
            ArtifactError: if not.
        """
        if {*self.tokens} != {*SIDES}:
            got, expected = (", ".join(sides) or "none" for sides in (self.tokens, SIDES))
            raise ArtifactError("a profile without the tokens of both sides", got=got, expected=expected)
        for side, tokens in self.tokens.items():
            self.require_shape(tokens, torch.int64, what=f"damaged profile: tokens of the {side}")
            if tokens.is_cpu and bool(((tokens < 0) | (tokens > MOST_TOKENS)).any()):
                raise ArtifactError(
                    f"damaged profile: tokens of the {side}",
                    got=f"from {int(tokens.min())} to {int(tokens.max())}",
                    expected=f"numbers of tokens, from 0 to {MOST_TOKENS}",
                )
        for layer, counts in self.counts.items():
            what = f"damaged profile: layer {layer}"
            layer_order(layer)
            self.require_shape(counts, torch.int64, "ffn", what=what)
            most = self.tokens[side_of(layer)].unsqueeze(1)
            if is_head_site(layer) or not counts.size(1):
                raise ArtifactError(
                    what, got=f"{list(counts.shape)}", expected="counts of the neurons of an FFN"
                )
            for name, is_wrong in (
                ("below 0", counts < 0),
                ("above the tokens of its direction", counts > most),
            ):
                if counts.is_cpu and bool(is_wrong.any()):
                    row, neuron = is_wrong.nonzero()[0].tolist()
                    raise ArtifactError(
                        f"{what}: a count {name}",
                        got=f"{int(counts[row, neuron])} of {int(most[row])} tokens of {self.directions[row]}",
                        expected="on how many of the tokens a neuron was active",
                    )

    @classmethod
    def zeros(
        cls, directions: Sequence[Direction], widths: Mapping[str, int], device: torch.device | None = None
    ) -> ActivationCounts:
        """No tokens seen yet; ``widths`` maps layer keys to ffn widths."""
        zeros = partial(torch.zeros, dtype=torch.int64, device=device)
        n = len(directions)
        counts = {layer: zeros(n, width) for layer, width in widths.items()}
        return cls(list(directions), counts, {side: zeros(n) for side in SIDES})

    @property
    def layers(self) -> list[str]:
        return sorted(self.counts, key=layer_order)

    @property
    def widths(self) -> dict[str, int]:
        return {layer: self.counts[layer].size(1) for layer in self.layers}

    @property
    def knows_tokens(self) -> bool:
        """Whether ``tokens`` are all that were looked at, and not only the most that a neuron was active on."""
        return self.metadata.get("tokens") != TOKENS_AT_LEAST["tokens"]

    def __add__(self, other: ActivationCounts) -> ActivationCounts:
        """Counts over both sets of tokens: counts of shards add up to the counts of the whole.

        Raises:
            ArtifactError: if directions, layers, widths or the checkpoint differ.
        """
        for what, mine, theirs in (
            ("directions", self.names, other.names),
            ("layers and widths", self.widths, other.widths),
            ("checkpoint", self.metadata.get("checkpoint_sha256"), other.metadata.get("checkpoint_sha256")),
        ):
            if mine != theirs:
                raise ArtifactError(
                    f"profiles with different {what} cannot be added", got=theirs, expected=mine
                )
        counts = {layer: self.counts[layer] + other.counts[layer] for layer in self.counts}
        tokens = {side: self.tokens[side] + other.tokens[side] for side in SIDES}
        known = self.knows_tokens and other.knows_tokens
        metadata = self.metadata | ({} if known else TOKENS_AT_LEAST)
        return ActivationCounts(self.directions, counts, tokens, metadata)

    def of(self, directions: Sequence[Direction | str]) -> ActivationCounts:
        """The counts of these directions, in their order.

        Raises:
            DirectionError: if one was not counted.
        """
        rows = self.rows(directions)
        counts = {layer: of_layer[rows] for layer, of_layer in self.counts.items()}
        tokens = {side: of_side[rows] for side, of_side in self.tokens.items()}
        return ActivationCounts([self.directions[row] for row in rows], counts, tokens, self.metadata)

    def require_tokens(self) -> None:
        """Raises: SelectionError if a direction has no tokens: nothing can be selected for it."""
        fewest = torch.minimum(self.tokens["encoder"], self.tokens["decoder"]).tolist()
        if empty := [name for name, tokens in zip(self.names, fewest, strict=True) if not tokens]:
            raise SelectionError(
                "no tokens to count activations on",
                got=f"0 tokens for {', '.join(empty)}",
                expected="a validation set with text for every direction",
                mend="profile another --gen-subset, or fewer --lang-pairs",
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``profile.safetensors``; metadata in its header, as JSON.

        Raises:
            ArtifactError: as `require_counts`.
        """
        self.require_counts()
        self.write(path, self.counts | {_TOKENS + side: self.tokens[side] for side in SIDES})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ActivationCounts:
        """Read what ``neuron-spec profile`` wrote.

        Raises:
            ArtifactError: if the file is missing, damaged, or not a profile.
        """
        directions, tensors, metadata = cls.read(path, *(_TOKENS + side for side in SIDES))
        tokens = {side: tensors.pop(_TOKENS + side) for side in SIDES}
        with in_file(path):
            profile = cls(directions, tensors, tokens, metadata)
            for side in SIDES:
                layers = [layer for layer in profile.layers if side_of(layer) == side]
                wanted = [f"{side}.layers.{number}" for number in range(len(layers))]
                if layers != (wanted or [f"{side}.layers.0"]):
                    raise ArtifactError(
                        f"a profile without all layers of the {side}",
                        got=", ".join(layers) or "none",
                        expected=f"{side}.layers.0 and so on, without a gap",
                        mend="profile the checkpoint again",
                    )
        return profile
