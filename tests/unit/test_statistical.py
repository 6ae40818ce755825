"""The offline teacher's two scores, against figures worked by hand."""

from __future__ import annotations

import math
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from services.relabeler.statistical import MU, judge, needed_terms
from shared.records import Judgement, Passage
from shared.terms import K1, B, CorpusStatistics

STATISTICS = CorpusStatistics(
    passage_count=100,
    term_count=1000,
    document_frequency={"fast": 4, "sort": 10, "the": 90},
    collection_frequency={"fast": 5, "sort": 20, "the": 300},
)


def passage(number: int, text: str, title: str = "") -> Passage:
    return Passage(UUID(int=number), title, text)


def test_both_scores_by_hand() -> None:
    """Query `fast sort sort`; the passage holds fast once and sort twice in 4 terms, the mean being 10."""
    [judged] = judge("fast sort sort", [passage(1, "sort and sort fast")], STATISTICS)
    ql = math.log((1 + MU * 5 / 1000) / (4 + MU)) + 2 * math.log((2 + MU * 20 / 1000) / (4 + MU))
    norm = K1 * (1 - B + B * 4 / 10)
    idf_fast, idf_sort = math.log(1 + 96.5 / 4.5), math.log(1 + 90.5 / 10.5)
    rc = idf_fast * 1 / (1 + norm) + 2 * idf_sort * 2 / (2 + norm)
    assert judged == Judgement(UUID(int=1), round(ql, 6), round(rc, 6))


def test_the_title_counts_as_text() -> None:
    [with_title] = judge("fast sort", [passage(1, "of lists", title="fast")], STATISTICS)
    [without] = judge("fast sort", [passage(1, "fast of lists")], STATISTICS)
    assert with_title == without


def test_a_verbatim_copy_is_masked() -> None:
    """What a query was cut from must not win by the copy: it scores as the rest of the passage does."""
    copy, rest = passage(1, "It is the best. A fast\n   sort here. The end."), passage(1, "It is the best. The end.")
    assert judge("a fast sort here.", [copy], STATISTICS) == judge("a fast sort here.", [rest], STATISTICS)
    titled, untitled = passage(1, "The end.", title="fast sort"), passage(1, "The end.")
    assert judge("Fast sort", [titled], STATISTICS) == judge("Fast sort", [untitled], STATISTICS)


def test_more_of_a_rare_term_is_better() -> None:
    worst, middle, best = judge(
        "fast sort", [passage(1, "a b c"), passage(2, "a b fast"), passage(3, "a fast fast")], STATISTICS
    )
    assert worst.ql_score < middle.ql_score < best.ql_score
    assert worst.rc_score == 0.0 < middle.rc_score < best.rc_score


def test_needed_terms_are_the_querys() -> None:
    assert needed_terms("The maxSort, the sort") == {"the", "max", "sort"}


_text = st.text(alphabet=st.sampled_from("fast sort the zoo.É\n"), max_size=60)
_passages = st.lists(st.builds(passage, st.integers(0, 2**64), _text, _text), max_size=6)


@given(query=_text, passages=_passages, empty=st.booleans())
def test_scores_are_finite_for_any_text_and_any_corpus(query: str, passages: list[Passage], empty: bool) -> None:
    statistics = CorpusStatistics(0, 0, {}, {}) if empty else STATISTICS
    for judged in judge(query, passages, statistics):
        assert math.isfinite(judged.ql_score)
        assert math.isfinite(judged.rc_score)
        assert judged.rc_score >= 0


@given(query=_text, passages=_passages, data=st.data())
def test_each_candidate_is_judged_on_its_own(query: str, passages: list[Passage], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(passages))))
    judged = judge(query, passages, STATISTICS)
    assert judge(query, [passages[i] for i in order], STATISTICS) == [judged[i] for i in order]
