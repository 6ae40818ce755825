"""Invariants 1, 3 and 4 with real processes: kill -9 at the worst moment, and the records come out the same."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest
from sqlalchemy import text

from cli.stack import running_stack
from shared.records import RunConfig
from shared.runs import Run
from tests.e2e.stack import Stack, digest
from tests.servers import until

CONFIG = RunConfig(shard_size=8, queries_per_passage=2)


@pytest.fixture(scope="session")
def undisturbed(stack: Stack) -> tuple[Run, str]:
    run = stack.start("docs", CONFIG)
    stack.finish(run)
    return run, digest(stack.engine, run)


def test_every_shard_names_the_worker_that_did_it(stack: Stack, undisturbed: tuple[Run, str]) -> None:
    run, _ = undisturbed
    with stack.engine.connect() as connection:
        done = connection.execute(
            text("SELECT stage, state, claimed_by, split_part(claimed_by, ':', 3) FROM shards WHERE run_id = :id"),
            {"id": run.run_id},
        ).all()
    assert {row.state for row in done} == {"done"}
    queue_of = {"index": "retriever", "generate": "generator", "retrieve": "retriever", "dedup": "retriever"}
    assert {(stage, queue) for stage, _, _, queue in done} == {*queue_of.items(), ("relabel", "relabeler")}
    pids = {queue: claimed_by.split(":")[1] for _, _, claimed_by, queue in done}
    assert len(set(pids.values())) == 3, "generator, retriever and relabeler are three processes"


def test_killed_workers_and_a_killed_dispatcher_lose_nothing(stack: Stack, undisturbed: tuple[Run, str]) -> None:
    with stack.nobody_writes("fret_records"):
        with stack.nobody_writes("queries"):
            run = stack.start("docs", CONFIG)
            generate_shard, pid = stack.claimed(run, "generate")
            assert int(pid) == stack.kill("generator")
        relabel_shard, pid = stack.claimed(run, "relabel")
        stack.kill("dispatcher")
        assert stack.claimed(run, "relabel")[1] == pid
        assert int(pid) == stack.kill("relabeler")
    stack.finish(run)
    with stack.engine.connect() as connection:
        lost = connection.execute(
            text("SELECT shard_id FROM shards WHERE run_id = :id AND losses > 0"), {"id": run.run_id}
        )
        lost_shards = set(lost.scalars())
    assert generate_shard in lost_shards
    assert relabel_shard in lost_shards
    assert digest(stack.engine, run) == undisturbed[1]


def test_neither_workers_nor_shard_size_decide_the_records(stack: Stack, undisturbed: tuple[Run, str]) -> None:
    state = running_stack(stack.home)
    assert state is not None
    assert state.addresses is not None
    environment = {
        "FRETWORK_DATABASE_URL": state.addresses.database_url,
        "FRETWORK_BROKER_URL": state.addresses.broker_url or "",
        "FRETWORK_HOME": str(stack.home),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "celery", "-A", "services.relabeler.tasks", "worker", "-Q", "relabeler"]
    more = ["--pool", "threads", "--concurrency", "3", "--hostname", "another@%h", "--without-mingle"]
    log = stack.home / "another.log"
    with log.open("wb") as output, subprocess.Popen([*command, *more], env=environment, stderr=output) as another:
        try:
            until(lambda: " ready." in log.read_text(), 60)
            run = stack.start("docs", CONFIG.model_copy(update={"shard_size": 5}))
            stack.finish(run)
        finally:
            another.terminate()
    with stack.engine.connect() as connection:
        workers = Counter(
            connection.execute(
                text("SELECT claimed_by FROM shards WHERE run_id = :id AND stage = 'relabel'"), {"id": run.run_id}
            ).scalars()
        )
    assert len(workers) == 2, workers
    assert digest(stack.engine, run, cosines=False) == digest(stack.engine, undisturbed[0], cosines=False)
