"""The positive and the hard negative of a record."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.relabeler.fuse import Fused, fuse
from services.relabeler.select import SEED_NOT_A_CANDIDATE, TOO_FEW_CANDIDATES, select
from shared.records import Dropped, FRetRecord, LabelPolicy, TaskQuery

A, B, C = (UUID(int=n) for n in range(1, 4))
P_1, SEED = LabelPolicy(positive="p_1"), LabelPolicy(positive="seed")
TEXTS = {A: "Once more. The query stands here. The end.", B: "Nothing.", C: "THE QUERY\n  stands here."}


def query(seed: UUID) -> TaskQuery:
    return TaskQuery(UUID(int=99), seed, 0, "search result", "The query stands here.")


def best_first(*ids: UUID) -> list[Fused]:
    scores = [-float(n) for n in range(len(ids))]
    return fuse(ids, scores, scores)


def test_p_1_is_the_best_and_the_negative_the_last() -> None:
    assert select(query(seed=C), best_first(A, B, C), TEXTS, P_1) == FRetRecord(
        query_id=UUID(int=99),
        positive_id=A,
        negative_ids=(C,),
        positive_ql_rank=1,
        positive_rc_rank=1,
        positive_fused_score=2.0,
        seed_fused_score=2 / 3,
        positive_span=(11, 33),
        negative_spans=((0, 24),),
    )


def test_the_seed_is_the_positive_where_the_policy_says_so() -> None:
    record = select(query(seed=B), best_first(A, B, C), TEXTS, SEED)
    assert isinstance(record, FRetRecord)
    assert (record.positive_id, record.negative_ids) == (B, (C,))
    assert (record.positive_ql_rank, record.positive_fused_score, record.seed_fused_score) == (2, 1.0, 1.0)
    assert record.positive_span is None


def test_a_seed_in_the_last_place_is_not_its_own_negative() -> None:
    record = select(query(seed=C), best_first(A, B, C), TEXTS, SEED)
    assert isinstance(record, FRetRecord)
    assert (record.positive_id, record.negative_ids) == (C, (B,))


@pytest.mark.parametrize("fused", [[], best_first(A)])
def test_a_negative_needs_a_second_candidate(fused: list[Fused]) -> None:
    dropped = select(query(seed=A), fused, TEXTS, P_1)
    assert isinstance(dropped, Dropped)
    assert (dropped.item_id, dropped.reason) == (UUID(int=99), TOO_FEW_CANDIDATES)


def test_the_seed_must_be_a_candidate() -> None:
    dropped = select(query(seed=C), best_first(A, B), TEXTS, P_1)
    assert isinstance(dropped, Dropped)
    assert dropped.reason == SEED_NOT_A_CANDIDATE


@given(
    ids=st.lists(st.uuids(), unique=True, min_size=2, max_size=20),
    seed=st.integers(0, 19),
    policy=st.sampled_from([P_1, SEED]),
    data=st.data(),
)
def test_the_positive_is_never_among_the_negatives(
    ids: list[UUID], seed: int, policy: LabelPolicy, data: st.DataObject
) -> None:
    scores = st.lists(st.integers(0, 3).map(float), min_size=len(ids), max_size=len(ids))
    fused = fuse(ids, data.draw(scores), data.draw(scores))
    record = select(query(seed=ids[seed % len(ids)]), fused, dict.fromkeys(ids, "text"), policy)
    assert isinstance(record, FRetRecord)
    assert record.positive_id not in record.negative_ids
    assert len(record.negative_spans) == len(record.negative_ids) == 1
    assert record.seed_fused_score <= fused[0].fused_score
