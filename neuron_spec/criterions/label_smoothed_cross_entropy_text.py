"""``label_smoothed_cross_entropy_text``: fairseq's criterion, which logs the loss of the text beside its own.

fairseq's ``loss``, ``nll_loss`` and ``ppl`` are of the language tag too, which models with and without parts of their
own per direction cannot be compared by (`language_tags`). They stay as they are; beside them stand, in the same bits:

text_nll_loss  per token of the text, its end of sentence included; lower is better
text_ppl       its perplexity
tag_nll_loss   per tag; not there where no target has one

Any task of fairseq may use it, by ``--user-dir``.
"""

# No `from __future__ import annotations`: fairseq makes flags of the types that a dataclass names.

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq import utils
from fairseq.criterions import register_criterion
from fairseq.criterions.label_smoothed_cross_entropy import (
    LabelSmoothedCrossEntropyCriterion,
    LabelSmoothedCrossEntropyCriterionConfig,
    label_smoothed_nll_loss,
)
from fairseq.logging import metrics
from torch import Tensor

from neuron_spec.backends.fairseq.language_tags import language_tags, text_positions


@dataclass
class TextCriterionConfig(LabelSmoothedCrossEntropyCriterionConfig):
    """fairseq's flags, and ours."""

    loss_without_tag: bool = field(
        default=False,
        metadata={"help": "leave the language tag out of the training loss; it is logged all the same"},
    )


@register_criterion("label_smoothed_cross_entropy_text", dataclass=TextCriterionConfig)
class TextCriterion(LabelSmoothedCrossEntropyCriterion):
    """fairseq's label-smoothed cross-entropy, bit for bit, or of the text alone.

    Attributes:
        logged_metrics: what a validation logs where targets have tags, and ``--best-checkpoint-metric`` may name.
    """

    logged_metrics: tuple[str, ...] = ("loss", "nll_loss", "ppl", "text_nll_loss", "text_ppl", "tag_nll_loss")

    def __init__(
        self,
        task: Any,
        sentence_avg: bool,
        label_smoothing: float,
        ignore_prefix_size: int = 0,
        report_accuracy: bool = False,
        loss_without_tag: bool = False,
    ) -> None:
        super().__init__(task, sentence_avg, label_smoothing, ignore_prefix_size, report_accuracy)
        self.loss_without_tag = loss_without_tag
        self.register_buffer("tags", language_tags(task), persistent=False)
        if report_accuracy:
            self.logged_metrics = (*self.logged_metrics, "total", "n_correct", "accuracy")
        self._parts: dict[str, Tensor] = {}  # of the batch that `compute_loss` saw last

    def forward(self, model: Any, sample: dict[str, Any], reduce: bool = True) -> Any:
        """As fairseq's; without the tag in the loss, the sample size is that of the text."""
        loss, sample_size, log = super().forward(model, sample, reduce)
        log |= self._parts
        if self.loss_without_tag and not self.sentence_avg:
            sample_size = log["sample_size"] = self._parts["text_ntokens"].clone()
        return loss, sample_size, log

    def compute_loss(
        self, model: Any, net_output: Any, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Loss and negative log-likelihood of a batch; the latter is of the tag too, as fairseq's."""
        lprobs, target = self.get_lprobs_and_target(model, net_output, sample)
        text = text_positions(target, self.tags, padding=self.padding_idx)
        tag = target.ne(self.padding_idx) & ~text
        smoothed = {"epsilon": self.eps, "ignore_index": self.padding_idx, "reduce": reduce}
        loss, nll_loss = label_smoothed_nll_loss(lprobs, target, **smoothed)
        if self.loss_without_tag:
            loss, _ = label_smoothed_nll_loss(lprobs, target.masked_fill(tag, self.padding_idx), **smoothed)
        with torch.no_grad():
            nats = -lprobs.gather(-1, target[:, None]).squeeze(-1)
            self._parts = {
                f"{name}_{what}": value
                for name, places in (("text", text), ("tag", tag))
                for what, value in (("nll_loss", nats.where(places, 0).sum()), ("ntokens", places.sum()))
            }
        return loss, nll_loss

    @classmethod
    def reduce_metrics(cls, logging_outputs: Sequence[dict[str, Any]]) -> None:
        """As fairseq's, and the text's and the tag's."""
        super().reduce_metrics(logging_outputs)
        for name in ("text", "tag"):
            nats, tokens = (
                sum(log.get(f"{name}_{what}", 0) for log in logging_outputs)
                for what in ("nll_loss", "ntokens")
            )
            if tokens > 0:
                metrics.log_scalar(f"{name}_nll_loss", nats / tokens / math.log(2), tokens, round=3)
        metrics.log_derived("text_ppl", lambda meters: utils.get_perplexity(meters["text_nll_loss"].avg))
