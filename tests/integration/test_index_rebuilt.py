"""A vector index that is lost is made again from PostgreSQL alone, and the candidates are the same.

One that cannot hold a passage does without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from cli.corpus.store import import_corpus
from services.retriever import embed, vector_index
from shared import ledger
from shared.progress import conservation
from shared.reading import dead_shards
from shared.records import Passage, RunConfig
from shared.runs import Run, find_run, start_run
from shared.stages import Stage
from tests.one_process import lose_index, results, services_on, work
from tests.passages import write_corpus

PASSAGES = 16
# Qdrant's own, of a parameter that a server heeds
pytestmark = pytest.mark.filterwarnings("ignore:Local mode performs exact:UserWarning")


@pytest.fixture
def engine(database_url: str, broker_url: str, tmp_path: Path) -> Iterator[Engine]:
    with services_on(database_url, broker_url, tmp_path) as made:
        import_corpus(made, "topics", write_corpus(tmp_path / "topics.jsonl", PASSAGES))
        yield made


def started(engine: Engine) -> Run:
    with engine.begin() as connection:
        return start_run(connection, "topics", RunConfig(shard_size=4, num_candidates=6))


def is_whole(engine: Engine, run: Run) -> bool:
    """Whether the run is done, without a dead shard, and its counts add up."""
    with engine.connect() as connection:
        dead = connection.execute(text("SELECT count(*) FROM shards WHERE state = 'dead'")).scalar_one()
        state = find_run(connection, run.name).state
        return (state, dead) == ("done", 0) and conservation(connection, run.run_id).holds


def test_a_lost_index_is_made_again_and_the_candidates_are_the_same(engine: Engine, tmp_path: Path) -> None:
    first = started(engine)
    work(engine)
    expected = results(engine, first.run_id)
    assert is_whole(engine, first)
    assert len(expected) > 4
    assert all(len(row["query"]["candidate_ids"]) == 6 for row in expected)

    lose_index(tmp_path)
    assert vector_index.count(vector_index.passages_collection(first)) == 0
    second = started(engine)
    work(engine)
    assert is_whole(engine, second)
    assert results(engine, second.run_id) == expected, "a new run"
    assert vector_index.count(vector_index.passages_collection(second)) == PASSAGES

    for shards in (0, 1, None):
        run = started(engine)
        work(engine, (Stage.INDEX, Stage.GENERATE))
        work(engine, (Stage.RETRIEVE,), shards)
        lose_index(tmp_path)
        work(engine)
        assert is_whole(engine, run)
        assert results(engine, run.run_id) == expected, f"a run that lost it behind retrieve's shards: {shards}"


def test_a_passage_that_cannot_be_embedded_is_dead_alone_and_the_run_does_without_it(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.ledger.failing.RETRY_AFTER_FAILURE_S", 0.0)
    embed_passages = embed.embed_passages

    def refuse_the_first(embedder: str, passages: Sequence[Passage]) -> object:
        if any(passage.passage_id == first for passage in passages):
            raise ValueError("this passage breaks the tokenizer")
        return embed_passages(embedder, passages)

    monkeypatch.setattr(embed, "embed_passages", refuse_the_first)
    run = started(engine)
    with engine.connect() as connection:
        first = connection.execute(text("SELECT min(passage_id::text)::uuid FROM passages")).scalar_one()
    work(engine, (Stage.INDEX, Stage.GENERATE))
    work(engine, (Stage.RETRIEVE,), 1)
    lose_index(tmp_path)  # what is lost is still told apart from what cannot be there
    work(engine)
    with engine.connect() as connection:
        (dead,) = dead_shards(connection, run.run_id, limit=9)
        assert (dead.stage, dead.items, dead.error_message) == (Stage.INDEX, 1, "this passage breaks the tokenizer")
        sums = conservation(connection, run.run_id)
        assert find_run(connection, run.name).state == "done"
        reasons = connection.execute(text("SELECT DISTINCT reason FROM drops WHERE stage = 'relabel'")).scalars().all()
    assert sums.holds
    assert sums.records > 4
    assert reasons == ["seed_not_a_candidate"]
    assert vector_index.count(vector_index.passages_collection(run)) == PASSAGES - 1

    monkeypatch.setattr(embed, "embed_passages", embed_passages)
    with engine.begin() as connection:
        assert ledger.retry(connection, run.run_id) == 1
    work(engine)
    assert is_whole(engine, run)
    assert vector_index.count(vector_index.passages_collection(run)) == PASSAGES
