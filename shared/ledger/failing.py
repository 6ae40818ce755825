"""A shard that went wrong: given back, failed, lost with its worker; tried again, halved, or dead with its error."""

from __future__ import annotations

import traceback
from uuid import UUID

from sqlalchemy import Connection, text

from shared.counts import read_counts
from shared.errors import (
    BarrierClosedError,
    IndexIncompleteError,
    InvalidInputError,
    SetbackError,
    SettingError,
    TooSlowError,
)
from shared.ledger.shards import HELD, MAX_LOSSES, Claim, add_shards, claim_of, held_by, leave_claimed
from shared.stages import RUN_STAGES

MAX_FAILURES = 3
MAX_LOSSES_ALONE = 3  # of a lone item after these, with its process to itself
MAX_SETBACKS = 3
MAX_FAILING = 100  # shards of a stage, and a hundredth of what is done: where more fail, it is about no item
RETRY_AFTER_FAILURE_S = 5.0
HOPELESS = (IndexIncompleteError, InvalidInputError, SettingError)  # trying again cannot mend these


def release(connection: Connection, held: Claim, error: Exception, delay_s: float) -> None:
    """claimed -> ready after a transient error: no failure is counted, the shard waits `delay_s`.

    claimed -> waiting where the error says that the stage's barrier is closed again. A shard that was too slow is
    halved. So is one with three setbacks, and a lone item with three is dead, or its run would go round for ever.
    """
    is_setback, is_whole = isinstance(error, SetbackError), len(held.item_ids) > 1
    leave_claimed(
        connection,
        held,
        "state = CASE WHEN :ends_alone AND setbacks + 1 >= :max_setbacks THEN 'dead' ELSE :state END, "
        "rung_at = NULL, not_before = now() + make_interval(secs => :delay_s), setbacks = setbacks + :setback, "
        "error_type = :error_type, error_message = :error_message, "
        "error_traceback = CASE WHEN :ends_alone THEN :error_traceback END",
        state="waiting" if isinstance(error, BarrierClosedError) else "ready",
        delay_s=delay_s,
        setback=int(is_setback),
        ends_alone=is_setback and not is_whole,
        max_setbacks=MAX_SETBACKS,
        **_told(error),
    )
    setbacks = connection.execute(
        text("SELECT setbacks FROM shards WHERE shard_id = :shard_id"), {"shard_id": held.shard_id}
    ).scalar_one()
    if is_whole and (isinstance(error, TooSlowError) or (is_setback and setbacks >= MAX_SETBACKS)):
        _halve(connection, held, delay_s=delay_s)


def fail(connection: Connection, held: Claim, error: Exception) -> None:
    """claimed -> ready after a permanent error; the third halves the shard, or -> dead with its error.

    It is halved down to the item that it is about, which is dead alone. A half has one try, the lone item three. Where
    many shards of the stage fail, halving would only make more of them. An error of the input or of a setting does not
    go away by trying again: dead at the first.
    """
    hopeless = isinstance(error, HOPELESS)
    leave_claimed(
        connection,
        held,
        "failures = failures + 1, rung_at = NULL, not_before = now() + make_interval(secs => :delay_s), "
        "state = CASE WHEN :hopeless OR failures + 1 >= :max_failures THEN 'dead' ELSE 'ready' END, "
        "error_type = :error_type, error_message = :error_message, error_traceback = :error_traceback",
        delay_s=RETRY_AFTER_FAILURE_S,
        max_failures=MAX_FAILURES,
        hopeless=hopeless,
        **_told(error),
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
                      AND other.state IN ('ready', 'claimed', 'dead') AND other.failures > 0
                    LIMIT :most + 1
                ) AS failing
            )
            FROM shards WHERE shard_id = :shard_id
            """
        ),
        {"shard_id": failed.shard_id, "most": most},
    ).one()
    return bool(state == "dead" and failing <= most)


def _told(error: Exception) -> dict[str, str]:
    """What the ledger keeps of an error."""
    return {
        "error_type": type(error).__name__,
        "error_message": _storable(str(error)),
        "error_traceback": _storable("".join(traceback.format_exception(error))),
    }


def _storable(message: str) -> str:
    """Postgres stores no NUL and no lone surrogate, and an error may quote the very text that holds one."""
    return message.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode("utf-8")


def reap(connection: Connection) -> list[UUID]:
    """claimed -> ready where a lease ran out.

    A shard lost three times is halved. A lone item is tried alone then (see `claim`), and is dead when that is lost
    three times too.
    """
    lost = connection.execute(
        text(
            """
            UPDATE shards SET state = 'ready', losses = losses + 1, lease_expires_at = NULL, rung_at = NULL
            WHERE shard_id IN (
                SELECT shard_id FROM shards WHERE state = 'claimed' AND lease_expires_at < now()
                FOR UPDATE SKIP LOCKED
            )
            RETURNING shard_id, run_id, stage, label_version, item_ids, claim_seq, claimed_by, losses
            """
        )
    ).mappings()
    reaped = []
    for row in lost.all():
        reaped.append(row["shard_id"])
        held = claim_of(row)
        is_of_a_run, is_whole = held.stage in RUN_STAGES, len(held.item_ids) > 1
        if is_of_a_run and is_whole:
            if row["losses"] >= MAX_LOSSES:
                _halve(connection, held)
        elif row["losses"] >= MAX_LOSSES + is_of_a_run * MAX_LOSSES_ALONE:
            connection.execute(
                text(
                    "UPDATE shards SET state = 'dead', error_type = 'killed_worker', error_message = :message, "
                    "error_traceback = NULL WHERE shard_id = :shard_id"
                ),
                {"shard_id": held.shard_id, "message": f"its worker was lost {row['losses']} times"},
            )
    return reaped


def forget_losses(connection: Connection, held: Claim) -> None:
    """What was lost before counts no longer: the shard has come further than ever, so it kills no worker."""
    connection.execute(
        text(f"UPDATE shards SET losses = 0 WHERE {HELD} AND losses > 0"),  # noqa: S608 - our own constant
        held_by(held),
    )


def _halve(connection: Connection, whole: Claim, failures: int = 0, delay_s: float = 0.0) -> None:
    """Puts two shards in a shard's place, ready after `delay_s`.

    `failures` is how many a half begins with; a lone item, with none.
    """
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
            "UPDATE shards SET state = 'ready', failures = CASE WHEN item_count > 1 THEN :failures ELSE 0 END, "
            "not_before = now() + make_interval(secs => :delay_s) WHERE shard_id = ANY(:ids)"
        ),
        {"ids": halves, "failures": failures, "delay_s": delay_s},
    )
