"""A shard that fails, waits or is lost with its worker: tried again, halved, or dead with its error."""

from __future__ import annotations

from uuid import UUID

import pytest
from sqlalchemy import Engine, text

from shared import ledger
from shared.errors import SetbackError, SettingError, TransientError
from shared.ledger import Claim
from shared.llm import EndpointDownError, EndpointError
from shared.progress import conservation
from shared.reading import dead_shards
from shared.records import RunConfig
from shared.runs import Run, start_run
from shared.stages import Stage
from tests.integration.ledger.steps import LEASE_S, claimed, expire, generate_queries, shard_of, state_of


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


def test_items_whose_calls_fail_take_nobodys_chance_to_be_halved(
    engine: Engine, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.ledger.failing.MAX_FAILING", 2)
    bad = items_of_a_shard(engine, run)
    with engine.connect() as connection:
        other = shard_of(connection, run, Stage.GENERATE, 1)
    while open_ones := [shard for item in bad for shard in holding(engine, item)]:
        held = claimed(engine, open_ones[0])
        with engine.begin() as connection:
            ledger.release(connection, held, SetbackError("the server answers 500 to these"), delay_s=0)
    assert len(dead_of(engine, run)) == len(bad) == 4
    items = set(state_of(engine, other)["item_ids"])  # type: ignore[call-overload]
    for _ in range(3):
        fail(engine, other, ValueError("one of them"))
    assert items <= still_open(engine), "halved, and not dead with all of them"


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
    assert dead_of(engine, run) == [({poison}, "killed_worker", "its worker was lost 6 times")]
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
    assert dead_of(engine, run) == [({poison}, "killed_worker", "its worker was lost 6 times")]
    with engine.connect() as connection:
        sums = conservation(connection, run.run_id)
    assert (sums.passages_open, sums.seeds_with_queries) == (1, 9), sums


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
    assert dead_of(engine, run) == [({poison}, "SetbackError", "the server answers 500 to this")]
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


def test_a_lost_training_dies_after_three_losses(engine: Engine, run: Run) -> None:
    item = UUID(int=7)
    with engine.begin() as connection:
        (shard_id,) = ledger.add_shards(connection, run.run_id, Stage.TRAIN, [[item]], parent=item)
    for _ in range(3):
        claimed(engine, shard_id)
        expire(engine, shard_id)
    seen = state_of(engine, shard_id)
    assert (seen["state"], seen["error_type"]) == ("dead", "killed_worker")


def test_an_item_that_killed_its_workers_is_put_back_with_nothing_against_it(engine: Engine, run: Run) -> None:
    """What killed may have been a memory limit that has been raised since."""
    poison = min(items_of_a_shard(engine, run))
    shard = holding(engine, poison)
    while shard:
        claimed(engine, shard[0])
        expire(engine, shard[0])
        last, shard = shard[0], holding(engine, poison)
    with engine.begin() as connection:
        assert ledger.retry(connection, run.run_id) == 1
    seen = state_of(engine, last)
    against = ("failures", "losses", "setbacks", "error_type", "error_message", "error_traceback")
    assert (seen["state"], *(seen[what] for what in against)) == ("ready", 0, 0, 0, None, None, None)
    generate_queries(engine, run, claimed(engine, last))
    assert state_of(engine, last)["state"] == "done"


def test_what_a_worker_died_of_is_not_told_with_the_traceback_of_an_earlier_error(
    engine: Engine, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.ledger.failing.RETRY_AFTER_FAILURE_S", 0.0)
    item = UUID(int=7)
    with engine.begin() as connection:
        (shard_id,) = ledger.add_shards(connection, run.run_id, Stage.TRAIN, [[item]], parent=item)
    fail(engine, shard_id, RuntimeError("something else"))
    for _ in range(3):
        claimed(engine, shard_id)
        expire(engine, shard_id)
    with engine.connect() as connection:
        (dead,) = dead_shards(connection, run.run_id, limit=9)
    assert (dead.error_type, dead.error_traceback) == ("killed_worker", None)


def dead_of(engine: Engine, run: Run) -> list[tuple[set[UUID], str | None, str | None]]:
    """The items of each dead shard, with its error's type and message."""
    with engine.connect() as connection:
        dead = dead_shards(connection, run.run_id, limit=99)
    items: list[list[UUID]] = [state_of(engine, each.shard_id)["item_ids"] for each in dead]  # type: ignore[misc]
    return [(set(of), each.error_type, each.error_message) for of, each in zip(items, dead, strict=True)]


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
