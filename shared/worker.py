"""What every worker does around a shard: claim it, keep its lease, hand it on, finish it, ring for the next.

A service gives `perform` a function from a claim to an `Output`; that function does the work and writes nothing.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import structlog
from celery.signals import worker_init, worker_ready, worker_shutdown
from sqlalchemy import Connection
from sqlalchemy.exc import InterfaceError, OperationalError

from shared import heartbeat, lease, ledger, metrics
from shared.celery_app import ring
from shared.database import engine, is_transient
from shared.errors import FretworkError, LeaseLostError, RunPausedError
from shared.ledger import Claim
from shared.records import Dropped
from shared.settings import settings
from shared.stages import ROUTES, Stage

log = structlog.get_logger()
_claiming = threading.Lock()

RETRY_AFTER_TRANSIENT_S = 5.0
NICENESS = 10  # on a machine that is full, who keeps the leases and who watches come first


@worker_init.connect  # type: ignore[untyped-decorator]
def _start(**_: Any) -> None:
    _give_way()
    try:
        engine()
    except FretworkError as error:
        raise SystemExit(f"this worker cannot start: {error}") from None


def _give_way() -> None:
    """Lowers this process's share of a full machine. Where Linux shares it out by session (sched(7): autogroup), a
    process's own niceness counts within its session alone; one that leads a session lowers that one's too.
    """
    os.nice(NICENESS)
    if os.getsid(0) == os.getpid():
        with suppress(OSError):  # another system, or one that has no autogroups
            Path("/proc/self/autogroup").write_text(str(NICENESS))


@worker_ready.connect  # type: ignore[untyped-decorator]
def _watch_from_the_start(sender: Any, **_: Any) -> None:
    queue = next(iter(sender.app.amqp.queues.consume_from))
    lease.consumed(queue)
    heartbeat.start(queue)


@worker_shutdown.connect  # type: ignore[untyped-decorator]
def _leave(**_: Any) -> None:
    heartbeat.stop()


def _store_nothing(_: Connection) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Output:
    """What a shard came to: the rows to store, the items dropped, the items that go on to the next stage.

    `store` runs inside the finishing transaction, after the fence.
    """

    store: Callable[[Connection], None] = _store_nothing
    dropped: tuple[Dropped, ...] = ()
    survivors: tuple[UUID, ...] = ()


def perform(stage: Stage, shard_id: str, work: Callable[[Claim], Output]) -> None:
    """Does one shard, if it is to be had. What goes wrong with it ends in the ledger and the log.

    Raises only where the database or the broker is away before or after the work; the doorbell is rung again then.
    """
    queue = ROUTES[stage].queue
    lease.consumed(queue)
    # one statement is a transaction by itself: BEGIN and COMMIT would be two more answers to wait for
    with _claiming, engine().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        held = ledger.claim(connection, UUID(shard_id), heartbeat.worker_name(queue), settings().lease_s)
    if held is None:
        return
    started = time.monotonic()

    def ended(outcome: str) -> None:
        metrics.SHARD_SECONDS.labels(stage, outcome).observe(time.monotonic() - started)

    with lease.kept(held), structlog.contextvars.bound_contextvars(stage=stage, shard=shard_id):
        try:
            output = work(held)
            with engine().begin() as connection:
                following = ledger.finish(connection, held, output.dropped, output.survivors)
                output.store(connection)
        except LeaseLostError as error:
            log.warning("lease lost", error=str(error))
            ended("lost")
            return
        except Exception as error:
            ended(_give_back(held, error))
            return
    ended("done")
    log.info("shard done", items=len(held.item_ids), dropped=len(output.dropped))
    then = ROUTES[stage].then
    if then is not None and following:
        ring(then, following)


def _give_back(held: Claim, error: Exception) -> str:
    """Returns how the shard ended, for the metrics."""
    transient = is_transient(error)
    try:
        with engine().begin() as connection:
            if isinstance(error, RunPausedError):
                log.info("run paused: shard given back", reason=str(error))
                ledger.release(connection, held, error, delay_s=0)  # not to be had before the run is resumed
            elif transient:
                log.warning("shard given back", error_type=type(error).__name__, error=str(error))
                ledger.release(connection, held, error, RETRY_AFTER_TRANSIENT_S)
            else:
                log.error("shard failed", exc_info=error)
                ledger.fail(connection, held, error)
    except (LeaseLostError, OperationalError, InterfaceError) as late:
        # the lease runs out by itself, and the dispatcher reaps it
        log.warning("shard could not be given back", error=str(late))
        return "lost"
    return "given back" if transient else "failed"
