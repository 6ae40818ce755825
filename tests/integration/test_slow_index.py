"""A Qdrant that needs long: calls of bounded size, shards that become smaller, and a status that says why."""

from __future__ import annotations

import time
from collections.abc import Iterator
from math import inf
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
from sqlalchemy import Engine, text
from typer.testing import CliRunner

from cli.corpus.store import import_corpus
from cli.main import app
from services.retriever import vector_index
from shared.errors import TooSlowError, TransientError
from shared.progress import describe
from shared.records import RunConfig
from shared.runs import start_run
from shared.settings import settings
from shared.stages import Stage
from tests.one_process import services_on, work
from tests.passages import write_corpus
from tests.slow_qdrant import SlowQdrant, slow_qdrant

SEARCH = "/points/query/batch"
VECTOR = [1.0, 0.0]


@pytest.fixture
def qdrant() -> Iterator[SlowQdrant]:
    with slow_qdrant() as server:
        yield server


@pytest.fixture
def engine(
    qdrant: SlowQdrant, database_url: str, broker_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Engine]:
    """The services, their index on that server, which has a second for a call."""
    monkeypatch.setattr(vector_index, "TIMEOUT_S", 1)
    with services_on(database_url, broker_url, tmp_path) as made:
        monkeypatch.setenv("FRETWORK_QDRANT_URL", qdrant.url)
        settings.cache_clear()
        yield made


@pytest.mark.usefixtures("engine")
def test_a_call_holds_no_more_than_a_server_can_bear(qdrant: SlowQdrant) -> None:
    vector_index.upsert("points", [UUID(int=n) for n in range(600)], np.zeros((600, 2), dtype=np.float32))
    assert qdrant.points == [256, 256, 88]

    assert vector_index.nearest("points", [VECTOR] * 70, 20, inf) == [[]] * 70
    assert vector_index.nearest_by_words("points", [{}, *[{7: 1.0}] * 70], 20, inf) == [[]] * 71
    assert qdrant.searches == [32, 32, 6] * 2, "none of a query without words"


@pytest.mark.usefixtures("engine")
def test_a_call_that_takes_too_long_is_told_from_a_server_that_is_away(qdrant: SlowQdrant) -> None:
    qdrant.slow = {SEARCH}
    with pytest.raises(TooSlowError, match=r"longer than 1 s"):
        vector_index.nearest("points", [VECTOR], 20, inf)

    qdrant.slow, qdrant.status = set(), 408
    with pytest.raises(TooSlowError, match="than it allows"):
        vector_index.nearest("points", [VECTOR], 20, inf)

    qdrant.status = 429
    with pytest.raises(TransientError, match="cannot answer now"):
        vector_index.nearest("points", [VECTOR], 20, inf)

    qdrant.slow = {""}  # as one that is frozen
    with pytest.raises(TransientError, match="did not answer") as caught:
        vector_index.nearest("points", [VECTOR], 20, inf)
    assert not isinstance(caught.value, TooSlowError)


@pytest.mark.usefixtures("engine")
def test_searches_end_before_the_shard_would_be_overdue() -> None:
    with pytest.raises(TooSlowError, match="longer than a shard may"):
        vector_index.nearest("points", [VECTOR], 20, time.monotonic() - 1)
    with pytest.raises(TooSlowError, match="longer than a shard may"):
        vector_index.within("points", VECTOR, 20, 0.9, time.monotonic() - 1)


def test_a_shard_that_is_too_slow_is_halved_and_the_status_says_what_holds_the_last(
    engine: Engine, qdrant: SlowQdrant, tmp_path: Path
) -> None:
    import_corpus(engine, "topics", write_corpus(tmp_path / "topics.jsonl", 12))
    with engine.begin() as connection:
        run = start_run(connection, "topics", RunConfig(shard_size=12, num_candidates=6))
    work(engine, (Stage.INDEX, Stage.GENERATE))
    with engine.connect() as connection:
        assert describe(connection, run)["given_back"] is None

    qdrant.slow = {SEARCH}
    sizes = text("SELECT item_count FROM shards WHERE run_id = :id AND stage = 'retrieve' ORDER BY item_count")
    with engine.connect() as connection:
        (whole,) = connection.execute(sizes, {"id": run.run_id}).scalars()
    assert whole >= 4
    work(engine, (Stage.RETRIEVE,), 1)
    with engine.connect() as connection:
        assert connection.execute(sizes, {"id": run.run_id}).scalars().all() == [whole // 2, whole - whole // 2]

    work(engine, (Stage.RETRIEVE,), whole)  # so often that some query is asked for alone
    with engine.connect() as connection:
        given_back = describe(connection, run)["given_back"]
    assert given_back["error_message"].startswith("Qdrant answers, but took longer than 1 s")
    assert (given_back["stage"], given_back["error_type"]) == ("retrieve", "TooSlowError")
    said = CliRunner().invoke(app, ["run", "status", run.name], catch_exceptions=False)
    assert "given back: retrieve × " in said.output

    qdrant.slow = set()
    work(engine, (Stage.RETRIEVE,))
    with engine.connect() as connection:
        seen = describe(connection, run)
    assert seen["given_back"] is None
    assert [(each["done"], each["total"]) for each in seen["stages"] if each["stage"] == "retrieve"] == [(whole, whole)]
