"""What a shard reads, on a real ledger: of any size that the settings allow."""

from __future__ import annotations

import json
from pathlib import Path
from uuid import uuid4

from sqlalchemy import create_engine

from cli.corpus.store import import_corpus
from shared.records import RunConfig
from shared.runs import start_run
from shared.store import load_passages, load_queries, load_statistics

MANY = 70_000  # more than PostgreSQL's 65,535 parameters of a statement


def test_a_shard_may_need_more_rows_than_a_statement_has_parameters(database_url: str, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(json.dumps({"_id": "a", "text": "Frets divide a fretted neck."}) + "\n")
    engine = create_engine(database_url)
    import_corpus(engine, "one", corpus)
    with engine.begin() as connection:
        run = start_run(connection, "one", RunConfig())
        (index, _) = connection.exec_driver_sql("SELECT item_ids FROM shards").scalars()
        found = load_passages(connection, run.corpus_id, {*index, *(uuid4() for _ in range(MANY))})
        assert [passage.text for passage in found.values()] == ["Frets divide a fretted neck."]
        statistics = load_statistics(connection, run, {"fretted", *(f"term{i}" for i in range(MANY))})
        assert statistics.document_frequency == {"fretted": 1}
        assert load_queries(connection, run, [uuid4() for _ in range(MANY)]) == []
    engine.dispose()
