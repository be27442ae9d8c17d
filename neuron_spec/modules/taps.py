"""The one way to watch, or to replace, what the units of a site hand on.

A site is an FFN (``encoder.layers.0``), whose neurons hand a hidden vector ``[T, B, F]`` to ``fc2``, or an attention
(``decoder.layers.0.encoder_attn``), whose heads hand ``[T, B, D]`` to ``out_proj``.

Axis letters: T tokens, B sentences, D model, F ffn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

if TYPE_CHECKING:  # it is a subclass of fairseq's
    from neuron_spec.modules.specialized_attention import SpecializedAttention
    from neuron_spec.modules.specialized_ffn import SpecializedFC1

Tap = Callable[[Tensor], Tensor | None]
"""What a site hands on, to what it hands on instead; None: the same."""


class Tappable(Protocol):
    """A model with sites."""

    def ffn_layers(self) -> Mapping[str, SpecializedFC1 | nn.Linear]: ...
    def attentions(self) -> Mapping[str, SpecializedAttention]: ...
    def get_submodule(self, target: str) -> nn.Module: ...


@contextmanager
def tapped(
    model: Tappable,
    taps: Mapping[str, Tap] | None = None,
    *,
    before_masks: Mapping[str, Callable[[Tensor], Any]] | None = None,
) -> Iterator[None]:
    """Inside the block every neuron is computed in its own place, and sites are tapped; after it nothing is left changed.

    Args:
        taps: site -> its tap, after the masks and the activation.
        before_masks: site -> who is shown what its units would hand on without masks, detached: of an FFN that has
            masks the pre-activations, of an attention the heads.
    """
    attentions, fc1s = model.attentions(), model.ffn_layers()
    with ExitStack() as undo:

        def change(module: Any, name: str, value: Any) -> None:
            undo.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, value)

        def hook(reader: nn.Module, tap: Callable[[Tensor], Any], *, is_shown: bool = False) -> None:
            def before(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor] | None:
                instead = tap(inputs[0].detach() if is_shown else inputs[0])
                return None if is_shown or instead is None else (instead,)

            undo.callback(reader.register_forward_pre_hook(before, prepend=is_shown).remove)

        for fc1 in fc1s.values():
            if hasattr(fc1, "ffn_path"):  # a plain Linear gathers nothing
                change(fc1, "ffn_path", "multiply")  # a gathered hidden vector lacks the dropped neurons
        for site in {**(taps or {}), **(before_masks or {})}.keys() & attentions.keys():
            change(attentions[site], "watched", True)
        for site, show in (before_masks or {}).items():
            if site in fc1s:
                change(fc1s[site], "watch", show)
            else:  # before the hook of its own that masks
                hook(attentions[site].out_proj, show, is_shown=True)
        for site, tap in (taps or {}).items():
            hook(model.get_submodule(f"{site}.fc2") if site in fc1s else attentions[site].out_proj, tap)
        yield
