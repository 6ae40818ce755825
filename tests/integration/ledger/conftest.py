"""A small run on a real PostgreSQL."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import Engine

from cli.corpus.store import import_corpus
from shared.records import RunConfig
from shared.runs import Run, start_run


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
