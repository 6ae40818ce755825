"""The ledger on a real PostgreSQL: each transition, the fence, splitting, barriers, and the counts that add up."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Connection, Engine, insert, select, text

from cli.corpus.store import import_corpus
from shared import ledger
from shared.errors import (
    BarrierClosedError,
    IndexIncompleteError,
    LeaseLostError,
    NotDoneError,
    NotFoundError,
    SetbackError,
    SettingError,
    TransientError,
)
from shared.labels import add_label_version
from shared.ledger import Claim
from shared.llm import EndpointDownError, EndpointError
from shared.progress import conservation, stage_progress
from shared.reading import dead_shards
from shared.records import Dropped, LabelPolicy, RunConfig, query_id
from shared.runs import Run, find_run, start_run
from shared.schema import queries, shards
from shared.stages import RUN_STAGES, Stage

LEASE_S = 30.0


@pytest.fixture
def run(engine: Engine, tmp_path: Path) -> Run:
    """A run over ten passages in shards of four."""
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(
        "".join(
            json.dumps({"_id": str(i), "text": f"Passage number {i} is about topic {i}."}) + "\n" for i in range(10)
        )
    )
    import_corpus(engine, "ten", corpus)
    with engine.begin() as connection:
        return start_run(connection, "ten", RunConfig(shard_size=4))


def shard_of(connection: Connection, run: Run, stage: Stage, number: int = 0) -> UUID:
    """The stage's shards in order of their size and first item."""
    found: list[UUID] = list(
        connection.execute(
            select(shards.c.shard_id)
            .where(shards.c.run_id == run.run_id, shards.c.stage == stage)
            .order_by(shards.c.item_count.desc(), shards.c.item_ids)
        ).scalars()
    )
    return found[number]


def claimed(engine: Engine, shard_id: UUID, lease_s: float = LEASE_S, worker: str = "me") -> Claim:
    with engine.begin() as connection:
        held = ledger.claim(connection, shard_id, worker, lease_s)
    assert held is not None
    return held


def state_of(engine: Engine, shard_id: UUID) -> dict[str, object]:
    with engine.connect() as connection:
        return dict(connection.execute(select(shards).where(shards.c.shard_id == shard_id)).mappings().one())


def expire(engine: Engine, shard_id: UUID) -> list[UUID]:
    """Lets the shard's lease run out, and reaps."""
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE shards SET lease_expires_at = now() - interval '1 s' WHERE shard_id = :id"), {"id": shard_id}
        )
    with engine.begin() as connection:
        return ledger.reap(connection)


def generate_queries(engine: Engine, run: Run, held: Claim, dropped: int = 0) -> list[UUID]:
    """Does a generate shard by hand: one query a passage, the first `dropped` passages none."""
    kept = held.item_ids[dropped:]
    ids = [query_id(run.fingerprint, passage, 0) for passage in kept]
    with engine.begin() as connection:
        ledger.finish(connection, held, [Dropped(p, "no_sentence") for p in held.item_ids[:dropped]], ids)
        if ids:
            connection.execute(
                insert(queries),
                [
                    {
                        "run_id": run.run_id,
                        "query_id": id_,
                        "seed_passage_id": passage,
                        "ordinal": 0,
                        "task_description": "search result",
                        "query_text": "what",
                        "provenance": {},
                    }
                    for id_, passage in zip(ids, kept, strict=True)
                ],
            )
    return ids


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


def test_a_held_lease_is_not_reaped(engine: Engine, run: Run) -> None:
    with engine.connect() as connection:
        shard_id = shard_of(connection, run, Stage.GENERATE)
    claimed(engine, shard_id)
    with engine.begin() as connection:
        assert ledger.reap(connection) == []


def fail(engine: Engine, shard_id: UUID, error: Exception) -> None:
    """Claims a shard that may be waiting for its next try, and fails it."""
    with engine.begin() as connection:
        connection.execute(text("UPDATE shards SET not_before = now() WHERE shard_id = :id"), {"id": shard_id})
    held = claimed(engine, shard_id)
    with engine.begin() as connection:
        ledger.fail(connection, held, error)


def test_permanent_errors_of_an_item_count_and_the_third_is_death(engine: Engine, run: Run) -> None:
    with engine.begin() as connection:
        by_item = start_run(connection, "ten", RunConfig(shard_size=1))
        shard_id = shard_of(connection, by_item, Stage.GENERATE)
    for failures, state in ((1, "ready"), (2, "ready"), (3, "dead")):
        fail(engine, shard_id, ValueError("text with a NUL \0 and half a \ud83d pair"))
        seen = state_of(engine, shard_id)
        assert (seen["failures"], seen["state"], seen["error_type"]) == (failures, state, "ValueError")
    assert "ValueError" in str(state_of(engine, shard_id)["error_traceback"])
    with engine.begin() as connection:
        assert ledger.retry(connection, by_item.run_id) == 1
    seen = state_of(engine, shard_id)
    assert (seen["state"], seen["failures"]) == ("ready", 0)


def test_an_item_that_raises_is_dead_alone(engine: Engine, run: Run) -> None:
    items = items_of_a_shard(engine, run)
    poison = max(items)
    tries = 0
    while holders := holding(engine, poison):
        fail(engine, holders[0], ValueError("no such letter"))
        tries += 1
        with engine.connect() as connection:
            assert conservation(connection, run.run_id).holds
    assert tries == 3 + 1 + 3, "of the four, of the two, and of the one"
    with engine.connect() as connection:
        (dead,) = dead_shards(connection, run.run_id, limit=2)
        assert (dead.items, dead.error_message, dead.failures) == (1, "no such letter", 3)
    assert items - {poison} <= still_open(engine), "the innocent items are still to be done, each once"


def test_an_error_that_many_shards_have_halves_none(engine: Engine, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.ledger.failing.MAX_FAILING", 2)
    with engine.connect() as connection:
        generate = [shard_of(connection, run, Stage.GENERATE, number) for number in range(3)]
    for _ in range(3):
        for shard_id in generate:
            fail(engine, shard_id, ValueError("nothing works here"))
    with engine.connect() as connection:
        assert {dead.shard_id for dead in dead_shards(connection, run.run_id, limit=9)} == set(generate)


def test_a_wrong_setting_is_not_tried_three_times(engine: Engine, run: Run) -> None:
    with engine.connect() as connection:
        shard_id = shard_of(connection, run, Stage.GENERATE)
    held = claimed(engine, shard_id)
    with engine.begin() as connection:
        ledger.fail(connection, held, SettingError("no such model"))
    assert state_of(engine, shard_id)["state"] == "dead"


def test_a_transient_error_counts_no_failure_and_waits(engine: Engine, run: Run) -> None:
    with engine.connect() as connection:
        shard_id = shard_of(connection, run, Stage.GENERATE)
    held = claimed(engine, shard_id)
    with engine.begin() as connection:
        ledger.release(connection, held, TransientError("gone"), delay_s=60)
    seen = state_of(engine, shard_id)
    assert (seen["state"], seen["failures"], seen["losses"]) == ("ready", 0, 0)
    with engine.begin() as connection:
        assert ledger.claim(connection, shard_id, "me", LEASE_S) is None, "it may not be claimed before its time"


def test_three_losses_split_a_shard_down_to_the_item_that_kills(engine: Engine, run: Run) -> None:
    with engine.connect() as connection:
        shard_id = shard_of(connection, run, Stage.GENERATE)
        items = set(state_of(engine, shard_id)["item_ids"])  # type: ignore[call-overload]
    poison = max(items)
    for _ in range(100):
        holders = holding(engine, poison)
        if not holders:
            break
        claimed(engine, holders[0])
        expire(engine, holders[0])
        with engine.connect() as connection:
            assert conservation(connection, run.run_id).holds
    with engine.connect() as connection:
        dropped = connection.execute(text("SELECT item_id, reason FROM drops")).all()
        assert [tuple(row) for row in dropped] == [(poison, "killed_worker")]
    assert items - {poison} <= still_open(engine), "the innocent items are still to be done, each once"


def test_what_shares_a_process_with_an_item_that_kills_is_not_lost_with_it(engine: Engine, run: Run) -> None:
    """A process of four slots dies whenever the poison is in one of them, and all that it held is lost each time."""
    poison = max(items_of_a_shard(engine, run))
    for life in range(200):
        with engine.connect() as connection:
            ready = connection.execute(
                text(
                    "SELECT shard_id FROM shards WHERE stage = 'generate' AND state = 'ready' ORDER BY losses, shard_id"
                )
            ).scalars()
        held: list[Claim] = []
        for shard_id in ready:
            with engine.begin() as connection:
                found = ledger.claim(connection, shard_id, f"life {life}", LEASE_S) if len(held) < 4 else None
            held += [found] if found else []
        if not held:
            break
        if any(poison in claim.item_ids for claim in held):
            with engine.begin() as connection:
                connection.execute(text("UPDATE shards SET lease_expires_at = now() - interval '1 s'"))
                ledger.reap(connection)
        else:
            generate_queries(engine, run, held[0])
            with engine.begin() as connection:
                for claim in held[1:]:
                    ledger.release(connection, claim, TransientError("done next time"), delay_s=0)
    with engine.connect() as connection:
        dropped = connection.execute(text("SELECT item_id, reason FROM drops")).all()
        assert [tuple(row) for row in dropped] == [(poison, "killed_worker")]
        sums = conservation(connection, run.run_id)
    assert (sums.passages_open, sums.seeds_with_queries) == (0, 9), sums


def test_setbacks_split_a_shard_down_to_the_item_that_they_are_about(engine: Engine, run: Run) -> None:
    items = items_of_a_shard(engine, run)
    poison = max(items)
    setbacks = 0
    while holders := holding(engine, poison):
        held = claimed(engine, holders[0])
        with engine.begin() as connection:
            ledger.release(connection, held, SetbackError("the server answers 500 to this"), delay_s=0)
            assert conservation(connection, run.run_id).holds
        setbacks += 1
        assert setbacks < 100
    with engine.connect() as connection:
        dropped = connection.execute(text("SELECT item_id, reason, detail FROM drops")).all()
        assert [tuple(row) for row in dropped] == [(poison, "call_failed", "the server answers 500 to this")]
    assert items - {poison} <= still_open(engine), "the innocent items are still to be done, each once"


def test_an_endpoint_that_is_away_is_no_setback(engine: Engine, run: Run) -> None:
    with engine.connect() as connection:
        shard_id = shard_of(connection, run, Stage.GENERATE)
    for error in [EndpointError("away"), EndpointDownError("away")] * 5:
        held = claimed(engine, shard_id)
        with engine.begin() as connection:
            ledger.release(connection, held, error, delay_s=0)
    seen = state_of(engine, shard_id)
    assert (seen["state"], seen["failures"], seen["losses"], seen["setbacks"]) == ("ready", 0, 0, 0)


def items_of_a_shard(engine: Engine, run: Run) -> set[UUID]:
    """Those of the first generate shard."""
    with engine.connect() as connection:
        first = shard_of(connection, run, Stage.GENERATE)
    items: list[UUID] = state_of(engine, first)["item_ids"]  # type: ignore[assignment]
    return set(items)


def still_open(engine: Engine) -> set[UUID]:
    """The items of all generate shards that may be claimed."""
    with engine.connect() as connection:
        ready = text("SELECT unnest(item_ids) FROM shards WHERE stage = 'generate' AND state = 'ready'")
        return set(connection.execute(ready).scalars())


def holding(engine: Engine, item_id: UUID) -> list[UUID]:
    """The open generate shards that an item is in."""
    with engine.connect() as connection:
        return list(
            connection.execute(
                text("SELECT shard_id FROM shards WHERE state = 'ready' AND stage = 'generate' AND :p = ANY(item_ids)"),
                {"p": item_id},
            ).scalars()
        )


def test_a_lost_training_dies_after_three_losses(engine: Engine, run: Run) -> None:
    item = UUID(int=7)
    with engine.begin() as connection:
        (shard_id,) = ledger.add_shards(connection, run.run_id, Stage.TRAIN, [[item]], parent=item)
    for _ in range(3):
        claimed(engine, shard_id)
        expire(engine, shard_id)
    seen = state_of(engine, shard_id)
    assert (seen["state"], seen["error_type"]) == ("dead", "killed_worker")


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


def test_doorbells_are_rung_once_until_long_ago(engine: Engine, run: Run) -> None:
    stages = [Stage.INDEX, Stage.GENERATE]
    with engine.begin() as connection:
        assert len(ledger.to_ring(connection, stages, 4, again_after_s=30)) == 4
    with engine.begin() as connection:
        assert len(ledger.to_ring(connection, stages, 100, again_after_s=30)) == 2, "the rest, none again"
    with engine.begin() as connection:
        connection.execute(text("UPDATE shards SET rung_at = now() - interval '31 s'"))
        assert len(ledger.to_ring(connection, stages, 100, again_after_s=30)) == 6


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
