"""What either teacher's judge hands on: the scores of a query's candidates, and how they came about. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from shared.records import Judgement
from shared.store import StoredQuery


@dataclass(frozen=True, slots=True)
class Judged:
    """One judgement per candidate, in their order; `by` goes into the column `judge`.

    Its `query_tokens` are those of the query that `ql_score` is the log-likelihood of.
    """

    judgements: Sequence[Judgement]
    by: dict[str, Any]

    def scores_of(self, query: StoredQuery) -> StoredQuery:
        """The query with its raw scores, parallel to its candidates."""
        return replace(
            query,
            ql_scores=tuple(judgement.ql_score for judgement in self.judgements),
            rc_scores=tuple(judgement.rc_score for judgement in self.judgements),
            query_tokens=self.by.get("query_tokens"),
        )


def how_many(found: Iterable[Judged]) -> dict[str, int]:
    """The judgements by where they come from: `judged` now, or `taken_over` from an earlier run."""
    counted = [(len(each.judgements), each.by.get("taken_over", 0)) for each in found]
    taken_over = sum(taken for _, taken in counted)
    return {"judged": sum(total for total, _ in counted) - taken_over, "taken_over": taken_over}
