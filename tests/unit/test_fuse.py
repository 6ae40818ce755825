"""Reciprocal rank fusion against an example worked by hand, and what must hold for any scores."""

from __future__ import annotations

from itertools import pairwise
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.relabeler.fuse import Fused, fuse

A, B, C, D, E = (UUID(int=n) for n in range(1, 6))


def test_golden_example_with_ties() -> None:
    """Five candidates; A and B have equal QL scores, C and D equal RC scores.

    | | QL | r_QL                | RC  | r_RC                | R                | place                |
    |-|----|---------------------|-----|---------------------|------------------|----------------------|
    | A | -2 | 2 (tie with B, A<B) | 9.0 | 1                 | 1/2 + 1   = 1.5  | 2nd: r_QL 2          |
    | B | -2 | 3                   | 1.0 | 5                 | 1/3 + 1/5 = 8/15 | 4th                  |
    | C | -1 | 1                   | 7.0 | 2 (tie with D)    | 1   + 1/2 = 1.5  | 1st: r_QL 1          |
    | D | -3 | 4                   | 7.0 | 3                 | 1/4 + 1/3 = 7/12 | 3rd                  |
    | E | -9 | 5                   | 6.0 | 4                 | 1/5 + 1/4 = 9/20 | 5th                  |
    """
    assert fuse([A, B, C, D, E], [-2, -2, -1, -3, -9], [9.0, 1.0, 7.0, 7.0, 6.0]) == [
        Fused(C, 1, 2, 1.5),
        Fused(A, 2, 1, 1.5),
        Fused(D, 4, 3, 7 / 12),
        Fused(B, 3, 5, 8 / 15),
        Fused(E, 5, 4, 9 / 20),
    ]


def test_a_tie_that_floating_point_would_break() -> None:
    """1/3 + 1/15 = 1/5 + 1/5 = 2/5, so the QL rank of 3 goes first; summed as floats, the first is smaller."""
    assert 1 / 3 + 1 / 15 < 1 / 5 + 1 / 5
    ids = [UUID(int=n) for n in range(15)]
    rc_order = [0, 1, 3, 5, 4, *range(6, 15), 2]  # the fifth by QL is fifth by RC too, the third is last
    rc_scores = [-float(rc_order.index(n)) for n in range(15)]
    fused = fuse(ids, [-float(n) for n in range(15)], rc_scores)
    third, fifth = (next(i for i, f in enumerate(fused) if f.ql_rank == rank) for rank in (3, 5))
    assert (fused[third].rc_rank, fused[fifth].rc_rank) == (15, 5)
    assert fused[third].fused_score == fused[fifth].fused_score == 0.4
    assert third < fifth


def test_one_rank_alone_orders_the_candidates() -> None:
    ids, ql, rc = [A, B, C, D], [-4.0, -3.0, -2.0, -1.0], [1.0, 2.0, 2.0, 0.5]
    assert fuse(ids, ql, rc, "ql") == [
        Fused(D, 1, 4, 1),
        Fused(C, 2, 2, 1 / 2),
        Fused(B, 3, 1, 1 / 3),
        Fused(A, 4, 3, 1 / 4),
    ]
    assert fuse(ids, ql, rc, "rc") == [
        Fused(B, 3, 1, 1),
        Fused(C, 2, 2, 1 / 2),
        Fused(A, 4, 3, 1 / 3),
        Fused(D, 1, 4, 1 / 4),
    ]


def test_agreement_keeps_the_order() -> None:
    assert [f.passage_id for f in fuse([B, C, A], [2, 1, 3], [20, 10, 30])] == [A, B, C]


def test_equal_scores_everywhere_leave_the_order_of_ids() -> None:
    assert [f.passage_id for f in fuse([C, A, B], [0, 0, 0], [0, 0, 0])] == [A, B, C]


def test_none_gives_none() -> None:
    assert fuse([], [], []) == []


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="shorter"):
        fuse([A, B], [1.0], [1.0, 2.0])


def test_a_candidate_stands_once() -> None:
    with pytest.raises(ValueError, match="twice"):
        fuse([A, A], [1.0, 2.0], [1.0, 2.0])


# few distinct scores, so that ties are the rule
_candidates = st.lists(
    st.tuples(st.uuids(), st.integers(0, 4).map(float), st.integers(0, 4).map(float)),
    unique_by=lambda candidate: candidate[0],
    min_size=1,
    max_size=25,
)


def _fuse(candidates: list[tuple[UUID, float, float]]) -> list[Fused]:
    ids, ql, rc = zip(*candidates, strict=True)
    return fuse(ids, ql, rc)


@given(_candidates.flatmap(lambda c: st.tuples(st.just(c), st.permutations(c))))
def test_the_order_of_the_candidates_does_not_matter(
    two_orders: tuple[list[tuple[UUID, float, float]], list[tuple[UUID, float, float]]],
) -> None:
    one, other = two_orders
    assert _fuse(one) == _fuse(other)


@given(_candidates)
def test_ranks_are_permutations_and_the_best_comes_first(candidates: list[tuple[UUID, float, float]]) -> None:
    fused = _fuse(candidates)
    everyone = list(range(1, len(candidates) + 1))
    assert sorted(f.ql_rank for f in fused) == everyone
    assert sorted(f.rc_rank for f in fused) == everyone
    for better, worse in pairwise(fused):
        assert (-better.fused_score, better.ql_rank) < (-worse.fused_score, worse.ql_rank)
