"""Takes an earlier run's queries over: what the LLM would write again for the same passage. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from uuid import UUID

from shared.records import Passage, TaskQuery, query_id


def ids_in(fingerprint: UUID, passages: Sequence[Passage], queries_per_passage: int) -> list[UUID]:
    """The ids that a run of this fingerprint gives the queries of these passages."""
    return [query_id(fingerprint, each.passage_id, n) for each in passages for n in range(queries_per_passage)]


def taken_over(earlier: Iterable[TaskQuery], fingerprint: UUID) -> dict[UUID, list[TaskQuery]]:
    """The queries under the ids of the run that takes them over, by seed passage; their provenance is the first's."""
    found: dict[UUID, list[TaskQuery]] = {}
    for query in earlier:
        own_id = query_id(fingerprint, query.seed_passage_id, query.ordinal)
        found.setdefault(query.seed_passage_id, []).append(replace(query, query_id=own_id))
    return found
