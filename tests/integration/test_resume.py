"""`run start --resume`: the same command again goes on with its own run, and with no other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine, text
from typer.testing import CliRunner, Result

from cli.corpus.store import import_corpus
from cli.main import app
from shared.errors import NotFoundError
from shared.settings import settings
from tests.passages import write_corpus

Start = Callable[..., Result]


@pytest.fixture
def start(engine: Engine, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """`run start` on a corpus, without workers; its standard output is the run's name."""
    monkeypatch.setenv("FRETWORK_DATABASE_URL", database_url)
    settings.cache_clear()
    import_corpus(engine, "ten", write_corpus(tmp_path / "ten.jsonl", 10))
    return lambda *options: CliRunner().invoke(app, ["run", "start", "--corpus", "ten", *options])


def move(engine: Engine, run: str, state: str) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE runs SET state = :state WHERE name = :run"), {"state": state, "run": run})


def test_the_newest_unfinished_run_of_the_same_settings_goes_on(engine: Engine, start: Start) -> None:
    assert start().stdout == "ten-1\n"
    assert start().stdout == "ten-2\n", "by default every start is a run of its own"
    assert start("--set", "seed=1").stdout == "ten-3\n"
    assert start("--resume", "if_possible").stdout == "ten-2\n"
    move(engine, "ten-2", "done")
    assert start("--resume", "if_possible").stdout == "ten-1\n"
    move(engine, "ten-1", "paused")
    assert start("--resume", "always", "--max-hours", "5", "--set", "shard_size=7").stdout == "ten-1\n"
    with engine.connect() as connection:
        state, deadline = connection.execute(text("SELECT state, deadline_at FROM runs WHERE name = 'ten-1'")).one()
    assert state == "running"
    assert deadline is not None
    move(engine, "ten-1", "cancelled")
    done = start("--resume", "if_possible")
    assert done.stdout == "ten-2\n", "a script that is run again asks nobody anew"
    assert "ten-2 is done already" in done.stderr
    assert isinstance(start("--resume", "always").exception, NotFoundError)
    assert start("--resume", "if_possible", "--set", "seed=2").stdout == "ten-4\n"


def test_always_starts_nothing(engine: Engine, start: Start) -> None:
    start()
    refused = start("--resume", "always", "--set", "seed=1")
    assert isinstance(refused.exception, NotFoundError)
    assert "if_possible" in str(refused.exception)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM runs")).scalar_one() == 1


def test_a_corpus_that_grew_is_another(engine: Engine, start: Start, tmp_path: Path) -> None:
    start()
    import_corpus(engine, "ten", write_corpus(tmp_path / "eleven.jsonl", 11))
    assert start("--resume", "if_possible").stdout == "ten-2\n"
