"""A model of transformers whose FFNs are specialized per direction, in place, and made plain again.

Its ``fc1`` and ``fc2`` become ours, with the same parameters; its layers, of a class that hands on which neurons a batch
runs through. What the model saves is what the plain one would: masks are saved beside it (`saving`).

Axis letters: R mask rows, B sentences, T tokens, D model, F ffn.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from neuron_spec.artifacts import hash_state, hash_text
from neuron_spec.backends.huggingface.ffns import FFN, ffns, require_relu
from neuron_spec.backends.huggingface.layers import RoutedFC1, RoutedFC2, Running, routed
from neuron_spec.directions import Direction, as_directions, did_you_mean
from neuron_spec.errors import DirectionError, ModelError
from neuron_spec.modules.finite import not_finite
from neuron_spec.modules.specialized_ffn import Route
from neuron_spec.neurons.choices import FFN_PATHS, SILENCED
from neuron_spec.neurons.masks import NeuronMasks

DELTAS = ".deltas."  # in the keys of what directions add
_STATE = "neuron_specialization"
# Of a configuration: where it is from, how it was written and loaded.
_OF_NO_PASS = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"}
Asked = str | Direction | Sequence[str | Direction] | Tensor


@dataclass
class Specialization:
    """What `specialize` left in a model.

    Attributes:
        plain: layer key -> the class of the layer, and its own ``fc1`` and ``fc2``.
        masks: on the CPU; None without.
        deltas: the directions that have one, in their order; a model has masks or deltas.
    """

    running: Running
    plain: dict[str, tuple[type, nn.Linear, nn.Linear]]
    masks: NeuronMasks | None = None
    dropped_neurons: str = "bias"
    deltas: list[Direction] = field(default_factory=list)

    @property
    def directions(self) -> list[Direction]:
        """Those with masks, or with deltas, in the order of the rows of a route."""
        return self.deltas if self.masks is None else self.masks.directions

    @property
    def rows(self) -> int:
        """How many rows a route may name: beside deltas, the base's, which is the last."""
        return len(self.directions) + (self.masks is None)

    def row(self, asked: Direction) -> int:
        """Raises: DirectionError if the direction has no masks. Without a delta it runs through the base."""
        if asked in self.directions:
            return self.directions.index(asked)
        if self.masks is None:
            return len(self.directions)
        raise DirectionError(
            "a direction without masks",
            got=str(asked),
            expected=f"one of {', '.join(self.masks.names)}",
            mend=did_you_mean(asked, self.masks.names),
        )


def specialization_of(model: Any) -> Specialization | None:
    """What `specialize` left in the model; None in a plain one."""
    return getattr(model, _STATE, None)


def require_specialization(model: Any) -> Specialization:
    """Raises: ModelError if the model is a plain one."""
    state = specialization_of(model)
    if state is None:
        raise ModelError(
            "not a specialized model", got=type(model).__name__, mend="call specialize(model) first"
        )
    return state


def specialize(
    model: Any,
    masks: NeuronMasks | None = None,
    *,
    dropped_neurons: str = "bias",
    ffn_path: str = "auto",
    allow_other_checkpoint: bool = False,
) -> Any:
    """Specialize a model in place, and return it. Bit for bit the plain model where there are no masks.

    Called again, it takes other masks; without any, those that are there stay.

    Args:
        model: of transformers, an encoder-decoder whose layers have ``fc1``, ``fc2`` and a ReLU: M2M-100, NLLB; BART,
            mBART and Marian with ``activation_function="relu"``.
        masks: of neurons.
        dropped_neurons: what a dropped neuron emits: ``bias``, its constant ReLU(bias), as in the paper's code; ``zero``; or
            ``frozen``, what it computes, so that masks only decide which direction updates it.
        ffn_path: ``gather`` the kept neurons, ``multiply`` by the mask, or ``auto``: whichever is faster.
        allow_other_checkpoint: take masks that were profiled on other weights, or by fairseq's backend.

    Raises:
        ModelError: if the model has no such layers, or the masks are for other layers, widths or weights.
        ArtifactError: if the masks are of attention heads alone.
    """
    for value, choices in ((dropped_neurons, (*SILENCED, "frozen")), (ffn_path, FFN_PATHS)):
        if value not in choices:
            raise ModelError("no such choice", got=repr(value), expected=f"one of {', '.join(choices)}")
    found = ffns(model)
    _require_fc1_fc2(found)
    require_relu(found)
    state = specialization_of(model)
    if masks is not None:
        if state is not None and state.deltas:
            raise ModelError(
                "a model with deltas takes no masks: its neurons all compute",
                got=f"deltas of {', '.join(map(str, state.deltas))}",
                mend="remove the deltas, or merge one and specialize the copy",
            )
        require_masks(model, masks, allow_other_checkpoint)
    if state is None:
        state = Specialization(Running(), {})
        for key, ffn in found.items():
            state.plain[key] = _replace(ffn, key.partition(".")[0], state.running)
        setattr(model, _STATE, state)
        found = ffns(model)
    if masks is not None:
        state.masks, state.dropped_neurons = masks, dropped_neurons
        state.running.is_routed = True
    for key, ffn in found.items():
        fc1 = ffn.layer.fc1
        fc1.ffn_path = ffn_path
        if masks is not None:
            fc1.set_mask(masks.kept[key])
            fc1.dropped_neurons = dropped_neurons
    return model


def unspecialize(model: Any) -> Any:
    """Make a model plain again, in place, and return it: its own layers with the parameters as they are now.

    Deltas are gone with it; save them before.
    """
    state = specialization_of(model)
    if state is None:
        return model
    ignored = getattr(model, "_keys_to_ignore_on_save", None) or set()
    ignored -= {key for key in ignored if DELTAS in key}
    for key, ffn in ffns(model).items():
        kind, *linears = state.plain[key]
        for name, linear in zip(("fc1", "fc2"), linears, strict=True):
            _take_parameters(linear, getattr(ffn.layer, name))
            setattr(ffn.layer, name, linear)
        ffn.layer.__class__ = kind
        del ffn.layer.neuron_running, ffn.layer.neuron_side
    delattr(model, _STATE)
    return model


@contextmanager
def direction(model: Any, asked: Asked) -> Iterator[Any]:
    """Inside the block, the model's forward passes and generation run through a direction's neurons.

    Args:
        model: a specialized one.
        asked: a direction (``"eng_Latn-deu_Latn"``); one for each sentence of the batch; or the place of each among the
            masks' directions, int64 ``[B]``. Beams of a sentence take its direction.

    Raises:
        ModelError: if the model is a plain one.
        DirectionError: if a direction has no masks.
    """
    state = require_specialization(model)
    running, before = state.running, state.running.asked
    running.ask(_route(state, asked))
    try:
        yield model
    finally:
        running.ask(before)


def through(model: Any, asked: Direction | str) -> AbstractContextManager[Any]:
    """As `direction`, of any model: a plain one runs as it is."""
    return nullcontext(model) if specialization_of(model) is None else direction(model, asked)


def _route(state: Specialization, asked: Asked) -> tuple[Route, int | None]:
    if isinstance(asked, str | Direction):
        (one,) = as_directions([asked])
        return Route((state.row(one),)), None
    if isinstance(asked, Tensor):
        if asked.dtype != torch.int64 or asked.dim() != 1 or not len(asked):
            raise DirectionError(
                "malformed directions of a batch",
                got=f"{asked.dtype} {list(asked.shape)}",
                expected="int64 [sentences]",
            )
        rows = asked.tolist()
        if not 0 <= min(rows) <= max(rows) < state.rows:
            raise DirectionError(
                "no such place among the model's directions",
                got=f"{min(rows)} to {max(rows)}",
                expected=f"0 to {state.rows - 1}",
            )
    else:
        if not isinstance(asked, Iterable):
            raise DirectionError(
                "not a direction",
                got=repr(asked)[:80],
                expected='"en-de", one for each sentence, or int64 [sentences]',
            )
        of = {one: state.row(Direction.parse(str(one))) for one in {*asked}}  # a batch names few
        rows = [of[one] for one in asked]
        if not rows:
            raise DirectionError("no directions for a batch", expected="one for each sentence")
    distinct = tuple(sorted({*rows}))
    return Route(distinct, None if len(distinct) == 1 else torch.tensor(rows)), len(rows)


def weights_sha256(model: Any) -> str:
    """The hash of a model's own weights, rounded to bfloat16: the same of a model loaded in float32 and in bfloat16."""
    state = model.state_dict()
    own = {key: value for key, value in state.items() if DELTAS not in key}
    hashes = []
    for key in sorted(own):
        value = own[key].detach()
        hashes.append(hash_state({key: value.to(torch.bfloat16) if value.is_floating_point() else value}))
    return hash_text(*hashes)


def config_sha256(model: Any) -> str:
    """The hash of what a model's configuration says of its passes: the same of a copy, in any precision, saved again."""
    said = {key: value for key, value in model.config.to_diff_dict().items() if key not in _OF_NO_PASS}
    return hash_text(json.dumps(said, sort_keys=True, default=str))


def require_finite(weights: Mapping[str, Tensor], where: object) -> None:
    """Raises: ModelError if there are NaN or inf among weights, through which every output is one too."""
    if found := not_finite(weights):
        raise ModelError(
            "weights that are not numbers",
            where=f"{where}, {found[0]}",
            got=found[1],
            mend="the model is damaged, its training diverged, or its weights overflow in half precision",
        )


def _require_fc1_fc2(found: dict[str, FFN]) -> None:
    for key, ffn in found.items():
        if ffn.up != "fc1" or ffn.holder.fc1.bias is None:
            raise ModelError(
                "gated neurons (GLU) cannot be specialized, only profiled"
                if ffn.gate
                else "FFNs of this shape cannot be specialized, only profiled",
                where=key,
                got=", ".join(name for name in (ffn.gate, ffn.up, ffn.down) if name),
                expected="fc1 and fc2 with biases, as M2M-100, NLLB, BART, mBART and Marian have",
            )
        for part in (ffn.layer, ffn.layer.fc1, ffn.layer.fc2):
            if "forward" in vars(part):  # as accelerate's hooks have it
                raise ModelError(
                    "a layer whose forward was replaced",
                    where=key,
                    got=type(part).__name__,
                    mend="load the model on one device, without offloading, or dispatch it after specialize(model)",
                )
            if isinstance(part, nn.Linear) and type(part) not in (nn.Linear, RoutedFC1, RoutedFC2):
                raise ModelError(
                    "a Linear of another kind",
                    where=key,
                    got=type(part).__name__,
                    expected="torch.nn.Linear",
                    mend="load the model without quantization",
                )


def require_masks(model: Any, masks: NeuronMasks, allow_other_checkpoint: bool) -> None:
    """Raises: ModelError, ArtifactError: if masks are for other layers, widths or weights than a model's."""
    NeuronMasks.require(masks).require_neurons()
    if masks.head_sites:
        raise ModelError(
            "masks of attention heads, which this backend does not specialize",
            got=", ".join(masks.head_sites[:3]),
            expected="masks of neurons, such as of encoder.layers.0",
        )
    masks.require_fit(
        {key: ffn.width for key, ffn in ffns(model).items()},
        where=type(model).__name__,
        mend="profile this model and select",
    )
    profiled = masks.metadata.get("checkpoint_sha256")
    if profiled is None or allow_other_checkpoint:
        return
    if (ours := weights_sha256(model)) != profiled:
        raise ModelError(
            "the masks are from the profile of other weights",
            where=type(model).__name__,
            got=f"weights {ours[:12]}",
            expected=f"weights {profiled[:12]}",
            mend="load the model that was profiled, or pass allow_other_checkpoint=True",
        )


def _replace(ffn: FFN, side: str, running: Running) -> tuple[type, nn.Linear, nn.Linear]:
    """Put our Linears in the place of a layer's, and return what was there."""
    layer, kind = ffn.layer, type(ffn.layer)
    fc1, fc2 = layer.fc1, layer.fc2
    with torch.device("meta"):
        ours = RoutedFC1(fc1.in_features, fc1.out_features), RoutedFC2(fc2.in_features, fc2.out_features)
    ours[0].activation_dropout = float(getattr(layer, "activation_dropout", 0.0))
    ours[1].follow(ours[0])
    for name, own, theirs in zip(("fc1", "fc2"), ours, (fc1, fc2), strict=True):
        _take_parameters(own, theirs)
        setattr(layer, name, own)
    layer.__class__ = routed(kind)  # type: ignore[arg-type]
    layer.neuron_running, layer.neuron_side = running, side
    return kind, fc1, fc2


def _take_parameters(module: nn.Linear, of: nn.Linear) -> None:
    module.weight, module.bias = of.weight, of.bias
    module.training = of.training
