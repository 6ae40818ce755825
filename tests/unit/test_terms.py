"""The tokeniser, and the frequencies derived from it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.terms import MAX_TERM_CHARS, CorpusStatistics, passage_terms, terms


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Returns the mean.", ["returns", "the", "mean"]),
        ("max_pool2d", ["max", "pool2d"]),
        ("maxPool2d", ["max", "pool2d"]),
        ("HTTPServerError", ["http", "server", "error"]),
        ("don't", ["don", "t"]),
        ("Müller & Groß", ["müller", "groß"]),
        ("\ufb01le ＡＢＣ", ["file", "abc"]),  # a ligature, full-width letters
        ("BM25, 3.14", ["bm25", "3", "14"]),
        (" \n--- ", []),
        ("", []),
    ],
)
def test_terms(text: str, expected: list[str]) -> None:
    assert terms(text) == expected


def test_repeats_are_kept_and_order_too() -> None:
    assert terms("a b a") == ["a", "b", "a"]


def test_a_term_is_short_enough_for_an_index() -> None:
    assert terms("x" * 5000) == ["x" * MAX_TERM_CHARS]


@given(st.text(), st.text())
def test_a_passages_terms_are_its_titles_and_its_texts(title: str, text: str) -> None:
    # a combining mark at the text's start would join the newline, not the title
    assert passage_terms(title, text) == terms(title) + terms(text)


@given(st.text())
def test_a_term_is_one_lower_case_word(text: str) -> None:
    for term in terms(text):
        assert 0 < len(term) <= MAX_TERM_CHARS
        assert not any(character.isspace() for character in term)
        assert term == term.lower()


def test_idf_is_the_weight_of_robertson_and_sparck_jones() -> None:
    statistics = CorpusStatistics(10, 100, {"rare": 1, "common": 9}, {"rare": 1, "common": 40})
    assert statistics.idf("rare") == pytest.approx(math.log(1 + 9.5 / 1.5))
    assert statistics.idf("common") == pytest.approx(math.log(1 + 1.5 / 9.5))
    assert statistics.idf("unknown") == pytest.approx(math.log(1 + 10.5 / 0.5))


def test_collection_probability_is_a_share_and_never_zero() -> None:
    statistics = CorpusStatistics(10, 100, {"common": 9}, {"common": 40})
    assert statistics.collection_probability("common") == 0.4
    assert statistics.collection_probability("unknown") == 0.005


def test_mean_length() -> None:
    assert CorpusStatistics(4, 10, {}, {}).mean_length == 2.5
    assert CorpusStatistics(0, 0, {}, {}).mean_length == 1.0
