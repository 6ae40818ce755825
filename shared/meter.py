"""Counts the tokens that this process's LLM calls cost, and stops the calls of a run that was paused meanwhile.

One thread per process writes all counts to `llm_usage` every half second and asks which of the runs at work are
paused. What a call costs is kept in memory until then: a process that is killed takes up to half a second of counts
with it, and a commit whose answer is lost counts twice. Nothing here decides whether a budget is spent: that is
`shared.budget`, run by the dispatcher.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import UUID

import structlog
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from shared.database import engine
from shared.errors import FretworkError, RunPausedError
from shared.llm import Usage
from shared.stages import Stage

log = structlog.get_logger()

FLUSH_EVERY_S = 0.5

_lock = threading.Lock()  # held for a moment only: `spent` is called on the event loop
_flushing = threading.Lock()  # one flush at a time, so that the last one of a block leaves nothing under way
_unsaved: dict[Meter, Usage] = {}
_at_work: Counter[UUID] = Counter()
_paused: dict[UUID, str] = {}
_database_is_away = False
_stopping = threading.Event()
_thread: threading.Thread | None = None


@dataclass(frozen=True, slots=True, order=True)
class Meter:
    """What the calls of one stage of a run cost, by model. Made by `metered`; equal meters are one count."""

    run_id: UUID
    stage: Stage
    model: str

    def spent(self, usage: Usage) -> None:
        """Counts what a call cost. Thread-safe, and waits for nothing.

        Raises RunPausedError where the run is known to be paused; the call is counted all the same.
        """
        with _lock:
            _unsaved[self] = _unsaved.get(self, Usage()) + usage
        _refuse_paused(self.run_id)


def _refuse_paused(run_id: UUID) -> None:
    reason = _paused.get(run_id)
    if reason is not None:
        raise RunPausedError(reason)


@contextmanager
def metered(run_id: UUID, stage: Stage, model: str) -> Iterator[Meter]:
    """A meter for a shard's calls; what it counted is in the ledger when the block ends, however it ends.

    Where the database is away at that moment, the count is kept and written later. Raises RunPausedError where the
    run is paused already.
    """
    global _thread
    with _lock:
        _at_work[run_id] += 1
        if _thread is None:
            _thread = threading.Thread(target=_keep_flushing, name="meter", daemon=True)
            _thread.start()
    try:
        _flush()  # a shard may be claimed in the second before its run is seen paused, or just after it was resumed
        _refuse_paused(run_id)
        yield Meter(run_id, stage, model)
    finally:
        with _lock:
            _at_work[run_id] -= 1
            if not _at_work[run_id]:
                del _at_work[run_id]
        _flush()


def stop() -> None:
    """Ends the thread, in a process that goes on and calls no LLM."""
    global _thread
    if _thread is not None:
        _stopping.set()
        _thread.join()
        _stopping.clear()
        _thread = None


def _keep_flushing() -> None:
    while not _stopping.wait(FLUSH_EVERY_S):
        _flush()


def _flush() -> None:
    """Writes what was counted since the last time, and learns which runs are paused."""
    global _paused, _database_is_away
    with _flushing:
        with _lock:
            counted = dict(_unsaved)
            _unsaved.clear()
            at_work = list(_at_work)
        if not counted and not at_work:
            _paused = {}
            return
        try:
            _paused = _exchange(counted, at_work)
            _database_is_away = False
        except (SQLAlchemyError, FretworkError) as error:
            if not _database_is_away:  # said once, not twice a second
                log.warning("token counts not written: kept for the next time", error=str(error))
            _database_is_away = True
            with _lock:
                for meter, usage in counted.items():
                    _unsaved[meter] = _unsaved.get(meter, Usage()) + usage


def _exchange(counted: dict[Meter, Usage], at_work: list[UUID]) -> dict[UUID, str]:
    rows = sorted(counted.items(), key=lambda item: item[0])  # in one order, or two processes could wait for each other
    with engine().begin() as connection:
        if rows:
            connection.execute(
                text(
                    """
                    INSERT INTO llm_usage AS kept (run_id, stage, model, requests, prompt_tokens, completion_tokens)
                    SELECT runs.run_id, stage, model, requests, prompt_tokens, completion_tokens
                    FROM unnest(CAST(:run_ids AS uuid[]), CAST(:stages AS text[]), CAST(:models AS text[]),
                                CAST(:requests AS bigint[]), CAST(:prompts AS bigint[]), CAST(:completions AS bigint[]))
                         WITH ORDINALITY
                         AS counted (run_id, stage, model, requests, prompt_tokens, completion_tokens, number)
                    JOIN runs ON runs.run_id = counted.run_id
                    ORDER BY number
                    ON CONFLICT (run_id, stage, model) DO UPDATE SET
                        requests = kept.requests + excluded.requests,
                        prompt_tokens = kept.prompt_tokens + excluded.prompt_tokens,
                        completion_tokens = kept.completion_tokens + excluded.completion_tokens
                    """
                ),
                {
                    "run_ids": [meter.run_id for meter, _ in rows],
                    "stages": [meter.stage for meter, _ in rows],
                    "models": [meter.model for meter, _ in rows],
                    "requests": [usage.requests for _, usage in rows],
                    "prompts": [usage.prompt_tokens for _, usage in rows],
                    "completions": [usage.completion_tokens for _, usage in rows],
                },
            )
        paused = connection.execute(
            text(
                "SELECT run_id, paused_reason FROM runs WHERE run_id = ANY(:ids) AND state IN ('paused', 'cancelled')"
            ),
            {"ids": at_work},
        )
        return {row.run_id: row.paused_reason or "the run is cancelled" for row in paused}
