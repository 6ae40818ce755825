"""Which of a run's queries repeat another: by their ids and the set alone, however many are alike."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from uuid import UUID

from services.retriever.duplicates import FIRST_LIMIT, NEAR_DUPLICATE, near_duplicates
from shared.records import Dropped

THRESHOLD = 0.98
IDS = [UUID(int=number) for number in range(1, 60)]


def alike(query_id: UUID, limit: int) -> Sequence[tuple[UUID, float]]:
    """All but the last ten are alike; Qdrant's order among equal ones says nothing."""
    crowd = IDS[:-10]
    if query_id not in crowd:
        return [(query_id, 1.0), (IDS[0], 0.5)][:limit]
    others = [other for other in reversed(crowd) if other != query_id]
    return [(query_id, 1.0), *((other, 0.99) for other in others), (IDS[-1], 0.5)][:limit]


def dropped(query_ids: Sequence[UUID], recorded: Collection[UUID] = ()) -> list[Dropped]:
    return near_duplicates(query_ids, alike, THRESHOLD, lambda ids: [id_ for id_ in ids if id_ in recorded])


def test_of_many_that_are_alike_the_lowest_stays() -> None:
    assert len(IDS) > 3 * FIRST_LIMIT
    gone = {item.item_id: item for item in dropped(IDS)}
    assert set(gone) == set(IDS[1:-10])
    assert {item.reason for item in gone.values()} == {NEAR_DUPLICATE}
    assert all(UUID(item.detail) < id_ for id_, item in gone.items())


def test_the_shards_that_they_come_in_change_nothing() -> None:
    assert [item for id_ in reversed(IDS) for item in dropped([id_])] == dropped(IDS)[::-1]


def test_one_that_comes_late_gives_way_to_one_that_has_its_record() -> None:
    assert dropped([IDS[0]], recorded=[IDS[7], IDS[3]]) == [Dropped(IDS[0], NEAR_DUPLICATE, str(IDS[3]))]
    assert dropped([IDS[0]], recorded=[IDS[0], IDS[-1]]) == [], "it itself, and one that is not alike"
