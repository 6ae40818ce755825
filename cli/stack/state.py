"""`stack.json`: what runs on this home, where it answers, and which processes it consists of; and the locks beside it.

It holds passwords, so only its owner can read it. Only a supervisor writes it, and removes it when it ends in order.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO

from pydantic import BaseModel, ConfigDict, Field

from cli.stack.processes import ProcessRecord, StackError

STATE_FILE = "stack.json"


class Addresses(BaseModel):
    """Where the servers answer. Without workers there is no broker and no status API."""

    model_config = ConfigDict(frozen=True)

    database_url: str = Field(repr=False)
    broker_url: str | None = Field(None, repr=False)
    status_url: str | None = None


class StackState(BaseModel):
    """`addresses` stand once everything is ready, and not before."""

    model_config = ConfigDict(frozen=True)

    supervisor: ProcessRecord
    has_workers: bool
    children: tuple[ProcessRecord, ...] = ()
    addresses: Addresses | None = None


def read_state(home: Path) -> StackState | None:
    """What the last supervisor wrote, also where it was killed since; None after an orderly end."""
    try:
        return StackState.model_validate_json((home / STATE_FILE).read_bytes())
    except FileNotFoundError:
        return None


def running_stack(home: Path) -> StackState | None:
    """The state of the stack that runs on this home, or None where no supervisor is alive."""
    state = read_state(home)
    return state if state is not None and state.supervisor.find() is not None else None


def write_state(home: Path, state: StackState) -> None:
    write_private(home / STATE_FILE, state.model_dump_json(indent=2))


def remove_state(home: Path) -> None:
    (home / STATE_FILE).unlink(missing_ok=True)


def write_private(path: Path, text: str) -> None:
    """Writes a file that only its owner can read, whole or not at all."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
        stream.write(text)
    fresh.replace(path)


class LockedError(StackError):
    """Another process holds this lock."""


def hold_lock(path: Path, what: str) -> IO[str]:
    """Locks a file until what is returned is closed or the process ends, however it ends.

    Raises LockedError, naming the holder's pid.
    """
    lock = open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+", encoding="utf-8")  # noqa: SIM115
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with lock:
            holder = lock.read().strip() or "unknown"
        raise LockedError(f"{what} is in use by another fretwork process (pid {holder}): stop that one first") from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock
