"""One score for each candidate of a query, out of what the ledger has of it: what the student's list is drawn to. Pure.

Query likelihood is in nats, relevance a grade, a log-probability or BM25, the retriever's score a cosine: they have no
common scale. Within one query's candidates each is standardised (mean 0, deviation 1), and the score is

    z(cosine) · retriever_weight + (z(ql) + z(rc)) / 2

standardised again, so that a temperature means the same for every query and teacher. The retriever counts because it
knows what the judges do not: over SciFact's and Cranfield's development queries the sum ranks better than each part
(docs/decisions.md), and a student that is drawn to it keeps what it has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Literal

JudgedBy = Literal["both", "ql", "rc", "ranks"]

# A person's decision: the positive is ahead of every other candidate by so many deviations
DECIDED_AHEAD = 1.0


def list_scores(
    cosines: Sequence[float],
    ql_scores: Sequence[float],
    rc_scores: Sequence[float],
    *,
    judged_by: JudgedBy,
    retriever_weight: float,
) -> list[float]:
    """The standardised score of each candidate, in the order given; all 0 where nothing tells the candidates apart.

    `ranks` puts −1 × the rank in the place of each of the three; `ql` and `rc` read one of the judges alone.
    """
    parts = [cosines, ql_scores, rc_scores]
    if judged_by == "ranks":
        parts = [_ranked(part) for part in parts]
    of_retriever, of_ql, of_rc = map(standardised, parts)
    by_judges = {"ql": of_ql, "rc": of_rc}.get(judged_by) or [fmean(pair) for pair in zip(of_ql, of_rc, strict=True)]
    return standardised(
        [judge + retriever_weight * cosine for judge, cosine in zip(by_judges, of_retriever, strict=True)]
    )


def decided(scores: Sequence[float], positive: int) -> list[float]:
    """The same where a person has said which candidate is the positive: it is the best, whatever the teacher says."""
    others = [score for place, score in enumerate(scores) if place != positive]
    ahead = max(others, default=0.0) + DECIDED_AHEAD
    return [max(score, ahead) if place == positive else score for place, score in enumerate(scores)]


def standardised(values: Sequence[float]) -> list[float]:
    """The values with mean 0 and deviation 1; all 0 where they are equal, as far as a float can tell."""
    if not values:
        return []
    mean = fmean(values)
    deviation = math.sqrt(fmean((value - mean) ** 2 for value in values))  # pstdev takes a hundred times as long
    if deviation <= 1e-9 * max(1.0, abs(mean)):
        return [0.0] * len(values)
    return [(value - mean) / deviation for value in values]


def _ranked(values: Sequence[float]) -> list[float]:
    """−1 × each value's rank, from 1 for the largest; equal values have the mean of theirs."""
    best_first = sorted(values, reverse=True)
    first = {value: place for place, value in reversed(list(enumerate(best_first, start=1)))}
    return [-(first[value] + (best_first.count(value) - 1) / 2) for value in values]
