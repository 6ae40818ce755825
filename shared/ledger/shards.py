"""A shard on its usual way: added, claimed, its lease renewed, finished."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID, uuid5

from sqlalchemy import Connection, RowMapping, text

from shared.database import insert_rows
from shared.errors import LeaseLostError
from shared.records import Dropped
from shared.schema import drops, shards
from shared.stages import ROUTES, RUN_STAGES, Stage

MAX_LOSSES = 3
# a training on a run's records is no part of what a pause holds back
NOT_PAUSED = (
    "NOT (stage = ANY(:run_stages) AND run_id IN (SELECT run_id FROM runs WHERE state IN ('paused', 'cancelled')))"
)

NO_ERROR = "error_type = NULL, error_message = NULL, error_traceback = NULL"
NOTHING_AGAINST = f"failures = 0, losses = 0, setbacks = 0, {NO_ERROR}"  # a shard, which starts anew
HELD = "shard_id = :shard_id AND claim_seq = :claim_seq AND claimed_by = :worker AND state = 'claimed'"  # the fence


@dataclass(frozen=True, slots=True)
class Claim:
    """A worker's right to one shard, good for as long as nobody claimed it since.

    `worker` is part of it: where a crash of the server forgets a claim, the next one has the same `claim_seq`.
    """

    shard_id: UUID
    run_id: UUID | None
    stage: Stage
    label_version: int
    item_ids: tuple[UUID, ...]
    claim_seq: int
    worker: str | None  # None: it is of nobody, as one that waits


def held_by(claim: Claim) -> dict[str, object]:
    """The parameters of HELD."""
    return {"shard_id": claim.shard_id, "claim_seq": claim.claim_seq, "worker": claim.worker}


def claim_of(row: RowMapping) -> Claim:
    return Claim(
        row["shard_id"],
        row["run_id"],
        Stage(row["stage"]),
        row["label_version"],
        tuple(row["item_ids"]),
        row["claim_seq"],
        row["claimed_by"],
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
    rung_at = "now" if rung and state == "ready" else None  # PostgreSQL reads `now` as the transaction's time
    rows = [
        {
            "shard_id": shard_id(parent, stage, label_version, number),
            "run_id": run_id,
            "stage": stage,
            "label_version": label_version,
            "state": state,
            "item_ids": list(group),
            "item_count": len(group),
            "rung_at": rung_at,
        }
        for number, group in enumerate(groups)
    ]
    insert_rows(connection, shards, rows, new_only=True)
    return [shard_id(parent, stage, label_version, number) for number in range(len(rows))]


def claim(connection: Connection, shard_id: UUID, worker: str, lease_s: float) -> Claim | None:
    """ready -> claimed. None where the shard is not to be had, as after a doorbell that rang twice.

    A lone item that was lost three times is claimed by a worker that holds nothing else, and which then claims nothing
    else: whatever shared a process with an item that kills was lost with it each time, and only this tells them apart.
    A worker makes one claim at a time, or two of its threads could both hold nothing else.

    The commit of a claim on a run's shard does not wait for the disk. A server that crashes may forget one of the last
    half second: then the shard is ready again, and whoever held it is refused, as after a lease that ran out. Such a
    loss is not counted against the shard.
    """
    row = (
        connection.execute(
            text(
                f"""
                UPDATE shards
                SET state = 'claimed', claim_seq = claim_seq + 1, claimed_by = :worker, claimed_at = now(),
                    lease_expires_at = now() + make_interval(secs => :lease_s)
                WHERE shard_id = :shard_id AND state = 'ready' AND not_before <= now() AND {NOT_PAUSED}
                  AND NOT EXISTS (
                      SELECT FROM shards AS other WHERE other.state = 'claimed' AND other.claimed_by = :worker
                        AND greatest(CASE WHEN other.item_count = 1 THEN other.losses END,
                                     CASE WHEN shards.item_count = 1 THEN shards.losses END) >= :max_losses
                  )
                RETURNING shard_id, run_id, stage, label_version, item_ids, claim_seq, claimed_by,
                    -- two trainings of one claim_seq would write into one folder: those wait
                    CASE WHEN stage = ANY(:run_stages) THEN set_config('synchronous_commit', 'off', true) END
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
    return claim_of(row) if row else None


def renew(connection: Connection, claims: Collection[Claim], lease_s: float) -> set[UUID]:
    """Prolongs the leases of all claims in one statement; returns the shards that are still held."""
    held = connection.execute(
        text(
            """
            UPDATE shards SET lease_expires_at = now() + make_interval(secs => :lease_s)
            FROM unnest(CAST(:ids AS uuid[]), CAST(:seqs AS int[]), CAST(:workers AS text[])) AS mine (id, seq, worker)
            WHERE shard_id = mine.id AND claim_seq = mine.seq AND claimed_by = mine.worker AND state = 'claimed'
            RETURNING shard_id
            """
        ),
        {
            "ids": [c.shard_id for c in claims],
            "seqs": [c.claim_seq for c in claims],
            "workers": [c.worker for c in claims],
            "lease_s": lease_s,
        },
    )
    return set(held.scalars())


def leave_claimed(connection: Connection, held: Claim, assignments: str, **values: object) -> None:
    """The fence: one UPDATE that succeeds only for the shard's present holder."""
    moved = connection.execute(
        text(
            f"UPDATE shards SET {assignments}, lease_expires_at = NULL WHERE {HELD}"  # noqa: S608 - our own constants
        ),
        {**held_by(held), **values},
    )
    if moved.rowcount != 1:
        raise LeaseLostError(f"shard {held.shard_id} ({held.stage}) was taken over; this result is thrown away")


def finish(connection: Connection, held: Claim, dropped: Sequence[Dropped], survivors: Sequence[UUID]) -> list[UUID]:
    """claimed -> done, with the dropped items' reasons and the next stage's shard.

    Call it first in the transaction that stores the outputs. Returns the shards that may start at once; ring for them
    after the commit. Raises LeaseLostError where another worker holds the shard, and nothing is stored.
    """
    leave_claimed(connection, held, f"state = 'done', finished_at = now(), {NO_ERROR}")
    drop(connection, held, dropped)
    following = ROUTES[held.stage].then
    if following is None or not survivors:
        return []
    added = add_shards(connection, held.run_id, following, [survivors], parent=held.shard_id, rung=True)
    return [] if ROUTES[following].after else added


def drop(connection: Connection, held: Claim, dropped: Sequence[Dropped]) -> None:
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
