"""Writes what relabelling came to: raw scores to the queries, FRet records. Call it in the finishing transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from uuid import UUID

from sqlalchemy import Connection, bindparam, update

from services.relabeler.judged import Judged
from shared.database import insert_rows
from shared.records import FRetRecord
from shared.runs import Run
from shared.schema import fret_records, queries


def save_scores(connection: Connection, run: Run, judged: Mapping[UUID, Judged]) -> None:
    """The raw scores of the queries, by query id; a later label version is made from them without the teacher."""
    if not judged:
        return
    statement = (
        update(queries)
        .where(queries.c.run_id == bindparam("of_run"), queries.c.query_id == bindparam("of_query"))
        .values(ql_scores=bindparam("ql"), rc_scores=bindparam("rc"), judge=bindparam("judged_by"))
    )
    rows = [
        {
            "of_run": run.run_id,
            "of_query": query_id,
            "ql": [judgement.ql_score for judgement in found.judgements],
            "rc": [judgement.rc_score for judgement in found.judgements],
            "judged_by": found.by,
        }
        for query_id, found in judged.items()
    ]
    connection.execute(statement, rows)


def save_records(
    connection: Connection, run: Run, label_version: int, records: Sequence[tuple[FRetRecord, bool]]
) -> None:
    """The records, each with whether its positive is another passage than the seed."""
    rows = [
        {
            "run_id": run.run_id,
            "query_id": record.query_id,
            "label_version": label_version,
            "positive_id": record.positive_id,
            "negative_ids": list(record.negative_ids),
            "positive_ql_rank": record.positive_ql_rank,
            "positive_rc_rank": record.positive_rc_rank,
            "positive_fused_score": record.positive_fused_score,
            "seed_fused_score": record.seed_fused_score,
            "runner_up_fused_score": record.runner_up_fused_score,
            "positive_changed": changed,
            "positive_span": list(record.positive_span) if record.positive_span else None,
            "negative_spans": record.negative_spans,
        }
        for record, changed in records
    ]
    insert_rows(connection, fret_records, rows)
