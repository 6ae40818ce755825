"""The counts that triggers keep, on a real PostgreSQL: equal to what is there at any moment, whoever adds them up."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, insert, text

from cli.corpus.store import import_corpus
from shared import ledger
from shared.counts import add_up
from shared.database import insert_rows
from shared.errors import SettingError, TransientError
from shared.progress import stage_progress
from shared.records import Dropped, RunConfig, query_id
from shared.runs import Run, start_run
from shared.schema import fret_records, queries
from shared.stages import Stage
from shared.throughput import throughput
from tests.truth import counts_and_truth

PASSAGES = 40


@pytest.fixture
def run(engine: Engine, tmp_path: Path) -> Run:
    """A run over forty passages in shards of one."""
    corpus = tmp_path / "corpus.jsonl"
    lines = (json.dumps({"_id": str(i), "text": f"Passage number {i}."}) + "\n" for i in range(PASSAGES))
    corpus.write_text("".join(lines))
    import_corpus(engine, "forty", corpus)
    with engine.begin() as connection:
        return start_run(connection, "forty", RunConfig(shard_size=1))


def generate_shards(connection: Connection, run: Run) -> list[ledger.Claim]:
    ids = connection.execute(
        text("SELECT shard_id FROM shards WHERE run_id = :id AND stage = 'generate'"), {"id": run.run_id}
    ).scalars()
    claims = [ledger.claim(connection, shard, "me", 45) for shard in ids]
    return [held for held in claims if held is not None]


def write_queries(connection: Connection, run: Run, held: ledger.Claim, number: int = 2) -> None:
    rows: list[dict[str, Any]] = [
        {
            "run_id": run.run_id,
            "query_id": query_id(run.fingerprint, passage, ordinal),
            "seed_passage_id": passage,
            "ordinal": ordinal,
            "task_description": "search result",
            "query_text": f"what {ordinal}",
            "provenance": {},
        }
        for passage in held.item_ids
        for ordinal in range(number)
    ]
    ledger.finish(connection, held, [], [row["query_id"] for row in rows])
    insert_rows(connection, queries, rows)


def test_every_change_is_counted_in_its_own_transaction(engine: Engine, run: Run) -> None:
    def check() -> dict[tuple[str, int, str], int]:
        for _ in range(2):  # with deltas, and without
            with engine.connect() as connection:
                counted, there = counts_and_truth(connection, run.run_id)
            assert counted == there
            with engine.begin() as connection:
                add_up(connection)
        return counted

    assert check()["generate", 1, "ready"] == PASSAGES
    with engine.begin() as connection:
        one, two, three, four, *rest = generate_shards(connection, run)
    assert check() == {
        ("index", 1, "ready"): PASSAGES,
        ("generate", 1, "claimed"): PASSAGES,
    }
    with engine.begin() as connection:
        write_queries(connection, run, one)
        ledger.finish(connection, two, [Dropped(item, "no_sentence") for item in two.item_ids], [])
        ledger.fail(connection, three, SettingError("no log-probabilities"))
        ledger.release(connection, four, TransientError("busy"), 1.0)
    seen = check()
    assert seen["generate", 1, "dead"] == seen["generate", 1, "ready"] == seen["generate", 1, "drop:no_sentence"] == 1
    assert (seen["generate", 1, "queries"], seen["generate", 1, "seeds"], seen["generate", 1, "done"]) == (2, 1, 2)
    with engine.begin() as connection:
        connection.execute(
            insert(fret_records),
            [
                {
                    "run_id": run.run_id,
                    "query_id": query_id(run.fingerprint, one.item_ids[0], ordinal),
                    "label_version": 1,
                    "positive_id": one.item_ids[0],
                    "negative_ids": [],
                    "positive_ql_rank": 1,
                    "positive_rc_rank": 1,
                    "positive_fused_score": 2.0,
                    "seed_fused_score": 2.0,
                    "positive_changed": bool(ordinal),
                    "negative_spans": [],
                }
                for ordinal in range(2)
            ],
        )
        assert ledger.retry(connection, run.run_id) == 1
    seen = check()
    assert (seen["relabel", 1, "records"], seen["relabel", 1, "moved"]) == (2, 1)
    with engine.connect() as connection:
        write_queries(connection, run, rest[0])
        connection.rollback()
    assert check() == seen
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM runs"))
    assert check() == {}


def test_a_reader_sees_the_truth_while_others_work_and_add_up(engine: Engine, run: Run) -> None:
    with engine.begin() as connection:
        claims = generate_shards(connection, run)
    over = threading.Event()

    def work(held: ledger.Claim) -> None:
        with engine.begin() as connection:
            write_queries(connection, run, held)

    def keep_adding() -> int:
        moved = 0
        while not over.is_set():
            with engine.begin() as connection:
                moved += add_up(connection)
        return moved

    def look() -> int:
        looks = 0
        while not over.is_set():
            with engine.connect() as connection:
                counted, there = counts_and_truth(
                    connection.execution_options(isolation_level="REPEATABLE READ"), run.run_id
                )
            assert counted == there
            looks += 1
        return looks

    with ThreadPoolExecutor(6) as pool:
        adders, reader = [pool.submit(keep_adding) for _ in range(2)], pool.submit(look)
        try:
            for done in [pool.submit(work, held) for held in claims]:
                done.result()
        finally:
            over.set()
        assert sum(adder.result() for adder in adders) > 0
        assert reader.result() > 0
    with engine.connect() as connection:
        counted, there = counts_and_truth(connection, run.run_id)
    assert counted == there
    assert counted["generate", 1, "queries"] == 2 * PASSAGES


def test_rates_are_those_of_the_last_one_and_ten_minutes(engine: Engine, run: Run) -> None:
    with engine.begin() as connection:
        generate_shards(connection, run)
        add_up(connection)
        connection.execute(text("UPDATE run_stages SET started_at = now() - interval '1 hour'"))
        connection.execute(text("UPDATE runs SET created_at = now() - interval '1 hour'"))
        connection.execute(
            text(
                "INSERT INTO throughput (run_id, stage, at, items) "
                "SELECT :id, 'generate', date_bin('10 s', now(), 'epoch') - n * interval '10 s', "
                "CASE WHEN n < 6 THEN 30 WHEN n < 60 THEN 10 ELSE 99999 END FROM generate_series(0, 90) AS n"
            ),
            {"id": run.run_id},
        )
    with engine.connect() as connection:
        generate = {stage.stage: stage for stage in stage_progress(connection, run.run_id)}[Stage.GENERATE]
        points = throughput(connection, run.run_id, since_s=600, points=20).points
    # the last bucket has just begun, so a minute's window is between 50 and 60 s long
    assert 6 * 30 / 60 <= generate.rate_1m <= 6 * 30 / 50
    assert (6 * 30 + 54 * 10) / 600 <= generate.rate_10m <= (6 * 30 + 54 * 10) / 590
    assert generate.eta_s == pytest.approx(PASSAGES / generate.rate_1m)
    assert 18 <= len(points) <= 21
    assert {point.items_per_s for point in points[1:-3]} == {1.0}
