"""Invariant 7: a new label version comes from the stored scores; the judge is not asked, and here it would raise."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, insert, select, text, update

from cli.corpus.store import import_corpus
from shared import lease, ledger
from shared.database import engine as process_engine
from shared.progress import conservation
from shared.records import LabelPolicy, RunConfig, query_id
from shared.runs import Run, add_label_version, start_run
from shared.schema import fret_records, queries, shards
from shared.settings import settings
from shared.stages import Stage

TEXTS = (
    "The kettle boils water for tea. It switches itself off when the water boils.",
    "Tea is brewed with boiling water. Green tea wants it a little cooler.",
    "A bicycle has two wheels. Its chain drives the rear one.",
)


@pytest.fixture
def engine(database_url: str, broker_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """An engine; the relabeler's own, in this process, leads to the same database."""
    monkeypatch.setenv("FRETWORK_DATABASE_URL", database_url)
    monkeypatch.setenv("FRETWORK_BROKER_URL", broker_url)
    settings.cache_clear()
    process_engine.cache_clear()
    made = create_engine(database_url)
    yield made
    lease.stop()
    process_engine().dispose()
    process_engine.cache_clear()
    settings.cache_clear()
    made.dispose()


@pytest.fixture
def run(engine: Engine, tmp_path: Path) -> Run:
    """A run whose queries have their candidates, and shards to relabel."""
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("\n".join(json.dumps({"_id": str(i), "text": text}) for i, text in enumerate(TEXTS)))
    import_corpus(engine, "tea", corpus)
    with engine.begin() as connection:
        run = start_run(connection, "tea", RunConfig(num_candidates=3, labels=LabelPolicy(positive="p_1")))
        connection.execute(update(shards).values(state="done"))
        ids = list(connection.execute(text("SELECT passage_id FROM passages ORDER BY source_id")).scalars())
        asked = ["water boils for tea", "green tea wants cooler water", "the chain drives the rear wheel"]
        made = [query_id(run.fingerprint, passage, 0) for passage in ids]
        connection.execute(
            insert(queries),
            [
                {
                    "run_id": run.run_id,
                    "query_id": made[i],
                    "seed_passage_id": ids[i],
                    "ordinal": 0,
                    "task_description": "search result",
                    "query_text": asked[i],
                    "provenance": {},
                    "candidate_ids": ids,
                    "candidate_scores": [0.5] * 3,
                }
                for i in range(3)
            ],
        )
        ledger.add_shards(connection, run.run_id, Stage.RELABEL, [made], parent=run.run_id)
    return run


def relabel(connection: Connection) -> None:
    """Has the relabeler do what is ready, through its own door."""
    from services.relabeler import tasks

    ready = connection.execute(select(shards.c.shard_id).where(shards.c.state == "ready")).scalars().all()
    assert ready
    for shard_id in ready:
        tasks.relabel(str(shard_id))


def records(connection: Connection, label_version: int) -> Sequence[Any]:
    return connection.execute(
        select(fret_records).where(fret_records.c.label_version == label_version).order_by(fret_records.c.query_id)
    ).all()


def refuse_to_judge(*_: object) -> None:
    raise AssertionError("the judge was asked")


def test_another_policy_costs_no_judgement(engine: Engine, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from services.relabeler import statistical

    with engine.connect() as connection:
        relabel(connection)
    monkeypatch.setattr(statistical, "judge", refuse_to_judge)
    with engine.begin() as connection:
        assert ledger.finish_runs(connection) == [run.run_id]
        version = add_label_version(connection, run, LabelPolicy(positive="seed"))
    assert version == 2
    with engine.connect() as connection:
        relabel(connection)
    with engine.connect() as connection:
        judged, by_seed = records(connection, 1), records(connection, 2)
        rows = connection.execute(select(queries.c.query_id, queries.c.seed_passage_id))
        seeds = {query: seed for query, seed in rows}  # noqa: C416 - rows are no pairs to mypy
        for label_version in (1, 2):
            sums = conservation(connection, run.run_id, label_version)
            assert sums.holds
            assert sums.records == 3
    assert all(record.positive_id == seeds[record.query_id] for record in by_seed)
    assert [record.positive_ql_rank for record in judged] != [0, 0, 0]
    # the first policy again, from the stored scores: the records are the judged ones
    with engine.begin() as connection:
        connection.execute(fret_records.delete().where(fret_records.c.label_version == 1))
        connection.execute(update(shards).where(shards.c.label_version == 1).values(state="ready"))
        connection.execute(update(shards).where(shards.c.stage != "relabel").values(state="done"))
    with engine.connect() as connection:
        relabel(connection)
    with engine.connect() as connection:
        assert records(connection, 1) == judged


def test_without_stored_scores_the_judge_is_asked(engine: Engine, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from services.relabeler import statistical

    monkeypatch.setattr(statistical, "judge", refuse_to_judge)
    with engine.connect() as connection:
        relabel(connection)
    with engine.connect() as connection:
        assert records(connection, 1) == []
        failed = connection.execute(select(shards.c.error_message).where(shards.c.stage == "relabel")).scalar_one()
    assert failed == "the judge was asked"
