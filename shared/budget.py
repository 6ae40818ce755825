"""A run's budget: a number of tokens, a time. Pauses the runs that are over it; moves no shard's state.

A budget may be overshot by what the workers spend within about two seconds, and by the calls then in flight, which are
given up: the server may have spent tokens on them that nobody counts. For a worker writes its tokens down and asks
whether its run is paused every half second (`shared.meter`), and the dispatcher looks once a second. Asking Postgres
before each call would be exact, and would cost every call a round trip and all processes a lock on one row.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from shared.errors import SettingError
from shared.stages import RUN_STAGES

MOST_TOKENS = 10**18  # what the ledger's columns hold
MOST_HOURS = 100_000

_USED = """
    (SELECT coalesce(sum(prompt_tokens + completion_tokens), 0) FROM llm_usage WHERE llm_usage.run_id = runs.run_id)
"""


@dataclass(frozen=True, slots=True)
class Budget:
    """A run's limits, what it has used of them, and why it is paused, if it is. `deadline_at` has a time zone."""

    max_tokens: int | None
    deadline_at: datetime | None
    used_tokens: int
    late: bool
    paused_reason: str | None

    @property
    def spent(self) -> bool:
        return self.max_tokens is not None and self.used_tokens >= self.max_tokens


BUDGET = f"""
    SELECT max_tokens, deadline_at, {_USED} AS used_tokens, coalesce(deadline_at <= now(), false) AS late, paused_reason
    FROM runs WHERE run_id = :run_id
"""  # noqa: S608 - our own constant


def find_budget(connection: Connection, run_id: UUID) -> Budget:
    return _budget_of(connection.execute(text(BUDGET), {"run_id": run_id}).mappings().one())


def set_limits(
    connection: Connection, run_id: UUID, teacher: str, max_tokens: int | None, max_hours: float | None
) -> None:
    """Sets the limits that are given, and leaves the others as they are: tokens since the run's start, hours from now.

    Raises SettingError for a limit that limits nothing.
    """
    if max_tokens is not None and teacher == "offline":
        raise SettingError(
            "--max-tokens limits what an LLM is asked for, and the offline teacher asks none: leave it out, or run "
            "with --set teacher=llm"
        )
    if max_tokens is not None and not 1 <= max_tokens <= MOST_TOKENS:
        raise SettingError(f"--max-tokens takes 1 to {MOST_TOKENS:,}, and this is {max_tokens:,}")
    if max_hours is not None and not 0 < max_hours <= MOST_HOURS:
        raise SettingError(f"--max-hours takes a time between 0 and {MOST_HOURS:,} hours, and this is {max_hours:,g}")
    connection.execute(
        text(
            "UPDATE runs SET max_tokens = coalesce(CAST(:max_tokens AS bigint), max_tokens), "
            "deadline_at = coalesce(now() + CAST(:time AS interval), deadline_at) WHERE run_id = :run_id"
        ),
        {
            "run_id": run_id,
            "max_tokens": max_tokens,
            "time": None if max_hours is None else timedelta(hours=max_hours),
        },
    )


def pause_runs(connection: Connection) -> list[tuple[UUID, str]]:
    """running -> paused for the runs whose tokens or time are used up while they still have calls to make.

    Returns their ids, with the reason and the command that resumes each. Relabelling comes last, so a run with any open
    shard has calls to make; a new label version makes none, and is let be.
    """
    over = connection.execute(
        text(
            f"""
            SELECT run_id, name, max_tokens, deadline_at, {_USED} AS used_tokens,
                   coalesce(deadline_at <= now(), false) AS late, paused_reason
            FROM runs
            WHERE state = 'running' AND (deadline_at <= now() OR {_USED} >= max_tokens) AND EXISTS (
                SELECT FROM shards WHERE shards.run_id = runs.run_id AND stage = ANY(:stages) AND label_version = 1
                  AND shards.state IN ('waiting', 'ready', 'claimed')
            )
            ORDER BY run_id FOR UPDATE OF runs
            """  # noqa: S608 - our own constant
        ),
        {"stages": list(RUN_STAGES)},
    ).mappings()
    paused = [(row["run_id"], _reason(row["name"], _budget_of(row))) for row in over]
    for run_id, reason in paused:
        connection.execute(
            text("UPDATE runs SET state = 'paused', paused_reason = :reason WHERE run_id = :run_id"),
            {"run_id": run_id, "reason": reason},
        )
    return paused


def _budget_of(row: Any) -> Budget:
    return Budget(row["max_tokens"], row["deadline_at"], int(row["used_tokens"]), row["late"], row["paused_reason"])


def _reason(name: str, budget: Budget) -> str:
    what, remedy = [], []
    if budget.spent:
        what.append(f"used {budget.used_tokens:,} of {budget.max_tokens:,} tokens")
        remedy.append("--max-tokens N")
    if budget.deadline_at is not None and budget.late:
        what.append(f"its time was up at {budget.deadline_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC")
        remedy.append("--max-hours H")
    return f"{', and '.join(what)}: `fretwork run resume {name} {' '.join(remedy)}` goes on"
