"""The dispatcher on real servers: a tick that fails must not lock it out, and two of them take turns."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from tests.servers import until


@contextmanager
def dispatcher(database_url: str, broker_url: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, "FRETWORK_DATABASE_URL": database_url, "FRETWORK_BROKER_URL": broker_url}
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-m", "services.dispatcher"], env=environment, stderr=output)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(10)


def test_a_tick_that_fails_does_not_lock_the_dispatcher_out(database_url: str, broker_url: str, tmp_path: Path) -> None:
    engine = create_engine(database_url)
    log = tmp_path / "dispatcher.log"
    with dispatcher(database_url, broker_url, log):
        until(lambda: "dispatching" in log.read_text(), 30)
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE shards RENAME TO shards_away"))
        until(lambda: "trying again" in log.read_text(), 30)
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE shards_away RENAME TO shards"))
            connection.execute(
                text(
                    "INSERT INTO shards (shard_id, stage, state, item_ids, item_count) "
                    "VALUES (gen_random_uuid(), 'evaluate', 'ready', '{}', 0)"
                )
            )

        def rung() -> bool:
            with engine.connect() as connection:
                return connection.execute(text("SELECT rung_at FROM shards")).scalar_one() is not None

        until(rung, 30)
    engine.dispose()


def test_of_two_dispatchers_one_works_and_the_other_takes_over(
    database_url: str, broker_url: str, tmp_path: Path
) -> None:
    first, second = tmp_path / "first.log", tmp_path / "second.log"
    with dispatcher(database_url, broker_url, first) as working:
        until(lambda: "dispatching" in first.read_text(), 30)
        with dispatcher(database_url, broker_url, second):
            time.sleep(3)
            assert "dispatching" not in second.read_text()
            working.kill()
            until(lambda: "dispatching" in second.read_text(), 30)


def test_a_frozen_dispatcher_loses_its_turn_and_waits_for_the_next(
    database_url: str, broker_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRETWORK_LEASE_S", "3")
    first, second = tmp_path / "first.log", tmp_path / "second.log"
    with dispatcher(database_url, broker_url, first) as frozen:
        until(lambda: "dispatching" in first.read_text(), 30)
        with dispatcher(database_url, broker_url, second):
            time.sleep(4)
            assert "dispatching" not in second.read_text(), "the lock is kept for as long as its holder ticks"
            frozen.send_signal(signal.SIGSTOP)
            try:
                until(lambda: "dispatching" in second.read_text(), 30)
            finally:
                frozen.send_signal(signal.SIGCONT)
            until(lambda: "trying again" in first.read_text(), 30)
            time.sleep(2)
            assert first.read_text().count("dispatching") == 1
        until(lambda: first.read_text().count("dispatching") == 2, 30)
