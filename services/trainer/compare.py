"""Figures of a model, and how sure a difference between two is: a bootstrap in pairs. Pure numpy; no model, no file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Measured:
    """What a model reached at one dimension: as a whole, and on every single query, pair or test text."""

    figures: Mapping[str, float]
    items: Sequence[Mapping[str, float]]

    def column(self, name: str) -> NDArray[np.float64]:
        return np.array([item[name] for item in self.items], dtype=np.float64)


def mean_differences(before: Measured, after: Measured, metrics: Sequence[str], seed: int) -> dict[str, dict[str, Any]]:
    """`{metric: {"mean": after − before, "ci95": [low, high]}}`, for metrics that are means over the items."""
    return {
        metric: difference(
            after.figures[metric] - before.figures[metric],
            paired_bootstrap(before.column(metric), after.column(metric), seed=seed),
        )
        for metric in metrics
    }


def difference(mean: float, interval: tuple[float, float]) -> dict[str, Any]:
    return {"mean": mean, "ci95": list(interval)}


def paired_bootstrap(before: NDArray[np.float64], after: NDArray[np.float64], *, seed: int = 0) -> tuple[float, float]:
    """The 95% percentile interval of the mean difference `after − before`, items drawn with replacement in pairs.

    Args:
        before, after: (Q,), one metric of the same items in the same order.
    """
    each = after - before
    return interval(np.concatenate([each[drawn].mean(1) for drawn in resamples(len(each), seed)]))


def resamples(count: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """RESAMPLES rows of `count` indices drawn with replacement, in parts of (R, count) with at most 32 MB."""
    rng = np.random.default_rng(seed)
    at_once = max(1, 4_000_000 // count)
    for done in range(0, RESAMPLES, at_once):
        yield rng.integers(count, size=(min(at_once, RESAMPLES - done), count))


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """The 95% percentile interval of (R,) resampled values."""
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
