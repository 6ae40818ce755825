"""Judgements that a run takes over from the one that it follows."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest

from services.relabeler.earlier import completed, known
from services.relabeler.judged import Judged
from shared.records import Judgement, TaskQuery
from shared.store import StoredQuery

A, B, EARLIER = UUID(int=1), UUID(int=2), UUID(int=9)
QUERY = TaskQuery(UUID(int=5), A, 0, "search result", "how warm is it")
UNJUDGED = StoredQuery(QUERY, (A, B), (0.9, 0.8), (), ())
JUDGED = replace(UNJUDGED, ql_scores=(-8.0, -20.0), rc_scores=(3.0, 1.0), query_tokens=4)


def test_all_is_known_with_the_tokens_that_were_counted() -> None:
    found = completed(UNJUDGED, known(UNJUDGED, JUDGED), None, EARLIER)
    assert isinstance(found, Judged)
    assert found.scores_of(UNJUDGED) == JUDGED
    assert found.by == {"query_tokens": 4, "taken_over": 2, "from_run": str(EARLIER)}


@pytest.mark.parametrize("counted", [4, None])
def test_what_is_judged_anew_brings_the_tokens(counted: int | None) -> None:
    of_a = replace(JUDGED, candidate_ids=(A,), query_tokens=counted)
    fresh = Judged([Judgement(B, -20.0, 1.0, 4)], {"teacher": "llm", "query_tokens": 4})
    found = completed(UNJUDGED, known(UNJUDGED, of_a), fresh, EARLIER)
    assert isinstance(found, Judged)
    assert found.scores_of(UNJUDGED) == JUDGED
    assert found.by["taken_over"] == 1


def test_nobody_counted() -> None:
    found = completed(UNJUDGED, known(UNJUDGED, replace(JUDGED, query_tokens=None)), None, EARLIER)
    assert isinstance(found, Judged)
    assert found.scores_of(UNJUDGED).query_tokens is None
