"""Starts the processes of one machine, starts the dead again, and stops them all in order.

What runs where stands in `run_stack`; the Supervisor knows only children. It has no thread and no event loop of its
own, because children are forked from it.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType

from sqlalchemy.exc import OperationalError

from cli.stack import children, postgres, redis_server
from cli.stack.processes import (
    Child,
    ChildSpec,
    ProcessRecord,
    StackError,
    start,
    stop,
    stop_orphans,
)
from cli.stack.state import (
    Addresses,
    StackState,
    hold_lock,
    read_state,
    remove_state,
    write_state,
)
from shared import migrate
from shared.settings import Settings

LOCALHOST = "127.0.0.1"
POLL_S = 0.2
READY_TIMEOUT_S = 180.0  # a cold import of torch on a slow disk, or PostgreSQL's recovery after a crash
STEADY_AFTER_S = 60.0
MAX_BACK_OFF_S = 30.0
STOP_TIMEOUT_S = 120.0  # longer than the graces of all groups together


@dataclass(frozen=True, slots=True)
class _Restart:
    """When the child that died last under a name is started again."""

    of: Child
    delay_s: float
    at: float


class _StopRequestedError(Exception):
    """SIGTERM, SIGINT or SIGHUP came."""


def say(text: str) -> None:
    sys.stderr.write(f"fretwork: {text}\n")
    sys.stderr.flush()


class Supervisor:
    """Use it as a context manager in the main thread: it holds the home's lock, and stops its children at the end.

    Entering raises LockedError where another supervisor runs on this home.
    """

    def __init__(self, home: Path, *, has_workers: bool = True) -> None:
        self.home = home
        self._state = StackState(supervisor=ProcessRecord.of("supervisor", os.getpid()), has_workers=has_workers)
        self._groups: list[list[Child]] = []
        self._restarts: dict[str, _Restart] = {}
        self._stop_requested = False

    def __enter__(self) -> Supervisor:
        self._lock = hold_lock(self.home / "stack.lock", f"the stack of {self.home}")
        self._old_handlers = {
            number: signal.signal(number, self._request_stop)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
            if signal.getsignal(number) is not signal.SIG_IGN  # as under nohup
        }
        left_over = read_state(self.home)
        if left_over is not None:
            ended = stop_orphans(left_over.children)
            say("the last stack was killed" + (f"; ended what was left of it: {', '.join(ended)}" if ended else ""))
        write_state(self.home, self._state)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        for group in reversed(self._groups):
            stop(group)
        remove_state(self.home)
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        self._lock.close()
        return isinstance(error, _StopRequestedError)

    def start(self, *specs: ChildSpec) -> None:
        """Starts a group of children and waits until each is ready. Groups are stopped last come, first gone.

        Raises StackError with the end of its log where one dies before, or is not ready after READY_TIMEOUT_S.
        """
        group: list[Child] = []
        self._groups.append(group)
        for spec in specs:
            group.append(start(spec, self.home / "logs"))
            self._record()
        deadline = time.monotonic() + READY_TIMEOUT_S
        waiting = list(group)
        while waiting:
            for child in list(waiting):
                if child.process.poll() is not None:
                    raise StackError(f"{child.spec.name} {child.ending()} before it was ready:\n{child.last_words()}")
                if child.spec.ready(child):
                    say(f"{child.spec.name} is ready ({time.monotonic() - child.started_at:.1f} s)")
                    waiting.remove(child)
            if waiting and time.monotonic() > deadline:
                late = waiting[0]
                raise StackError(f"{late.spec.name} is not ready after {READY_TIMEOUT_S:.0f} s:\n{late.last_words()}")
            self._pause(POLL_S / 4)

    def publish(self, addresses: Addresses) -> None:
        """Says in stack.json that all of it is ready."""
        self._state = self._state.model_copy(update={"addresses": addresses})
        self._record()

    def watch(self) -> None:
        """Starts again what dies, until a signal asks for the end."""
        while True:
            for group in self._groups:
                for place, child in enumerate(group):
                    if child.process.poll() is not None and self._is_due(child):
                        group[place] = start(child.spec, self.home / "logs")
                        self._record()
            self._pause(POLL_S)

    def _is_due(self, dead: Child) -> bool:
        """Whether a dead child's delay is over; reports its death when it is first seen."""
        name, now = dead.spec.name, time.monotonic()
        last = self._restarts.get(name)
        if last is None or last.of is not dead:
            lived_s = now - dead.started_at
            delay_s = 1.0 if last is None or lived_s > STEADY_AFTER_S else min(2 * last.delay_s, MAX_BACK_OFF_S)
            last = self._restarts[name] = _Restart(dead, delay_s, now + delay_s)
            say(
                f"{name} (pid {dead.process.pid}) {dead.ending()}, {lived_s:.0f} s old; "
                f"it is started again in {delay_s:.0f} s; log: {dead.log}"
            )
        return now >= last.at

    def _record(self) -> None:
        records = tuple(child.record for group in self._groups for child in group)
        self._state = self._state.model_copy(update={"children": records})
        write_state(self.home, self._state)

    def _pause(self, seconds: float) -> None:
        time.sleep(seconds)
        if self._stop_requested:
            raise _StopRequestedError

    def _request_stop(self, _signal: int, _frame: FrameType | None) -> None:
        self._stop_requested = True


def listen(settings: Settings) -> socket.socket:
    """The status API's socket, of this machine alone; on any free port where another stack has the usual one.

    Raises StackError where the port was named and is taken, or another address was named.
    """
    if settings.status_host != LOCALHOST:
        raise StackError(
            f"FRETWORK_STATUS_HOST={settings.status_host}: `fretwork up` serves this machine alone, on {LOCALHOST}; to "
            "be reached from elsewhere put a proxy with TLS before it (docs/status-api.md), or use Compose"
        )
    named = "status_port" in settings.model_fields_set
    try:
        return socket.create_server((LOCALHOST, settings.status_port))
    except OSError as error:
        if named:
            raise StackError(f"FRETWORK_STATUS_PORT={settings.status_port}: {error.strerror}; name another") from error
        return socket.create_server((LOCALHOST, 0))


def run_stack(home: Path, *, workers: Mapping[str, int] = children.WORKERS) -> None:
    """Runs everything until SIGTERM or SIGINT; `workers` gives each queue's threads, and none means: PostgreSQL alone.

    Servers that FRETWORK_DATABASE_URL and FRETWORK_BROKER_URL name are used instead of started.
    Raises StackError; LockedError where another supervisor runs on this home.
    """
    home = home.resolve()
    home.mkdir(parents=True, exist_ok=True)
    settings = Settings()
    with Supervisor(home, has_workers=bool(workers)) as supervisor:
        if settings.database_url is not None:
            database_url = settings.database_url.get_secret_value()
        else:
            database = postgres.prepare(home)
            supervisor.start(database.spec)
            database_url = database.url
        try:
            migrate.upgrade(database_url)
        except OperationalError as error:
            raise StackError(f"the database does not answer: {error.orig}; see FRETWORK_DATABASE_URL") from error
        addresses = Addresses(database_url=database_url)
        if workers:
            if settings.broker_url is not None:
                broker_url = settings.broker_url.get_secret_value()
                if not redis_server.answers(broker_url):
                    raise StackError("the Redis that FRETWORK_BROKER_URL names does not answer")
            else:
                broker = redis_server.prepare(home)
                supervisor.start(broker.spec)
                broker_url = broker.url
            listener = listen(settings)
            status_url = f"http://{LOCALHOST}:{listener.getsockname()[1]}"
            addresses = Addresses(database_url=database_url, broker_url=broker_url, status_url=status_url)
            supervisor.start(children.dispatcher(home, addresses), children.status(home, addresses, listener.fileno()))
            supervisor.start(*(children.worker(home, addresses, *queue) for queue in workers.items()))
        supervisor.publish(addresses)
        where = f"; look at {addresses.status_url} (the token for acting is in {home / children.TOKEN_FILE})"
        say("everything is ready" + (where if workers else ""))
        supervisor.watch()
