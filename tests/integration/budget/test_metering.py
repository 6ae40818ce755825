"""What the calls of many threads cost: counted once, kept through faults, and held against the budget."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Engine, select, text

from shared import meter
from shared.errors import RunPausedError
from shared.ledger import Claim
from shared.llm import Usage
from shared.progress import TokenUsage, describe
from shared.runs import Run, resume_run, start_run
from shared.schema import shards
from shared.stages import Stage
from tests.integration.budget.steps import CALL, LLM, claim, dispatcher, pause, shard_ids, spend, state, used
from tests.servers import until


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
