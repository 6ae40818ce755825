"""From a query's nearest passages to its candidates: the seed passage is always among them (Gecko, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from shared.records import Candidate


def with_seed(
    nearest: Sequence[tuple[UUID, float]],
    seed_passage_id: UUID,
    query_vector: Sequence[float],
    seed_vector: Sequence[float] | None,
) -> list[Candidate]:
    """The nearest passages as candidates; a seed that is not among them takes the last one's place.

    Without a vector of the seed the nearest stand alone.
    """
    found = list(nearest)
    if seed_vector is not None and all(passage_id != seed_passage_id for passage_id, _ in found):
        cosine = sum(a * b for a, b in zip(query_vector, seed_vector, strict=True))
        found[-1:] = [(seed_passage_id, round(cosine, 5))]
    return [Candidate(passage_id, rank, score) for rank, (passage_id, score) in enumerate(found, start=1)]
