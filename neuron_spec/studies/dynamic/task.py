"""``neuron_spec_dynamic``: training in which the masks move with the model.

After Choenni, Garrette and Shutova (2023), whose exact rules are not public; the rules are ours.

reselect  Masks are selected anew every ``--reselect-every`` updates, from running counts of active neurons. A dropped
          neuron is not computed on the gather path, and could never return: so every ``--collect-every``-th update
          multiplies instead, which computes W1 x in full, and counts where a neuron would be active without its mask.
          That is no further forward pass. Masks of heads stay.
learned   Every unit has a score per direction, trained like a weight by the gradient of the loss by the mask; the
          highest scores are kept, as many as the budget says, after every update. Neurons and heads.
none      Masks stay: bit for bit the training of ``neuron_specialization``.

Training starts from ``--neuron-masks``. The masks of the moment are in every checkpoint, which translates with
``--task neuron_specialization``. Logged, 0-1: ``mask_churn`` (1 - IoU of old and new masks), ``mask_kept_fraction``,
``mask_overlap`` (IoU of two directions), each the mean over sites and directions.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from fairseq.logging import metrics
from fairseq.tasks import register_task
from torch import Tensor

from neuron_spec.backends.fairseq.checkpoints import flag_name
from neuron_spec.backends.fairseq.compat import add_over_processes
from neuron_spec.errors import ModelError
from neuron_spec.models.neuron_spec_transformer import NeuronSpecTransformer
from neuron_spec.modules.specialized_attention import SpecializedAttention
from neuron_spec.modules.specialized_ffn import SpecializedFC1
from neuron_spec.modules.taps import tapped
from neuron_spec.neurons.activations import ActivationCounts, side_of
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.neurons.overlap import churn, kept_fraction, mean_overlap
from neuron_spec.neurons.selection import cumulative, parse_k
from neuron_spec.studies.dynamic.masks import RunningCounts, Scores, budgets, straight_through, top
from neuron_spec.tasks.neuron_specialization import NeuronSpecializationTask

RULES = ("reselect", "learned", "none")
# Gradients of these are the same in all processes, and so are scores.
_DDP_BACKENDS = ("legacy_ddp", "no_c10d", "c10d", "pytorch_ddp")
HALF = ("fp16", "bf16", "memory_efficient_fp16", "memory_efficient_bf16")
RECOMPUTED = ("checkpoint_activations", "offload_activations")


class _Flag(NamedTuple):
    """A flag of one rule alone: its value without it, its text, what its value may be, and whether one is."""

    rule: str
    default: Any
    text: str
    expected: str
    is_valid: Callable[[Any], bool]
    kind: type = int


_ONE_OR_MORE = ("1 or more", lambda number: number >= 1)
_ZERO_OR_MORE = ("0 or more", lambda number: number >= 0)
_FRACTION = ("a number from 0 to 1", lambda number: 0 <= number <= 1)
_POSITIVE = ("a number above 0", lambda number: 0 < number < math.inf)
_K = ("a percentage", lambda text: bool(parse_k(text, "--reselect-k")))
_OF_RULE = {
    "reselect_every": _Flag("reselect", 100, "updates from one selection to the next", *_ONE_OR_MORE),
    "reselect_from": _Flag("reselect", 0, "first at this update, or the next that is due", *_ZERO_OR_MORE),
    "reselect_until": _Flag("reselect", math.inf, "not after this update", *_ONE_OR_MORE),
    "reselect_k": _Flag(
        "reselect", None, "keep the fewest neurons that cover k percent of the activations", *_K, str
    ),
    "collect_every": _Flag("reselect", 4, "count in every such update", *_ONE_OR_MORE),
    "count_decay": _Flag(
        "reselect", 0.99, "what an update leaves of the earlier counts of its directions", *_FRACTION, float
    ),
    "score_gap": _Flag(
        "learned", 0.01, "from dropped to kept in first scores; to compare with --lr", *_POSITIVE, float
    ),
}

Batch = dict[str, Any]


@register_task("neuron_spec_dynamic")
class NeuronSpecDynamicTask(NeuronSpecializationTask):
    """Moves the masks in training; validation and generation are the parent's."""

    @staticmethod
    def add_args(parser: argparse.ArgumentParser) -> None:
        NeuronSpecializationTask.add_args(parser)
        parser.add_argument(
            "--dynamic-masks", choices=RULES, default=RULES[0], help="how masks move (default: %(default)s)"
        )
        parser.add_argument(
            "--budget-percent",
            metavar="P",
            help="keep this percentage of every site's units (default: as many as --neuron-masks keep there)",
        )
        parser.add_argument(
            "--initial-counts",
            metavar="FILE",
            help="reselect: begin the running counts with this profile; learned: order the first scores by it",
        )
        for name, flag in _OF_RULE.items():
            default = "" if flag.default in (None, math.inf) else f" (default: {flag.default})"
            parser.add_argument(
                flag_name(name),
                type=flag.kind,
                metavar="N" if flag.kind is int else "X",
                help=f"{flag.rule}: {flag.text}{default}",
            )

    def __init__(self, args: argparse.Namespace, langs: list[str], dicts: Any, training: bool) -> None:
        super().__init__(args, langs, dicts, training)
        if training:
            _require_valid(args)
        self._measured: dict[str, float] = {}  # of the masks of the moment
        self._to_log: dict[str, float] = {}  # of the running update

    def _flag(self, name: str) -> Any:
        value = getattr(self.args, name)
        return _OF_RULE[name].default if value is None else value

    def build_model(self, args: argparse.Namespace, from_checkpoint: bool = False) -> NeuronSpecTransformer:
        model = super().build_model(args, from_checkpoint)
        # A checkpoint that is run has the masks of its last update; only training moves them.
        if not from_checkpoint and self.args.dynamic_masks != "none":
            self._start(model)
        return model

    def _start(self, model: NeuronSpecTransformer) -> None:
        if NeuronMasks.load(self.args.neuron_masks).metadata.get("neuron_sets") == "language":
            raise ModelError(
                "directions share their sets, and would move them apart",
                where=self.args.neuron_masks,
                got="sets per language",
                expected="sets per direction",
            )
        masks = model.masks(self.langs)
        # Rows in the order of the file, which is the model's; `masks` has them in the order of ids.
        kept = model.kept_units()
        _, order = model.masked_directions(self.langs)
        percent = self.args.budget_percent and parse_k(self.args.budget_percent, "--budget-percent")
        self._budget = budgets(kept, percent)
        counts = self._initial_counts(masks, order)
        if self.args.dynamic_masks == "learned":
            scores = Scores(kept, self._budget, self._flag("score_gap"), counts)
            model.dynamics = scores
            for site, rows in scores.masks().items():
                kept[site].copy_(rows)
            return
        masks.require_neurons(where=self.args.neuron_masks)
        running = RunningCounts(masks.widths, len(masks.directions), self._flag("count_decay"))
        if counts is not None:
            running.seed(counts)
        model.dynamics = running

    def _initial_counts(self, masks: NeuronMasks, order: Tensor) -> dict[str, Tensor] | None:
        """Layer -> int64 ``[N, F]``, rows as in the model; None without ``--initial-counts``."""
        if not (path := self.args.initial_counts):
            return None
        profile = ActivationCounts.load(path)
        absent = profile.missing(masks.directions)
        are_others = profile.widths != masks.widths
        if are_others or absent:
            raise ModelError(
                "the profile is not that of the masks",
                where=path,
                got=f"layers {profile.widths}" if are_others else f"no {', '.join(sorted(absent))}",
                expected=f"layers {masks.widths}, and all directions of {self.args.neuron_masks}",
                mend="give the profile that --neuron-masks were selected from",
            )
        return profile.of([masks.directions[row] for row in order.argsort()]).counts

    def train_step(
        self,
        sample: Batch,
        model: Any,
        criterion: Any,
        optimizer: Any,
        update_num: int,
        ignore_grad: bool = False,
    ) -> tuple[Tensor, Any, Batch]:
        """As fairseq's; on the way, counts active neurons or gives the scores their gradient."""
        with self.watching(sample, model, update_num, ignore_grad):
            return super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)

    def watching(
        self, sample: Batch, model: Any, update_num: int, ignore_grad: bool = False
    ) -> AbstractContextManager[None]:
        """Inside the block, passes of this sample are seen by what moves the masks; the masks stay."""
        ours = unwrapped(model)
        if isinstance(ours.dynamics, Scores):
            return scored(ours, ours.dynamics)
        if isinstance(ours.dynamics, RunningCounts) and self._collects(update_num) and not ignore_grad:
            return counted(ours, ours.dynamics, sample["net_input"], self.source_dictionary.pad())
        return nullcontext()

    def _collects(self, update_num: int) -> bool:
        """Whether update ``update_num``, from 0, is counted: some are, as long as a selection is to come."""
        every, until = self._flag("reselect_every"), self._flag("reselect_until")
        next_selection = math.ceil(max(update_num + 1, self._flag("reselect_from")) / every) * every
        return update_num % self._flag("collect_every") == 0 and bool(next_selection <= until)

    def optimizer_step(self, optimizer: Any, model: Any, update_num: int) -> None:
        """As fairseq's, after which the masks move."""
        super().optimizer_step(optimizer, model, update_num)
        ours = unwrapped(model)
        if ours.dynamics is None:
            return
        kept = ours.kept_units()
        if not self._measured:
            self._measure(kept)
        if isinstance(ours.dynamics, Scores):
            self._move(kept, ours.dynamics.masks())
        elif isinstance(ours.dynamics, RunningCounts):
            if self._collects(update_num):
                ours.dynamics.fold(add_over_processes)
            done = update_num + 1
            first, last = self._flag("reselect_from"), self._flag("reselect_until")
            if done % self._flag("reselect_every") == 0 and first <= done <= last:
                self._move(kept, ours.dynamics.select(kept, self._choose))
        self._to_log |= self._measured

    def _choose(self, layer: str, row: int, counts: Tensor) -> Tensor:
        if self.args.reselect_k is not None:
            return cumulative(counts, parse_k(self.args.reselect_k, "--reselect-k"))
        return top(counts[None], self._budget[layer][row : row + 1].cpu())[0]

    def _move(self, kept: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> None:
        new = {site: rows.to(kept[site].device) for site, rows in new.items()}
        # One wait for the device. Masks that stay are not written, so that nothing is derived from them anew.
        changed = torch.stack([(rows != kept[site]).any() for site, rows in new.items()]).tolist()
        self._to_log = {"mask_churn": churn(kept, new) if any(changed) else 0.0}
        for site, is_new in zip(new, changed, strict=True):
            if is_new:
                kept[site].copy_(new[site])
        if any(changed):
            self._measure(kept)

    def _measure(self, kept: Mapping[str, Tensor]) -> None:
        self._measured = {"mask_kept_fraction": kept_fraction(kept), "mask_overlap": mean_overlap(kept)}

    def reduce_metrics(self, logging_outputs: list[Batch], criterion: Any) -> None:
        super().reduce_metrics(logging_outputs, criterion)
        for name, value in self._to_log.items():
            metrics.log_scalar(name, value, priority=600, round=5)
        self._to_log = {}  # validation has none


def unwrapped(model: Any) -> NeuronSpecTransformer:
    """Ours, out of what fairseq wraps it in for several processes."""
    while not isinstance(model, NeuronSpecTransformer):
        model = model.module
    return model


@contextmanager
def counted(
    model: NeuronSpecTransformer, running: RunningCounts, net_input: Mapping[str, Any], padding: int
) -> Iterator[None]:
    """Inside the block, a forward pass in training counts every neuron that its tokens would make active."""
    tokens = {"encoder": net_input["src_tokens"], "decoder": net_input["prev_output_tokens"]}
    real = {side: of_side.ne(padding).t() for side, of_side in tokens.items()}  # [T, B]

    def count(layer: str, fc1: SpecializedFC1, preactivation: Tensor) -> None:
        # Activation checkpointing has a first pass without gradient; the second counts.
        if torch.is_grad_enabled() and layer in running.layers:
            route = fc1.route
            assert route is not None
            rows = route.rows
            if rows is None:
                rows = torch.tensor(route.distinct, device=preactivation.device)
            running.count(layer, preactivation, real[side_of(layer)], rows)

    counts = {layer: partial(count, layer, fc1) for layer, fc1 in model.ffn_layers().items()}
    with tapped(model, before_masks=counts):
        yield


@contextmanager
def scored(model: NeuronSpecTransformer, scores: Scores) -> Iterator[None]:
    """Inside the block, forward and backward give the scores the gradient of the loss by the masks."""
    effects: dict[str, Tensor] = {}  # site -> what a unit emits more when kept than when dropped

    def of_neurons(layer: str, fc1: SpecializedFC1, preactivation: Tensor) -> None:
        # Under --activation-dropout the effect is, ours, that of before the dropout.
        dropped = fc1.activation(fc1.bias.detach()) if fc1.dropped_neurons == "bias" else 0.0
        effects[layer] = fc1.activation(preactivation) - dropped

    def give(site: str, module: SpecializedFC1 | SpecializedAttention, emitted: Tensor) -> Tensor:
        route = module.route
        assert route is not None
        of_sentences = scores[site][route.distinct[0] if route.rows is None else route.rows]  # [F] or [B, F]
        return straight_through(emitted, of_sentences, effects.pop(site))

    fc1s = {layer: fc1 for layer, fc1 in model.ffn_layers().items() if fc1.neuron_mask is not None}
    attentions = {site: module for site, module in model.attentions().items() if module.head_mask is not None}
    before_masks = {layer: partial(of_neurons, layer, fc1) for layer, fc1 in fc1s.items()}
    before_masks |= {site: partial(effects.__setitem__, site) for site in attentions}
    taps = {layer: partial(give, layer, fc1) for layer, fc1 in fc1s.items()}
    taps |= {site: partial(give, site, attention) for site, attention in attentions.items()}
    with tapped(model, taps, before_masks=before_masks):
        yield


def _require_valid(args: argparse.Namespace) -> None:
    """Raises: NeuronSpecError if the flags name what cannot be trained so, or say nothing to the rule."""
    rule = args.dynamic_masks
    of_others = [name for name, flag in _OF_RULE.items() if flag.rule != rule]
    if rule == "none":
        of_others += ["budget_percent", "initial_counts"]
    require_absent(args, of_others, f"flags that say nothing to --dynamic-masks {rule}")
    if rule == "none":
        return
    if not args.neuron_masks:
        raise ModelError(
            "no masks to begin with", mend="give --neuron-masks, when going on with a checkpoint too"
        )
    if args.reselect_k is not None and args.budget_percent is not None:
        raise ModelError("two rules for how many neurons are kept", got="--reselect-k and --budget-percent")
    if args.budget_percent is not None:
        parse_k(args.budget_percent, "--budget-percent")
    for name, flag in _OF_RULE.items():
        if (value := getattr(args, name)) is not None and not flag.is_valid(value):
            raise ModelError(f"{flag_name(name)} is out of range", got=value, expected=flag.expected)
    refused = {"use_bmuf": "it averages weights over processes by itself"}
    if rule == "learned":
        refused |= dict.fromkeys(HALF, "scores are trained in single precision; --amp keeps them so")
        refused |= dict.fromkeys(RECOMPUTED, "a layer's second pass was never tried")
    refuse(args, f"--dynamic-masks {rule}", refused)
    if getattr(args, "dropped_neurons", "bias") == "frozen":
        raise ModelError(
            "masks that move are told by what a dropped neuron lacks, and frozen ones lack nothing",
            got="--dropped-neurons frozen",
            expected="bias or zero",
            mend="choose one of the two, or fixed masks",
        )
    if args.missing_direction != "error":
        raise ModelError(
            "only directions with masks of their own can move them",
            got=f"--missing-direction {args.missing_direction}",
            expected="error",
            mend="leave it out in training; generation may compose or go dense",
        )
    require_backend(args, _DDP_BACKENDS, "masks must be the same in all processes")


def require_absent(args: argparse.Namespace, names: Iterable[str], what: str) -> None:
    """Raises: ModelError, which says ``what``, if one of these flags is given, which are None where they are not."""
    values = {flag_name(name): getattr(args, name) for name in names}
    if given := [f"{flag} {value}" for flag, value in values.items() if value is not None]:
        raise ModelError(what, got=", ".join(given), mend="leave them out")


def refuse(args: argparse.Namespace, method: str, refused: Mapping[str, str]) -> None:
    """Raises: ModelError if fairseq is to do what a method does not go with; ``refused`` is flag -> why."""
    for name, why in refused.items():
        if getattr(args, name, False):
            raise ModelError(f"{method} does not go with {flag_name(name)}", expected=why)


def require_backend(args: argparse.Namespace, backends: Sequence[str], what: str) -> None:
    """Raises: ModelError, which says ``what``, if several processes train by another of fairseq's backends."""
    backend = getattr(args, "ddp_backend", None)
    if getattr(args, "distributed_world_size", 1) > 1 and backend not in backends:
        raise ModelError(
            what, got=f"--ddp-backend {backend}", expected=f"--ddp-backend {' or '.join(backends)}"
        )
