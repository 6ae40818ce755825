"""Candidates by words beside those by vectors; runs of before, which knew vectors alone, stay what they were."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import pytest
from sqlalchemy import Engine, text

from cli.corpus.store import import_corpus
from services.retriever import embed, vector_index
from shared.records import RunConfig
from shared.runs import Run, find_run, start_run
from tests.one_process import results, services_on, work

# Qdrant's own, of a parameter that a server heeds
pytestmark = pytest.mark.filterwarnings("ignore:Local mode performs exact:UserWarning")

SEED = (
    "The orchestra rehearsed the slow movement all morning. Twice the violins missed their entry in the slow movement."
)
SAME_WORDS = "Ice under pressure: the slow movement of a glacier, its second entry into the valley, and moraines."
OTHERS = (
    "A string quartet plays two violins, a viola and a cello.",
    "The orchestra's rehearsal lasted until noon.",
    "The conductor raised his baton and the musicians began.",
    "The concert hall was sold out for the symphony.",
    "She practised her violin for the audition every day.",
    "Tomatoes need sun, water and a stake to climb.",
    "The ferry to the island leaves at noon.",
)


@pytest.fixture
def engine(database_url: str, broker_url: str, tmp_path: Path) -> Iterator[Engine]:
    with services_on(database_url, broker_url, tmp_path) as made:
        lines = [json.dumps({"_id": str(at), "text": each}) for at, each in enumerate((SEED, SAME_WORDS, *OTHERS))]
        (tmp_path / "texts.jsonl").write_text("\n".join(lines))
        import_corpus(made, "texts", tmp_path / "texts.jsonl")
        yield made


def started(engine: Engine, candidates: Literal["hybrid", "dense"], follows: UUID | None = None) -> Run:
    with engine.begin() as connection:
        config = RunConfig(num_candidates=4, candidates=candidates, follows=follows, queries_per_passage=1)
        return start_run(connection, "texts", config)


def done(engine: Engine, run: Run) -> list[dict[str, Any]]:
    work(engine)
    found = results(engine, run.run_id)
    assert found
    return found


def candidates_of_the_seed(engine: Engine, run: Run) -> tuple[list[str], list[float]]:
    with engine.connect() as connection:
        texts = {row.passage_id: row.text for row in connection.execute(text("SELECT passage_id, text FROM passages"))}
        found = connection.execute(
            text("SELECT seed_passage_id, candidate_ids, candidate_scores FROM queries WHERE run_id = :id"),
            {"id": run.run_id},
        ).all()
    ((ids, scores),) = [row[1:] for row in found if texts[row.seed_passage_id] == SEED]
    return [texts[id_] for id_ in ids], scores


def test_words_find_what_vectors_do_not(engine: Engine) -> None:
    dense, hybrid = started(engine, "dense"), started(engine, "hybrid")
    work(engine)

    by_vectors, cosines = candidates_of_the_seed(engine, dense)
    assert SEED in by_vectors
    assert SAME_WORDS not in by_vectors
    both, scores = candidates_of_the_seed(engine, hybrid)
    assert {SEED, SAME_WORDS} < set(both)
    assert len(both) == 4
    assert scores == sorted(scores, reverse=True)
    assert scores[both.index(SAME_WORDS)] <= min(cosines), "it is a cosine too"


def test_a_run_of_before_knows_vectors_alone(engine: Engine) -> None:
    expected = done(engine, started(engine, "dense"))
    run = started(engine, "dense")
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE runs SET config = config - 'candidates' WHERE run_id = :id"), {"id": run.run_id}
        )
        assert (
            "candidates" not in connection.execute(text("SELECT config FROM runs WHERE name = 'texts-2'")).scalar_one()
        )
        assert find_run(connection, run.run_id) == run
    assert done(engine, run) == expected
    assert not vector_index.count(vector_index.passages_collection(run) + "_lexical")


def test_vectors_of_a_dense_run_are_taken_over_and_words_made_anew(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    hybrid, dense = started(engine, "hybrid"), started(engine, "dense")
    expected = done(engine, hybrid)
    with vector_index._qdrant() as client:
        client.delete_collection(vector_index.passages_collection(hybrid))

    monkeypatch.setattr(embed, "embed_passages", None)
    assert done(engine, started(engine, "hybrid", follows=dense.run_id)) == expected
