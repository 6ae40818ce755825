"""What the ledger knows of a run's vector index: what it lacks, and how it is made again."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import Connection, text

from shared.counts import read_counts
from shared.errors import IndexIncompleteError
from shared.ledger.shards import NOTHING_AGAINST
from shared.stages import Stage


def reopen_index(connection: Connection, run_id: UUID) -> int:
    """done -> ready for a run's index shards, where the vector index turned out to have lost points.

    Does nothing while one of them is open already: then the index is on its way. Raises IndexIncompleteError where dead
    shards are why the index is short (see `unindexed`).
    """
    counted = connection.execute(
        text("SELECT state, count(*) FROM shards WHERE run_id = :run_id AND stage = 'index' GROUP BY state"),
        {"run_id": run_id},
    )
    by_state = {row[0]: row[1] for row in counted}
    if by_state.get("ready") or by_state.get("claimed"):
        return 0
    if by_state.get("dead", 0) > unindexed(connection, run_id):
        why = connection.execute(
            text(
                "SELECT error_message FROM shards WHERE run_id = :run_id AND stage = 'index' AND state = 'dead' LIMIT 1"
            ),
            {"run_id": run_id},
        ).scalar_one()
        raise IndexIncompleteError(
            f"the index lacks passages, because {by_state['dead']} of its shards are dead: {why}"
        )
    return connection.execute(
        text(
            f"UPDATE shards SET state = 'ready', rung_at = NULL, not_before = now(), {NOTHING_AGAINST} "  # noqa: S608
            "WHERE run_id = :run_id AND stage = 'index' AND state = 'done'"
        ),
        {"run_id": run_id},
    ).rowcount


def unindexed(connection: Connection, run_id: UUID) -> int:
    """How many passages the index does without, because each of them alone cannot be embedded and its shard is dead.

    0 where a shard of several is dead, or more than a tenth of the passages: then it is about none of them, and a run
    that went on would search an index of the rest.
    """
    alone = connection.execute(
        text(
            """
            SELECT CASE WHEN bool_and(item_count = 1) AND 10 * count(*) <= passage_count THEN count(*) ELSE 0 END
            FROM shards JOIN runs USING (run_id)
            WHERE run_id = :run_id AND stage = 'index' AND shards.state = 'dead' GROUP BY passage_count
            """
        ),
        {"run_id": run_id},
    ).scalar_one_or_none()
    return int(alone or 0)


def retrieved(connection: Connection, run_id: UUID) -> int:
    """How many of a run's queries have their candidates, and so a vector of their own."""
    return sum(
        count.amount if count.what == "done" else -count.amount
        for count in read_counts(connection, run_id)
        if count.stage == Stage.RETRIEVE and (count.what == "done" or count.what.startswith("drop:"))
    )
