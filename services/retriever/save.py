"""Writes what retrieval came to: each query's candidates. Call it in the finishing transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from uuid import UUID

from sqlalchemy import Connection, bindparam, update

from shared.records import Candidate
from shared.runs import Run
from shared.schema import queries


def save_candidates(connection: Connection, run: Run, candidates: Mapping[UUID, Sequence[Candidate]]) -> None:
    """The candidates, by query id, in retrieval order."""
    statement = (
        update(queries)
        .where(queries.c.run_id == bindparam("of_run"), queries.c.query_id == bindparam("of_query"))
        .values(candidate_ids=bindparam("ids"), candidate_scores=bindparam("scores"))
    )
    connection.execute(
        statement,
        [
            {
                "of_run": run.run_id,
                "of_query": query_id,
                "ids": [c.passage_id for c in found],
                "scores": [c.score for c in found],
            }
            for query_id, found in candidates.items()
        ],
    )
