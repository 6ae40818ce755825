"""A run paused, cancelled and retried by hand, on a real ledger; and who says that they are at work."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, create_engine, text
from typer.testing import CliRunner, Result

from cli.corpus.store import import_corpus
from cli.main import app
from shared import heartbeat, ledger
from shared.database import engine as process_engine
from shared.errors import FretworkError, SettingError
from shared.fleet import list_queues, list_workers
from shared.reading import dead_shards
from shared.records import Dropped, RunConfig
from shared.runs import Run, cancel_run, pause_run, resume_run, start_run
from shared.settings import settings
from shared.stages import RUN_STAGES
from tests.servers import until


@pytest.fixture
def engine(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """An engine; this process's own leads to the same database."""
    monkeypatch.setenv("FRETWORK_DATABASE_URL", database_url)
    settings.cache_clear()
    process_engine.cache_clear()
    made = create_engine(database_url)
    yield made
    heartbeat.stop()
    process_engine().dispose()
    process_engine.cache_clear()
    settings.cache_clear()
    made.dispose()


@pytest.fixture
def run(engine: Engine, tmp_path: Path) -> Run:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"_id": str(i), "text": f"Passage {i}."}) + "\n" for i in range(10)))
    import_corpus(engine, "ten", corpus)
    with engine.begin() as connection:
        return start_run(connection, "ten", RunConfig(shard_size=4))


def generate_shards(engine: Engine, run: Run) -> list[UUID]:
    with engine.connect() as connection:
        return list(
            connection.execute(
                text("SELECT shard_id FROM shards WHERE run_id = :id AND stage = 'generate' ORDER BY shard_id"),
                {"id": run.run_id},
            ).scalars()
        )


def claim(engine: Engine, shard: UUID) -> ledger.Claim | None:
    with engine.begin() as connection:
        return ledger.claim(connection, shard, "me", 45)


def state_of(engine: Engine, run: Run) -> tuple[str, str | None]:
    with engine.connect() as connection:
        row = connection.execute(
            text("SELECT state, paused_reason FROM runs WHERE run_id = :id"), {"id": run.run_id}
        ).one()
    return row.state, row.paused_reason


def test_a_paused_run_starts_nothing_new_and_goes_on_when_resumed(engine: Engine, run: Run) -> None:
    first, second, _ = generate_shards(engine, run)
    held = claim(engine, first)
    assert held is not None
    with engine.begin() as connection:
        pause_run(connection, run)
    state, reason = state_of(engine, run)
    assert state == "paused"
    assert reason is not None
    assert "fretwork run resume ten-1" in reason
    assert claim(engine, second) is None
    with engine.begin() as connection:
        ledger.finish(connection, held, [Dropped(item, "no_sentence") for item in held.item_ids], [])
    with engine.begin() as connection, pytest.raises(FretworkError, match="is paused"):
        pause_run(connection, run)
    with engine.begin() as connection:
        resume_run(connection, run)
    assert state_of(engine, run) == ("running", None)
    assert claim(engine, second) is not None


def test_a_cancelled_run_is_over_and_keeps_what_it_has(engine: Engine, run: Run) -> None:
    first, second, _ = generate_shards(engine, run)
    held = claim(engine, first)
    assert held is not None
    with engine.begin() as connection:
        pause_run(connection, run)
        cancel_run(connection, run)
    with engine.begin() as connection:
        ledger.finish(connection, held, [Dropped(item, "no_sentence") for item in held.item_ids], [])
        kept = connection.execute(text("SELECT count(*) FROM drops")).scalar_one()
    assert kept == len(held.item_ids)
    assert claim(engine, second) is None
    with engine.begin() as connection:
        assert [each.run_id for each in ledger.to_ring(connection, list(RUN_STAGES), 100, 0)] == []
    for act in (pause_run, cancel_run, resume_run):
        with engine.begin() as connection, pytest.raises(FretworkError, match="is cancelled"):
            act(connection, run)
    assert state_of(engine, run)[0] == "cancelled"


def test_dead_shards_are_seen_by_page_and_put_back_one_by_one_or_all(engine: Engine, run: Run) -> None:
    for shard in generate_shards(engine, run):
        held = claim(engine, shard)
        assert held is not None
        with engine.begin() as connection:
            try:
                raise SettingError("the endpoint has no log-probabilities")
            except SettingError as error:
                ledger.fail(connection, held, error)
    with engine.connect() as connection:
        first_two = dead_shards(connection, run.run_id, limit=2)
        (last,) = dead_shards(connection, run.run_id, limit=2, after=first_two[-1].shard_id)
    assert [each.shard_id for each in [*first_two, last]] == generate_shards(engine, run)
    assert (last.stage, last.error_type, last.failures) == ("generate", "SettingError", 1)
    assert last.error_traceback is not None
    assert "test_dead_shards_are_seen" in last.error_traceback
    with engine.begin() as connection:
        assert ledger.retry(connection, run.run_id, uuid4()) == 0
        assert ledger.retry(connection, run.run_id, last.shard_id) == 1
    assert claim(engine, last.shard_id) is not None
    with engine.begin() as connection:
        assert ledger.retry(connection, run.run_id) == 2


def test_the_command_says_how_many_dead_shards_it_does_not_show(engine: Engine, run: Run) -> None:
    def dead(*options: str) -> Result:
        done = CliRunner().invoke(app, ["run", "dead", "ten-1", *options], catch_exceptions=False)
        assert done.exit_code == 0
        return done

    assert (dead().stdout, dead().stderr) == ("", "no dead shards\n")
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO shards (shard_id, run_id, stage, state, item_ids, item_count, error_type, error_message) "
                "SELECT gen_random_uuid(), :id, 'relabel', 'dead', '{}', 0, 'ValueError', 'no' "
                "FROM generate_series(1, 1003)"
            ),
            {"id": run.run_id},
        )
    assert len(json.loads(dead("--json").stdout)) == 1000
    for shown in (dead(), dead("--json")):
        assert shown.stderr == "3 more shards of ten-1 are dead: GET /runs/ten-1/dead has them page by page\n"
    assert dead().stdout.count("ValueError: no") == 1000


def test_a_worker_is_alive_then_lost_then_forgotten_and_gone_at_once_if_it_ends(engine: Engine) -> None:
    def seen() -> list[tuple[str, str]]:
        with engine.connect() as connection:
            return [(worker.queue, worker.state) for worker in list_workers(connection)]

    def age(seconds: int) -> None:
        with engine.begin() as connection:
            connection.execute(
                text("UPDATE workers SET seen_at = now() - make_interval(secs => :age)"), {"age": seconds}
            )

    heartbeat.start("relabeler")
    until(lambda: seen() == [("relabeler", "alive")], 10)
    with engine.connect() as connection:
        (row,) = list_workers(connection)
        consumers = {queue.queue: queue.consumers for queue in list_queues(connection, lambda _: None)}
    assert row.worker == heartbeat.worker_name("relabeler")
    assert consumers == {"generator": 0, "retriever": 0, "relabeler": 1, "trainer": 0}
    heartbeat.stop()
    assert seen() == []

    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO workers (worker, queue, host, pid, version, started_at, seen_at, shards, llm, metrics) "
                "VALUES ('there:1:generator', 'generator', 'there', 1, '0', now(), now(), 0, '[]', '')"
            )
        )
    age(21)
    assert seen() == [("generator", "lost")]
    with engine.begin() as connection:
        heartbeat.forget_the_lost(connection)
    assert seen() == [("generator", "lost")]
    age(601)
    with engine.begin() as connection:
        heartbeat.forget_the_lost(connection)
    assert seen() == []
