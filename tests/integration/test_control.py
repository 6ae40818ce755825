"""A run paused, cancelled and retried by hand, on a real ledger; and who says that they are at work."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, text
from typer.testing import CliRunner, Result

from cli.corpus.store import import_corpus
from cli.main import app
from shared import heartbeat, ledger
from shared.errors import FretworkError, LeaseLostError, SettingError
from shared.fleet import list_queues, list_workers
from shared.progress import describe
from shared.reading import dead_shards
from shared.records import Dropped, RunConfig
from shared.runs import Run, cancel_run, pause_run, resume_run, start_run
from shared.schema import training_runs
from shared.settings import settings
from shared.stages import RUN_STAGES, Stage
from shared.trainings import find_training, start_training
from tests.own_process import process_on
from tests.servers import until


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    with process_on(database_url) as made:
        yield made


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


def train_shards(engine: Engine) -> dict[UUID, tuple[str, int, str | None]]:
    with engine.connect() as connection:
        rows = connection.execute(
            text("SELECT item_ids[1] AS id, state, losses, error_type FROM shards WHERE stage = 'train'")
        )
        return {row.id: (row.state, row.losses, row.error_type) for row in rows}


def finished(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE shards SET state = 'done'"))
        connection.execute(text("UPDATE runs SET state = 'done'"))


def test_trainings_are_found_again_cancelled_and_put_back_and_their_run_stays_done(engine: Engine, run: Run) -> None:
    finished(engine)
    with engine.begin() as connection:
        one, other = (start_training(connection, run, 1, {"seed": seed}, f"/m/{seed}") for seed in (1, 2))
        assert find_training(connection, run, 1, {"seed": 1}, "/m/1") == one
        assert find_training(connection, run, 1, {"seed": 1}, "/m/2") is None
        assert find_training(connection, run, 1, {"seed": 3}, "/m/1") is None
        review = (
            "INSERT INTO reviews (run_id, query_id, label_version, decision) "
            "VALUES (:run, gen_random_uuid(), :version, 'accepted')"
        )
        connection.execute(
            text("SET LOCAL session_replication_role = replica")
        )  # reviews of records that are not there
        connection.execute(text(review), {"run": run.run_id, "version": 2})
        assert find_training(connection, run, 1, {"seed": 1}, "/m/1") == one, "a review of another labelling"
        with connection.begin_nested() as reviewed:
            connection.execute(text(review), {"run": run.run_id, "version": 1})
            assert find_training(connection, run, 1, {"seed": 1}, "/m/1") is None
            reviewed.rollback()
    held = claim(engine, ledger.shard_id(one, Stage.TRAIN))
    assert held is not None
    asked = CliRunner().invoke(app, ["run", "cancel", "ten-1", "--trainings"], catch_exceptions=False)
    assert asked.stdout == "2 trainings on ten-1 are cancelled\n"
    assert train_shards(engine) == dict.fromkeys((one, other), ("dead", 0, "cancelled"))
    with engine.begin() as connection:
        assert ledger.renew(connection, [held], 45) == set()
        assert describe(connection, run)["dead"] == [], "the run itself lacks nothing"
        assert find_training(connection, run, 1, {"seed": 1}, "/m/1") is None
        assert ledger.retry(connection, run.run_id) == 0, "only one that is named"
        assert ledger.retry(connection, run.run_id, held.shard_id) == 1
    assert [state for state, *_ in train_shards(engine).values()].count("ready") == 1
    assert state_of(engine, run)[0] == "done"


def test_progress_beyond_all_before_forgives_losses_and_a_lost_training_ends(
    engine: Engine, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRETWORK_BROKER_URL", "redis://127.0.0.1:9")
    settings.cache_clear()
    from services.trainer import tasks as trainer  # looks for the broker when it is imported

    finished(engine)
    with engine.begin() as connection:
        training = start_training(connection, run, 1, {}, "/m")
    held = claim(engine, ledger.shard_id(training, Stage.TRAIN))
    assert held is not None
    note = trainer._progress_into(training_runs, held)

    def lose() -> None:
        with engine.begin() as connection:
            connection.execute(text("UPDATE shards SET losses = 2 WHERE stage = 'train'"))

    lose()
    note({"type": "progress", "step": 5, "loss": 1.0})
    assert train_shards(engine)[training][1] == 0
    lose()
    note({"type": "progress", "step": 4, "loss": 1.0})
    assert train_shards(engine)[training][1] == 2, "so far an earlier attempt had come"
    note({"type": "progress", "step": 6, "loss": 1.0})
    assert train_shards(engine)[training][1] == 0
    with engine.begin() as connection:
        assert ledger.cancel_trainings(connection, run.run_id) == 1
    with pytest.raises(LeaseLostError, match="cancelled"):
        note({"type": "progress", "step": 7, "loss": 1.0})


def test_what_is_dead_is_told_by_its_commonest_errors(engine: Engine, run: Run) -> None:
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO shards (shard_id, run_id, stage, state, item_ids, item_count, error_type, error_message) "
                "SELECT gen_random_uuid(), :id, 'relabel', 'dead', '{}', 0, 'ValueError', least(n, 61)::text "
                "FROM generate_series(1, 70) AS n"
            ),
            {"id": run.run_id},
        )
        dead = describe(connection, run)["dead"]
    assert len(dead) == 50
    assert [each["shards"] for each in dead if each["error_message"] == "61"] == [10]


def test_a_cancelled_run_takes_no_shard_back(engine: Engine, run: Run) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE shards SET state = 'dead'"))
        cancel_run(connection, run)
        with pytest.raises(FretworkError, match="cancelled, for good"):
            ledger.retry(connection, run.run_id)


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
