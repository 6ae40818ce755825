"""The embedded stack: real servers, and stand-ins for the workers, killed in every way that a machine can think of."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cli.context import Context
from cli.stack import down, ensure_stack, postgres, redis_server
from cli.stack.processes import ProcessRecord, StackError
from cli.stack.state import LockedError, StackState, read_state, running_stack, write_state
from cli.stack.supervisor import Supervisor, listen
from shared.settings import Settings
from tests.servers import running, until

# a stack of two stand-ins; a real supervisor is forked from a process without threads, as this one is
STAND_INS = """
import os, sys
from pathlib import Path
from cli.stack.processes import ChildSpec, StackError
from cli.stack.state import Addresses
from cli.stack.supervisor import Supervisor
home = Path(sys.argv[1])
spec = lambda name: ChildSpec(name, ("sleep", "1000"), dict(os.environ), home)
try:
    with Supervisor(home) as supervisor:
        supervisor.start(spec("first"), spec("second"))
        supervisor.publish(Addresses(database_url="none"))
        supervisor.watch()
except StackError as error:
    sys.exit(str(error))
"""
AWAY_S = 10.0


@contextmanager
def stand_ins(home: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", STAND_INS, str(home)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as supervisor:
        try:
            yield supervisor
        finally:
            supervisor.terminate()


def ready(home: Path) -> StackState:
    def is_ready() -> bool:
        state = running_stack(home)
        return state is not None and state.addresses is not None

    until(is_ready, AWAY_S)
    state = read_state(home)
    assert state is not None
    return state


def pid_of(home: Path, name: str) -> int:
    state = read_state(home)
    assert state is not None
    return next(child.pid for child in state.children if child.name == name)


def gone(record: ProcessRecord) -> Callable[[], bool]:
    return lambda: record.find() is None


def plain(url: str) -> str:
    return url.replace("+psycopg", "")


def test_a_dead_child_is_started_again_after_a_growing_delay(home: Path) -> None:
    with stand_ins(home) as supervisor:
        ready(home)
        delays = []
        for _ in range(2):
            pid, killed_at = pid_of(home, "first"), time.monotonic()
            os.kill(pid, signal.SIGKILL)
            until(lambda pid=pid: pid_of(home, "first") != pid, AWAY_S)  # type: ignore[misc]
            delays.append(time.monotonic() - killed_at)
        assert delays[0] >= 1
        assert delays[1] >= 2
        supervisor.terminate()
        _, said = supervisor.communicate(timeout=AWAY_S)
    assert supervisor.returncode == 0
    assert said.count("was killed by SIGKILL") == 2
    assert read_state(home) is None


def test_children_end_with_a_supervisor_that_is_told_to_end(home: Path) -> None:
    with stand_ins(home):
        state = ready(home)
        assert down(home)
        assert all(gone(child)() for child in state.children)
    assert not down(home)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends the children of a killed process")
def test_children_end_with_a_supervisor_that_is_killed(home: Path) -> None:
    with stand_ins(home) as supervisor:
        state = ready(home)
        supervisor.kill()
        until(lambda: all(gone(child)() for child in state.children), AWAY_S)


def test_a_second_supervisor_is_refused_and_told_of_the_first(home: Path) -> None:
    with stand_ins(home) as first:
        ready(home)
        with stand_ins(home) as second:
            _, said = second.communicate(timeout=AWAY_S)
        assert second.returncode == 1
        assert f"pid {first.pid}" in said
        assert first.poll() is None


def test_a_process_is_known_after_the_clock_was_set_and_not_after_a_reboot(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = ProcessRecord.of("ours", os.getpid())
    created, booted = psutil.Process.create_time, psutil.boot_time()
    monkeypatch.setattr(psutil, "boot_time", lambda: booted + 7200)
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: created(process) + 7200)
    assert ours.find() is not None
    assert ours.model_copy(update={"boot": "another"}).find() is None


def test_up_ends_its_own_orphans_and_nobody_elses(home: Path) -> None:
    with subprocess.Popen(["sleep", "1000"]) as orphan, subprocess.Popen(["sleep", "1000"]) as stranger:
        try:
            ours = ProcessRecord.of("orphan", orphan.pid)
            # a pid that was ours once and is somebody else's now
            reused = ProcessRecord.of("stranger", stranger.pid).model_copy(update={"start_time": ours.start_time - 60})
            killed = ProcessRecord.of("supervisor", os.getpid()).model_copy(update={"start_time": 0.0})
            write_state(home, StackState(supervisor=killed, has_workers=True, children=(ours, reused)))
            with Supervisor(home):
                assert gone(ours)()
                assert stranger.poll() is None
        finally:
            orphan.kill()
            stranger.kill()


def test_stack_json_is_for_its_owner_alone(home: Path) -> None:
    with stand_ins(home):
        ready(home)
        assert (home / "stack.json").stat().st_mode & 0o777 == 0o600


def test_postgres_wants_the_password_and_does_not_run_as_root(postgres_url: str) -> None:
    with psycopg.connect(plain(postgres_url)) as connection:
        [row] = connection.execute("SELECT lower('ÉÄ'), current_setting('listen_addresses')").fetchall()
        assert row == ("éä", "127.0.0.1")
        server = psutil.Process(connection.info.backend_pid)
        assert server.uids().real != 0
        password = connection.info.password
    with pytest.raises(psycopg.OperationalError, match="authentication failed"):
        psycopg.connect(plain(postgres_url).replace(password, "guess"))


def test_each_test_has_a_database_of_its_own(database_url: str, postgres_url: str) -> None:
    with psycopg.connect(plain(database_url)) as connection:
        assert connection.execute("SELECT count(*) FROM shards").fetchall() == [(0,)]
    assert database_url != postgres_url


def test_two_stacks_get_two_ports_and_a_named_port_is_taken_or_refused() -> None:
    with listen(Settings()) as first, listen(Settings()) as second:
        assert first.getsockname()[1] != second.getsockname()[1]
        taken = first.getsockname()[1]
        with pytest.raises(StackError, match=f"FRETWORK_STATUS_PORT={taken}.*name another"):
            listen(Settings(status_port=taken))
    with pytest.raises(StackError, match=r"FRETWORK_STATUS_HOST=0.0.0.0.*proxy"):
        listen(Settings(status_host="0.0.0.0"))  # noqa: S104 - it is refused


def test_redis_wants_the_password_and_keeps_nothing(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.ping()
        assert client.config_get("appendonly") == {"appendonly": "no"}
        assert client.config_get("save") == {"save": ""}
        port = client.connection_pool.connection_kwargs["port"]
    with redis.Redis(port=port, retry=Retry(NoBackoff(), 0)) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()


def test_a_missing_redis_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_server, "WHEEL", "no_such_wheel")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(StackError, match="FRETWORK_BROKER_URL"):
        redis_server.find_program()


def test_a_killed_postgres_leaves_no_process_that_bars_the_next(home: Path) -> None:
    server = postgres.prepare(home, durable=False)
    with server.lock, running(server.spec, home) as first:
        with psycopg.connect(plain(server.url), autocommit=True) as connection:
            connection.execute("SET synchronous_commit = on")  # or the table may be lost, as this server is told
            connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        with closing(psycopg.connect(plain(server.url), autocommit=True)) as busy:
            backend = ProcessRecord.of("backend", busy.info.backend_pid)
            query = threading.Thread(target=_never_ending, args=[busy])
            query.start()
            until(lambda: psutil.Process(backend.pid).cpu_times().user > 0.2, AWAY_S)
            first.process.kill()
            first.process.wait()
            assert backend.find() is not None
            server.lock.close()
            again = postgres.prepare(home, durable=False)
            query.join()
            assert backend.find() is None
    with again.lock, running(again.spec, home):
        with psycopg.connect(plain(again.url)) as connection:
            assert connection.execute("SELECT answer FROM kept").fetchall() == [(42,)]
        with pytest.raises(LockedError, match=f"pid {os.getpid()}"):
            postgres.prepare(home)


def _never_ending(connection: psycopg.Connection) -> None:
    with pytest.raises(psycopg.OperationalError):
        connection.execute("SELECT count(*) FROM generate_series(1, 100000000000)")


def test_a_postgres_that_cannot_start_says_why(home: Path) -> None:
    server = postgres.prepare(home, durable=False)
    with server.lock:
        (home / "postgres" / "data" / "PG_VERSION").write_text("7\n")
        with pytest.raises(StackError, match="initialized by PostgreSQL version 7"), running(server.spec, home):
            pass


def test_commands_share_one_database_and_the_last_one_stops_it(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with ensure_stack(home, workers=False) as first:
        assert "postgres is ready" in capfd.readouterr().err
        with ensure_stack(home, workers=False) as second:
            assert second == first
        with psycopg.connect(plain(first.database_url)) as connection:
            assert connection.execute("SELECT count(*) FROM runs").fetchall() == [(0,)]
        with pytest.raises(StackError, match="fretwork up"), ensure_stack(home):
            pass
        Context(home).say_if_nobody_works()
        assert "nothing works on it yet" in capfd.readouterr().err
        state = running_stack(home)
        assert state is not None
    assert all(gone(child)() for child in state.children)
    assert running_stack(home) is None


def test_servers_named_in_the_environment_are_used_and_none_is_started(
    home: Path, database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRETWORK_DATABASE_URL", database_url)
    monkeypatch.setenv("FRETWORK_BROKER_URL", redis_url)
    with ensure_stack(home) as addresses:
        assert (addresses.database_url, addresses.broker_url) == (database_url, redis_url)
        assert list(home.iterdir()) == []


def test_a_postgres_that_outlived_its_supervisor_is_ended(home: Path) -> None:
    server = postgres.prepare(home, durable=False)
    with running(server.spec, home) as orphan:
        server.lock.close()
        with postgres.prepare(home, durable=False).lock:
            assert not psutil.pid_exists(orphan.process.pid)
