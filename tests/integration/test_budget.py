"""A run's budget on a real ledger: what pauses a run, what waits meanwhile, what is counted, and what resumes it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import Engine, create_engine, select, text

from cli.corpus.store import import_corpus
from shared import budget, lease, ledger, meter
from shared.database import engine as process_engine
from shared.errors import FretworkError, RunPausedError, SettingError
from shared.ledger import Claim
from shared.llm import Usage
from shared.progress import TokenUsage, conservation, describe
from shared.records import RunConfig, query_id
from shared.runs import Run, find_run, resume_run, start_run
from shared.schema import queries, shards
from shared.settings import settings
from shared.stages import RUN_STAGES, Stage
from tests.servers import until

LLM = RunConfig(teacher="llm", shard_size=4)
CALL = Usage(requests=1, prompt_tokens=90, completion_tokens=10)


@pytest.fixture
def engine(database_url: str, broker_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """An engine; this process's own, which meter and worker use, leads to the same database."""
    monkeypatch.setenv("FRETWORK_DATABASE_URL", database_url)
    monkeypatch.setenv("FRETWORK_BROKER_URL", broker_url)
    settings.cache_clear()
    process_engine.cache_clear()
    made = create_engine(database_url)
    yield made
    meter.stop()
    lease.stop()
    process_engine().dispose()
    process_engine.cache_clear()
    settings.cache_clear()
    made.dispose()


@pytest.fixture
def corpus(engine: Engine, tmp_path: Path) -> str:
    """A corpus of ten passages: three shards of a stage."""
    file = tmp_path / "corpus.jsonl"
    file.write_text("".join(json.dumps({"_id": str(i), "text": f"Passage number {i}."}) + "\n" for i in range(10)))
    import_corpus(engine, "ten", file)
    return "ten"


@pytest.fixture
def run(engine: Engine, corpus: str) -> Run:
    with engine.begin() as connection:
        return start_run(connection, corpus, LLM, max_tokens=1000)


@contextmanager
def dispatcher(log: Path) -> Iterator[None]:
    """A real one, on the servers that the environment names."""
    with (
        log.open("wb") as output,
        subprocess.Popen([sys.executable, "-m", "services.dispatcher"], env=dict(os.environ), stderr=output) as process,
    ):
        try:
            until(lambda: "dispatching" in log.read_text() or process.poll() is not None, 30)
            yield
        finally:
            process.terminate()


def fretwork(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own, which a fault cannot keep waiting for ever."""
    command = [sys.executable, "-m", "cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def spend(run: Run, calls: int, stage: Stage = Stage.GENERATE) -> None:
    with meter.metered(run.run_id, stage, "tiny") as counter:
        for _ in range(calls):
            counter.spent(CALL)


def pause(engine: Engine) -> list[tuple[UUID, str]]:
    with engine.begin() as connection:
        return budget.pause_runs(connection)


def state(engine: Engine, run: Run) -> str:
    with engine.connect() as connection:
        return find_run(connection, run.run_id).state


def shard_ids(engine: Engine, run: Run, stage: Stage) -> list[UUID]:
    query = select(shards.c.shard_id).where(shards.c.run_id == run.run_id, shards.c.stage == stage)
    with engine.connect() as connection:
        return list(connection.execute(query.order_by(shards.c.item_ids)).scalars())


def claim(engine: Engine, shard_id: UUID) -> Claim | None:
    with engine.begin() as connection:
        return ledger.claim(connection, shard_id, "me", 45)


def ring(engine: Engine, stages: tuple[Stage, ...] = RUN_STAGES) -> int:
    with engine.begin() as connection:
        return len(ledger.to_ring(connection, stages, 100, again_after_s=30))


def holds(engine: Engine, run: Run) -> bool:
    with engine.connect() as connection:
        return conservation(connection, run.run_id).holds


def used(engine: Engine, run: Run) -> int:
    with engine.connect() as connection:
        return budget.find_budget(connection, run.run_id).used_tokens


def test_the_last_token_pauses_a_run_and_says_how_to_go_on(engine: Engine, run: Run) -> None:
    spend(run, 9)
    assert pause(engine) == []
    spend(run, 1)
    reason = "used 1,000 of 1,000 tokens: `fretwork run resume ten-1 --max-tokens N` goes on"
    assert pause(engine) == [(run.run_id, reason)]
    assert pause(engine) == [], "it is paused already"
    with engine.connect() as connection:
        seen = describe(connection, find_run(connection, run.run_id))
    assert (seen["state"], seen["paused_reason"], seen["max_tokens"]) == ("paused", reason, 1000)
    json.dumps(seen)


def test_the_deadline_pauses_a_run(engine: Engine, corpus: str) -> None:
    with engine.begin() as connection:
        late = start_run(connection, corpus, LLM, max_tokens=100, max_hours=0.5 / 3600)
        early = start_run(connection, corpus, RunConfig(seed=1), max_hours=1)
    spend(late, 2)
    time.sleep(0.6)
    ((paused, reason),) = pause(engine)
    assert paused == late.run_id
    assert reason.startswith("used 200 of 100 tokens, and its time was up at 20")
    assert reason.endswith(" UTC: `fretwork run resume ten-1 --max-tokens N --max-hours H` goes on")
    assert state(engine, early) == "running"


def test_a_paused_run_is_left_alone_and_what_is_in_hand_is_kept(engine: Engine, run: Run, corpus: str) -> None:
    with engine.begin() as connection:
        other = start_run(connection, corpus, RunConfig(shard_size=4))
        ledger.add_shards(connection, run.run_id, Stage.TRAIN, [[run.run_id]], parent=run.run_id)
    first, second, third = shard_ids(engine, run, Stage.GENERATE)
    in_hand, given_back = claim(engine, first), claim(engine, second)
    assert in_hand is not None
    assert given_back is not None
    spend(run, 10)
    pause(engine)
    assert claim(engine, third) is None
    assert ring(engine) == 6, "the other run's"
    assert claim(engine, shard_ids(engine, other, Stage.GENERATE)[0]) is not None
    with engine.begin() as connection:
        ledger.release(connection, given_back, RunPausedError(), delay_s=0)
    assert claim(engine, second) is None
    assert holds(engine, run)
    with engine.begin() as connection:
        made = [query_id(run.fingerprint, passage, 0) for passage in in_hand.item_ids]
        ledger.finish(connection, in_hand, [], made)
        connection.execute(
            queries.insert(),
            [
                {
                    "run_id": run.run_id,
                    "query_id": made[i],
                    "seed_passage_id": in_hand.item_ids[i],
                    "ordinal": 0,
                    "task_description": "search result",
                    "query_text": "what",
                    "provenance": {},
                }
                for i in range(len(made))
            ],
        )
    assert holds(engine, run)
    assert state(engine, run) == "paused"
    assert ring(engine, (Stage.TRAIN,)) == 1, "a training on a run's records is no part of the run"


def test_an_expired_lease_of_a_paused_run_is_reaped_and_waits(engine: Engine, run: Run) -> None:
    (shard_id, *_) = shard_ids(engine, run, Stage.GENERATE)
    assert claim(engine, shard_id) is not None
    spend(run, 10)
    pause(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE shards SET lease_expires_at = now() - interval '1 s' WHERE state = 'claimed'"))
        assert ledger.reap(connection) == [shard_id]
    assert claim(engine, shard_id) is None
    assert holds(engine, run)


def test_a_run_is_paused_between_its_llm_stages_and_left_alone_after_them(engine: Engine, run: Run) -> None:
    spend(run, 11)
    with engine.begin() as connection:
        connection.execute(text("UPDATE shards SET state = 'done'"))
        ledger.add_shards(connection, run.run_id, Stage.RELABEL, [[run.run_id]], parent=run.run_id, label_version=2)
    assert pause(engine) == [], "a new label version calls no LLM"
    with engine.begin() as connection:
        ledger.add_shards(connection, run.run_id, Stage.RETRIEVE, [[run.run_id]], parent=run.run_id)
    assert [run_id for run_id, _ in pause(engine)] == [run.run_id], "what is retrieved now is to be judged then"


def test_a_paused_run_without_an_open_shard_is_done(engine: Engine, run: Run) -> None:
    spend(run, 10)
    pause(engine)
    with engine.begin() as connection:
        assert ledger.finish_runs(connection) == []
        connection.execute(text("UPDATE shards SET state = 'done'"))
        assert ledger.finish_runs(connection) == [run.run_id]
        seen = describe(connection, find_run(connection, run.run_id))
    assert (seen["state"], seen["paused_reason"]) == ("done", None)
    with engine.begin() as connection, pytest.raises(FretworkError, match="done"):
        resume_run(connection, run, max_tokens=5000)


def test_a_resumed_run_goes_on_at_once(engine: Engine, run: Run) -> None:
    assert ring(engine) == 6
    spend(run, 10)
    pause(engine)
    for too_little in (None, 999, 1000):
        with pytest.raises(SettingError, match="has used 1,000 tokens"), engine.begin() as connection:
            resume_run(connection, run, max_tokens=too_little)
    assert state(engine, run) == "paused"
    with engine.begin() as connection:
        resume_run(connection, run, max_tokens=1001)
        seen = describe(connection, find_run(connection, run.run_id))
    assert (seen["state"], seen["paused_reason"], seen["max_tokens"]) == ("running", None, 1001)
    assert pause(engine) == []
    assert ring(engine) == 6, "the doorbells that nobody could answer ring again, and not half a minute later"


def test_a_deadline_is_moved_from_now_and_never_stays_in_the_past(engine: Engine, run: Run) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE runs SET deadline_at = now() - interval '1 s'"))
    assert len(pause(engine)) == 1
    with pytest.raises(SettingError, match="--max-hours"), engine.begin() as connection:
        resume_run(connection, run, max_tokens=2000)
    with engine.connect() as connection:
        assert describe(connection, find_run(connection, run.run_id))["max_tokens"] == 1000, "all or nothing"
    with engine.begin() as connection:
        resume_run(connection, run, max_hours=2)
        left = connection.execute(text("SELECT deadline_at - now() FROM runs")).scalar_one()
    assert left.total_seconds() == pytest.approx(7200)


def test_retry_resumes_nothing(engine: Engine, run: Run) -> None:
    held = claim(engine, shard_ids(engine, run, Stage.GENERATE)[0])
    assert held is not None
    with engine.begin() as connection:
        ledger.fail(connection, held, SettingError("no such model"))
    spend(run, 10)
    pause(engine)
    with engine.begin() as connection:
        assert ledger.retry(connection, run.run_id) == 1
    assert state(engine, run) == "paused"
    assert claim(engine, held.shard_id) is None


@pytest.mark.parametrize(
    ("limits", "advice"),
    [
        ({"max_tokens": 0}, "--max-tokens"),
        ({"max_tokens": 10**30}, "--max-tokens"),
        ({"max_hours": 0.0}, "--max-hours"),
        ({"max_hours": float("nan")}, "--max-hours"),
        ({"max_hours": float("inf")}, "--max-hours"),
    ],
)
def test_limits_that_are_none_are_refused(engine: Engine, corpus: str, limits: dict[str, float], advice: str) -> None:
    with pytest.raises(SettingError, match=advice), engine.begin() as connection:
        start_run(connection, corpus, LLM, **limits)  # type: ignore[arg-type]


def test_tokens_of_the_offline_teacher_cannot_be_limited(engine: Engine, corpus: str) -> None:
    with pytest.raises(SettingError, match="teacher=llm"), engine.begin() as connection:
        start_run(connection, corpus, RunConfig(), max_tokens=10)


def test_every_token_of_many_threads_is_counted_once(engine: Engine, run: Run) -> None:
    def shard(number: int) -> None:
        stage = (Stage.GENERATE, Stage.RELABEL)[number % 2]
        with meter.metered(run.run_id, stage, f"model-{number % 3}") as counter:
            for _ in range(500):
                counter.spent(Usage(2, 30, 4))
                if number == 7:
                    time.sleep(0.002)  # outlasts a flush

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(shard, range(12)))
    with engine.connect() as connection:
        seen = describe(connection, run)["usage"]
    assert [TokenUsage(**usage) for usage in seen] == [
        TokenUsage(stage, f"model-{model}", 2000, 30_000, 4000)
        for stage in (Stage.GENERATE, Stage.RELABEL)
        for model in range(3)
    ]


def test_what_a_failed_shard_cost_counts_and_so_does_a_call_that_ends_late(engine: Engine, run: Run) -> None:
    counters: list[meter.Meter] = []

    def shard() -> None:
        with meter.metered(run.run_id, Stage.GENERATE, "tiny") as counter:
            counters.append(counter)
            counter.spent(CALL)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        shard()
    assert used(engine, run) == 100
    counters[0].spent(CALL)
    until(lambda: used(engine, run) == 200, 5)


def test_a_count_that_cannot_be_written_is_kept(engine: Engine, run: Run) -> None:
    def a_flush_waits() -> bool:
        with engine.connect() as connection:
            return bool(connection.execute(text("SELECT count(*) FROM pg_locks WHERE NOT granted")).scalar_one())

    with meter.metered(run.run_id, Stage.GENERATE, "tiny") as counter:
        with engine.begin() as connection:
            connection.execute(text("LOCK TABLE llm_usage"))
            counter.spent(CALL)
            until(a_flush_waits, 10)
            counter.spent(CALL)  # while the flush of the first is under way, which is about to fail
            connection.execute(text("ALTER TABLE llm_usage RENAME TO llm_usage_away"))
        spend(run, 3)
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE llm_usage_away RENAME TO llm_usage"))
        until(lambda: used(engine, run) > 0, 10)
    assert used(engine, run) == 500


def test_the_count_of_a_run_that_is_gone_holds_up_no_other(engine: Engine, run: Run, corpus: str) -> None:
    with engine.begin() as connection:
        gone = start_run(connection, corpus, LLM)
    with meter.metered(gone.run_id, Stage.GENERATE, "tiny") as counter:
        with engine.begin() as connection:
            connection.execute(text("DELETE FROM runs WHERE run_id = :id"), {"id": gone.run_id})
        counter.spent(CALL)
        spend(run, 1)
    assert used(engine, run) == 100


def test_a_shard_of_a_paused_run_makes_no_call_and_of_a_resumed_one_does(engine: Engine, run: Run) -> None:
    with meter.metered(run.run_id, Stage.GENERATE, "tiny") as counter:
        counter.spent(Usage(1, 1000, 0))
        with engine.begin() as connection:  # not yet flushed: this is what an earlier shard cost
            connection.execute(text("UPDATE runs SET max_tokens = 0"))
        pause(engine)
        with pytest.raises(RunPausedError, match="run resume ten-1"):
            spend(run, 1)
        with pytest.raises(RunPausedError):
            counter.spent(CALL)  # the other thread learnt it for this one
        with engine.begin() as connection:
            resume_run(connection, run, max_tokens=10_000)
        spend(run, 1)
    assert used(engine, run) == 1200, "the call that was refused was paid for"


def test_calls_stop_soon_after_the_budget_and_the_shard_goes_back(engine: Engine, run: Run, tmp_path: Path) -> None:
    from shared.worker import Output, perform  # asks for a broker when it is imported

    (shard_id, *_) = shard_ids(engine, run, Stage.GENERATE)
    ended: list[tuple[float, int]] = []

    def work(claim: Claim) -> Output:
        calls, spent_at = 0, 0.0
        with meter.metered(run.run_id, claim.stage, "tiny") as counter:
            try:
                while calls < 2000:
                    calls += 1
                    spent_at = spent_at or (time.monotonic() if calls == 10 else 0.0)
                    counter.spent(CALL)
                    time.sleep(0.01)
            finally:
                ended.append((time.monotonic() - spent_at, calls))
        return Output()

    with dispatcher(tmp_path / "dispatcher.log"):
        worker = threading.Thread(target=perform, args=(Stage.GENERATE, str(shard_id), work))
        worker.start()
        worker.join(30)
        assert not worker.is_alive()
        ((overshot_s, calls),) = ended
        assert overshot_s < 10, "about two seconds, on a machine that has the time"
        assert used(engine, run) == calls * CALL.tokens
        assert state(engine, run) == "paused"
        with engine.connect() as connection:
            seen = connection.execute(select(shards).where(shards.c.shard_id == shard_id)).mappings().one()
        assert (seen["state"], seen["failures"], seen["losses"]) == ("ready", 0, 0)
        assert seen["error_type"] == "RunPausedError"
        with engine.begin() as connection:
            resume_run(connection, run, max_tokens=calls * CALL.tokens + 1)
        assert claim(engine, shard_id) is not None, "without a delay"


def test_the_command_line_shows_and_resumes(engine: Engine, run: Run) -> None:
    spend(run, 9)
    spend(run, 1234, Stage.RELABEL)
    pause(engine)
    shown = fretwork("run", "status", "ten-1")
    assert "tokens: generate · tiny · 9 requests · 810 prompt + 90 completion\n" in shown.stdout
    assert "tokens: relabel · tiny · 1,234 requests · 111,060 prompt + 12,340 completion\n" in shown.stdout
    assert "paused: used 124,300 of 1,000 tokens: `fretwork run resume ten-1 --max-tokens N` goes on\n" in shown.stdout
    assert "run ten-1 (paused)" in shown.stdout
    assert shown.returncode == 3
    watched = fretwork("run", "status", "ten-1", "--watch")
    assert (watched.stdout, watched.returncode) == (shown.stdout, 3)
    refused = fretwork("run", "resume", "ten-1", "--max-tokens", "124300")
    assert (refused.stdout, refused.returncode) == ("", 1)
    assert refused.stderr.startswith("error: run ten-1 has used 124,300 tokens and may use 124,300: ")
    resumed = fretwork("run", "resume", "ten-1", "--max-tokens", "200000", "--max-hours", "1.5")
    assert (resumed.stdout, resumed.returncode) == ("ten-1 goes on\n", 0)
    again = fretwork("run", "status", "ten-1", "--json")
    assert again.returncode == 0
    seen = json.loads(again.stdout)
    assert (seen["state"], seen["paused_reason"], seen["max_tokens"]) == ("running", None, 200_000)
    assert seen["usage"][0]["prompt_tokens"] == 810


def test_who_waits_for_a_run_is_told_that_it_is_paused(engine: Engine, corpus: str, tmp_path: Path) -> None:
    with dispatcher(tmp_path / "dispatcher.log"):
        offline = ("--set", "teacher=offline")
        waited = fretwork("run", "start", "--corpus", corpus, *offline, "--max-hours", "0.00001", "--wait")
    assert (waited.stdout, waited.returncode) == ("ten-1\n", 3)
    assert waited.stderr.count("is paused") == 1
    assert "`fretwork run resume ten-1 --max-hours H` goes on" in waited.stderr
