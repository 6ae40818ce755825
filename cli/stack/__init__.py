"""The embedded stack: everything on one machine, as processes of this user, without root or Docker.

`up` runs it in the foreground and `down` ends it; `ensure_stack` gives a command servers to talk to, whoever runs them.
Nothing here knows what the services do.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psutil

from cli.stack.processes import StackError, stop_orphans
from cli.stack.state import Addresses, StackState, hold_lock, read_state, remove_state, running_stack
from cli.stack.supervisor import STOP_TIMEOUT_S, run_stack, say
from shared.settings import Settings

__all__ = ["Addresses", "StackError", "down", "ensure_stack", "running_stack", "up"]

POLL_S = 0.1
LOCKED_EXIT_CODE = 75  # EX_TEMPFAIL: another supervisor has this home


def up(home: Path) -> None:
    """Runs the stack in the foreground until SIGTERM or Ctrl-C. Raises StackError, LockedError."""
    run_stack(home)


def down(home: Path) -> bool:
    """Ends the stack that runs on this home, and what a killed one left; False where there was nothing to end.

    Raises StackError where it does not end in time.
    """
    home = home.resolve()
    running = running_stack(home)
    if running is not None:
        _end(running)
        return True
    left_over = read_state(home)
    if left_over is None:
        return False
    with hold_lock(home / "stack.lock", f"the stack of {home}"):
        ended = stop_orphans(left_over.children)
        remove_state(home)
    return bool(ended)


@contextmanager
def ensure_stack(home: Path, *, workers: bool = True) -> Iterator[Addresses]:
    """The addresses of servers to use, for as long as the block runs; `workers=False` asks for PostgreSQL alone.

    They are those that the environment names, or of the stack that runs on this home, or of one started here and
    stopped after the block, once no other command uses it. Call it from the main thread. Raises StackError.
    """
    given = Settings()
    if given.database_url is not None and (given.broker_url is not None or not workers):
        yield Addresses(
            database_url=given.database_url.get_secret_value(),
            broker_url=given.broker_url.get_secret_value() if given.broker_url is not None else None,
        )
        return
    home = home.resolve()
    home.mkdir(parents=True, exist_ok=True)
    with (home / "stack.users").open("a") as users:
        fcntl.flock(users, fcntl.LOCK_SH)  # waits while an owner that nobody joined is stopping its stack
        supervisor: subprocess.Popen[bytes] | None = None
        try:
            while (addresses := _joined(home, workers)) is None:
                if supervisor is None:
                    supervisor = None if running_stack(home) else _start_supervisor(home, workers)
                elif supervisor.poll() == LOCKED_EXIT_CODE:
                    supervisor = None  # another command was faster: join what it starts
                elif supervisor.returncode is not None:
                    raise StackError(f"the stack did not start, for the reason above; its logs are in {home / 'logs'}")
                time.sleep(POLL_S)
            yield addresses
        finally:
            if supervisor is not None and supervisor.poll() is None:
                try:
                    _wait_for_other_users(users)
                finally:
                    supervisor.terminate()
                    supervisor.wait(STOP_TIMEOUT_S)


def _joined(home: Path, workers: bool) -> Addresses | None:
    """The addresses of the stack that runs on this home, once it is ready."""
    running = running_stack(home)
    if running is not None and workers and not running.has_workers:
        raise StackError(
            f"another command (its stack has pid {running.supervisor.pid}) runs this home's database without workers: "
            "wait until it ends, or run `fretwork up` first, which serves both"
        )
    return running.addresses if running is not None else None


def _start_supervisor(home: Path, workers: bool) -> subprocess.Popen[bytes]:
    # it sees to its end with this process by itself: a preexec_fn would fork, and this process may have threads by now
    command = [sys.executable, "-m", "cli.stack", "--home", str(home), "--parent", str(os.getpid())]
    return subprocess.Popen(
        command if workers else [*command, "--database-only"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONSAFEPATH": "1"},  # a folder `cli` where the user stands is not ours
        start_new_session=True,
    )


def _wait_for_other_users(users: IO[str]) -> None:
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("another command still uses the stack that this one started; waiting for it (Ctrl-C ends the stack now)")
        fcntl.flock(users, fcntl.LOCK_EX)


def _end(running: StackState) -> None:
    process = running.supervisor.find()
    if process is None:
        return
    try:
        process.terminate()
        process.wait(STOP_TIMEOUT_S)
    except psutil.NoSuchProcess:
        return
    except psutil.TimeoutExpired:
        raise StackError(f"the supervisor (pid {process.pid}) has not ended after {STOP_TIMEOUT_S:.0f} s") from None
