"""What the dispatcher does: barriers opened, doorbells rung, runs ended."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, text

from shared import ledger
from shared.errors import BarrierClosedError, IndexIncompleteError, NotFoundError, SettingError
from shared.runs import Run, find_run
from shared.stages import Stage
from tests.integration.ledger.steps import LEASE_S, claimed, generate_queries, shard_of, state_of


def test_barriers_open_when_the_stages_before_them_are_closed(engine: Engine, run: Run) -> None:
    with engine.connect() as connection:
        generate = [shard_of(connection, run, Stage.GENERATE, n) for n in range(3)]
        index = [shard_of(connection, run, Stage.INDEX, n) for n in range(3)]
    for shard_id in generate:
        generate_queries(engine, run, claimed(engine, shard_id))
    with engine.begin() as connection:
        assert ledger.open_barriers(connection) == 0, "the index is not complete"
    for shard_id in index[:2]:
        with engine.begin() as connection:
            held = ledger.claim(connection, shard_id, "me", LEASE_S)
            assert held is not None
            ledger.finish(connection, held, [], [])
    held = claimed(engine, index[2])
    with engine.begin() as connection:
        assert ledger.open_barriers(connection) == 0, "an index shard is still claimed"
        ledger.fail(connection, held, SettingError("dead shards must not hold a run for ever"))
    with engine.begin() as connection:
        assert ledger.open_barriers(connection) == 3
        assert ledger.open_barriers(connection) == 0, "opening is idempotent"
    with engine.connect() as connection:
        retrieve = shard_of(connection, run, Stage.RETRIEVE)
    held = claimed(engine, retrieve)
    with pytest.raises(IndexIncompleteError, match="1 of its shards are dead"), engine.begin() as connection:
        ledger.reopen_index(connection, run.run_id)
    with engine.begin() as connection:
        connection.execute(text("UPDATE shards SET state = 'done' WHERE state = 'dead'"))
        assert ledger.reopen_index(connection, run.run_id) == 3
        assert ledger.reopen_index(connection, run.run_id) == 0, "the index is on its way already"
        ledger.release(connection, held, BarrierClosedError("index lost points"), 0)
    assert state_of(engine, retrieve)["state"] == "waiting"


def test_doorbells_are_rung_once_until_long_ago(engine: Engine, run: Run) -> None:
    stages = [Stage.INDEX, Stage.GENERATE]
    with engine.begin() as connection:
        assert len(ledger.to_ring(connection, stages, 4, again_after_s=30)) == 4
    with engine.begin() as connection:
        assert len(ledger.to_ring(connection, stages, 100, again_after_s=30)) == 2, "the rest, none again"
    with engine.begin() as connection:
        connection.execute(text("UPDATE shards SET rung_at = now() - interval '31 s'"))
        assert len(ledger.to_ring(connection, stages, 100, again_after_s=30)) == 6


def test_the_oldest_are_rung_first(engine: Engine, run: Run) -> None:
    with engine.begin() as connection:
        for number in range(40):  # trainings that one command starts, one after the other
            item = UUID(int=1000 - number)
            (shard_id,) = ledger.add_shards(connection, run.run_id, Stage.TRAIN, [[item]], parent=item)
            connection.execute(
                text("UPDATE shards SET created_at = now() + make_interval(secs => :s) WHERE shard_id = :id"),
                {"s": number, "id": shard_id},
            )
    with engine.begin() as connection:
        rung = ledger.to_ring(connection, [Stage.TRAIN], 64, again_after_s=30)
    assert [claim.item_ids[0].int for claim in rung] == list(range(1000, 960, -1))


def test_a_worker_rings_itself_for_the_shard_that_its_own_makes_ready(engine: Engine, run: Run) -> None:
    """The dispatcher would ring a second time within a tick, were it not noted; and if the ring is lost, it must."""
    item = uuid4()
    with engine.begin() as connection:
        connection.execute(text("UPDATE shards SET state = 'done'"))
        (dedup,) = ledger.add_shards(connection, run.run_id, Stage.DEDUP, [[item]], parent=item)
        connection.execute(text("UPDATE shards SET state = 'ready' WHERE shard_id = :id"), {"id": dedup})
    held = claimed(engine, dedup)
    with engine.begin() as connection:
        (relabel,) = ledger.finish(connection, held, [], [item])
    with engine.begin() as connection:
        assert ledger.to_ring(connection, [Stage.RELABEL], 4, again_after_s=30) == []
        connection.execute(text("UPDATE shards SET rung_at = rung_at - interval '31 s'"))
        assert [c.shard_id for c in ledger.to_ring(connection, [Stage.RELABEL], 4, again_after_s=30)] == [relabel]


def test_a_finished_run_is_done_and_not_before(engine: Engine, run: Run) -> None:
    with engine.begin() as connection:
        assert ledger.finish_runs(connection) == []
        connection.execute(text("UPDATE shards SET state = 'done'"))
    with engine.begin() as connection:
        assert ledger.finish_runs(connection) == [run.run_id]
        assert find_run(connection, run.name).state == "done"
        assert find_run(connection, "latest").run_id == run.run_id
        with pytest.raises(NotFoundError, match="run list"):
            find_run(connection, "no-such-run")


@pytest.mark.parametrize("retry_first", [True, False])
def test_a_run_does_not_end_while_its_dead_shards_are_put_back(engine: Engine, run: Run, retry_first: bool) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE shards SET state = 'dead'"))

    def retry() -> int:
        with engine.begin() as connection:
            return ledger.retry(connection, run.run_id)

    if retry_first:
        with engine.begin() as retrying, engine.begin() as finishing:
            assert ledger.retry(retrying, run.run_id) == 6
            assert ledger.finish_runs(finishing) == []
    else:
        with ThreadPoolExecutor(1) as pool:
            with engine.begin() as finishing:
                assert ledger.finish_runs(finishing) == [run.run_id]
                retried = pool.submit(retry)
                with suppress(TimeoutError):  # it waits for the run
                    retried.result(timeout=0.5)
            assert retried.result(timeout=10) == 6
    with engine.connect() as connection:
        assert find_run(connection, run.name).state == "running"
