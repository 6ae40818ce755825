"""FRet records by number, for a mixture: a file holds their ids, together by group, and the ledger the rest.

A group is a task description or a kind of query. The file is written page by page and mapped into memory: 16 bytes a
record on the disk. In memory is a number for each group that a hundredth of the records are of. The rare ones are one
group, or with the most frequent one where they are less than a hundredth together. An LLM words freely, so many of its
descriptions stand once: drawn all alike, those few records would be nearly the whole training.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate
from math import ceil
from pathlib import Path
from uuid import UUID

import numpy
import orjson

from services.trainer.batching import WINDOW, Drawn, grouped, make_batch
from services.trainer.config import TrainingConfig
from services.trainer.draw import permuted
from services.trainer.fret_records import Example, Group, RecordSource
from services.trainer.mixture_config import FretSource

ID_BYTES = 16
RARE = 100  # a description with less than one in so many records is rare
RARE_ONES = ""  # their group: no description is empty


def write_index(records: RecordSource, group: Group, total: int, folder: Path, on_rows: Callable[[int], None]) -> None:
    """Writes the ids of the `total` records into `folder`, those of a group together, in the order of ids.

    Says how many it has read.
    """
    folder.mkdir(parents=True)
    least = ceil(total / RARE)
    by_group = records.count_by(group, least)
    rare = total - sum(by_group.values())
    of_the_rare = max(by_group, key=lambda name: by_group[name]) if rare < least else RARE_ONES
    counts = by_group | {of_the_rare: by_group.get(of_the_rare, 0) + rare}
    (folder / "counts.json").write_bytes(orjson.dumps(list(counts.values())))
    ids = numpy.memmap(folder / "ids", dtype=f"V{ID_BYTES}", mode="w+", shape=(total,))
    ends = dict(zip(counts, [0, *accumulate(counts.values())], strict=False))
    after: UUID | None = None
    read = 0
    while page := records.groups(group, after, WINDOW):
        for after, name in page:
            place = name if name in by_group else of_the_rare
            ids[ends[place]] = numpy.void(after.bytes)
            ends[place] += 1
        on_rows(read := read + len(page))
    ids.flush()


class FretExamples:
    """The records of an index as examples, a window of the draws at a time, as `batching` has it."""

    def __init__(self, source: FretSource, config: TrainingConfig, records: RecordSource, folder: Path) -> None:
        counts = orjson.loads((folder / "counts.json").read_bytes())
        self.count: int = sum(counts)
        self.groups = len(counts)
        self._starts = [0, *accumulate(counts)]
        self._source, self._config, self._records = source, config, records
        self._ids = numpy.memmap(folder / "ids", dtype=f"V{ID_BYTES}", mode="r")
        self._window = lru_cache(maxsize=1)(self._read)  # the next batches are of it

    def examples(self, places: Sequence[int]) -> list[Example]:
        """Those of one batch; the first of its places is a multiple of their number, as of every other batch."""
        size = len(places)
        batch = places[0] // size
        first, end = self._window_of(batch, size)
        same_tower = self._source.same_tower_negatives
        if same_tower is None:
            same_tower = self._config.same_tower_negatives
        return [
            replace(example, same_tower_negatives=same_tower, in_batch_negatives=self._source.in_batch_negatives)
            for example in make_batch(self._window(first, end, size)[batch - first], self._config, self._records)
        ]

    def _window_of(self, batch: int, size: int) -> tuple[int, int]:
        """The batches, first and end, that are drawn together with this one: of one epoch, so that all differ."""
        epoch = batch * size // self.count
        first, end = ceil(epoch * self.count / size), (epoch + 1) * self.count // size
        if not first <= batch < end:  # it stands in two epochs
            return batch, batch + 1
        wide = max(1, WINDOW // size)
        start = first + (batch - first) // wide * wide
        return start, min(start + wide, end)

    def _read(self, first: int, end: int, size: int) -> list[list[Drawn]]:
        """The batches of a window."""
        places = range(first * size, end * size)
        ids = [UUID(bytes=self._ids[self._number(place)].tobytes()) for place in places]
        found = self._records.find(set(ids))
        drawn = [(found[query_id], place // self.count) for place, query_id in zip(places, ids, strict=True)]
        return grouped(drawn, self._config, size, random.Random(f"{self._config.seed}:fret:{first}"))  # noqa: S311

    def _number(self, place: int) -> int:
        key = f"{self._config.seed}:fret"
        if self._source.uniform_tasks or self._source.uniform_kinds:
            rng = random.Random(f"{key}:{place}")  # noqa: S311
            group = rng.randrange(len(self._starts) - 1)
            return rng.randrange(self._starts[group], self._starts[group + 1])
        return permuted(place % self.count, self.count, f"{key}:{place // self.count}")
