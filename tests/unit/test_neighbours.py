"""Candidates from what is near by vectors and near by words."""

from __future__ import annotations

from uuid import UUID

from services.retriever.neighbours import candidates, merge
from shared.records import Candidate

A, B, C, D, E = (UUID(int=number) for number in range(1, 6))
QUERY = [1.0, 0.0]
COSINES = {B: 0.9, A: 0.5, D: 0.5}


def test_both_give_in_turn_and_each_passage_once() -> None:
    assert merge([A, B, C], [D, A, E], 6) == [A, D, B, C, E]
    assert merge([A, B, C], [D, A, E], 3) == [A, D, B]
    assert merge([A, B, C], [], 3) == [A, B, C], "no word in common"
    assert merge([A], [B, C, D], 9) == [A, B, C, D]


def test_candidates_stand_by_cosine_then_id_and_words_alone_get_theirs_from_the_vectors() -> None:
    found = candidates([D, B, C, A], A, COSINES, QUERY, {C: [0.6, 0.8]})
    assert found == [Candidate(B, 1, 0.9), Candidate(C, 2, 0.6), Candidate(A, 3, 0.5), Candidate(D, 4, 0.5)]


def test_the_seed_takes_the_place_of_the_last_that_was_chosen() -> None:
    found = candidates([B, A, D], E, COSINES, QUERY, {E: [0.123456, 0.5]})
    assert found == [Candidate(B, 1, 0.9), Candidate(A, 2, 0.5), Candidate(E, 3, 0.12346)]
    assert candidates([], E, {}, QUERY, {E: [1.0, 0.0]}) == [Candidate(E, 1, 1.0)]


def test_a_seed_without_a_vector_is_no_candidate() -> None:
    assert [found.passage_id for found in candidates([B, A, D], E, COSINES, QUERY, {})] == [B, A, D]
