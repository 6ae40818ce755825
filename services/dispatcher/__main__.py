"""The dispatcher's loop: a tick a second under a Postgres advisory lock, so that a second one waits its turn.

It is no Celery beat: what repairs the broker must not hang on it. Any error of a server is logged and the loop goes on.
"""

from __future__ import annotations

import signal
import sys
import time
from types import FrameType

import redis
import structlog
from kombu.exceptions import OperationalError as BrokerError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from services.dispatcher.tick import tick
from shared import heartbeat, telemetry
from shared.celery_app import ring
from shared.database import engine
from shared.errors import FretworkError
from shared.settings import settings

DISPATCHER_LOCK = 0x46524557
TICK_S = 1.0

log = structlog.get_logger()
_stopping = False


def loop() -> None:
    """Ticks for as long as the connection that holds the lock lives, or until this process is told to stop.

    A process that is frozen keeps its connections. The server ends this one where it was not used for a lease, so that
    the lock goes to whoever waits; continued, or after a tick as long as that, we wait for it again.
    """
    broker = redis.Redis.from_url(settings().require_broker_url(), socket_timeout=5)
    with engine().connect() as lock_holder:
        lock_holder.execution_options(isolation_level="AUTOCOMMIT")
        lock_holder.detach()  # closed when the block ends, not pooled: the lock must end with it
        lock_holder.execute(text(f"SET idle_session_timeout = {round(1000 * settings().lease_s)}"))
        while not lock_holder.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": DISPATCHER_LOCK}).scalar_one():
            time.sleep(TICK_S)
            if _stopping:
                return
        log.info("dispatching")
        heartbeat.start("dispatcher")
        while not _stopping:
            started = time.monotonic()
            tick(engine(), lambda queue: int(broker.llen(queue)), ring)
            lock_holder.execute(text("SELECT 1"))  # the lock is ours only while this connection stands
            time.sleep(max(0.0, TICK_S - (time.monotonic() - started)))


def _stop(signum: int, frame: FrameType | None) -> None:
    """No more than this: an error raised here is lost where it meets a `__del__`, as of redis-py's pool, and whatever
    we would wait for may need a lock that the interrupted code holds.
    """
    global _stopping
    _stopping = True


def main() -> None:
    telemetry.configure()
    signal.signal(signal.SIGTERM, _stop)
    while not _stopping:
        try:
            loop()
        except FretworkError as error:
            sys.exit(f"the dispatcher cannot start: {error}")
        except (SQLAlchemyError, redis.RedisError, BrokerError, OSError) as error:
            log.warning("a server did not answer; trying again", error=str(error))
            time.sleep(TICK_S)
    heartbeat.stop()


if __name__ == "__main__":
    main()
