"""Whether weights are numbers."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def not_finite(weights: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """The name of the first that holds NaN or inf, and how many of its numbers are, in words; None if all are finite."""
    for name, value in weights.items():
        # The sum is one pass without a copy; it may overflow where every number is finite, and so only says where to look.
        if value.is_floating_point() and not value.sum().isfinite() and not value.isfinite().all():
            return name, f"{int((~value.isfinite()).sum())} of {value.numel()} are NaN or infinite"
    return None
