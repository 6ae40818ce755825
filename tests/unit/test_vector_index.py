"""The vector index on Qdrant's local mode: what is nearest does not depend on what came first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf
from pathlib import Path
from typing import Literal
from uuid import UUID

import numpy as np
import pytest

from services.retriever import vector_index
from services.retriever.lexical import Weights
from shared.records import RunConfig
from shared.runs import Run
from shared.settings import settings
from tests.one_process import lose_index

# Qdrant's own, of a parameter that a server heeds
pytestmark = pytest.mark.filterwarnings("ignore:Local mode performs exact:UserWarning")

EQUAL = [UUID(int=number) for number in range(1, 41)]
NEARER, FARTHER = UUID(int=100), UUID(int=101)


@pytest.fixture(autouse=True)
def _index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("FRETWORK_HOME", str(tmp_path))
    monkeypatch.delenv("FRETWORK_QDRANT_URL", raising=False)
    settings.cache_clear()
    yield
    lose_index(tmp_path)
    settings.cache_clear()


def stored(name: str, equal: Sequence[UUID]) -> str:
    """A collection with one point nearest to (1, 0), then the equal ones, inserted in this order, then another."""
    vector_index.ensure(name, 2)
    rows = [[1.0, 0.0], *[[0.8, 0.6]] * len(equal), [0.0, 1.0]]
    vector_index.upsert(name, [NEARER, *equal, FARTHER], np.array(rows, dtype=np.float32))
    return name


def test_an_index_is_named_by_what_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A version's number comes again, with other passages, where a database is restored from a backup."""
    monkeypatch.setattr(vector_index, "model_fingerprint", str)

    def named(content_hash: str, embedder: str = "one", candidates: Literal["hybrid", "dense"] = "dense") -> str:
        config = RunConfig(embedder=embedder, candidates=candidates)
        run = Run(UUID(int=1), "topics-1", UUID(int=2), 4, content_hash, 9, 99, 9, UUID(int=3), config, "running")
        return vector_index.passages_collection(run)

    assert named("a" * 64) == named("a" * 64)
    assert len({named("a" * 64), named("b" * 64), named("a" * 64, "other")}) == 3
    assert named("a" * 64, candidates="hybrid") == named("a" * 64) + "_lexical"


@pytest.mark.parametrize("limit", [1, 5, 20, 41, 42, 60])
def test_of_equal_scores_the_lower_ids_are_nearest_whatever_came_first(limit: int) -> None:
    forwards, backwards = stored("forwards", EQUAL), stored("backwards", EQUAL[::-1])
    expected = [(NEARER, 1.0), *((id_, 0.8) for id_ in EQUAL), (FARTHER, 0.0)][:limit]

    for collection in (forwards, backwards):
        one, other = vector_index.nearest(collection, [[1.0, 0.0], [0.0, 1.0]], limit, inf)
        assert one == expected
        assert other[0] == (FARTHER, 1.0)


def test_within_a_cosine_and_no_more_than_asked_for() -> None:
    collection = stored("forwards", EQUAL)

    assert vector_index.within(collection, [1.0, 0.0], 60, 0.9, inf) == [(NEARER, 1.0)]
    assert len(vector_index.within(collection, [1.0, 0.0], 16, 0.5, inf)) == 16
    assert len(vector_index.within(collection, [1.0, 0.0], 60, 0.5, inf)) == 41


def test_words_are_searched_beside_vectors_and_again_once_there_are_more() -> None:
    vector_index.ensure("both", 2, lexical=True)
    first, second, third = (UUID(int=number) for number in (3, 2, 1))
    rows = np.array([[3.0, 4.0], [0.0, 1.0]], dtype=np.float32)
    queries: list[Weights] = [{7: 2.0, 9: 1.0}, {}, {5: 1.0}]
    assert vector_index.nearest_by_words("both", queries, 9, inf) == [[], [], []]

    vector_index.upsert("both", [first, second], rows, [{7: 0.5, 2**32 - 1: 0.25}, {}])
    assert vector_index.nearest_by_words("both", queries, 9, inf) == [[(first, 1.0)], [], []]
    vector_index.upsert("both", [third], rows[:1], [{7: 0.5}])
    assert vector_index.nearest_by_words("both", queries, 9, inf) == [[(third, 1.0), (first, 1.0)], [], []]
    assert vector_index.nearest_by_words("both", queries, 1, inf) == [[(third, 1.0)], [], []]

    assert vector_index.nearest("both", [[0.0, 1.0]], 2, inf) == [[(second, 1.0), (third, 0.8)]]
    assert vector_index.vectors_of("both", [first, UUID(int=9)]) == {first: [pytest.approx(0.6), pytest.approx(0.8)]}
