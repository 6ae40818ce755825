"""Keeps this process's leases: one thread, one UPDATE every few seconds for all the shards that it holds.

The same thread is the watchdog. It ends the process when a shard outlasts its stage's limit (a hung call cannot be
cancelled from outside, and the ledger gives the shard to another), and when the worker has gone deaf: nothing consumed
for a minute, nothing in hand, and a queue that is not empty (celery #10205, #10302). A supervisor starts another.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import UUID

import redis
import structlog
from sqlalchemy.exc import SQLAlchemyError

from shared import ledger
from shared.database import engine
from shared.ledger import Claim
from shared.settings import settings
from shared.stages import ROUTES

log = structlog.get_logger()

DEAF_AFTER_S = 60.0
EXIT_CODE = 75  # EX_TEMPFAIL: starting again is the remedy


@dataclass(frozen=True, slots=True)
class _Held:
    claim: Claim
    overdue_at: float


_held: dict[tuple[UUID, int], _Held] = {}  # by shard and claim: a thread that lost a shard may outlast its next claim
_lock = threading.Lock()
_stopping = threading.Event()
_thread: threading.Thread | None = None
_queue: str | None = None
_last_consumed = time.monotonic()


def consumed(queue: str) -> None:
    """Notes that a doorbell arrived, and starts the thread with the first one: after any fork."""
    global _queue, _last_consumed, _thread
    with _lock:
        _queue, _last_consumed = queue, time.monotonic()
        if _thread is None:
            _thread = threading.Thread(target=_keep, name="lease", daemon=True)
            _thread.start()


@contextmanager
def kept(claim: Claim) -> Iterator[None]:
    """Renews the claim's lease for as long as the block runs."""
    key = (claim.shard_id, claim.claim_seq)
    with _lock:
        _held[key] = _Held(claim, time.monotonic() + ROUTES[claim.stage].max_shard_s)
    try:
        yield
    finally:
        global _last_consumed
        with _lock:
            _held.pop(key, None)
            _last_consumed = time.monotonic()  # it was at work until now, and not deaf


def in_hand() -> int:
    """How many shards this process works on, one that it lost and has not left yet included."""
    with _lock:
        return len(_held)


def stop() -> None:
    """Ends the thread, in a process that goes on and works on no more shards."""
    global _thread
    if _thread is not None:
        _stopping.set()
        _thread.join()
        _stopping.clear()
        _thread = None


def _keep() -> None:
    while not _stopping.wait(settings().renew_every_s):
        with _lock:
            held = list(_held.values())
            idle_s = time.monotonic() - _last_consumed
        overdue = [h.claim for h in held if h.overdue_at < time.monotonic()]
        if overdue:
            log.critical("shard overdue: ending this process", shards=[str(c.shard_id) for c in overdue])
            os._exit(EXIT_CODE)
        if held:
            _renew([h.claim for h in held])
        elif idle_s > DEAF_AFTER_S and _queue_length() > 0:
            log.critical("nothing consumed from a queue that is not empty: ending this process", idle_s=round(idle_s))
            os._exit(EXIT_CODE)


def _renew(claims: list[Claim]) -> None:
    try:
        with engine().begin() as connection:
            kept_ids = ledger.renew(connection, claims, settings().lease_s)
    except SQLAlchemyError as error:
        log.warning("leases not renewed", error=str(error))
        return
    lost = [str(c.shard_id) for c in claims if c.shard_id not in kept_ids]
    if lost:
        log.warning("leases lost", shards=lost)


def _queue_length() -> int:
    try:
        with redis.Redis.from_url(settings().require_broker_url(), socket_timeout=5) as client:
            return int(client.llen(_queue or ""))
    except redis.RedisError:
        return 0
