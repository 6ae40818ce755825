"""BM25 as a dot product: the relabeler's scores, whatever stands beside a passage in the index."""

from __future__ import annotations

from collections import Counter
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.relabeler.statistical import bm25
from services.retriever.lexical import Postings, Weights, needed_terms, passage_weights, query_weights
from shared.records import Passage
from shared.terms import CorpusStatistics, passage_terms, terms

STATISTICS = CorpusStatistics(
    passage_count=100,
    term_count=1000,
    document_frequency={"fast": 4, "sort": 10, "the": 90},
    collection_frequency={"fast": 5, "sort": 20, "the": 300},
)
ONE_ID = ("cqeb", "cxvs")  # two terms with the same hash


def weights(text: str) -> Weights:
    return passage_weights(Passage(UUID(int=1), "", text), STATISTICS.mean_length)


def asked(text: str) -> Weights:
    return query_weights(text, STATISTICS)


_text = st.text(alphabet=st.sampled_from("fast sort the zoo.É\n"), max_size=60)


@given(query=_text, title=_text, text=_text)
def test_the_dot_product_is_bm25(query: str, title: str, text: str) -> None:
    found = passage_terms(title, text)
    expected = bm25(Counter(terms(query)), Counter(found), len(found), STATISTICS)

    passage = passage_weights(Passage(UUID(int=1), title, text), STATISTICS.mean_length)
    dot = sum(weight * passage.get(term_id, 0.0) for term_id, weight in asked(query).items())
    assert dot == pytest.approx(expected, abs=1e-6)

    nearest = Postings({UUID(int=1): passage}).nearest(asked(query), 5)
    assert [id_ for id_, _ in nearest] == ([UUID(int=1)] if expected else [])
    assert [score for _, score in nearest] == ([pytest.approx(expected, abs=2e-5)] if expected else [])


def test_ids_of_terms_never_change() -> None:
    """An index that is kept was made with them."""
    assert list(weights("Sort")) == list(asked("sort")) == [1134080776]


def test_terms_with_one_id_add_up() -> None:
    (together,) = weights(" ".join(ONE_ID)).values()
    apart = [weight for each in ONE_ID for weight in weights(f"{each} other").values()]
    assert together == pytest.approx(apart[0] + apart[2])
    assert len(asked(" ".join(ONE_ID))) == 1


def test_of_equal_scores_the_lower_ids_are_nearest_whatever_came_first() -> None:
    texts = {UUID(int=number): "a sort of it" for number in range(2, 30)} | {UUID(int=50): "fast sort"}
    expected = [UUID(int=50), *(UUID(int=number) for number in range(2, 30))]
    for ids in (list(texts), list(texts)[::-1]):
        postings = Postings({id_: weights(texts[id_]) for id_ in ids})
        for limit in (1, 5, 29, 40):
            assert [id_ for id_, _ in postings.nearest(asked("fast sort"), limit)] == expected[:limit]


def test_a_passage_without_a_word_of_the_query_is_no_neighbour() -> None:
    postings = Postings({UUID(int=1): weights("a zoo"), UUID(int=2): weights(""), UUID(int=3): weights("the sort")})
    assert [id_ for id_, _ in postings.nearest(asked("sort it fast"), 5)] == [UUID(int=3)]
    assert postings.nearest(asked("unheard of"), 5) == postings.nearest(asked("?"), 5) == []
    assert Postings({}).nearest(asked("sort"), 5) == []


def test_needed_terms_are_the_queries() -> None:
    assert needed_terms(["The maxSort", "the sort"]) == {"the", "max", "sort"}
