"""Three scores without a common scale become one, standardised within the query's list."""

from __future__ import annotations

from statistics import fmean, pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.list_scores import DECIDED_AHEAD, JudgedBy, decided, list_scores, standardised

COSINES, QL, RC = [0.9, 0.8, 0.7, 0.2], [-30.0, -80.0, -20.0, -90.0], [0.5, 2.5, 2.5, 0.0]


def order(judged_by: JudgedBy, retriever_weight: float) -> list[int]:
    scores = list_scores(COSINES, QL, RC, judged_by=judged_by, retriever_weight=retriever_weight)
    return sorted(range(len(scores)), key=lambda place: -scores[place])


def test_each_part_has_its_say() -> None:
    assert order("ql", 0.0) == [2, 0, 1, 3]
    assert order("rc", 0.0) == [1, 2, 0, 3]
    assert order("both", 100.0) == [0, 1, 2, 3]
    assert order("both", 0.0) == [2, 1, 0, 3]
    # ranks by QL 2 3 1 4; by RC 3, twice the mean of 1 and 2, and 4
    by_ql, by_rc = standardised([-2.0, -3.0, -1.0, -4.0]), standardised([-3.0, -1.5, -1.5, -4.0])
    expected = standardised([fmean(pair) for pair in zip(by_ql, by_rc, strict=True)])
    assert list_scores(COSINES, QL, RC, judged_by="ranks", retriever_weight=0.0) == pytest.approx(expected)


@given(
    st.lists(st.tuples(*[st.floats(-1e3, 1e3)] * 3), min_size=2, max_size=20),
    st.floats(0.1, 10),
    st.floats(-1e3, 1e3),
)
def test_a_scale_and_an_offset_change_nothing(rows: list[tuple[float, float, float]], scale: float, by: float) -> None:
    columns = [[round(row[part], 3) for row in rows] for part in range(3)]
    scores = list_scores(*columns, judged_by="both", retriever_weight=0.7)
    assert fmean(scores) == pytest.approx(0, abs=1e-6)
    assert pstdev(scores) == pytest.approx(1, abs=1e-6) or scores == [0.0] * len(rows)
    moved = [columns[0], [scale * value + by for value in columns[1]], columns[2]]
    assert list_scores(*moved, judged_by="both", retriever_weight=0.7) == pytest.approx(scores, abs=1e-4)


def test_equal_candidates_are_told_apart_by_nothing() -> None:
    assert list_scores([0.1] * 3, [-40.1] * 3, [0.3] * 3, judged_by="both", retriever_weight=1.0) == [0.0] * 3
    assert list_scores([], [], [], judged_by="both", retriever_weight=1.0) == []


def test_a_persons_positive_is_ahead_of_all_others() -> None:
    assert decided([1.0, -1.0, 0.5], positive=1) == [1.0, 1.0 + DECIDED_AHEAD, 0.5]
    assert decided([9.0, -1.0, 0.5], positive=0) == [9.0, -1.0, 0.5]
