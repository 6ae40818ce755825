"""Near duplicates among a run's queries: one is dropped if and only if a lower id lies within the threshold.

So the answer depends on the set of queries alone, not on the order or the shards in which they are looked at. The one
exception are queries that come when others have their records, as of a dead shard that was put back: those keep them.
One that comes while a near duplicate is still being judged does not see it, and both get records.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from uuid import UUID

from shared.records import Dropped

NEAR_DUPLICATE = "near_duplicate"

FIRST_LIMIT = 16


def near_duplicates(
    query_ids: Sequence[UUID],
    nearest: Callable[[UUID, int], Sequence[tuple[UUID, float]]],
    threshold: float,
    recorded: Callable[[Sequence[UUID]], Collection[UUID]],
) -> list[Dropped]:
    """The queries to drop, each with one that it repeats: of a lower id, or with a record.

    Args:
        nearest: gives the nearest queries of the run to one, itself among them, with their cosines. It is asked for
            more until the last one lies outside the threshold, so a crowd of duplicates is searched to its end.
        recorded: those of some queries that have records.
    """
    dropped = []
    for query_id in query_ids:
        limit = FIRST_LIMIT
        while True:
            found = nearest(query_id, limit)
            within = [other for other, cosine in found if cosine >= threshold]
            lowest = min(within, default=query_id)
            if lowest < query_id:
                dropped.append(Dropped(query_id, NEAR_DUPLICATE, str(lowest)))
                break
            if len(within) < limit:
                others = [other for other in within if other != query_id]
                if others and (earlier := recorded(others)):
                    dropped.append(Dropped(query_id, NEAR_DUPLICATE, str(min(earlier))))
                break
            limit *= 8
    return dropped
