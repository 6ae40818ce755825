"""Real servers for the test session, started from the wheels, and a database of its own for each test."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from sqlalchemy import create_engine, make_url, text
from sqlalchemy.pool import NullPool

from cli.stack import postgres, redis_server
from cli.stack.processes import Child, ChildSpec, StackError, start, stop

START_TIMEOUT_S = 60.0


@contextmanager
def postgres_from_wheel() -> Iterator[str]:
    """The administrator's URL of a server that forgets everything. Raises StackError where it cannot be started."""
    with _folder() as folder:
        server = postgres.prepare(folder, durable=False, root_dir=folder / "root")
        with server.lock, running(server.spec, folder):
            yield server.admin_url


@contextmanager
def redis_from_wheel() -> Iterator[str]:
    """The URL of a server of its own. Raises StackError where it cannot be started."""
    with _folder() as folder:
        server = redis_server.prepare(folder)
        with running(server.spec, folder):
            yield server.url


@contextmanager
def running(spec: ChildSpec, folder: Path) -> Iterator[Child]:
    """A child for as long as the block runs, from when it is ready."""
    child = start(spec, folder / "logs")
    try:
        until(lambda: spec.ready(child) or child.process.poll() is not None, START_TIMEOUT_S)
        if child.process.returncode is not None:
            raise StackError(f"{spec.name} {child.ending()}:\n{child.last_words()}")
        yield child
    finally:
        stop([child])


@contextmanager
def fresh_database(admin_url: str, template: str = "template1") -> Iterator[str]:
    """The URL of a new database, a copy of `template`, which nobody may be connected to."""
    name = f"test_{uuid4().hex}"
    administrator = create_engine(admin_url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with administrator.connect() as connection:
        connection.execute(text(f'CREATE DATABASE {name} TEMPLATE "{template}"'))
    try:
        yield make_url(admin_url).set(database=name).render_as_string(hide_password=False)
    finally:
        with administrator.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


def until(holds: Callable[[], bool], timeout_s: float, every_s: float = 0.02) -> None:
    """Waits for something that other processes bring about. Raises TimeoutError."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so after {timeout_s:.0f} s")
        time.sleep(every_s)


@contextmanager
def _folder() -> Iterator[Path]:
    """A temporary folder through which `nobody`, as whom PostgreSQL runs where we are root, can pass."""
    with tempfile.TemporaryDirectory(prefix="fretwork-test-") as name:
        os.chmod(name, 0o711)  # noqa: S103 - a name that nobody can guess, and what is private in it is 0700
        yield Path(name)
