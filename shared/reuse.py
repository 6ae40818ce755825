"""What a run that updates another takes over from it, instead of asking the LLM again. Reads; writes one count.

A query is taken over with its passage, and its scores where its candidates are the same passages as before. So nothing
of the earlier run's is trusted that the new corpus could have changed. The offline teacher's queries and scores lean on
the statistics of the whole corpus and cost no token: they are made anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, select, text

from shared.records import Dropped, Judgement, TaskQuery, query_id
from shared.runs import Run, find_run
from shared.schema import drops, queries
from shared.stages import Stage
from shared.store import StoredQuery, load_queries

NOT_ABOUT_THE_PASSAGE = ("killed_worker", "call_failed")  # reasons that another time may not come to


def _updated(connection: Connection, run: Run) -> Run | None:
    if run.updates is None or run.config.teacher != "llm":
        return None
    return find_run(connection, run.updates)


def kept_queries(
    connection: Connection, run: Run, passage_ids: Sequence[UUID]
) -> dict[UUID, list[TaskQuery] | Dropped]:
    """The queries that the earlier run has for these passages, or why it has none; a passage new to it is left out."""
    earlier = _updated(connection, run)
    if earlier is None:
        return {}
    ordinals = range(run.config.queries_per_passage)
    wanted = [query_id(earlier.fingerprint, passage, ordinal) for passage in passage_ids for ordinal in ordinals]
    kept: dict[UUID, list[TaskQuery] | Dropped] = {}
    for item in load_queries(connection, earlier, wanted):
        old = item.query
        id_ = query_id(run.fingerprint, old.seed_passage_id, old.ordinal)
        made = TaskQuery(id_, old.seed_passage_id, old.ordinal, old.task_description, old.query_text, old.provenance)
        of_passage = kept.setdefault(old.seed_passage_id, [])
        if isinstance(of_passage, list):
            of_passage.append(made)
    ended = connection.execute(
        select(drops.c.item_id, drops.c.reason, drops.c.detail).where(
            drops.c.run_id == earlier.run_id,
            drops.c.stage == Stage.GENERATE,
            drops.c.item_id.in_(passage_ids),
            drops.c.reason.not_in(NOT_ABOUT_THE_PASSAGE),
        )
    )
    for row in ended:
        kept.setdefault(row.item_id, Dropped(row.item_id, row.reason, row.detail))
    return kept


def kept_judgements(
    connection: Connection, run: Run, asked: Sequence[StoredQuery]
) -> dict[UUID, tuple[list[Judgement], dict[str, Any]]]:
    """The scores, and the judge, of the queries that have the same candidates as in the earlier run, by query id."""
    earlier = _updated(connection, run)
    if earlier is None:
        return {}
    ids = {query_id(earlier.fingerprint, item.query.seed_passage_id, item.query.ordinal): item for item in asked}
    judges = {
        row.query_id: row.judge
        for row in connection.execute(
            select(queries.c.query_id, queries.c.judge).where(
                queries.c.run_id == earlier.run_id, queries.c.query_id.in_(ids)
            )
        )
    }
    kept: dict[UUID, tuple[list[Judgement], dict[str, Any]]] = {}
    for old in load_queries(connection, earlier, list(ids)):
        item = ids[old.query.query_id]
        same_text = (old.query.task_description, old.query.query_text) == (
            item.query.task_description,
            item.query.query_text,
        )
        if old.ql_scores and same_text and set(old.candidate_ids) == set(item.candidate_ids):
            scores = dict(zip(old.candidate_ids, zip(old.ql_scores, old.rc_scores, strict=True), strict=True))
            judgements = [Judgement(passage_id, *scores[passage_id]) for passage_id in item.candidate_ids]
            kept[item.query.query_id] = (judgements, judges[old.query.query_id])
    return kept


def count_kept(connection: Connection, run: Run, judgements: int) -> None:
    """Counts them, in the transaction that stores them."""
    if judgements:
        connection.execute(
            text(
                "INSERT INTO count_deltas (run_id, stage, label_version, what, amount) "
                "VALUES (:run_id, 'relabel', 1, 'kept', :amount)"
            ),
            {"run_id": run.run_id, "amount": judgements},
        )
