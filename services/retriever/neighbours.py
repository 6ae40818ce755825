"""From a query's nearest passages to its candidates: the seed passage is always among them (Gecko, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from uuid import UUID

from shared.records import Candidate

DECIMALS = 5  # what two machines agree on

Neighbour = tuple[UUID, float]  # a point's id and its score, rounded to DECIMALS


def merge(dense: Sequence[UUID], lexical: Sequence[UUID], limit: int) -> list[UUID]:
    """The nearest by vectors, the nearest by words, the second by vectors, …: each once, `limit` at most."""
    in_turn = chain.from_iterable(zip_longest(dense, lexical))
    return list(dict.fromkeys(passage_id for passage_id in in_turn if passage_id is not None))[:limit]


def candidates(
    chosen: Sequence[UUID],
    seed_passage_id: UUID,
    cosines: Mapping[UUID, float],
    query_vector: Sequence[float],
    vectors: Mapping[UUID, Sequence[float]],
) -> list[Candidate]:
    """The chosen passages as candidates by falling cosine, of equal ones the lower id first.

    A seed that is not among the chosen takes the last one's place; without a vector of it they stand alone.

    Args:
        chosen: the passages, in the order in which they were chosen.
        cosines: the query's with some passages; the others' are reckoned from their vectors.
        vectors: unit vectors `(D,)` of the chosen passages that have no cosine, and of the seed.
    """
    kept = list(chosen)
    if seed_passage_id not in kept and seed_passage_id in vectors:
        kept[-1:] = [seed_passage_id]
    found = [
        (passage_id, cosines[passage_id] if passage_id in cosines else _cosine(query_vector, vectors[passage_id]))
        for passage_id in kept
    ]
    found.sort(key=lambda pair: (-pair[1], pair[0]))
    return [Candidate(passage_id, rank, score) for rank, (passage_id, score) in enumerate(found, start=1)]


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """Of unit vectors."""
    return round(sum(a * b for a, b in zip(one, other, strict=True)), DECIMALS)
