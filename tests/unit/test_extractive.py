"""The offline teacher's queries: which sentences are found, which are chosen, and what has none."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from services.generator.extractive import NO_SENTENCE, TOO_SHORT, needed_terms, sentences, write_queries
from shared.masking import verbatim_span
from shared.records import Dropped, Passage, RunConfig, TaskQuery, query_id
from shared.terms import CorpusStatistics, passage_terms

RUN = UUID(int=7)

ABSTRACT = (
    "Cells divide in many ways. The protein p53 (see Fig. 2) arrests the cycle in e.g. fibroblasts. "
    "We show that its loss leads to unchecked growth!  Does this hold in mice? It was the case in all of them."
)
DOCSTRING = """
    This is the eager form of the function, and it returns
    a new tensor.  The input is left as it was.

    Parameters
    ----------
    x : Tensor
        The tensor whose values are to be clipped.
    lo, hi : float, optional

    >>> clip(x, 0, 1)
    tensor([0.1, 1.0])

    .. note:: This line belongs to a directive of the markup.

    * Values below the lower bound are
      raised to that bound.
    * other: see below

    ```
    This Line Is Code And It Ends.
"""


def statistics_of(*passages: Passage) -> CorpusStatistics:
    bags = [passage_terms(p.title, p.text) for p in passages]
    every = [term for bag in bags for term in bag]
    return CorpusStatistics(
        len(bags),
        len(every),
        {term: sum(term in bag for bag in bags) for term in every},
        {term: every.count(term) for term in every},
    )


def queries_of(passage: Passage, count: int = 1, *, titles: bool = False) -> list[TaskQuery] | Dropped:
    return write_queries(
        passage, statistics_of(passage), run_fingerprint=RUN, queries_per_passage=count, titles_as_queries=titles
    )


def test_sentences_of_an_abstract() -> None:
    assert sentences(ABSTRACT) == [
        "Cells divide in many ways.",
        "The protein p53 (see Fig. 2) arrests the cycle in e.g. fibroblasts.",
        "We show that its loss leads to unchecked growth!",
        "Does this hold in mice?",
        "It was the case in all of them.",
    ]


def test_sentences_of_a_docstring_are_its_prose() -> None:
    assert sentences(DOCSTRING)[:4] == [
        "This is the eager form of the function, and it returns a new tensor.",
        "The input is left as it was.",
        "The tensor whose values are to be clipped.",
        "Values below the lower bound are raised to that bound.",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Too short.",
        "no capital, so a fragment of some sentence.",
        "There is no full stop at the end of it",
        "x = [1, 2, 3]; y = f(x)[0] + {2: 3}; z = 4.",
        "| A table | has many | cells of | words here. |",
        "Many " + "many " * 60 + "words.",
    ],
)
def test_what_is_no_sentence(text: str) -> None:
    assert sentences(text) == []


@given(st.text(alphabet=st.sampled_from("Aab .!\n-*>)`é1"), max_size=300))
def test_every_sentence_stands_in_its_text(text: str) -> None:
    for sentence in sentences(text):
        assert verbatim_span(sentence, text) is not None


def test_a_query_carries_its_origin() -> None:
    passage = Passage(UUID(int=1), "", ABSTRACT)
    queries = queries_of(passage, count=2)
    assert isinstance(queries, list)
    assert [query.ordinal for query in queries] == [0, 1]
    for query in queries:
        assert query.query_id == query_id(RUN, passage.passage_id, query.ordinal)
        assert query.seed_passage_id == passage.passage_id
        assert query.task_description == "search result"
        assert query.provenance == {"teacher": "offline", "method": "inverse_cloze"}


def test_no_more_queries_than_sentences_and_none_twice() -> None:
    queries = queries_of(Passage(UUID(int=1), "", ABSTRACT + " " + ABSTRACT), count=20)
    assert isinstance(queries, list)
    assert sorted(query.query_text for query in queries) == sorted(sentences(ABSTRACT))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = 1; y = 2; z = 3", NO_SENTENCE),
        ("A passage that is a single sentence of its own.", TOO_SHORT),
        ("A passage that is a single sentence of its own. And a rest.", TOO_SHORT),
    ],
)
def test_a_passage_without_a_query_says_why(text: str, reason: str) -> None:
    dropped = queries_of(Passage(UUID(int=1), "", text))
    assert isinstance(dropped, Dropped)
    assert (dropped.item_id, dropped.reason) == (UUID(int=1), reason)


def test_needed_terms_are_all_of_a_passages() -> None:
    passages = [Passage(UUID(int=1), "A title", "the max_pool"), Passage(UUID(int=2), "", "pool")]
    assert needed_terms(passages) == {"a", "title", "the", "max", "pool"}


_fragment = st.sampled_from(
    [
        "The cells divide fast in vitro.",
        "Rates of growth (of it) vary!",
        "code() = 1",
        ">>> f(x)",
        "- An item of a list.",
    ]
)
_prose = st.lists(st.tuples(_fragment, st.sampled_from([" ", "\n", "\n\n", "\n    "])), max_size=12).map(
    lambda parts: "".join(fragment + blank for fragment, blank in parts)
)


@given(text=_prose, count=st.integers(1, 5))
def test_a_query_always_stands_in_its_passage(text: str, count: int) -> None:
    queries = queries_of(Passage(UUID(int=1), "", text), count)
    if isinstance(queries, list):
        assert 1 <= len(queries) <= count
        assert all(verbatim_span(query.query_text, text) for query in queries)
        assert len({query.query_text for query in queries}) == len(queries)


@pytest.mark.parametrize(
    ("title", "expected"),
    [("Loss of p53  in murine fibroblasts", "Loss of p53 in murine fibroblasts"), ("Loss of p53", None)],
)
def test_a_title_is_the_first_query_where_it_is_asked_for_and_long_enough(title: str, expected: str | None) -> None:
    passage = Passage(UUID(int=1), title, ABSTRACT)
    sentences_alone, with_title = queries_of(passage, 2), queries_of(passage, 2, titles=True)
    assert isinstance(sentences_alone, list)
    assert isinstance(with_title, list)
    if expected is None:
        assert with_title == sentences_alone
    else:
        assert [query.query_text for query in with_title] == [expected, sentences_alone[0].query_text]
        assert [query.provenance["method"] for query in with_title] == ["title", "inverse_cloze"]


def test_titles_are_not_asked_of_an_llm() -> None:
    assert RunConfig(titles_as_queries=True).titles_as_queries
    with pytest.raises(ValidationError, match="the teacher llm writes its own queries"):
        RunConfig(teacher="llm", titles_as_queries=True)
