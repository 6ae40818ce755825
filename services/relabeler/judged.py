"""What either teacher's judge hands on: the scores of a query's candidates, and how they came about. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from shared.records import Judgement
from shared.store import StoredQuery


@dataclass(frozen=True, slots=True)
class Judged:
    """One judgement per candidate, in their order; `by` goes into the column `judge`."""

    judgements: Sequence[Judgement]
    by: dict[str, Any]

    def scores_of(self, query: StoredQuery) -> StoredQuery:
        """The query with its raw scores, parallel to its candidates."""
        return replace(
            query,
            ql_scores=tuple(judgement.ql_score for judgement in self.judgements),
            rc_scores=tuple(judgement.rc_score for judgement in self.judgements),
        )
