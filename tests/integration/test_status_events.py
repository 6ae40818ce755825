"""The event stream of a real status process: what listeners get, and that it ends with the process."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from cli.corpus.store import import_corpus
from cli.stack.processes import free_port
from shared import ledger
from shared.records import Dropped, RunConfig
from shared.runs import Run, pause_run, start_run
from tests.servers import until


@pytest.fixture
def run(engine: Engine, tmp_path: Path) -> Run:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"_id": str(i), "text": f"Passage {i}."}) + "\n" for i in range(10)))
    import_corpus(engine, "ten", corpus)
    with engine.begin() as connection:
        return start_run(connection, "ten", RunConfig(shard_size=10))


@contextmanager
def status_process(database_url: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    port = free_port()
    env = {**os.environ, "FRETWORK_DATABASE_URL": database_url, "FRETWORK_STATUS_PORT": str(port)}
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen([sys.executable, "-m", "services.status"], env=env) as process:
        try:
            until(lambda: process.poll() is not None or answers(url), 30)
            yield url, process
        finally:
            process.kill()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/healthz", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, TimeoutError):
        return False


class Listener:
    """One connection; `events` gets (event, data) as they come, and None at its end."""

    def __init__(self, url: str) -> None:
        self.events: queue.Queue[tuple[str, Any] | None] = queue.Queue()
        self._answer = urllib.request.urlopen(url, timeout=30)
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        event = ""
        with self._answer:
            for line in self._answer:
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if name == "event":
                    event = value
                elif name == "data":
                    self.events.put((event, json.loads(value)))
        self.events.put(None)

    def until(self, holds: Any, timeout_s: float = 10) -> Any:
        """The data of the first event for which `holds`."""
        deadline = time.monotonic() + timeout_s
        while True:
            got = self.events.get(timeout=max(0.01, deadline - time.monotonic()))
            assert got is not None
            if holds(got[1]):
                return got[1]


def test_listeners_are_told_of_every_change_and_of_the_end(database_url: str, engine: Engine, run: Run) -> None:
    with status_process(database_url) as (url, process):
        two = [Listener(f"{url}/events?run={run.name}"), Listener(f"{url}/events?run={run.run_id}")]
        runs = Listener(f"{url}/events")
        for listener in two:
            assert listener.until(lambda seen: seen["run"] == "ten-1")["state"] == "running"
        assert runs.until(lambda seen: seen["runs"])["runs"][0]["name"] == "ten-1"

        with engine.begin() as connection:
            shard = connection.execute(text("SELECT shard_id FROM shards WHERE stage = 'generate'")).scalar_one()
            held = ledger.claim(connection, shard, "me", 45)
            assert held is not None
            ledger.finish(connection, held, [Dropped(item, "no_sentence") for item in held.item_ids], [])
        for listener in two:
            seen = listener.until(lambda seen: seen["stages"][1]["done"] == 10)
            assert seen["stages"][1]["reasons"] == {"no_sentence": 10}

        with engine.begin() as connection:
            pause_run(connection, run)
        assert runs.until(lambda seen: seen["runs"][0]["state"] == "paused")

        process.terminate()
        asked_at = time.monotonic()
        for listener in (*two, runs):
            while listener.events.get(timeout=10) is not None:
                pass
        process.wait(10)
        assert time.monotonic() - asked_at < 5


def test_a_run_that_is_not_there_is_a_404_and_no_stream(database_url: str, run: Run) -> None:
    with status_process(database_url) as (url, _), pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{url}/events?run=nobody", timeout=5)
    assert refused.value.code == 404
    refused.value.close()
