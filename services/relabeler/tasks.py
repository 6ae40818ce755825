"""The relabeler's door: a shard of queries with candidates in, their scores and FRet records out.

Queries that carry scores already, as under a new label version, are fused and selected from them: no judge is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, bindparam, update
from sqlalchemy.dialects.postgresql import insert

from services.relabeler import statistical
from services.relabeler.fuse import fuse
from services.relabeler.select import select
from shared import store
from shared.celery_app import app
from shared.database import engine
from shared.ledger import Claim
from shared.records import Dropped, FRetRecord, Judgement, Passage
from shared.runs import Run, find_policy, find_run
from shared.schema import fret_records, queries
from shared.stages import Stage, task_name
from shared.store import StoredQuery
from shared.worker import Output, perform


@app.task(name=task_name(Stage.RELABEL))  # type: ignore[untyped-decorator]
def relabel(shard_id: str) -> None:
    perform(Stage.RELABEL, shard_id, _relabel)


def _relabel(claim: Claim) -> Output:
    assert claim.run_id is not None  # noqa: S101 - a relabel shard always belongs to a run
    with engine().connect() as connection:
        run = find_run(connection, claim.run_id)
        policy = find_policy(connection, run, claim.label_version)
        stored = store.load_queries(connection, run, claim.item_ids)
        candidate_ids = {passage_id for item in stored for passage_id in item.candidate_ids}
        passages = store.load_passages(connection, run, candidate_ids)
    texts = {passage_id: passage.text for passage_id, passage in passages.items()}
    judged = _judge(run, [item for item in stored if not item.ql_scores], passages)
    records: list[tuple[FRetRecord, bool]] = []
    dropped: list[Dropped] = []
    for item in stored:
        scores = judged.get(item.query.query_id)
        ql_scores = [s.ql_score for s in scores] if scores is not None else item.ql_scores
        rc_scores = [s.rc_score for s in scores] if scores is not None else item.rc_scores
        chosen = select(item.query, fuse(item.candidate_ids, ql_scores, rc_scores), texts, policy)
        if isinstance(chosen, Dropped):
            dropped.append(chosen)
        else:
            records.append((chosen, chosen.positive_id != item.query.seed_passage_id))

    def save(connection: Connection) -> None:
        _save_scores(connection, run, judged)
        _save_records(connection, run, claim.label_version, records)

    return Output(save, tuple(dropped))


def _judge(run: Run, unjudged: Sequence[StoredQuery], passages: dict[UUID, Passage]) -> dict[UUID, list[Judgement]]:
    if not unjudged:
        return {}
    terms = set[str]().union(*(statistical.needed_terms(item.query.query_text) for item in unjudged))
    with engine().connect() as connection:
        statistics = store.load_statistics(connection, run, terms)
    return {
        item.query.query_id: statistical.judge(
            item.query.query_text, [passages[passage_id] for passage_id in item.candidate_ids], statistics
        )
        for item in unjudged
    }


def _save_scores(connection: Connection, run: Run, judged: dict[UUID, list[Judgement]]) -> None:
    if not judged:
        return
    statement = (
        update(queries)
        .where(queries.c.run_id == bindparam("of_run"), queries.c.query_id == bindparam("of_query"))
        .values(ql_scores=bindparam("ql"), rc_scores=bindparam("rc"), judge=bindparam("by"))
    )
    rows: list[dict[str, Any]] = [
        {
            "of_run": run.run_id,
            "of_query": query_id,
            "ql": [s.ql_score for s in scores],
            "rc": [s.rc_score for s in scores],
            "by": statistical.PROVENANCE,
        }
        for query_id, scores in judged.items()
    ]
    connection.execute(statement, rows)


def _save_records(
    connection: Connection, run: Run, label_version: int, records: Sequence[tuple[FRetRecord, bool]]
) -> None:
    if records:
        connection.execute(
            insert(fret_records),
            [
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
                    "positive_changed": changed,
                    "positive_span": list(record.positive_span) if record.positive_span else None,
                    "negative_spans": record.negative_spans,
                }
                for record, changed in records
            ],
        )
