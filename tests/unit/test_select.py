"""The positive and the hard negatives of a record, and the policies that are refused."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cli.runs.settings import parse_config, parse_policy
from services.relabeler.fuse import Fused, fuse
from services.relabeler.select import (
    BELOW_MIN_RELEVANCE,
    NO_NEGATIVE_LEFT,
    SEED_NOT_A_CANDIDATE,
    SEED_NOT_PREFERRED,
    SEED_NOT_RETRIEVED,
    TOKENS_UNKNOWN,
    TOO_FEW_CANDIDATES,
    UNLIKELY_QUERY,
    select,
    select_negatives,
)
from shared.errors import SettingError
from shared.records import Dropped, FRetRecord, LabelPolicy, RunConfig, TaskQuery
from shared.store import StoredQuery

A, B, C, D, E, F = (UUID(int=n) for n in range(1, 7))
P_1, SEED = LabelPolicy(positive="p_1"), LabelPolicy(positive="seed")
TEXTS = {A: "Once more. The whole query stands here. The end.", B: "Nothing.", C: "THE WHOLE QUERY\n  stands here."}
TEXTS |= dict.fromkeys((D, E, F), "Nothing.")


def query(
    seed: UUID,
    ids: Sequence[UUID] = (A, B, C),
    *,
    cosines: Sequence[float] | None = None,
    rc_scores: Sequence[float] | None = None,
    text: str = "The whole query stands here.",
) -> StoredQuery:
    zeros = (0.0,) * len(ids)
    task_query = TaskQuery(UUID(int=99), seed, 0, "search result", text)
    return StoredQuery(task_query, tuple(ids), tuple(cosines or zeros), zeros, tuple(rc_scores or zeros))


def best_first(*ids: UUID) -> list[Fused]:
    scores = [-float(n) for n in range(len(ids))]
    return fuse(ids, scores, scores)


def negatives(cosines: dict[UUID, float], **policy: Any) -> tuple[UUID, ...]:
    """Of candidates A, B, C … in this order by fused rank, A the positive."""
    return select_negatives(UUID(int=99), A, list(cosines), cosines, LabelPolicy(**policy))


def test_p_1_is_the_best_and_the_negative_the_last() -> None:
    assert select(query(seed=C), best_first(A, B, C), TEXTS, P_1) == FRetRecord(
        query_id=UUID(int=99),
        positive_id=A,
        negative_ids=(C,),
        positive_ql_rank=1,
        positive_rc_rank=1,
        positive_fused_score=2.0,
        seed_fused_score=2 / 3,
        runner_up_fused_score=1.0,
        positive_span=(11, 39),
        negative_spans=((0, 30),),
    )


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        ({"round_trip": 2}, None),
        ({"round_trip": 1}, SEED_NOT_RETRIEVED),
        ({"round_trip_judge": 3}, None),
        ({"round_trip_judge": 2}, SEED_NOT_PREFERRED),
        ({"min_token_log_prob": -4.0}, None),
        ({"min_token_log_prob": -3.9}, UNLIKELY_QUERY),
        ({"round_trip": 1, "round_trip_judge": 1}, SEED_NOT_RETRIEVED),
    ],
)
def test_a_query_that_its_seed_does_not_answer_is_left_out(policy: dict[str, Any], reason: str | None) -> None:
    """The seed is B: second by cosine, third by the judge, with a likelihood of -20 over five tokens."""
    stored = replace(query(seed=B, cosines=(0.9, 0.8, 0.7)), ql_scores=(-5.0, -20.0, -10.0), query_tokens=5)
    chosen = select(stored, best_first(A, C, B), TEXTS, LabelPolicy(positive="p_1", **policy))
    assert (chosen.reason if isinstance(chosen, Dropped) else None) == reason


def test_equal_cosines_are_ranked_by_passage_id() -> None:
    first, second = (
        select(
            query(seed=seed, cosines=(0.9, 0.9, 0.7)),
            best_first(A, B, C),
            TEXTS,
            LabelPolicy(positive="seed", round_trip=1),
        )
        for seed in (A, B)
    )
    assert isinstance(first, FRetRecord)
    assert isinstance(second, Dropped)


def test_a_query_whose_tokens_were_not_counted_is_left_out_with_that_reason() -> None:
    policy = LabelPolicy(positive="seed", min_token_log_prob=-100)
    chosen = select(query(seed=B), best_first(A, B, C), TEXTS, policy)
    assert isinstance(chosen, Dropped)
    assert chosen.reason == TOKENS_UNKNOWN


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


def test_a_mention_is_no_copy() -> None:
    record = select(query(seed=A, text="whole query stands here"), best_first(A, B, C), TEXTS, P_1)
    assert isinstance(record, FRetRecord)
    assert (record.positive_span, record.negative_spans) == (None, (None,))


def test_several_negatives_come_with_their_spans_the_last_candidate_first() -> None:
    stored = query(seed=D, ids=(A, B, C, D))
    record = select(
        stored, best_first(A, D, B, C), TEXTS, P_1.model_copy(update={"num_negatives": 3, "negative": "lowest"})
    )
    assert isinstance(record, FRetRecord)
    assert (record.positive_id, record.negative_ids) == (A, (C, B, D))
    assert record.negative_spans == ((0, 30), None, None)


COSINES = {A: 0.8, B: 0.79, C: 0.75, D: 0.77, E: 0.5, F: 0.2}


@pytest.mark.parametrize(
    ("policy", "wanted"),
    [
        ({}, (F,)),
        ({"num_negatives": 3}, (F, E, D)),
        ({"range_min": 2}, (F,)),
        ({"range_max": 2}, (C,)),  # of B, C, D, E, F the best two
        ({"range_min": 1, "range_max": 3, "num_negatives": 2}, (D, C)),
        ({"range_min": 3, "num_negatives": 3}, (F, E)),  # fewer than asked for
        ({"relative_margin": 0.05, "num_negatives": 3}, (F, E, C)),  # below 0.76: B and D are out
        ({"relative_margin": 0.05, "range_max": 3}, (C,)),
        ({"relative_margin": 0.05, "range_max": 1}, ()),
        ({"relative_margin": 0.375, "num_negatives": 3}, (F,)),  # 0.5 is not below 0.5
        ({"max_score": 0.75, "num_negatives": 3}, (F, E)),  # 0.75 is not below 0.75
        ({"max_score": 0.78, "relative_margin": 0.05, "range_max": 3, "num_negatives": 2}, (C,)),
        ({"max_score": 0.2}, ()),
    ],
)
def test_range_margin_and_cap_by_hand(policy: dict[str, Any], wanted: tuple[UUID, ...]) -> None:
    assert negatives(COSINES, **policy) == wanted


def test_a_margin_below_a_negative_cosine_is_still_below_it() -> None:
    cosines = {A: -0.2, B: -0.19, C: -0.2, D: -0.205, E: -0.3}
    assert negatives(cosines, relative_margin=0.05, num_negatives=3) == (E,)  # below -0.21
    assert negatives({A: 0.0, B: 0.0, C: -0.1}, relative_margin=0.05, num_negatives=3) == (C,)


def test_positive_and_margin_are_of_the_same_query_whatever_the_order_of_retrieval() -> None:
    stored = query(seed=A, ids=(C, A, B), cosines=(0.9, 0.8, 0.1))
    record = select(stored, best_first(A, B, C), TEXTS, LabelPolicy(positive="seed", relative_margin=0.05))
    assert isinstance(record, FRetRecord)
    assert record.negative_ids == (B,)


def test_a_query_without_an_eligible_negative_ends() -> None:
    stored = query(seed=A, cosines=(0.5, 0.6, 0.7))
    dropped = select(stored, best_first(A, B, C), TEXTS, LabelPolicy(positive="p_1", relative_margin=0.05))
    assert dropped == Dropped(UUID(int=99), NO_NEGATIVE_LEFT)


def test_a_positive_below_the_minimum_relevance_ends_its_query() -> None:
    stored = query(seed=B, rc_scores=(2.5, 1.0, 3.0))
    for positive, limit, reason in (
        ("p_1", 2.5, None),
        ("p_1", 2.6, BELOW_MIN_RELEVANCE),
        ("seed", 1.0, None),
        ("seed", 1.1, BELOW_MIN_RELEVANCE),
    ):
        policy = LabelPolicy.model_validate({"positive": positive, "min_relevance": limit})
        chosen = select(stored, best_first(A, B, C), TEXTS, policy)
        assert (chosen.reason if isinstance(chosen, Dropped) else None) == reason


def test_a_policy_without_a_positive_is_no_policy() -> None:
    with pytest.raises(ValueError, match="which candidate is the positive"):
        select(query(seed=A), best_first(A, B, C), TEXTS, LabelPolicy())


# ---- sampled


def test_every_candidate_is_sampled_about_as_often() -> None:
    ids = [UUID(int=n) for n in range(20)]
    cosines = dict.fromkeys(ids, 0.0)
    policy = LabelPolicy(negative="sampled", num_negatives=2, range_min=4)
    drawn = [
        id_
        for n in range(4000)
        for id_ in select_negatives(UUID(int=random.Random(n).getrandbits(128)), ids[0], ids, cosines, policy)  # noqa: S311
    ]
    counts = [drawn.count(id_) for id_ in ids]
    assert counts[:5] == [0] * 5  # the positive, and the four best after it
    expected = 8000 / 15
    assert all(abs(count - expected) < 6 * expected**0.5 for count in counts[5:])


def test_a_sample_depends_on_the_query_and_its_candidates_alone() -> None:
    def sample(query: int, ids: list[UUID], count: int) -> tuple[UUID, ...]:
        policy = LabelPolicy(negative="sampled", num_negatives=count)
        return select_negatives(UUID(int=query), A, ids, dict.fromkeys(ids, 0.0), policy)

    three = sample(1, [A, B, C, D, E, F], 3)
    assert sample(1, [F, E, D, C, B, A], 3) == three
    assert sample(1, [A, B, C, D, E, F], 2) == three[:2]  # fewer are the first of more
    assert sample(1, [id_ for id_ in (A, B, C, D, E, F) if id_ != three[0]], 2) == three[1:]
    assert len({sample(number, [A, B, C, D, E, F], 3) for number in range(50)}) > 20


# ---- what holds for every policy

policies = st.builds(
    LabelPolicy,
    positive=st.sampled_from(["p_1", "seed"]),
    negative=st.sampled_from(["lowest", "sampled"]),
    num_negatives=st.integers(1, 3),
    range_min=st.integers(0, 4),
    range_max=st.none() | st.integers(7, 12),
    relative_margin=st.none() | st.floats(0.01, 0.5),
    max_score=st.none() | st.floats(-0.5, 1),
)


@given(
    ids=st.lists(st.uuids(), unique=True, min_size=2, max_size=20),
    seed=st.integers(0, 19),
    policy=policies,
    data=st.data(),
)
def test_for_every_policy(ids: list[UUID], seed: int, policy: LabelPolicy, data: st.DataObject) -> None:
    few = st.lists(st.integers(0, 3).map(float), min_size=len(ids), max_size=len(ids))
    ql, rc = data.draw(few), data.draw(few)
    cosines = data.draw(st.lists(st.floats(-1, 1), min_size=len(ids), max_size=len(ids)))
    order = data.draw(st.permutations(range(len(ids))))

    def chosen(order: Sequence[int]) -> FRetRecord | Dropped:
        in_order = [ids[i] for i in order]
        stored = query(ids[seed % len(ids)], in_order, cosines=[cosines[i] for i in order])
        fused = fuse(in_order, [ql[i] for i in order], [rc[i] for i in order])
        return select(stored, fused, dict.fromkeys(ids, "text"), policy)

    record = chosen(range(len(ids)))
    assert chosen(order) == record  # the order of retrieval decides nothing
    by_rank = [candidate.passage_id for candidate in fuse(ids, ql, rc)]
    if isinstance(record, Dropped):
        assert record.reason == NO_NEGATIVE_LEFT
        return
    assert record.positive_id == (by_rank[0] if policy.positive == "p_1" else ids[seed % len(ids)])
    assert record.positive_id not in record.negative_ids
    assert len(set(record.negative_ids)) == len(record.negative_ids) == len(record.negative_spans)
    assert 1 <= len(record.negative_ids) <= policy.num_negatives
    others = [id_ for id_ in by_rank if id_ != record.positive_id]
    places = [others.index(id_) for id_ in record.negative_ids]
    if policy.negative == "lowest":
        assert all(later < earlier for earlier, later in pairwise(places))
    cosine = dict(zip(ids, cosines, strict=True))
    for id_, place in zip(record.negative_ids, places, strict=True):
        assert policy.range_min <= place < (policy.range_max or len(ids))
        assert policy.max_score is None or cosine[id_] < policy.max_score
        assert policy.relative_margin is None or cosine[id_] <= cosine[record.positive_id]
    if policy.relative_margin is None and policy.max_score is None:
        left = len(others[policy.range_min : policy.range_max])
        assert len(record.negative_ids) == min(left, policy.num_negatives)


# ---- policies that cannot work


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ({"range_min": 3, "range_max": 3}, "raise range_max to 4"),
        ({"range_max": 2, "num_negatives": 3}, "raise range_max to 3"),
        ({"num_negatives": 4}, "less than or equal to 3"),
        ({"relative_margin": 1.0}, "less than 1"),
        ({"max_score": -1}, "greater than -1"),
    ],
)
def test_a_policy_that_nothing_can_fill_is_refused(policy: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        LabelPolicy(**policy)


def test_a_run_refuses_a_policy_that_its_candidates_cannot_fill() -> None:
    assert RunConfig(num_candidates=5, labels=LabelPolicy(range_min=2, num_negatives=2)).labels.range_min == 2
    with pytest.raises(ValidationError, match="num_candidates=5 leaves 4 beside the positive"):
        RunConfig(num_candidates=5, labels=LabelPolicy(range_min=3, num_negatives=2))
    with pytest.raises(ValidationError, match="num_candidates=5 leaves 4"):
        RunConfig(num_candidates=5).policy(LabelPolicy(range_min=4))
    with pytest.raises(ValidationError, match="greater than or equal to 2"):
        RunConfig(num_candidates=1)


def test_a_labelling_is_set_as_a_run_is() -> None:
    assert parse_policy(["positive=p_1", "fusion=rc", "num_negatives=2", "relative_margin=0.05"]) == LabelPolicy(
        positive="p_1", fusion="rc", num_negatives=2, relative_margin=0.05
    )
    assert parse_config(["labels.fusion=rc"]).labels.fusion == "rc"
    for wrong in ("negatives=2", "fusion=sum", "fusion"):
        with pytest.raises(SettingError, match=re.escape(wrong.split("=")[0])):
            parse_policy([wrong])


def test_the_positive_is_the_teachers_unless_it_is_named() -> None:
    assert LabelPolicy().positive is None
    assert RunConfig().labels.positive == "seed"
    assert RunConfig(teacher="llm").labels.positive == "p_1"
    assert RunConfig(teacher="llm", labels=LabelPolicy(num_negatives=2)).labels == LabelPolicy(
        positive="p_1", num_negatives=2
    )
    assert RunConfig(teacher="llm", labels=SEED).labels == SEED
    for labels, wanted in ((LabelPolicy(num_negatives=2), "p_1"), (SEED, "seed")):
        chosen = RunConfig(labels=labels).model_dump(exclude_unset=True)
        assert RunConfig(**{**chosen, "teacher": "llm"}).labels.positive == wanted
    for config in (RunConfig(), RunConfig(teacher="llm")):
        assert config.policy(LabelPolicy(range_min=1)).positive == config.labels.positive
        stored = config.model_dump(mode="json")
        assert RunConfig(**stored) == config
        assert RunConfig(**stored).sha256() == config.sha256()


def test_a_setting_that_came_later_leaves_the_hashes_of_before_as_they_were() -> None:
    """Query ids are made of them, and with them the order that training goes in."""
    of_before = "3ec9d75ed321c0bffac363f2f1a48b7af0bfc0b54afe38ce0e6d7afee55bb566"
    before = {"candidates": "dense", "query_kinds": {"sentence": 1}, "queries_per_passage": 1}
    assert RunConfig.model_validate(before).sha256() == of_before
    assert RunConfig.model_validate({**before, "labels": LabelPolicy(fusion="ql")}).sha256() != of_before
    assert RunConfig(candidates="dense").sha256() != of_before
    assert RunConfig(query_kinds={"sentence": 1}).sha256() != of_before
