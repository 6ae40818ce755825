"""A run with a budget, and this process as one of its workers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine

from cli.corpus.store import import_corpus
from shared import lease, meter
from shared.database import engine as process_engine
from shared.runs import Run, start_run
from shared.settings import settings
from tests.integration.budget.steps import LLM


@pytest.fixture
def engine(database_url: str, broker_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """An engine; this process's own, which meter and worker use, leads to the same database."""
    monkeypatch.setenv("FRETWORK_DATABASE_URL", database_url)
    monkeypatch.setenv("FRETWORK_BROKER_URL", broker_url)
    settings.cache_clear()
    process_engine.cache_clear()
    made = create_engine(database_url)
    yield made
    meter.stop()
    lease.stop()
    process_engine().dispose()
    process_engine.cache_clear()
    settings.cache_clear()
    made.dispose()


@pytest.fixture
def corpus(engine: Engine, tmp_path: Path) -> str:
    """A corpus of ten passages: three shards of a stage."""
    file = tmp_path / "corpus.jsonl"
    file.write_text("".join(json.dumps({"_id": str(i), "text": f"Passage number {i}."}) + "\n" for i in range(10)))
    import_corpus(engine, "ten", file)
    return "ten"


@pytest.fixture
def run(engine: Engine, corpus: str) -> Run:
    with engine.begin() as connection:
        return start_run(connection, corpus, LLM, max_tokens=1000)
