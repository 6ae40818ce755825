"""Says every few seconds that this process lives, what it has in hand and what it counted: its row in `workers`.

For people to read, and for nothing else: no shard is taken from a worker that is silent here. Its lease is another
matter (shared/lease.py).
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import orjson
import structlog
from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError

from shared import lease, metrics
from shared.database import engine
from shared.errors import FretworkError

log = structlog.get_logger()

BEAT_EVERY_S = 5.0
FORGET_AFTER_S = 600.0

llm_loads: Callable[[], list[dict[str, Any]]] = list  # `shared.llm.open` puts its own here, where there is an LLM
_stopping = threading.Event()
_thread: threading.Thread | None = None
_started_at = datetime.now(UTC)
_queue = ""


def worker_name(queue: str) -> str:
    return f"{socket.gethostname()}:{os.getpid()}:{queue}"


def start(queue: str) -> None:
    """Call it once the process will not fork any more; a second call changes nothing."""
    global _queue, _thread, _started_at
    if _thread is None:
        _queue, _started_at = queue, datetime.now(UTC)
        _thread = threading.Thread(target=_keep_beating, name="heartbeat", daemon=True)
        _thread.start()


def stop() -> None:
    """Takes the row away: this process ends as it should, and nobody need wonder where it is."""
    global _thread
    if _thread is None:
        return
    _stopping.set()
    _thread.join()
    _stopping.clear()
    _thread = None
    _write("DELETE FROM workers WHERE worker = :worker", {"worker": worker_name(_queue)})


def forget_the_lost(connection: Connection) -> None:
    """Deletes the rows of processes that were killed, ten minutes after they were last heard of."""
    connection.execute(
        text("DELETE FROM workers WHERE seen_at < now() - make_interval(secs => :after_s)"), {"after_s": FORGET_AFTER_S}
    )


def _keep_beating() -> None:
    while True:
        _beat()
        if _stopping.wait(BEAT_EVERY_S):
            return


def _beat() -> None:
    _write(
        """
        INSERT INTO workers (worker, queue, host, pid, version, started_at, seen_at, shards, llm, metrics)
        VALUES (:worker, :queue, :host, :pid, :version, :started_at, now(), :shards, CAST(:llm AS jsonb), :metrics)
        ON CONFLICT (worker) DO UPDATE SET started_at = excluded.started_at, seen_at = excluded.seen_at,
            shards = excluded.shards, llm = excluded.llm, metrics = excluded.metrics
        """,
        {
            "worker": worker_name(_queue),
            "queue": _queue,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "version": version("fretwork"),
            "started_at": _started_at,
            "shards": lease.in_hand(),
            "llm": orjson.dumps(llm_loads()).decode(),
            "metrics": metrics.exposition(),
        },
    )


def _write(statement: str, values: dict[str, Any]) -> None:
    try:
        with engine().begin() as connection:
            connection.execute(text(statement), values)
    except (SQLAlchemyError, FretworkError) as error:
        log.debug("heartbeat not written", error_type=type(error).__name__)
