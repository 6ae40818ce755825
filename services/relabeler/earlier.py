"""Takes an earlier run's judgements over: an LLM judges a passage by itself, and what it said still holds. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from uuid import UUID

from services.relabeler.judged import Judged
from shared.records import Dropped, Judgement, query_id
from shared.store import StoredQuery

Known = Mapping[UUID, Judgement]


def id_in(fingerprint: UUID, item: StoredQuery) -> UUID:
    """The id that a run of this fingerprint gives the same passage's query."""
    return query_id(fingerprint, item.query.seed_passage_id, item.query.ordinal)


def known(item: StoredQuery, earlier: StoredQuery | None) -> Known:
    """What the earlier run knows of the query's passages, by passage id; nothing where it had another query there."""
    if earlier is None or (item.query.task_description, item.query.query_text) != (
        earlier.query.task_description,
        earlier.query.query_text,
    ):
        return {}
    scores = zip(earlier.candidate_ids, earlier.ql_scores, earlier.rc_scores, strict=False)  # no scores: it was dropped
    return {passage_id: Judgement(passage_id, ql, rc, earlier.query_tokens) for passage_id, ql, rc in scores}


def completed(item: StoredQuery, known: Known, fresh: Judged | Dropped | None, earlier_run: UUID) -> Judged | Dropped:
    """All candidates' judgements, known and fresh, in their order. `fresh` is None where nothing was left to judge.

    What came about elsewhere is named by its run, whose own `judge` of the query says how.
    """
    if isinstance(fresh, Dropped):
        return fresh
    judgements = {**known, **{each.passage_id: each for each in (fresh.judgements if fresh else ())}}
    of_candidates: Sequence[Judgement] = [judgements[passage_id] for passage_id in item.candidate_ids]
    taken = sum(passage_id in known for passage_id in item.candidate_ids)
    by = fresh.by if fresh else {"query_tokens": next((each.query_tokens for each in of_candidates), None)}
    return Judged(of_candidates, {**by, "taken_over": taken, "from_run": str(earlier_run)})
