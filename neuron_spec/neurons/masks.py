"""The specialized neurons and attention heads of every direction: a small set per site, kept in one file.

A site is where a mask sits: a layer's FFN (``encoder.layers.0``), or the heads of one of its attentions
(``encoder.layers.0.self_attn``, ``decoder.layers.0.encoder_attn``). Masks of one kind need no other: sites that
a file does not name are dense.

Axis letters: N directions, F units of a site: neurons or heads. True = kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuron_spec.artifacts import differences, hash_state, require_summary_place, write_json
from neuron_spec.directions import Direction, as_directions, parse_directions
from neuron_spec.errors import ArtifactError, ModelError, in_file
from neuron_spec.forms import number
from neuron_spec.neurons.activations import is_head_site, layer_order, side_of
from neuron_spec.neurons.by_direction import Masks, pack, require_packed, unpack
from neuron_spec.neurons.choices import SUMMARY_MARK


@dataclass(repr=False)  # tensors of all directions would fill pages
class NeuronMasks(Masks):
    """Which neurons and heads each direction runs through.

    Attributes:
        directions: the N directions, naming the rows.
        kept: site -> bool ``[N, F]``, True = kept.
        metadata: how they were selected: sets, method, k's, the profile they come from.

    Examples:
        Masks of your own, of a layer of three neurons; in a file, they are what ``neuron-spec specialize`` takes:

        >>> import torch
        >>> from neuron_spec import NeuronMasks
        >>> masks = NeuronMasks.from_dict({
        ...     "en-de": {"encoder.layers.0": torch.tensor([True, True, False])},
        ...     "en-ru": {"encoder.layers.0": torch.tensor([True, False, False])},
        ... })
        >>> masks.names, masks.widths
        (['en-de', 'en-ru'], {'encoder.layers.0': 3})
        >>> [round(dropped, 2) for dropped in masks.sparsity()["encoder.layers.0"].tolist()]
        [0.33, 0.67]
    """

    what, command, format = "mask file", "select", 1
    kind, how, origin = "masks", "profile them too", "are from the profile of"
    form = {
        "widths": {str: number(1, 2**31, whole=True)},
        "k_percent?": {str: {str: number(0, 100)}},
        "method?": str,
        "neuron_sets?": str,
        "only_side?": str,
        "dropped_neurons?": str,
    }

    directions: list[Direction]
    kept: dict[str, Tensor]
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.directions = as_directions(self.directions)
        for site, kept in self.kept.items():
            layer_order(site)
            self.require_shape(kept, torch.bool, "neurons or heads", what=f"malformed masks: {site}")

    @property
    def sites(self) -> dict[str, int]:
        """Every site and how many units it has, in the model's order."""
        return {site: self.kept[site].size(1) for site in sorted(self.kept, key=layer_order)}

    @property
    def layers(self) -> list[str]:
        """The sites that are FFNs."""
        return list(self.widths)

    @property
    def widths(self) -> dict[str, int]:
        """The FFNs and how many neurons each has."""
        return {site: size for site, size in self.sites.items() if not is_head_site(site)}

    @property
    def head_sites(self) -> list[str]:
        """The sites that are attentions."""
        return [site for site in self.sites if is_head_site(site)]

    @property
    def fingerprint(self) -> str:
        """The sha256 of the sets alone, of which directions keep which neurons."""
        return hash_state({f"{layer} {self.names}": kept for layer, kept in self.kept.items()})

    def of(self, directions: Sequence[Direction | str]) -> NeuronMasks:
        """The masks of these directions, in their order.

        Raises:
            DirectionError: if one has none.
        """
        rows = self.rows(directions)
        chosen = [self.directions[row] for row in rows]
        return NeuronMasks(chosen, {site: kept[rows] for site, kept in self.kept.items()}, self.metadata)

    def __getitem__(self, direction: Direction | str) -> dict[str, Tensor]:
        """One direction's masks: site -> bool ``[F]``, True = kept.

        Raises:
            DirectionError: if it has none.
        """
        (row,) = self.rows([direction])
        return {site: self.kept[site][row] for site in self.sites}

    def to_dict(self) -> dict[str, dict[str, Tensor]]:
        """Plain tensors: direction -> site -> bool ``[F]``, True = kept."""
        return {name: self[name] for name in self.names}

    @classmethod
    def from_dict(cls, kept: Mapping[str, Mapping[str, Tensor]], **metadata: Any) -> NeuronMasks:
        """Masks of plain tensors, as `to_dict` gives them.

        Args:
            kept: direction -> site -> bool ``[F]``, True = kept.
            metadata: how they were made, to be kept in the file; values that JSON has.

        Raises:
            DirectionError: if a key is no direction, or there is none.
            ArtifactError: if a site is none of a transformer, or a mask no such tensor.
            ModelError: if the directions are of different models: other sites, or other sizes.
        """
        directions = parse_directions(kept)
        sizes: dict[str, int] | None = None
        for direction, of_direction in kept.items():
            for site, mask in of_direction.items():
                if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.dim() != 1:
                    is_tensor = isinstance(mask, Tensor)
                    raise ArtifactError(
                        f"malformed masks: {site}",
                        where=direction,
                        got=f"{mask.dtype} {list(mask.shape)}" if is_tensor else type(mask).__name__,
                        expected="torch.bool [neurons or heads]",
                    )
            theirs = {site: len(mask) for site, mask in of_direction.items()}
            sizes = theirs if sizes is None else sizes
            if theirs != sizes:
                raise ModelError(
                    "masks of different models",
                    where=direction,
                    **differences(theirs, sizes, at_most=4),
                    mend=f"expected is as in {directions[0]}: give every direction the same layers and sizes",
                )
        stacked = {site: torch.stack([of[site] for of in kept.values()]) for site in sizes or ()}
        return cls(directions, stacked, metadata)

    def differing(self, other: NeuronMasks) -> list[str]:
        """The names of the other's directions that have no masks here, or others; all if the sites differ."""
        if self.sites != other.sites:
            return other.names
        return [
            name
            for name, direction in zip(other.names, other.directions, strict=True)
            if direction not in self.directions
            or any(not torch.equal(mask, other[direction][site]) for site, mask in self[direction].items())
        ]

    def sparsity(self, sites: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Site -> float64 ``[N]``, the fraction of units dropped; of the FFNs unless ``sites`` says which."""
        chosen = self.layers if sites is None else sites
        return {site: 1 - self.kept[site].double().mean(dim=1) for site in chosen}

    def summary(self) -> dict[str, Any]:
        """What a reader wants to know without tools; percent of neurons or heads dropped."""
        dropped = {}
        for site, values in self.sparsity(self.sites).items():
            percents = [round(100 * float(value), 3) for value in (values.mean(), *values)]
            dropped[site] = dict(zip(["mean", *self.names], percents, strict=True))
        return {
            **self.metadata,
            "directions": self.names,
            "widths": self.sites,
            "dropped_percent": dropped,
        }

    def require_fit(self, sizes: Mapping[str, int], where: object = None, mend: str | None = None) -> None:
        """That the masks are for a model with these sites: ``masks.require_fit(profile.widths)``.

        Args:
            sizes: site -> neurons or heads of the model. Where no heads are among them, those of the masks
                are not looked at.

        Raises:
            ModelError: if the model has other sites of a kind that the masks have, or other sizes; or if
                the masks have neither kind.
        """
        kinds = {is_head_site(site) for site in sizes}
        ours = {site: size for site, size in self.sites.items() if is_head_site(site) in kinds}
        kinds = {is_head_site(site) for site in ours} or kinds
        wanted = {site: size for site, size in sizes.items() if is_head_site(site) in kinds}
        if ours != wanted:
            raise ModelError(
                "the masks are for another model",
                where=where,
                **differences(ours, wanted, layer_order),
                mend=mend or "profile and select on the checkpoint that training starts from",
            )

    def require_neurons(self, where: object = None) -> None:
        """Raises: ArtifactError if the masks are of heads alone, for what looks at neurons."""
        if not self.layers:
            raise ArtifactError(
                "masks of attention heads alone",
                where=where,
                got=", ".join(self.head_sites),
                expected="masks of neurons, such as of encoder.layers.0",
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one bit per unit to ``path``, and a readable summary to the same name with .json."""
        require_summary_place(path, SUMMARY_MARK)
        write_json(Path(path).with_suffix(".json"), self.summary())
        # Last, because a stage is complete when this file is there.
        self.write(path, {site: pack(kept) for site, kept in self.kept.items()}, widths=self.sites)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> NeuronMasks:
        """Read what `save` wrote.

        Raises:
            ArtifactError: if the file is missing, damaged, or holds no masks.
        """
        directions, packed, metadata = cls.read(path)
        widths: dict[str, int] = metadata.pop("widths")
        sizes = {site: [width] for site, width in widths.items()}
        require_packed(packed, len(directions), sizes, where=path, what=cls.what)
        with in_file(path):
            masks = cls(directions, {site: unpack(packed[site], widths[site]) for site in widths}, metadata)
            if not masks.kept:
                raise ArtifactError("a mask file without masks", expected="a layer or more")
            return masks

    def side(self, side: str) -> dict[str, Tensor]:
        """The kept neurons of the encoder's or decoder's layers."""
        return {layer: self.kept[layer] for layer in self.layers if side_of(layer) == side}
