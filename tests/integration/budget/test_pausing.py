"""What pauses a run on a real ledger, what waits meanwhile, and what resumes it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from shared import ledger
from shared.errors import FretworkError, RunPausedError, SettingError
from shared.progress import describe
from shared.records import RunConfig, query_id
from shared.runs import Run, find_run, resume_run, start_run
from shared.schema import queries
from shared.stages import Stage
from tests.integration.budget.steps import LLM, claim, dispatcher, fretwork, holds, pause, ring, shard_ids, spend, state


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
