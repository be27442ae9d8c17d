"""Specialized attention: every sentence runs through its own direction's heads.

A head that is dropped adds nothing: what it would hand to ``out_proj`` is multiplied by zero. ``out_proj``'s bias
and all other heads stay.

Axis letters: R mask rows (one per direction), T tokens, B sentences, D model, H heads.
"""

from __future__ import annotations

from typing import Any

from fairseq.modules import MultiheadAttention
from torch import Tensor

from neuron_spec.errors import ModelError
from neuron_spec.modules.specialized_ffn import Route


class SpecializedAttention(MultiheadAttention):
    """fairseq's attention, specialized once it has masks; fairseq's own before, bit for bit.

    In training and without a cache fairseq runs torch's fused attention, which reads ``out_proj``'s weight past
    its forward. Where heads are dropped, its other path is taken, which calls ``out_proj``: there its input is
    masked. The fused path is also left while heads are `watched`.

    Attributes:
        head_mask: buffer, bool ``[R, H]``, True = kept; None without masks. It travels in checkpoints.
        route: which rows the running forward pass takes; the layer sets it.
        watched: call ``out_proj``, for the sake of its hooks.
    """

    head_mask: Tensor | None
    route: Route | None
    watched: bool
    # Of a mask (held, so that no later one gets its id) and version, which rows keep all.
    _whole: tuple[Tensor, int, list[bool]] | None

    @classmethod
    def of(cls, attention: MultiheadAttention) -> SpecializedAttention:
        """Make an attention that fairseq has built one of ours, in place.

        By its class, as torch does with its lazy modules: built anew it would draw other weights, and would
        need arguments that differ between versions of fairseq.
        """
        attention.__class__ = cls
        attention.register_buffer("head_mask", None)
        attention.route = None
        attention.watched = False
        attention._whole = None
        attention.out_proj.register_forward_pre_hook(attention._mask_heads)
        return attention

    def set_mask(self, kept: Tensor | None) -> None:
        """Take bool ``[R, H]`` as the masks, or None: all heads.

        Raises:
            ModelError: if H is not this attention's number of heads, or it is not fairseq's own.
        """
        if kept is not None and kept.size(1) != self.num_heads:
            raise ModelError("masks of another number of heads", got=kept.size(1), expected=self.num_heads)
        if kept is not None and self.use_xformers:
            raise ModelError("heads of xFormers' attention cannot be masked", mend="drop the xFormers flags")
        self.head_mask = None if kept is None else kept.to(self.out_proj.weight.device)

    def keeps_all(self, row: int) -> bool:
        """Whether a row drops no head; row R, one past the last, never does."""
        mask = self.head_mask
        assert mask is not None
        # The buffer is replaced or overwritten when a checkpoint is loaded, or moves to a device.
        if self._whole is None or self._whole[0] is not mask or self._whole[1] != mask._version:
            self._whole = mask, mask._version, mask.all(dim=1).tolist()
        whole = self._whole[2]
        return row == len(whole) or whole[row]

    @property
    def drops_heads(self) -> bool:
        """Whether the running forward pass has a sentence that drops a head.

        Raises:
            ModelError: if there are masks and no route.
        """
        if self.head_mask is None:
            return False
        if self.route is None:
            raise ModelError(
                "a specialized model was run without direction ids",
                mend="use --task neuron_specialization, which gives every sentence its direction",
            )
        return not all(self.keeps_all(row) for row in self.route.distinct)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """As the parent."""
        self.skip_embed_dim_check = self.watched or self.drops_heads  # fairseq's word for not fused
        out: tuple[Tensor, Tensor | None] = super().forward(*args, **kwargs)
        return out

    def _mask_heads(self, out_proj: Any, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
        """Of what the heads hand to ``out_proj``, ``[T, B, D]``."""
        if not self.drops_heads:
            return None
        assert self.head_mask is not None and self.route is not None
        if (rows := self.route.rows) is None:
            kept = self.head_mask[self.route.distinct[0]]  # [H]: all sentences take the same row
        else:
            last = len(self.head_mask) - 1  # row R, one past it, keeps all
            kept = self.head_mask[rows.clamp(max=last)] | (rows > last).unsqueeze(1)  # [B, H]
        (heads,) = inputs
        return (heads * kept.to(heads.dtype).repeat_interleave(self.head_dim, dim=-1),)
