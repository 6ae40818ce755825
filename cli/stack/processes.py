"""One process each: started so that it dies with its parent, and known again by its pid and start time.

What a child is for, in which order children start, and when they are started again is not known here.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict

from shared.errors import FretworkError

PR_SET_PDEATHSIG = 1  # linux/prctl.h
START_TOLERANCE_S = 1.5  # the system's idea of when it booted may move by a second between two readings
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # Linux alone has one
TAIL_LINES = 15


class StackError(FretworkError):
    """The processes of one machine could not be started."""


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What to start, and how to tell that it is ready and how to stop it.

    `env` is the whole environment. `user` is (uid, gid), and only root may set it. `stop_signal` asks for an orderly
    end, `death_signal` is what the system sends when the parent is gone. `ready` is asked until it says yes. The child
    inherits the open files of `pass_fds`, under the same numbers.
    """

    name: str
    command: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path
    user: tuple[int, int] | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    death_signal: signal.Signals = signal.SIGKILL
    grace_s: float = 10.0
    ready: Callable[[Child], bool] = lambda child: True
    pass_fds: tuple[int, ...] = ()


class ProcessRecord(BaseModel):
    """A process as it is remembered across a crash: a pid alone may by now be somebody else's.

    `start_time` is in seconds since the system booted, and `boot` says which time that was: a virtual machine that was
    paused sets its clock by hours, and all times of day with it.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    pid: int
    start_time: float
    boot: str = ""
    stop_signal: int = signal.SIGTERM

    @classmethod
    def of(cls, name: str, pid: int, stop_signal: int = signal.SIGTERM) -> ProcessRecord:
        started = _since_boot(psutil.Process(pid))
        return cls(name=name, pid=pid, start_time=started, boot=_boot(), stop_signal=stop_signal)

    def find(self) -> psutil.Process | None:
        """The process itself while it lives; None where it is gone and also where its pid is another's now."""
        try:
            process = psutil.Process(self.pid)
            same = self.boot == _boot() and abs(_since_boot(process) - self.start_time) < START_TOLERANCE_S
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None


def _since_boot(process: psutil.Process) -> float:
    return float(process.create_time() - psutil.boot_time())  # either moves with the clock


def _boot() -> str:
    return BOOT_ID.read_text().strip() if BOOT_ID.exists() else ""


@dataclass(frozen=True, slots=True)
class Child:
    """A started child. Its standard output and error go to the end of `log`, from byte `log_start` on."""

    spec: ChildSpec
    process: subprocess.Popen[bytes]
    record: ProcessRecord
    started_at: float
    log: Path
    log_start: int

    def output(self) -> str:
        """What this child has written so far."""
        with self.log.open("rb") as stream:
            stream.seek(self.log_start)
            return stream.read().decode(errors="replace")

    def last_words(self) -> str:
        """The end of its output, for an error message."""
        lines = self.output().splitlines()[-TAIL_LINES:]
        return "\n".join([*(f"    {line}" for line in lines), f"  in {self.log}"])

    def ending(self) -> str:
        """How it ended, in words; only for one that has."""
        code = self.process.returncode
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def die_with_parent(death_signal: signal.Signals) -> Callable[[], None] | None:
    """A `preexec_fn` that has the kernel send `death_signal` to the child when the thread that started it ends.

    So children are started from the main thread, while it is the only one. Only Linux has this; elsewhere whatever
    outlives a killed supervisor is found by the next `up` or `down`.
    """
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # looked up here: nothing but system calls between fork and exec
    parent = os.getpid()

    def arm() -> None:
        prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
        if os.getppid() != parent:  # it ended before the call above
            os._exit(1)

    return arm


def die_with(parent: int, death_signal: signal.Signals) -> None:
    """Has the kernel send `death_signal` to this very process when its parent ends, or ends it if that is gone already.

    For a child of a process with threads, where a `preexec_fn` is not safe.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)


def start(spec: ChildSpec, logs: Path) -> Child:
    """Starts a child at the head of a session of its own, so that a terminal's Ctrl-C reaches its parent alone.

    Raises StackError where the program cannot be run.
    """
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"{spec.name}.log"
    uid, gid = spec.user or (None, None)
    with log.open("ab") as stream:
        log_start = stream.tell()
        try:
            process = subprocess.Popen(
                spec.command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env=spec.env,
                cwd=spec.cwd,
                user=uid,
                group=gid,
                extra_groups=None if spec.user is None else [],
                pass_fds=spec.pass_fds,
                start_new_session=True,
                preexec_fn=die_with_parent(spec.death_signal),
            )
        except OSError as error:
            raise StackError(f"{spec.name}: {spec.command[0]} cannot be started: {error}") from error
    record = ProcessRecord.of(spec.name, process.pid, spec.stop_signal)
    return Child(spec, process, record, time.monotonic(), log, log_start)


def stop(children: Iterable[Child]) -> None:
    """Asks all to end, waits for each one's grace, then kills what is left of its session's first group."""
    running = [child for child in children if child.process.poll() is None]
    for child in running:
        child.process.send_signal(child.spec.stop_signal)
    asked_at = time.monotonic()
    for child in running:
        try:
            child.process.wait(max(0.0, asked_at + child.spec.grace_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.process.pid, signal.SIGKILL)
            child.process.wait()


def stop_orphans(records: Iterable[ProcessRecord], grace_s: float = 30.0) -> list[str]:
    """Ends those of a dead supervisor's children that still run; returns their names.

    Raises StackError where one does not end.
    """
    orphans = {process: record for record in records if (process := record.find()) is not None}
    for process, record in orphans.items():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(record.stop_signal)
    _, deaf = psutil.wait_procs(list(orphans), timeout=grace_s)
    for process in deaf:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    _, immortal = psutil.wait_procs(deaf, timeout=grace_s)
    if immortal:
        named = ", ".join(f"{orphans[process].name} (pid {process.pid})" for process in immortal)
        raise StackError(f"left over from an earlier run and not to be ended: {named}; end them by hand")
    return [record.name for record in orphans.values()]


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on. Raises StackError where there is none.

    From below the range that systems give to outgoing connections: a client that tries again while its server is
    being restarted could be given that very port, and keep the server from it.
    """
    candidates = (20_000 + secrets.randbelow(12_000) for _ in range(100))
    port = next((port for port in candidates if is_free(port)), None)
    if port is None:
        raise StackError("no free port between 20000 and 32000 on 127.0.0.1")
    return port


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
