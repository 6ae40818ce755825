"""Pages by keyset cost the same at the end of a run as at its start: of no table is more read than the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, Engine, event, insert, text

from cli.corpus.store import import_corpus
from cli.export.rows import read_rows
from services.trainer.ledger_records import LedgerRecords
from shared.reading import list_records
from shared.records import RunConfig
from shared.runs import Run, sample_passages, start_run
from shared.schema import fret_records, queries
from tests.passages import write_corpus

RECORDS, PAGE = 2000, 10


@pytest.fixture
def run(engine: Engine, tmp_path: Path) -> Run:
    import_corpus(engine, "topics", write_corpus(tmp_path / "topics.jsonl", 2))
    with engine.begin() as connection:
        run = start_run(connection, "topics", RunConfig(num_candidates=2))
        first, second = sample_passages(connection, run, 2)
        ids = [UUID(int=n << 108) for n in range(1, RECORDS + 1)]
        written = {
            "seed_passage_id": first,
            "ordinal": 0,
            "task_description": "search result",
            "query_text": "a query",
            "candidate_ids": [first, second],
            "candidate_scores": [0.9, 0.8],
            "ql_scores": [-1.0, -2.0],
            "rc_scores": [2.0, 1.0],
            "provenance": {},
            "judge": {},
        }
        labelled = {
            "label_version": 1,
            "positive_id": first,
            "negative_ids": [second],
            "positive_ql_rank": 1,
            "positive_rc_rank": 1,
            "positive_fused_score": 2.0,
            "seed_fused_score": 2.0,
            "positive_changed": False,
            "negative_spans": [None],
        }
        connection.execute(insert(queries), [{"run_id": run.run_id, "query_id": id_, **written} for id_ in ids])
        connection.execute(insert(fret_records), [{"run_id": run.run_id, "query_id": id_, **labelled} for id_ in ids])
    with engine.connect() as connection:
        connection.execute(text("ANALYZE queries"))
        connection.execute(text("ANALYZE fret_records"))
        connection.commit()
    return run


def of_an_export(engine: Engine, run: Run) -> int:
    with engine.connect() as connection:
        return sum(map(len, read_rows(connection, run.run_id, run.corpus_id, 1, batch_records=PAGE)))


def of_a_training(engine: Engine, run: Run) -> int:
    source = LedgerRecords(engine, run.run_id, 1)
    return _paged(lambda after: [record.query_id for record in source.page(after, PAGE)])


def of_a_trainings_tasks(engine: Engine, run: Run) -> int:
    source = LedgerRecords(engine, run.run_id, 1)
    return _paged(lambda after: [query_id for query_id, _ in source.groups("task", after, PAGE)])


def of_the_api(engine: Engine, run: Run) -> int:
    def page(after: UUID | None) -> list[UUID]:
        with engine.connect() as connection:
            return [record.query_id for record in list_records(connection, run, limit=PAGE, after=after)]

    return _paged(page)


def _paged(page: Callable[[UUID | None], list[UUID]]) -> int:
    found = page(None)
    count = len(found)
    while found := page(found[-1]):
        count += len(found)
    return count


@pytest.mark.parametrize("read", [of_an_export, of_a_training, of_a_trainings_tasks, of_the_api])
def test_the_last_page_costs_what_the_first_does(engine: Engine, run: Run, read: Callable[[Engine, Run], int]) -> None:
    asked: list[tuple[str, Any]] = []

    @event.listens_for(engine, "before_cursor_execute")
    def keep(_c: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if "fret_records" in statement:
            asked.append((statement, parameters))

    assert read(engine, run) == RECORDS
    pages, rest = divmod(len(asked), RECORDS // PAGE)
    assert (pages, rest) == (1, 1)  # a page each, and an empty one
    with engine.connect() as connection:
        # at a million records the planner takes a merge join by itself
        for setting in ("enable_nestloop", "enable_hashjoin"):
            connection.execute(text(f"SET LOCAL {setting} = off"))
        assert most_read(connection, *asked[-2]) <= 2 * PAGE


def most_read(connection: Connection, statement: str, parameters: Any) -> float:
    """Rows that a scan of `queries` or `fret_records` reads, of the two the more."""
    explained = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters).scalar_one()

    def scans(node: dict[str, Any]) -> Iterator[float]:
        if node.get("Relation Name") in ("queries", "fret_records"):
            yield (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
        for child in node.get("Plans", ()):
            yield from scans(child)

    return max(scans(explained[0]["Plan"]))
