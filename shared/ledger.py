"""Moves a shard from state to state: the only code that does. The states stand in `schema.SHARD_STATES`.

A claim raises `claim_seq`, which only ever grows. Renewing and finishing require the same `claim_seq`, so a worker
whose lease ran out cannot write over its successor's work. Every function takes a connection and leaves the commit to
its caller; nothing here knows Celery.

No shard of a paused or cancelled run is claimed or rung for, while those that a worker holds may still be finished:
what was paid for is kept.
"""

from __future__ import annotations

import traceback
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID, uuid5

from sqlalchemy import Connection, RowMapping, text

from shared.counts import read_counts
from shared.database import insert_rows
from shared.errors import (
    BarrierClosedError,
    IndexIncompleteError,
    InvalidInputError,
    LeaseLostError,
    SetbackError,
    SettingError,
    TooSlowError,
)
from shared.records import Dropped
from shared.schema import drops, shards
from shared.stages import ROUTES, RUN_STAGES, Stage

MAX_FAILURES = 3
MAX_LOSSES = 3
MAX_LOSSES_ALONE = 3  # of a lone item after these, with its process to itself
MAX_SETBACKS = 3
MAX_FAILING = 100  # shards of a stage, and a hundredth of what is done: where more fail, it is about no item
RETRY_AFTER_FAILURE_S = 5.0
# a training on a run's records is no part of what a pause holds back
_NOT_PAUSED = (
    "NOT (stage = ANY(:run_stages) AND run_id IN (SELECT run_id FROM runs WHERE state IN ('paused', 'cancelled')))"
)
_NOTHING_OPEN = (
    "NOT EXISTS (SELECT FROM shards WHERE shards.run_id = runs.run_id AND shards.stage = ANY(:stages) "
    "AND shards.state IN ('waiting', 'ready', 'claimed'))"
)
HOPELESS = (IndexIncompleteError, InvalidInputError, SettingError)  # trying again cannot mend these


@dataclass(frozen=True, slots=True)
class Claim:
    """A worker's right to one shard, good for as long as nobody claimed it since."""

    shard_id: UUID
    run_id: UUID | None
    stage: Stage
    label_version: int
    item_ids: tuple[UUID, ...]
    claim_seq: int


def _claim_of(row: RowMapping) -> Claim:
    return Claim(
        row["shard_id"],
        row["run_id"],
        Stage(row["stage"]),
        row["label_version"],
        tuple(row["item_ids"]),
        row["claim_seq"],
    )


def shard_id(parent: UUID, stage: Stage, label_version: int = 1, number: int = 0) -> UUID:
    """The id of the shard that `add_shards` makes for a parent."""
    return uuid5(parent, f"{stage}:{label_version}:{number}")


def add_shards(
    connection: Connection,
    run_id: UUID | None,
    stage: Stage,
    groups: Iterable[Sequence[UUID]],
    *,
    parent: UUID,
    label_version: int = 1,
    rung: bool = False,
) -> list[UUID]:
    """-> waiting, or -> ready where the stage has no barrier. Ids come from `parent`, so adding twice adds once."""
    state = "waiting" if ROUTES[stage].after else "ready"
    rows = [
        {
            "shard_id": shard_id(parent, stage, label_version, number),
            "run_id": run_id,
            "stage": stage,
            "label_version": label_version,
            "state": state,
            "item_ids": list(group),
            "item_count": len(group),
        }
        for number, group in enumerate(groups)
    ]
    if not rows:
        return []
    insert_rows(connection, shards, rows, new_only=True)
    added = [shard_id(parent, stage, label_version, number) for number in range(len(rows))]
    if rung and state == "ready":
        connection.execute(text("UPDATE shards SET rung_at = now() WHERE shard_id = ANY(:ids)"), {"ids": added})
    return added


def claim(connection: Connection, shard_id: UUID, worker: str, lease_s: float) -> Claim | None:
    """ready -> claimed. None where the shard is not to be had, as after a doorbell that rang twice.

    A lone item that was lost three times is claimed by a worker that holds nothing else, and which then claims nothing
    else: whatever shared a process with an item that kills was lost with it each time, and only this tells them apart.
    A worker makes one claim at a time, or two of its threads could both hold nothing else.
    """
    row = (
        connection.execute(
            text(
                f"""
                UPDATE shards
                SET state = 'claimed', claim_seq = claim_seq + 1, claimed_by = :worker, claimed_at = now(),
                    lease_expires_at = now() + make_interval(secs => :lease_s)
                WHERE shard_id = :shard_id AND state = 'ready' AND not_before <= now() AND {_NOT_PAUSED}
                  AND NOT EXISTS (
                      SELECT FROM shards AS other WHERE other.state = 'claimed' AND other.claimed_by = :worker
                        AND greatest(CASE WHEN other.item_count = 1 THEN other.losses END,
                                     CASE WHEN shards.item_count = 1 THEN shards.losses END) >= :max_losses
                  )
                RETURNING shard_id, run_id, stage, label_version, item_ids, claim_seq
                """  # noqa: S608 - our own constant
            ),
            {
                "shard_id": shard_id,
                "worker": worker,
                "lease_s": lease_s,
                "run_stages": list(RUN_STAGES),
                "max_losses": MAX_LOSSES,
            },
        )
        .mappings()
        .one_or_none()
    )
    return _claim_of(row) if row else None


def renew(connection: Connection, claims: Collection[Claim], lease_s: float) -> set[UUID]:
    """Prolongs the leases of all claims in one statement; returns the shards that are still held."""
    held = connection.execute(
        text(
            """
            UPDATE shards SET lease_expires_at = now() + make_interval(secs => :lease_s)
            FROM unnest(CAST(:ids AS uuid[]), CAST(:seqs AS int[])) AS mine (id, seq)
            WHERE shard_id = mine.id AND claim_seq = mine.seq AND state = 'claimed'
            RETURNING shard_id
            """
        ),
        {"ids": [c.shard_id for c in claims], "seqs": [c.claim_seq for c in claims], "lease_s": lease_s},
    )
    return set(held.scalars())


def _leave_claimed(connection: Connection, held: Claim, assignments: str, **values: object) -> None:
    """The fence: one UPDATE that succeeds only for the shard's present holder."""
    moved = connection.execute(
        text(
            f"UPDATE shards SET {assignments}, lease_expires_at = NULL "  # noqa: S608 - our own constants
            "WHERE shard_id = :shard_id AND claim_seq = :claim_seq AND state = 'claimed'"
        ),
        {"shard_id": held.shard_id, "claim_seq": held.claim_seq, **values},
    )
    if moved.rowcount != 1:
        raise LeaseLostError(f"shard {held.shard_id} ({held.stage}) was taken over; this result is thrown away")


def finish(connection: Connection, held: Claim, dropped: Sequence[Dropped], survivors: Sequence[UUID]) -> list[UUID]:
    """claimed -> done, with the dropped items' reasons and the next stage's shard.

    Call it first in the transaction that stores the outputs. Returns the shards that may start at once; ring for them
    after the commit. Raises LeaseLostError where another worker holds the shard, and nothing is stored.
    """
    _leave_claimed(connection, held, "state = 'done', finished_at = now(), error_type = NULL, error_message = NULL")
    _drop(connection, held, dropped)
    following = ROUTES[held.stage].then
    if following is None or not survivors:
        return []
    added = add_shards(connection, held.run_id, following, [survivors], parent=held.shard_id, rung=True)
    return [] if ROUTES[following].after else added


def _drop(connection: Connection, held: Claim, dropped: Sequence[Dropped]) -> None:
    rows = [
        {
            "run_id": held.run_id,
            "stage": held.stage,
            "label_version": held.label_version,
            "item_id": item.item_id,
            "reason": item.reason,
            "detail": item.detail,
        }
        for item in dropped
    ]
    insert_rows(connection, drops, rows, new_only=True)


def release(connection: Connection, held: Claim, error: Exception, delay_s: float) -> None:
    """claimed -> ready after a transient error: no failure is counted, the shard waits `delay_s`.

    claimed -> waiting where the error says that the stage's barrier is closed again. A shard that was too slow is
    halved. So is one with three setbacks, and a lone item with three ends with the reason `call_failed`, or its run
    would go round for ever.
    """
    _leave_claimed(
        connection,
        held,
        "state = :state, rung_at = NULL, not_before = now() + make_interval(secs => :delay_s), "
        "setbacks = setbacks + :setback, error_type = :error_type, error_message = :error_message",
        state="waiting" if isinstance(error, BarrierClosedError) else "ready",
        delay_s=delay_s,
        setback=int(isinstance(error, SetbackError)),
        error_type=type(error).__name__,
        error_message=_storable(str(error)),
    )
    setbacks = connection.execute(
        text("SELECT setbacks FROM shards WHERE shard_id = :shard_id"), {"shard_id": held.shard_id}
    ).scalar_one()
    too_slow = isinstance(error, TooSlowError) and len(held.item_ids) > 1
    if too_slow or (isinstance(error, SetbackError) and setbacks >= MAX_SETBACKS):
        _divide(connection, held, "call_failed", _storable(str(error)))


def fail(connection: Connection, held: Claim, error: Exception) -> None:
    """claimed -> ready after a permanent error; the third halves the shard, or -> dead with its error.

    It is halved down to the item that it is about, which is dead alone. A half has one try, the lone item three. Where
    many shards of the stage fail, halving would only make more of them. An error of the input or of a setting does not
    go away by trying again: dead at the first.
    """
    hopeless = isinstance(error, HOPELESS)
    _leave_claimed(
        connection,
        held,
        "failures = failures + 1, rung_at = NULL, not_before = now() + make_interval(secs => :delay_s), "
        "state = CASE WHEN :hopeless OR failures + 1 >= :max_failures THEN 'dead' ELSE 'ready' END, "
        "error_type = :error_type, error_message = :error_message, error_traceback = :error_traceback",
        delay_s=RETRY_AFTER_FAILURE_S,
        max_failures=MAX_FAILURES,
        hopeless=hopeless,
        error_type=type(error).__name__,
        error_message=_storable(str(error)),
        error_traceback=_storable("".join(traceback.format_exception(error))),
    )
    if not hopeless and _is_about_an_item(connection, held):
        _halve(connection, held, failures=MAX_FAILURES - 1)


def _is_about_an_item(connection: Connection, failed: Claim) -> bool:
    """Whether a shard of several items is dead, and not many others of its stage are, or failing."""
    if failed.run_id is None or len(failed.item_ids) == 1:
        return False
    done = sum(
        count.amount
        for count in read_counts(connection, failed.run_id)
        if count.stage == failed.stage and count.what == "done"
    )
    most = MAX_FAILING + done // 100
    state, failing = connection.execute(
        text(
            """
            SELECT state, (
                SELECT count(*) FROM (
                    SELECT FROM shards AS other
                    WHERE other.run_id = shards.run_id AND other.stage = shards.stage
                      AND other.state IN ('ready', 'claimed', 'dead') AND (other.state = 'dead' OR other.failures > 0)
                    LIMIT :most + 1
                ) AS failing
            )
            FROM shards WHERE shard_id = :shard_id
            """
        ),
        {"shard_id": failed.shard_id, "most": most},
    ).one()
    return bool(state == "dead" and failing <= most)


def _storable(message: str) -> str:
    """Postgres stores no NUL and no lone surrogate, and an error may quote the very text that holds one."""
    return message.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode("utf-8")


def reap(connection: Connection) -> list[UUID]:
    """claimed -> ready where a lease ran out.

    A shard lost three times is halved. A lone item is tried alone then (see `claim`), and ends when that is lost three
    times too.
    """
    lost = connection.execute(
        text(
            """
            UPDATE shards SET state = 'ready', losses = losses + 1, lease_expires_at = NULL, rung_at = NULL
            WHERE shard_id IN (
                SELECT shard_id FROM shards WHERE state = 'claimed' AND lease_expires_at < now()
                FOR UPDATE SKIP LOCKED
            )
            RETURNING shard_id, run_id, stage, label_version, item_ids, claim_seq, losses
            """
        )
    ).mappings()
    reaped = []
    for row in lost.all():
        reaped.append(row["shard_id"])
        held = _claim_of(row)
        is_lone_item = len(held.item_ids) == 1 and held.stage in RUN_STAGES
        if row["losses"] >= MAX_LOSSES + is_lone_item * MAX_LOSSES_ALONE:
            _divide(connection, held, "killed_worker", f"its worker was lost {row['losses']} times")
    return reaped


def _divide(connection: Connection, lost: Claim, reason: str, detail: str) -> None:
    """Halves a shard that cannot be done, until the item that it is about stands alone, and ends with the reason."""
    by_id = {"shard_id": lost.shard_id}
    if lost.stage not in RUN_STAGES:
        connection.execute(
            text(
                "UPDATE shards SET state = 'dead', error_type = :reason, error_message = :detail "
                "WHERE shard_id = :shard_id"
            ),
            {**by_id, "reason": reason, "detail": detail},
        )
    elif len(lost.item_ids) == 1:
        connection.execute(
            text("UPDATE shards SET state = 'done', finished_at = now() WHERE shard_id = :shard_id"), by_id
        )
        _drop(connection, lost, [Dropped(lost.item_ids[0], reason, detail)])
        if lost.stage == Stage.RELABEL and lost.label_version == 1:  # never judged, so no version has a record of it
            _drop_in_other_versions(connection, lost.run_id, lost.item_ids[0])
    else:
        _halve(connection, lost)


def _halve(connection: Connection, whole: Claim, failures: int = 0) -> None:
    """Puts two ready shards in a shard's place. `failures` is how many a half begins with; a lone item, with none."""
    half = len(whole.item_ids) // 2
    connection.execute(text("DELETE FROM shards WHERE shard_id = :shard_id"), {"shard_id": whole.shard_id})
    halves = add_shards(
        connection,
        whole.run_id,
        whole.stage,
        [whole.item_ids[:half], whole.item_ids[half:]],
        parent=whole.shard_id,
        label_version=whole.label_version,
    )
    connection.execute(
        text(
            "UPDATE shards SET state = 'ready', failures = CASE WHEN item_count > 1 THEN :failures ELSE 0 END "
            "WHERE shard_id = ANY(:ids)"
        ),
        {"ids": halves, "failures": failures},
    )


def _drop_in_other_versions(connection: Connection, run_id: UUID | None, query_id: UUID) -> None:
    connection.execute(
        text(
            """
            INSERT INTO drops (run_id, stage, label_version, item_id, reason, detail)
            SELECT run_id, stage, label_versions.label_version, item_id, reason, detail
            FROM drops JOIN label_versions USING (run_id)
            WHERE run_id = :run_id AND stage = 'relabel' AND drops.label_version = 1 AND item_id = :query_id
              AND label_versions.label_version > 1
            """
        ),
        {"run_id": run_id, "query_id": query_id},
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
    """Ready shards whose doorbell was never rung, or long ago; marks them as rung now."""
    rows = connection.execute(
        text(
            f"""
            UPDATE shards SET rung_at = now()
            WHERE shard_id IN (
                SELECT shard_id FROM shards
                WHERE state = 'ready' AND stage = ANY(:stages) AND not_before <= now() AND {_NOT_PAUSED}
                  AND (rung_at IS NULL OR rung_at < now() - make_interval(secs => :again_after_s))
                ORDER BY created_at, shard_id LIMIT :limit FOR UPDATE SKIP LOCKED
            )
            RETURNING shard_id, run_id, stage, label_version, item_ids, claim_seq
            """  # noqa: S608 - our own constant
        ),
        {
            "stages": list(stages),
            "limit": limit,
            "again_after_s": again_after_s,
            "run_stages": list(RUN_STAGES),
        },
    ).mappings()
    return [_claim_of(row) for row in rows]


def reopen_index(connection: Connection, run_id: UUID) -> int:
    """done -> ready for a run's index shards, where the vector index turned out to have lost points.

    Does nothing while one of them is open already: then the index is on its way. A shard whose one item ended with a
    reason stays done. Raises IndexIncompleteError where dead shards are why the index is short (see `unindexed`).
    """
    counted = connection.execute(
        text("SELECT state, count(*) FROM shards WHERE run_id = :run_id AND stage = 'index' GROUP BY state"),
        {"run_id": run_id},
    )
    by_state = {row[0]: row[1] for row in counted}
    if by_state.get("ready") or by_state.get("claimed"):
        return 0
    if by_state.get("dead", 0) > _failed_alone(connection, run_id):
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
            """
            UPDATE shards SET state = 'ready', rung_at = NULL, not_before = now(), losses = 0, setbacks = 0
            WHERE run_id = :run_id AND stage = 'index' AND state = 'done' AND NOT EXISTS (
                SELECT FROM drops WHERE drops.run_id = :run_id AND drops.stage = 'index'
                  AND drops.item_id = ANY (shards.item_ids)
            )
            """
        ),
        {"run_id": run_id},
    ).rowcount


def unindexed(connection: Connection, run_id: UUID) -> int:
    """How many of a run's passages the index does without: they ended in its stage with a reason, or failed alone."""
    dropped = connection.execute(
        text("SELECT count(*) FROM drops WHERE run_id = :run_id AND stage = 'index'"), {"run_id": run_id}
    ).scalar_one()
    return int(dropped) + _failed_alone(connection, run_id)


def _failed_alone(connection: Connection, run_id: UUID) -> int:
    """How many passages the index lacks because each of them alone cannot be embedded.

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


def retry(connection: Connection, run_id: UUID, shard_id: UUID | None = None) -> int:
    """dead -> ready, or -> waiting behind a barrier, for a run's dead shards, or for one of them; returns how many.

    What counts against them starts anew. A done run is running again; a paused or cancelled one stays as it is.
    """
    # before the shards: or `finish_runs`, which cannot see them yet, would end the run
    connection.execute(text("SELECT FROM runs WHERE run_id = :run_id FOR NO KEY UPDATE"), {"run_id": run_id})
    retried = connection.execute(
        text(
            "UPDATE shards SET state = CASE WHEN stage = ANY(:behind) THEN 'waiting' ELSE 'ready' END, "
            "failures = 0, losses = 0, setbacks = 0, rung_at = NULL, not_before = now() "
            "WHERE run_id = :run_id AND state = 'dead' AND stage = ANY(:stages) "
            "AND (CAST(:shard_id AS uuid) IS NULL OR shard_id = :shard_id)"
        ),
        {
            "run_id": run_id,
            "shard_id": shard_id,
            "stages": list(RUN_STAGES),
            "behind": [stage for stage, route in ROUTES.items() if route.after],
        },
    ).rowcount
    if retried:
        connection.execute(
            text("UPDATE runs SET state = 'running', finished_at = NULL WHERE run_id = :run_id AND state = 'done'"),
            {"run_id": run_id},
        )
    return retried
