"""How each harm is done to real processes.

A harm is a generator: it does a step, yields while it has to wait, and is asked again a moment later. So many harms go
on at a time in one thread, and between two steps the ledger is looked at. It yields WAITING until it finds what to
harm, then BEGUN until it is over, and writes what it did into `did`.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
from celery import Celery
from sqlalchemy import Connection, Row, text
from sqlalchemy.exc import OperationalError

from cli.stack import children, running_stack
from cli.stack.processes import Child, ChildSpec, ProcessRecord, start, stop
from cli.stack.state import Addresses
from shared.runs import Run
from shared.stages import ROUTES, Stage, task_name
from tests.chaos.driver import EXTRA, Event
from tests.e2e.stack import Stack
from tests.llm_stub import StubLLM

GRACE_S = 10.0  # what a stack gives its workers
AWAY_S = 4.0
FULL_AT_BYTES = 8192  # the disk, for the export
NOT_GIVEN_BACK = '"shard could not be given back"'  # as a worker logs it

WAITING, BEGUN = False, True
Harm = Generator[bool, None, None]


@dataclass
class World:
    """A stack with two more workers, the LLM, and the run that is harmed."""

    stack: Stack
    stub: StubLLM
    exported: Run  # a finished run, for the export that finds the disk full
    extra: dict[str, Child] = field(default_factory=dict)
    did: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    held: set[str] = field(default_factory=set)  # tables that a harm has locked
    lost: dict[tuple[UUID, int], float] = field(default_factory=dict)  # claims of killed processes: when it was

    @property
    def addresses(self) -> Addresses:
        state = running_stack(self.stack.home)
        assert state is not None
        assert state.addresses is not None
        return state.addresses

    def keep_extras(self) -> None:
        """Starts the two workers more, and again when they end: what a supervisor does for the others."""
        for name in EXTRA:
            child = self.extra.get(name)
            if child is None or child.process.poll() is not None:
                self.extra[name] = start(self._spec(name), self.stack.home / "logs")

    def _spec(self, name: str) -> ChildSpec:
        queue = name.removesuffix("-2")
        spec = children.worker(self.stack.home, self.addresses, queue, children.WORKERS[queue])
        command = tuple(part.replace(f"{queue}@", f"{name}@") for part in spec.command)
        return replace(spec, name=name, command=command)

    def stop_extras(self) -> None:
        stop(self.extra.values())

    def alive(self, name: str) -> int | None:
        """The pid of the process of that name, where it runs now."""
        if name in EXTRA:
            child = self.extra[name]
            return child.process.pid if child.process.poll() is None else None
        state = running_stack(self.stack.home)
        records: tuple[ProcessRecord, ...] = state.children if state is not None else ()
        found = [record for record in records if record.name == name and record.find() is not None]
        return found[0].pid if found else None

    def finished(self, held: set[tuple[UUID, int]]) -> set[tuple[UUID, int]] | None:
        """Those of the claims whose holder has finished the shard itself, or None while PostgreSQL is away."""
        rows = self.rows(
            "SELECT shard_id, claim_seq FROM shards WHERE state = 'done' AND shard_id = ANY(:ids)",
            ids=[shard_id for shard_id, _ in held],
        )
        return None if rows is None else held & {(row.shard_id, row.claim_seq) for row in rows}

    def rows(self, statement: str, **values: object) -> list[Row[Any]] | None:
        """What the ledger says, or None while PostgreSQL is away."""
        try:
            with self.stack.engine.connect() as connection:
                return list(connection.execute(text(statement), values).all())
        except OperationalError:
            return None

    def claims_of(self, pid: int) -> set[tuple[UUID, int]] | None:
        """The shards that a process holds, each with its claim_seq; None while PostgreSQL is away."""
        found = self.rows(
            "SELECT shard_id, claim_seq FROM shards WHERE state = 'claimed' AND split_part(claimed_by, ':', 2) = :pid",
            pid=str(pid),
        )
        return None if found is None else {(row.shard_id, row.claim_seq) for row in found}

    def kill(self, name: str, how: signal.Signals = signal.SIGKILL) -> bool:
        """Kills a process and remembers what it held; False where it is not there to be killed."""
        pid = self.alive(name)
        if pid is None:
            return False
        with suppress(ProcessLookupError):
            os.kill(pid, how)
        self.lost.update(dict.fromkeys(self.claims_of(pid) or (), time.monotonic()))
        return True

    def log_of(self, name: str) -> Path:
        return self.stack.home / "logs" / f"{name}.log"


def harm(world: World, run: Run, event: Event, seed: int) -> Harm:
    """The harm that an event names."""
    do: dict[str, Callable[[], Harm]] = {
        "kill": lambda: _kill(world, event),
        "freeze": lambda: _freeze(world, event),
        "restart redis": lambda: _restart(world, event, "redis", signal.SIGKILL),
        "restart postgres": lambda: _restart(
            world, event, "postgres", signal.SIGKILL if event.target == "by a crash" else signal.SIGINT
        ),
        "take the LLM away": lambda: _take_llm_away(world, event),
        "freeze in its transaction": lambda: _freeze_in_transaction(world, event),
        "lose the index": lambda: _lose_index(world, run, event),
        "ring twice": lambda: _ring_twice(world, run, event, seed),
        "terminate": lambda: _terminate(world, event),
        "fill the disk": lambda: _fill_disk(world, event),
    }
    return do[event.what]()


def _kill(world: World, event: Event) -> Harm:
    while not world.kill(event.target):
        yield WAITING
    world.did.append(str(event))


def _restart(world: World, event: Event, name: str, how: signal.Signals) -> Harm:
    """The supervisor starts it again: Redis without its memory, PostgreSQL with what was committed."""
    while not world.kill(name, how):
        yield WAITING
    world.did.append(str(event))


def _freeze(world: World, event: Event) -> Harm:
    """Stops a worker with a shard in hand until another may have it; its late write has to be refused."""
    while True:
        pid = world.alive(event.target)
        if pid is not None and world.claims_of(pid):
            os.kill(pid, signal.SIGSTOP)
            if held := world.claims_of(pid):
                break
            os.kill(pid, signal.SIGCONT)  # it was faster
        yield WAITING
    world.did.append(f"{event} with {len(held)} shards")
    yield from _thaw(world, event, pid, held)


def _freeze_in_transaction(world: World, event: Event) -> Harm:
    """The same while it finishes a shard: the server has to end its transaction, which holds the shard's row."""
    table = "queries" if event.target.startswith("generator") else "fret_records"
    while table in world.held:  # by a harm like this one: we would wait for ourselves
        yield WAITING
    world.held.add(table)
    try:
        with world.stack.engine.connect() as connection:
            while (pid := (yield from _until_it_writes(world, event, connection, table))) is None:
                connection.rollback()
                yield WAITING
            os.kill(pid, signal.SIGSTOP)
            connection.rollback()
    except (OperationalError, ProcessLookupError):
        return  # PostgreSQL was restarted meanwhile, or the process killed
    finally:
        world.held.remove(table)
    while (held := world.claims_of(pid)) is None:
        yield BEGUN
    if held:
        world.did.append(str(event))
        yield from _thaw(world, event, pid, held)
    else:
        os.kill(pid, signal.SIGCONT)  # its shard was taken before


def _until_it_writes(
    world: World, event: Event, connection: Connection, table: str
) -> Generator[bool, None, int | None]:
    """Holds the table until the process waits for it, with a shard in hand; its pid, or None where it did not come."""
    while (pid := world.alive(event.target)) is None or not world.claims_of(pid):
        yield WAITING
    connection.execute(text(f"LOCK TABLE {table} IN EXCLUSIVE MODE"))
    deadline = time.monotonic() + 1  # its shard may hang on others that write there
    while time.monotonic() < deadline:
        if _is_writing(world, pid, table):
            return pid
        yield WAITING
    return None


def _is_writing(world: World, pid: int, table: str) -> bool:
    """Whether a process waits for a lock on the table; its backend is known by its port."""
    try:
        ports = [each.laddr.port for each in psutil.Process(pid).net_connections() if each.laddr]
    except psutil.NoSuchProcess:
        return False
    waiting = world.rows(
        "SELECT client_port FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE :insert",
        insert=f"INSERT INTO {table}%",
    )
    return any(row.client_port in ports for row in waiting or ())


def _thaw(world: World, event: Event, pid: int, held: set[tuple[UUID, int]]) -> Harm:
    """Continues a stopped process once one of its shards was taken from it.

    It is at work on none that it could not give back, as while PostgreSQL restarts: those stay its own in the ledger
    until their leases run out, and there is no late write to wait for.
    """
    log = world.log_of(event.target)
    seen = log.stat().st_size
    said = [line for line in log.read_text(errors="replace").splitlines() if NOT_GIVEN_BACK in line]
    held = {(shard_id, seq) for shard_id, seq in held if not any(str(shard_id) in line for line in said)}
    lost: set[tuple[UUID, int]] = set()
    try:
        while held and not lost:
            yield BEGUN
            still = world.claims_of(pid)
            finished = world.finished(held)
            if still is not None and finished is not None:
                held = held - finished  # a commit that was under way when the process stopped
                lost = held - still
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    if not lost:
        return
    taken = {str(shard_id) for shard_id, _ in lost}
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if world.alive(event.target) != pid:
            return  # killed by another harm
        with log.open("rb") as written:
            written.seek(seen)
            said = written.read().decode(errors="replace").splitlines()
        refused = [line for line in said if '"lease lost"' in line or NOT_GIVEN_BACK in line]
        if any(shard_id in line for line in refused for shard_id in taken):
            return
        yield BEGUN
    world.wrong.append(f"{event}: its late write was not refused")


def _take_llm_away(world: World, event: Event) -> Harm:
    world.stub.go_away()
    world.did.append(str(event))
    try:
        until = time.monotonic() + AWAY_S
        while time.monotonic() < until:
            yield BEGUN
    finally:
        world.stub.come_back()


def _lose_index(world: World, run: Run, event: Event) -> Harm:
    """Qdrant runs in the retriever's process, so it goes with it; here its folder does too."""
    retrieved = "SELECT FROM shards WHERE run_id = :id AND stage = 'retrieve' AND state = 'done' LIMIT 1"
    while event.target and not world.rows(retrieved, id=run.run_id):
        yield WAITING
    pid = world.alive("retriever")
    while not world.kill("retriever"):
        pid = world.alive("retriever")
        yield WAITING
    while world.alive("retriever") == pid:
        yield BEGUN
    shutil.rmtree(world.stack.home / "qdrant", ignore_errors=True)
    world.did.append(str(event))


def _ring_twice(world: World, run: Run, event: Event, seed: int) -> Harm:
    """Rings for every shard of the run twice and out of order, whether it waits, is claimed or is done."""
    while not (found := world.rows("SELECT shard_id, stage FROM shards WHERE run_id = :id", id=run.run_id)):
        yield WAITING
    bells = [(Stage(row.stage), str(row.shard_id)) for row in found] * 2
    random.Random(seed).shuffle(bells)  # noqa: S311 - a test's choice
    with Celery(broker=world.addresses.broker_url, set_as_current=False) as app:
        try:
            for stage, shard_id in bells:
                app.send_task(task_name(stage), args=[shard_id], queue=ROUTES[stage].queue, retry=False)
        except Exception as error:  # Redis is away
            world.did.append(f"{event} (cut short: {type(error).__name__})")
            return
    world.did.append(f"{event}: {len(bells)} bells")


def _terminate(world: World, event: Event) -> Harm:
    """Asks a worker to end, and kills it after its grace, as a supervisor does."""
    while (pid := world.alive(event.target)) is None:
        yield WAITING
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    while world.alive(event.target) == pid:
        if time.monotonic() > deadline:
            world.kill(event.target)
            world.did.append(f"{event}, and kill it after its grace")
            return
        yield BEGUN
    world.did.append(str(event))


def _fill_disk(world: World, event: Event) -> Harm:
    """An export finds the disk full: it says so, and leaves nothing behind."""
    folder = world.stack.home / "exports"
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "cli.main", "--home", str(world.stack.home), "export", world.exported.name]
    with subprocess.Popen(
        [*command, "--output", str(folder / "full")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (FULL_AT_BYTES, FULL_AT_BYTES)),
    ) as export:
        while export.poll() is None:
            yield BEGUN
        assert export.stderr is not None
        said = export.stderr.read()
    left = [path.name for path in folder.iterdir()]
    if "database did not answer" in said:
        world.did.append(f"{event} (PostgreSQL was away first)")
        return
    world.did.append(str(event))
    honest = "cannot be written" in said and "File too large" in said and "Traceback" not in said
    if export.returncode != 1 or not honest or left:
        world.wrong.append(f"{event}: exit status {export.returncode}, left {left}, said: {said[-500:]}")
