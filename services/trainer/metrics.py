"""Ranking metrics, equal to pytrec_eval's. Pure numpy; no model, no file.

nDCG has trec_eval's linear gain (gain = the judged grade, discount = 1/log2(rank + 1)), as BEIR and pytrec_eval have,
not the exponential 2^grade − 1. For recall, MRR and MAP a grade ≥ 1 is relevant. A query without any relevant
passage counts with 0 everywhere, as in trec_eval. Their names there: ndcg_cut_10, recall_k, map_cut_100, and recip_rank
of a ranking cut at 10.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

RECALL_DEPTHS = (1, 5, 10, 100)
DEPTH = max(RECALL_DEPTHS)  # how long a ranking has to be
METRICS = ("ndcg@10", *(f"recall@{k}" for k in RECALL_DEPTHS), "mrr@10", f"map@{DEPTH}")


def ranking_metrics(ranking: Sequence[str], grades: Mapping[str, int]) -> dict[str, float]:
    """The METRICS of one query, each in [0, 1].

    Args:
        ranking: passage ids, the best first, DEPTH of them or the whole corpus.
        grades: the judged passages' grades; what is not judged counts as 0.
    """
    found = [max(grades.get(passage_id, 0), 0) for passage_id in ranking]
    ideal = sorted((grade for grade in grades.values() if grade > 0), reverse=True)
    ideal_gain = _discounted_gain(ideal[:10])
    relevant_ranks = [rank for rank, grade in enumerate(found[:DEPTH], start=1) if grade]
    precisions = [number / rank for number, rank in enumerate(relevant_ranks, start=1)]
    return {
        "ndcg@10": _discounted_gain(found[:10]) / ideal_gain if ideal else 0.0,
        **{f"recall@{k}": sum(grade > 0 for grade in found[:k]) / max(len(ideal), 1) for k in RECALL_DEPTHS},
        "mrr@10": 1 / relevant_ranks[0] if relevant_ranks and relevant_ranks[0] <= 10 else 0.0,
        f"map@{DEPTH}": sum(precisions) / max(len(ideal), 1),
    }


def _discounted_gain(grades: Sequence[int]) -> float:
    return float(sum(grade / np.log2(rank + 1) for rank, grade in enumerate(grades, start=1)))
