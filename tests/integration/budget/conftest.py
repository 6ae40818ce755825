"""A run with a budget, and this process as one of its workers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from cli.corpus.store import import_corpus
from shared.runs import Run, start_run
from tests.integration.budget.steps import LLM
from tests.own_process import process_on


@pytest.fixture
def engine(database_url: str, broker_url: str) -> Iterator[Engine]:
    with process_on(database_url, broker_url=broker_url) as made:
        yield made


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
