"""Which numbers a training's validation gives, by which its best checkpoint and its end may be chosen, and where they go."""

from __future__ import annotations

import argparse
from typing import Any

from fairseq.logging import metrics, progress_bar

from neuron_spec.errors import ModelError

# What fairseq's criteria for translation count of a batch.
_COUNTED = ("loss", "nll_loss", "ntokens", "nsentences", "sample_size")
# Flag -> what fairseq's progress bar has of the package that keeps such logs, and the package.
_TRACKERS = {
    "tensorboard_logdir": ("SummaryWriter", "tensorboard"),
    "wandb_project": ("wandb", "wandb"),
    "aim_repo": ("get_aim_run", "aim"),
    "azureml_logging": ("Run", "azureml-core"),
}
_EXTRA = ("tensorboard", "wandb")  # of our extra, tracking
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


def require_trackers(args: argparse.Namespace) -> None:
    """Raises: ModelError if a flag asks for logs whose package is not here: fairseq trains on without them."""
    for name, (of_package, package) in _TRACKERS.items():
        if getattr(args, name, None) and getattr(progress_bar, of_package, None) is None:
            install = "pip install 'neuron_spec[tracking]', or " if package in _EXTRA else ""
            raise ModelError(
                f"--{name.replace('_', '-')} cannot be heeded: {package} is not installed",
                got=f"--{name.replace('_', '-')} {getattr(args, name)}",
                mend=f"{install}pip install {package}; or leave the flag out: train.log has the same numbers",
            )
