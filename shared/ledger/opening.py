"""What may be claimed, and what is over: barriers, doorbells, the ends of runs, and dead shards that are tried anew."""

from __future__ import annotations

from collections.abc import Collection
from uuid import UUID

from sqlalchemy import Connection, text

from shared.errors import FretworkError
from shared.ledger.shards import NOT_PAUSED, NOTHING_AGAINST, Claim, claim_of
from shared.stages import ROUTES, RUN_STAGES, Stage

_NOTHING_OPEN = (
    "NOT EXISTS (SELECT FROM shards WHERE shards.run_id = runs.run_id AND shards.stage = ANY(:stages) "
    "AND shards.state IN ('waiting', 'ready', 'claimed'))"
)


def open_barriers(connection: Connection) -> int:
    """waiting -> ready for every shard whose run has no open shard left in the stages that it waits for.

    A dead shard is not open: one bad shard must not hold a run for ever.
    """
    opened = 0
    for stage, route in ROUTES.items():
        if route.after:
            opened += connection.execute(
                text(
                    """
                    UPDATE shards SET state = 'ready', rung_at = NULL
                    WHERE state = 'waiting' AND stage = :stage AND NOT EXISTS (
                        SELECT FROM shards AS earlier
                        WHERE earlier.run_id = shards.run_id AND earlier.stage = ANY(:after)
                          AND earlier.state IN ('waiting', 'ready', 'claimed')
                    )
                    """
                ),
                {"stage": stage, "after": list(route.after)},
            ).rowcount
    return opened


def finish_runs(connection: Connection) -> list[UUID]:
    """running or paused -> done for the runs that have no open shard.

    A run that somebody acts on in this moment waits for the next time.
    """
    candidates = connection.execute(
        text(
            f"SELECT run_id FROM runs WHERE state IN ('running', 'paused') AND {_NOTHING_OPEN} "  # noqa: S608 - our own
            "FOR NO KEY UPDATE SKIP LOCKED"
        ),
        {"stages": list(RUN_STAGES)},
    )
    return list(
        connection.execute(
            text(
                "UPDATE runs SET state = 'done', finished_at = now(), paused_reason = NULL "  # noqa: S608 - our own
                # looked at again: before the lock was ours, `retry` may have opened some
                f"WHERE run_id = ANY(:candidates) AND {_NOTHING_OPEN} RETURNING run_id"
            ),
            {"candidates": list(candidates.scalars()), "stages": list(RUN_STAGES)},
        ).scalars()
    )


def to_ring(connection: Connection, stages: Collection[Stage], limit: int, again_after_s: float) -> list[Claim]:
    """Ready shards whose doorbell was never rung, or long ago, the oldest first; marks them as rung now."""
    rows = connection.execute(
        text(
            f"""
            WITH rung AS (
                UPDATE shards SET rung_at = now()
                WHERE shard_id IN (
                    SELECT shard_id FROM shards
                    WHERE state = 'ready' AND stage = ANY(:stages) AND not_before <= now() AND {NOT_PAUSED}
                      AND (rung_at IS NULL OR rung_at < now() - make_interval(secs => :again_after_s))
                    ORDER BY created_at, shard_id LIMIT :limit FOR UPDATE SKIP LOCKED
                )
                RETURNING shard_id, run_id, stage, label_version, item_ids, claim_seq, claimed_by, created_at
            )
            SELECT * FROM rung ORDER BY created_at, shard_id  -- RETURNING has an order of its own
            """  # noqa: S608 - our own constant
        ),
        {
            "stages": list(stages),
            "limit": limit,
            "again_after_s": again_after_s,
            "run_stages": list(RUN_STAGES),
        },
    ).mappings()
    return [claim_of(row) for row in rows]


def retry(connection: Connection, run_id: UUID, shard_id: UUID | None = None) -> int:
    """dead -> ready, or -> waiting behind a barrier, for a run's dead shards, or for one of them; returns how many.

    What counts against them starts anew. A done run is running again; a paused one stays as it is. A
    training on its records goes on from its last checkpoint, where it is the one that is named, and the run stays done.

    Raises FretworkError where the run is cancelled.
    """
    # before the shards: or `finish_runs`, which cannot see them yet, would end the run
    state = connection.execute(
        text("SELECT state FROM runs WHERE run_id = :run_id FOR NO KEY UPDATE"), {"run_id": run_id}
    ).scalar_one()
    if state == "cancelled":
        raise FretworkError("the run is cancelled, for good: nobody would take its shards")
    retried = (
        connection.execute(
            text(
                "UPDATE shards SET state = CASE WHEN stage = ANY(:behind) THEN 'waiting' ELSE 'ready' END, "  # noqa: S608
                f"{NOTHING_AGAINST}, rung_at = NULL, not_before = now() "
                "WHERE run_id = :run_id AND state = 'dead' "
                "AND (shard_id = :shard_id OR CAST(:shard_id AS uuid) IS NULL AND stage = ANY(:stages)) "
                "RETURNING stage"
            ),
            {
                "run_id": run_id,
                "shard_id": shard_id,
                "stages": list(RUN_STAGES),
                "behind": [stage for stage, route in ROUTES.items() if route.after],
            },
        )
        .scalars()
        .all()
    )
    if set(retried) & set(RUN_STAGES):
        connection.execute(
            text("UPDATE runs SET state = 'running', finished_at = NULL WHERE run_id = :run_id AND state = 'done'"),
            {"run_id": run_id},
        )
    return len(retried)


def cancel_trainings(connection: Connection, run_id: UUID) -> int:
    """ready or claimed -> dead for the trainings on a run's records; returns how many.

    A worker that is at work on one gives it up at its next step. Their checkpoints stay: `retry` goes on with one.
    """
    return connection.execute(
        text(
            "UPDATE shards SET state = 'dead', lease_expires_at = NULL, error_type = 'cancelled', "
            "error_message = 'cancelled by hand', error_traceback = NULL "
            "WHERE run_id = :run_id AND stage = 'train' AND state IN ('ready', 'claimed')"
        ),
        {"run_id": run_id},
    ).rowcount
