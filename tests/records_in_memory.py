"""FRet records in memory, for tests and measurements of what comes after the ledger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Self
from uuid import UUID, uuid5

from services.trainer.fret_records import Group, JudgedList, Record
from shared.records import NAMESPACE, Passage


class Records:
    """Records in memory, paged as the ledger's are."""

    def __init__(self, records: Sequence[Record], others: Iterable[Passage] = ()) -> None:
        """`others`: passages that are neither a positive nor a negative, as most candidates are."""
        self._records = sorted(map(_judged, records), key=lambda record: record.query_id)
        self._others = {passage.passage_id: passage for passage in others}

    def count(self) -> int:
        return len(self._records)

    def task_description(self) -> str:
        return self._records[0].task_description

    def page(self, after: UUID | None, limit: int) -> list[Record]:
        return [record for record in self._records if after is None or record.query_id > after][:limit]

    def count_by(self, group: Group, at_least: int) -> dict[str, int]:
        counts = Counter(name for _, name in self.groups(group, None, self.count()))
        return {name: count for name, count in sorted(counts.items()) if count >= at_least}

    def groups(self, group: Group, after: UUID | None, limit: int) -> list[tuple[UUID, str]]:
        page = self.page(after, limit)
        return [(each.query_id, each.task_description if group == "task" else self._kind(each)) for each in page]

    def of_kinds(self, kinds: Collection[str]) -> Self:
        left = [record for record in self._records if self._kind(record) in kinds]
        return type(self)(left, self._others.values())

    @staticmethod
    def _kind(record: Record) -> str:
        """The first word of its query."""
        return record.query_text.split()[0]

    def find(self, query_ids: Collection[UUID]) -> dict[UUID, Record]:
        return {record.query_id: record for record in self._records if record.query_id in query_ids}

    def count_by_positive(self, passage_ids: Collection[UUID]) -> dict[UUID, int]:
        return dict(Counter(record.positive.passage_id for record in self.of_positives(passage_ids)))

    def of_positives(self, passage_ids: Collection[UUID]) -> list[Record]:
        return [record for record in self._records if record.positive.passage_id in passage_ids]

    def without_positives(self, passage_ids: Collection[UUID]) -> Self:
        left = [record for record in self._records if record.positive.passage_id not in passage_ids]
        return type(self)(left, self._others.values())

    def passages(self, passage_ids: Collection[UUID]) -> dict[UUID, Passage]:
        known = {each.passage_id: each for record in self._records for each in (record.positive, *record.negatives)}
        return {id_: passage for id_, passage in (known | self._others).items() if id_ in passage_ids}


def _judged(record: Record) -> Record:
    """The record; one without a list has its positive and its negatives as candidates, the better the earlier."""
    if record.judged.passage_ids:
        return record
    candidates = [record.positive.passage_id, *(negative.passage_id for negative in record.negatives)]
    falling = tuple(-float(place) for place in range(len(candidates)))
    return replace(record, judged=JudgedList(tuple(candidates), falling, falling, falling))


def make_records(count: int) -> Records:
    def passage(name: str) -> Passage:
        return Passage(uuid5(NAMESPACE, name), "", name)

    return Records(
        [
            Record(
                uuid5(NAMESPACE, f"query {n}"),
                "search result",
                f"query {n}",
                passage(f"p {n}"),
                (passage(f"n {n}"),),
                None,
                (None,),
            )
            for n in range(count)
        ]
    )
