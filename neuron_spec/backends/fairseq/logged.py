"""Which numbers a training's validation gives, by which its best checkpoint and its end may be chosen."""

from __future__ import annotations

import argparse
from typing import Any

from fairseq.logging import metrics

from neuron_spec.errors import ModelError

# What fairseq's criteria for translation count of a batch.
_COUNTED = ("loss", "nll_loss", "ntokens", "nsentences", "sample_size")
_ACCURACY = ("total", "n_correct")  # with --report-accuracy


def logged_metrics(criterion: Any) -> list[str] | None:
    """The names under which a criterion logs, in its order; None if they cannot be known before it has run.

    A criterion may name them itself, as ``logged_metrics``. Of another, its ``reduce_metrics`` is asked about a batch of
    one token.
    """
    if (named := getattr(criterion, "logged_metrics", None)) is not None:
        return [*named]
    batch = dict.fromkeys(_COUNTED + _ACCURACY * bool(getattr(criterion, "report_accuracy", False)), 1)
    try:
        with metrics.aggregate(new_root=True) as logged:
            criterion.__class__.reduce_metrics([batch])
            return [*logged.get_smoothed_values()]
    except Exception:  # it counts something else
        return None


def require_logged(criterion: Any, args: argparse.Namespace) -> None:
    """Raises: ModelError if ``--best-checkpoint-metric`` is none of the criterion's, before the first epoch is lost."""
    wanted = getattr(args, "best_checkpoint_metric", None)
    names = logged_metrics(criterion)
    if names and wanted and wanted not in names and not getattr(args, "disable_validation", False):
        raise ModelError(
            "validation will not log the metric that the best checkpoint is chosen by",
            got=f"--best-checkpoint-metric {wanted}",
            expected=f"one that --criterion {args.criterion} logs: {', '.join(names)}",
            mend="name one of these; BLEU is measured by neuron-spec evaluate, after training",
        )
