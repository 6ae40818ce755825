"""Shows work while it goes on, from the ledger: by item, with rate, ETA and reasons. On standard error.

A terminal gets a live table; anything else, a log for example, gets a line when something changed, at most every 10 s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from uuid import UUID

import typer
from rich.live import Live
from rich.table import Table
from sqlalchemy import Engine, text
from sqlalchemy.exc import InterfaceError, OperationalError

from cli.context import progress_console, say
from shared.errors import FretworkError, RunPausedError
from shared.ledger import HOPELESS, shard_id
from shared.progress import StageProgress, stage_progress
from shared.stages import Stage

REFRESH_S = 0.5
LINE_EVERY_S = 10.0
IDLE_AFTER_S = 60.0  # longer than a lease: a killed worker's shard is back by then
AWAY_S = 300.0  # a restart of PostgreSQL, with recovery

Seen = TypeVar("Seen")


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def stages_table(title: str, stages: Sequence[StageProgress]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("stage", "done", "total", "items/s", "ETA", "dropped, and why"):
        table.add_column(name, justify="left" if name in ("stage", "dropped, and why") else "right")
    for s in stages:
        left = s.total - s.done - s.dead
        why = " · ".join(f"{number:,} {reason}" for reason, number in s.reasons.items())
        if s.dead:
            why = " · ".join(filter(None, [f"[red]{s.dead:,} dead[/red]", why]))
        table.add_row(
            s.stage,
            f"{s.done:,}",
            f"{s.total:,}",
            f"{s.rate_1m:,.0f}" if s.rate_1m and left else "",
            duration(s.eta_s) if left else ("✓" if s.total else ""),
            why,
        )
    return table


def watch_run(engine: Engine, run_id: UUID, name: str) -> int:
    """Shows a run until it is done; returns how many of its items are dead.

    Raises RunPausedError, with the reason and the command that resumes the run, as soon as it is paused, and
    FretworkError where it is cancelled.
    """
    moved_at, last, warned = time.monotonic(), [0], False

    def look() -> tuple[bool, list[StageProgress]]:
        nonlocal moved_at, last, warned
        with engine.connect() as connection:
            state, paused_reason = connection.execute(
                text("SELECT state, paused_reason FROM runs WHERE run_id = :id"), {"id": run_id}
            ).one()
            stages = stage_progress(connection, run_id)
        if state == "paused":
            raise RunPausedError(f"run {name} is paused: {paused_reason}")
        if state == "cancelled":
            raise FretworkError(f"run {name} was cancelled")
        now = [s.done + s.claimed + s.dead for s in stages]
        if now != last or any(s.claimed for s in stages):
            moved_at, last, warned = time.monotonic(), now, False
        elif not warned and state != "done" and time.monotonic() - moved_at > IDLE_AFTER_S:
            warned = True
            say(f"no worker has taken anything for {IDLE_AFTER_S:.0f} s: is `fretwork up` running?")
        return state == "done", stages

    def line(stages: list[StageProgress]) -> str:
        return f"{name}: " + " · ".join(f"{s.stage} {s.done:,}/{s.total:,}" for s in stages)

    stages = _until_done(look, lambda stages: stages_table(f"run {name}", stages), line)
    return sum(s.dead for s in stages)


def wait_for(engine: Engine, run_id: UUID, name: str) -> None:
    """Watches a run until it is done. Ends the command with status 3 where it is paused, or some of it dead."""
    try:
        dead = watch_run(engine, run_id, name)
    except RunPausedError as paused:
        say(str(paused))
        raise typer.Exit(3) from None
    if dead:
        say(f"{dead:,} items are dead: fretwork run status {name} names the errors, run retry {name} puts them back")
        raise typer.Exit(3)


def _patient(look: Callable[[], Seen]) -> Callable[[], Seen]:
    """The same, through a restart of the database: it is asked again for AWAY_S before its error is the caller's."""

    def answered() -> Seen:
        away_since, told = time.monotonic(), False
        while True:
            try:
                return look()
            except (OperationalError, InterfaceError):
                if time.monotonic() - away_since > AWAY_S:
                    raise
                if not told:
                    say("the database does not answer: waiting for it")
                told = True
                time.sleep(REFRESH_S)

    return answered


def _until_done(
    look: Callable[[], tuple[bool, Seen]], table: Callable[[Seen], Table], line: Callable[[Seen], str]
) -> Seen:
    look = _patient(look)
    if progress_console.is_terminal:
        with Live(console=progress_console, auto_refresh=False) as live:
            while True:
                done, seen = look()
                live.update(table(seen), refresh=True)
                if done:
                    return seen
                time.sleep(REFRESH_S)
    said, said_at = "", 0.0
    while True:
        done, seen = look()
        now = line(seen)
        if done or (now != said and time.monotonic() - said_at >= LINE_EVERY_S):
            say(now)
            said, said_at = now, time.monotonic()
        if done:
            return seen
        time.sleep(REFRESH_S)


def watch_shard(engine: Engine, table: str, item_id: UUID, what: str) -> dict[str, Any]:
    """Shows a training run or an evaluation until it is done; returns its result.

    `table` is `training_runs` or `evaluations`. Raises FretworkError with the shard's error where it is dead.
    """
    key, stage = {
        "training_runs": ("training_run_id", Stage.TRAIN),
        "evaluations": ("evaluation_id", Stage.EVALUATE),
    }[table]
    query = text(
        f"SELECT state, error_type, error_message, progress, result FROM {table} AS t "  # noqa: S608 - our own names
        f"JOIN shards ON shard_id = :shard_id WHERE t.{key} = :id"
    )

    parameters = {"id": item_id, "shard_id": shard_id(item_id, stage)}

    def look() -> tuple[bool, dict[str, Any]]:
        with engine.connect() as connection:
            seen = dict(connection.execute(query, parameters).mappings().one())
        return seen["state"] in ("done", "dead"), seen

    def line(seen: dict[str, Any]) -> str:
        trouble = f" ({seen['error_message']})" if seen["error_message"] and seen["state"] != "done" else ""
        state = {"ready": "waits for the trainer", "claimed": "running"}.get(seen["state"], seen["state"])
        return " · ".join([f"{what}: {state}{trouble}", *_shown(seen["progress"])])

    def as_table(seen: dict[str, Any]) -> Table:
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_row(line(seen))
        return table

    seen = _until_done(look, as_table, line)
    if seen["state"] == "dead":
        may_go_on = stage == Stage.TRAIN and seen["error_type"] not in {error.__name__ for error in HOPELESS}
        again = f"; `fretwork run retry RUN --shard {parameters['shard_id']}` goes on from its last checkpoint"
        raise FretworkError(f"{what} failed: {seen['error_message']}" + (again if may_go_on else ""))
    result: dict[str, Any] = seen["result"]
    return result


def _shown(progress: dict[str, Any]) -> list[str]:
    """What a training (rows, then steps) or an evaluation (texts) last said of itself."""
    if "step" in progress:
        rate, left = progress["examples_per_s"], duration(progress["eta_s"])
        steps = f"step {progress['step']:,} of {progress['total_steps']:,}"
        return [steps, f"loss {progress['loss']:.3f}", f"{rate:.1f} examples/s", f"ETA {left}"]
    if "rows" in progress:
        return [f"{progress['rows']:,} rows of {progress['source']} read"]
    if "done" in progress:
        return [f"{progress['done']:,} of {progress['total']:,} texts encoded"]
    return []
