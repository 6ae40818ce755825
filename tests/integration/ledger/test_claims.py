"""The ledger on a real PostgreSQL: claims, the fence, and the counts that add up."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import pytest
from sqlalchemy import Connection, Engine, select, text

from shared import ledger
from shared.errors import LeaseLostError, NotDoneError, SettingError, TransientError
from shared.labels import add_label_version
from shared.ledger import Claim
from shared.progress import conservation, stage_progress
from shared.records import LabelPolicy, RunConfig
from shared.runs import Run, start_run
from shared.schema import shards
from shared.stages import RUN_STAGES, Stage
from tests.integration.ledger.steps import LEASE_S, claimed, expire, generate_queries, shard_of, state_of


def test_a_run_starts_with_its_passages_in_shards(engine: Engine, run: Run) -> None:
    with engine.connect() as connection:
        progress = {s.stage: s for s in stage_progress(connection, run.run_id)}
        sizes = connection.execute(
            select(shards.c.item_count).where(shards.c.stage == "generate").order_by(shards.c.item_count)
        ).scalars()
        assert list(sizes) == [2, 4, 4]
    assert progress[Stage.INDEX].total == progress[Stage.GENERATE].total == 10
    assert progress[Stage.RELABEL].total == 0
    assert list(progress) == list(RUN_STAGES)


def test_one_of_many_claims_wins(engine: Engine, run: Run) -> None:
    with engine.connect() as connection:
        shard_id = shard_of(connection, run, Stage.GENERATE)

    def attempt(number: int) -> Claim | None:
        with engine.begin() as connection:
            return ledger.claim(connection, shard_id, f"worker {number}", LEASE_S)

    with ThreadPoolExecutor(8) as pool:
        won = [held for held in pool.map(attempt, range(8)) if held]
    assert len(won) == 1
    assert won[0].claim_seq == 1
    assert len(won[0].item_ids) == 4


def test_a_worker_that_lost_its_lease_cannot_write(engine: Engine, run: Run) -> None:
    with engine.connect() as connection:
        shard_id = shard_of(connection, run, Stage.GENERATE)
    late = claimed(engine, shard_id, worker="late")
    assert expire(engine, shard_id) == [shard_id]
    prompt = claimed(engine, shard_id, worker="prompt")
    assert prompt.claim_seq == late.claim_seq + 1
    with engine.begin() as connection:
        assert ledger.renew(connection, [late, prompt], LEASE_S) == {shard_id}
    for write in (
        lambda c: ledger.finish(c, late, [], late.item_ids),
        lambda c: ledger.fail(c, late, ValueError("x")),
        lambda c: ledger.release(c, late, TransientError(), 0),
    ):
        with pytest.raises(LeaseLostError), engine.begin() as connection:
            write(connection)
    generate_queries(engine, run, prompt)
    with pytest.raises(LeaseLostError), engine.begin() as connection:
        ledger.finish(connection, prompt, [], [])
    seen = state_of(engine, shard_id)
    assert (seen["state"], seen["claimed_by"], seen["losses"], seen["failures"]) == ("done", "prompt", 1, 0)


def test_whoever_held_a_claim_that_a_crash_forgot_is_refused(engine: Engine, run: Run) -> None:
    with engine.connect() as connection:
        shard_id = shard_of(connection, run, Stage.GENERATE)
        before = connection.execute(select(shards).where(shards.c.shard_id == shard_id)).mappings().one()
    first = claimed(engine, shard_id, worker="first")
    with engine.begin() as connection:  # the server comes back without the commit
        connection.execute(shards.update().where(shards.c.shard_id == shard_id).values(**before))
    second = claimed(engine, shard_id, worker="second")
    assert first.claim_seq == second.claim_seq
    with engine.begin() as connection:
        assert ledger.renew(connection, [first], LEASE_S) == set()
    for write in (
        lambda c: ledger.finish(c, first, [], first.item_ids),
        lambda c: ledger.release(c, first, TransientError(), 0),
    ):
        with pytest.raises(LeaseLostError), engine.begin() as connection:
            write(connection)
    generate_queries(engine, run, second)
    assert state_of(engine, shard_id)["state"] == "done"
    with engine.connect() as connection:
        assert conservation(connection, run.run_id).holds


def test_a_claim_of_a_runs_shard_alone_does_not_wait_for_the_disk(engine: Engine, run: Run) -> None:
    """The tests' server forgets everything by its settings, so the transaction is asked."""
    item = UUID(int=7)
    with engine.begin() as connection:
        (training,) = ledger.add_shards(connection, run.run_id, Stage.TRAIN, [[item]], parent=item)
        generate = shard_of(connection, run, Stage.GENERATE)

    def waits(connection: Connection) -> bool:
        return bool(connection.execute(text("SHOW synchronous_commit")).scalar_one() == "on")

    with engine.connect() as connection:
        for shard_id, expected in ((training, True), (generate, False), (generate, True)):
            connection.execute(text("SET LOCAL synchronous_commit = on"))
            held = ledger.claim(connection, shard_id, "me", LEASE_S)
            assert (waits(connection), held is None) == (expected, expected and shard_id == generate)
            connection.commit()


def test_a_held_lease_is_not_reaped(engine: Engine, run: Run) -> None:
    with engine.connect() as connection:
        shard_id = shard_of(connection, run, Stage.GENERATE)
    claimed(engine, shard_id)
    with engine.begin() as connection:
        assert ledger.reap(connection) == []


def test_the_counts_add_up_at_every_step(engine: Engine, run: Run) -> None:
    def check() -> None:
        with engine.connect() as connection:
            sums = conservation(connection, run.run_id)
        assert sums.holds, sums

    check()
    for number in range(3):
        with engine.connect() as connection:
            shard_id = shard_of(connection, run, Stage.GENERATE, number)
        held = claimed(engine, shard_id)
        check()
        generate_queries(engine, run, held, dropped=number)
        check()
    with engine.connect() as connection:
        sums = conservation(connection, run.run_id)
        progress = {s.stage: s for s in stage_progress(connection, run.run_id)}
    assert (sums.sampled, sums.seeds_with_queries, sums.passages_dropped) == (10, 7, 3)
    assert (sums.queries, sums.queries_open) == (7, 7)
    assert progress[Stage.GENERATE].reasons == {"no_sentence": 3}


def test_conservation_can_fail(engine: Engine, run: Run) -> None:
    with engine.begin() as connection:
        connection.execute(
            text("DELETE FROM shards WHERE shard_id = :id"), {"id": shard_of(connection, run, Stage.GENERATE)}
        )
    with engine.connect() as connection:
        assert not conservation(connection, run.run_id).holds


def test_the_same_policy_is_the_same_label_version(engine: Engine, run: Run) -> None:
    with engine.begin() as connection:
        assert add_label_version(connection, run, LabelPolicy()) == 1
        with pytest.raises(NotDoneError, match=run.name):
            add_label_version(connection, run, LabelPolicy(positive="p_1"))
        with pytest.raises(SettingError, match="num_candidates=20"):
            add_label_version(connection, run, LabelPolicy(range_min=19))
    with engine.begin() as connection:
        connection.execute(text("UPDATE runs SET state = 'done'"))
        assert add_label_version(connection, run, LabelPolicy(positive="p_1")) == 2
        assert add_label_version(connection, run, LabelPolicy(positive="p_1")) == 2


def test_ids_do_not_depend_on_the_database(engine: Engine, run: Run) -> None:
    with engine.begin() as connection:
        again = start_run(connection, "ten", RunConfig(shard_size=3))
    assert again.name == "ten-2"
    assert again.run_id != run.run_id
    assert again.fingerprint == run.fingerprint, "the shard size decides nothing"
    with engine.begin() as connection:
        other = start_run(connection, "ten", RunConfig(seed=1))
    assert other.fingerprint != run.fingerprint
