"""Ranking metrics and the interval of a difference. Pure numpy; no model, no file.

nDCG has trec_eval's linear gain (gain = the judged grade, discount = 1/log2(rank + 1)), as BEIR and pytrec_eval have,
not the exponential 2^grade − 1. For recall and MRR a grade ≥ 1 is relevant. A query without any relevant passage
counts with 0 everywhere, as in trec_eval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

RECALL_DEPTHS = (1, 5, 10, 100)
DEPTH = max(RECALL_DEPTHS)  # how long a ranking has to be
METRICS = ("ndcg@10", *(f"recall@{k}" for k in RECALL_DEPTHS), "mrr@10")


def ranking_metrics(ranking: Sequence[str], grades: Mapping[str, int]) -> dict[str, float]:
    """The METRICS of one query, each in [0, 1].

    Args:
        ranking: passage ids, the best first, DEPTH of them or the whole corpus.
        grades: the judged passages' grades; what is not judged counts as 0.
    """
    found = [max(grades.get(passage_id, 0), 0) for passage_id in ranking]
    ideal = sorted((grade for grade in grades.values() if grade > 0), reverse=True)
    ideal_gain = _discounted_gain(ideal[:10])
    first = next((rank for rank, grade in enumerate(found[:10], start=1) if grade), None)
    return {
        "ndcg@10": _discounted_gain(found[:10]) / ideal_gain if ideal else 0.0,
        **{f"recall@{k}": sum(grade > 0 for grade in found[:k]) / max(len(ideal), 1) for k in RECALL_DEPTHS},
        "mrr@10": 1 / first if first else 0.0,
    }


def _discounted_gain(grades: Sequence[int]) -> float:
    return float(sum(grade / np.log2(rank + 1) for rank, grade in enumerate(grades, start=1)))


def paired_bootstrap(
    before: NDArray[np.float64], after: NDArray[np.float64], *, seed: int = 0, resamples: int = 10_000
) -> tuple[float, float]:
    """The 95% percentile interval of the mean difference `after − before`, queries drawn with replacement in pairs.

    Args:
        before, after: (Q,), one metric of the same queries in the same order.
    """
    difference = after - before
    rng = np.random.default_rng(seed)
    at_once = max(1, 4_000_000 // len(difference))  # 32 MB of indices at a time, however many queries
    means = np.concatenate(
        [
            difference[rng.integers(len(difference), size=(min(at_once, resamples - done), len(difference)))].mean(1)
            for done in range(0, resamples, at_once)
        ]
    )
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
