"""FRet records as training reads them, in an order fixed by seed and epoch, as formatted examples in batches.

The order: a query's id is a hash, so the order of ids, which Postgres pages through by its index, is already one of
chance; each window of it is shuffled again, per seed and epoch. Memory holds one window, whatever the number of
records, and a `Position` is enough to go on in the middle of an epoch. No torch here, and no tokenizer.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, Self
from uuid import UUID

from sqlalchemy import Engine, Select, desc, func, not_, select

from services.trainer.config import TrainingConfig
from shared.database import one_of
from shared.masking import Span, mask, mask_titles
from shared.records import Passage
from shared.reviews import reviewed_records
from shared.schema import queries, runs
from shared.store import load_passages
from shared.text_format import format_passage, format_query, plain_passage

WINDOW = 4096  # records in memory; at the usual 2 to 5 KB each some 20 MB


@dataclass(frozen=True, slots=True)
class Record:
    """An FRet record with its texts; a span is where the query stands verbatim in that passage's text."""

    query_id: UUID
    task_description: str
    query_text: str
    positive: Passage
    negatives: tuple[Passage, ...] = ()
    positive_span: Span | None = None
    negative_spans: tuple[Span | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Example:
    """A record as the encoder sees it. Equal queries have equal text, equal positives equal ids.

    What else of the batch is a negative is the same for all of a batch, which is of one source.
    """

    query: str
    positive: str
    positive_id: UUID
    negatives: tuple[str, ...]
    same_tower_negatives: bool
    in_batch_negatives: bool = True
    symmetric: bool = False  # targets stand behind the queries' prompt
    # its judged list, as far as it is read in this batch: texts, and the teacher's scores (shared/list_scores.py)
    candidates: tuple[str, ...] = ()
    list_scores: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Position:
    """Where in the mixture the next batch begins: so many batches into the window after this query id."""

    epoch: int = 0
    after: UUID | None = None
    batch: int = 0


class RecordSource(Protocol):
    """Where the records come from."""

    def count(self) -> int:
        """How many there are."""

    def task_description(self) -> str:
        """The most frequent task description (of several the first in the alphabet): the exported query prompt's."""

    def page(self, after: UUID | None, limit: int) -> list[Record]:
        """The next `limit` records in the order of their query ids, those after `after`."""

    def count_by_task(self, at_least: int) -> dict[str, int]:
        """How many records have each task description that so many have, in the alphabet's order."""

    def tasks(self, after: UUID | None, limit: int) -> list[tuple[UUID, str]]:
        """Query ids and task descriptions of the next `limit` records, as `page` would give them."""

    def find(self, query_ids: Collection[UUID]) -> dict[UUID, Record]:
        """The records of these queries; they are all there."""

    def count_by_positive(self, passage_ids: Collection[UUID]) -> dict[UUID, int]:
        """How many records have each of these passages as their positive."""

    def of_positives(self, passage_ids: Collection[UUID]) -> list[Record]:
        """Those records, in the order of their query ids."""

    def without_positives(self, passage_ids: Collection[UUID]) -> Self:
        """The same source without those records."""


def format_query_text(prompts: str, task_description: str, query_text: str) -> str:
    """A query as a model with these prompts reads it; `own` ones are put before it later."""
    return format_query(task_description, query_text) if prompts == "gecko" else query_text


def format_passage_text(prompts: str, title: str, text: str) -> str:
    """A passage as a model with these prompts reads it; `own` ones are put before it later."""
    return format_passage(title, text) if prompts == "gecko" else plain_passage(title, text)


def make_example(record: Record, config: TrainingConfig, epoch: int) -> Example:
    """Formats a record; with `mask_probability` copies of its query are taken out, seeded by seed, epoch and query."""
    masked = random.Random(f"{config.seed}:{epoch}:{record.query_id}").random() < config.mask_probability  # noqa: S311

    passages, spans = [record.positive, *record.negatives], [record.positive_span, *record.negative_spans]
    shown = [(passage.title, passage.text) for passage in passages]
    if masked:
        titles = mask_titles(record.query_text, [passage.title for passage in passages])
        texts = [mask(passage.text, span) for passage, span in zip(passages, spans, strict=True)]
        left = list(zip(titles, texts, strict=True))
        # of a passage that is nothing but the query nothing is left: the positive then stays whole, a negative goes
        shown = [left[0] if any(left[0]) else shown[0], *filter(any, left[1:])]
    positive, *negatives = (format_passage_text(config.prompts, *pair) for pair in shown)

    return Example(
        query=format_query_text(config.prompts, record.task_description, record.query_text),
        positive=positive,
        positive_id=record.positive.passage_id,
        negatives=tuple(negatives) if config.hard_negatives else (),
        same_tower_negatives=config.same_tower_negatives,
    )


def steps_per_epoch(record_count: int, batch_size: int) -> int:
    """The last batch of an epoch may be smaller than the others."""
    return -(-record_count // batch_size)


def batches(source: RecordSource, config: TrainingConfig, start: Position) -> Iterator[tuple[list[Example], Position]]:
    """The batches from `start` to the end of the last epoch, each with the position behind it."""
    size = config.per_device_train_batch_size
    window = max(1, WINDOW // size) * size
    while start.epoch < config.num_train_epochs:
        records = source.page(start.after, window)
        if not records:
            start = Position(start.epoch + 1)
            continue
        last = records[-1].query_id
        random.Random(f"{config.seed}:{start.epoch}:{start.after}").shuffle(records)  # noqa: S311
        count = steps_per_epoch(len(records), size)
        for batch in range(start.batch, count):
            following = (
                Position(start.epoch, start.after, batch + 1) if batch + 1 < count else Position(start.epoch, last)
            )
            chosen = records[batch * size : (batch + 1) * size]
            yield [make_example(record, config, start.epoch) for record in chosen], following
        start = Position(start.epoch, last)


class LedgerRecords:
    """The records of one run and label version as reviewed (up to that review), read from Postgres by keyset."""

    def __init__(
        self,
        engine: Engine,
        run_id: UUID,
        label_version: int,
        reviews_until: int | None = None,
        without: Collection[UUID] = (),
    ) -> None:
        """`without`: passages that no record has as its positive."""
        self._of_all = engine, run_id, label_version, reviews_until
        self._engine = engine
        self._run_id = run_id
        every = reviewed_records(run_id, label_version, reviews_until)
        self._of = select(every).where(not_(one_of(every.c.positive_id, without))).subquery() if without else every
        self._with_query = (queries.c.run_id == self._of.c.run_id) & (queries.c.query_id == self._of.c.query_id)
        self._columns = (self._of, queries.c.task_description, queries.c.query_text)

    @cached_property
    def _corpus_id(self) -> UUID:
        with self._engine.connect() as connection:
            found: UUID = connection.execute(select(runs.c.corpus_id).where(runs.c.run_id == self._run_id)).scalar_one()
        return found

    def count(self) -> int:
        with self._engine.connect() as connection:
            return connection.execute(select(func.count()).select_from(self._of)).scalar_one()

    def task_description(self) -> str:
        task = queries.c.task_description
        statement = (
            select(task)
            .select_from(self._of.join(queries, self._with_query))
            .group_by(task)
            .order_by(desc(func.count()), task)
            .limit(1)
        )
        with self._engine.connect() as connection:
            found: str = connection.execute(statement).scalar_one()
        return found

    def count_by_task(self, at_least: int) -> dict[str, int]:
        task = queries.c.task_description
        statement = (
            select(task, func.count())
            .select_from(self._of.join(queries, self._with_query))
            .group_by(task)
            .having(func.count() >= at_least)
            .order_by(task)
        )
        with self._engine.connect() as connection:
            return {row[0]: row[1] for row in connection.execute(statement)}

    def tasks(self, after: UUID | None, limit: int) -> list[tuple[UUID, str]]:
        statement = self._after(select(self._of.c.query_id, queries.c.task_description), after, limit)
        with self._engine.connect() as connection:
            return [(row.query_id, row.task_description) for row in connection.execute(statement)]

    def page(self, after: UUID | None, limit: int) -> list[Record]:
        return self._records(self._after(select(*self._columns), after, limit))

    def find(self, query_ids: Collection[UUID]) -> dict[UUID, Record]:
        statement = select(*self._columns).join(queries, self._with_query).where(one_of(self._of.c.query_id, query_ids))
        return {record.query_id: record for record in self._records(statement)}

    def count_by_positive(self, passage_ids: Collection[UUID]) -> dict[UUID, int]:
        positive = self._of.c.positive_id
        statement = select(positive, func.count()).where(one_of(positive, passage_ids)).group_by(positive)
        with self._engine.connect() as connection:
            return {row[0]: row[1] for row in connection.execute(statement)}

    def of_positives(self, passage_ids: Collection[UUID]) -> list[Record]:
        statement = select(*self._columns).join(queries, self._with_query).order_by(self._of.c.query_id)
        return self._records(statement.where(one_of(self._of.c.positive_id, passage_ids)))

    def without_positives(self, passage_ids: Collection[UUID]) -> Self:
        return type(self)(*self._of_all, without=passage_ids)

    def _after(self, columns: Select[Any], after: UUID | None, limit: int) -> Select[Any]:
        statement = columns.join(queries, self._with_query).order_by(self._of.c.query_id).limit(limit)
        if after is None:
            return statement
        # of both tables: a bound on one is not taken over to the other, which a merge join would read from its start
        return statement.where(self._of.c.query_id > after, queries.c.query_id > after)

    def _records(self, statement: Select[Any]) -> list[Record]:
        with self._engine.connect() as connection:
            rows = connection.execute(statement).all()
            ids = {id_ for row in rows for id_ in (row.positive_id, *row.negative_ids)}
            texts = load_passages(connection, self._corpus_id, ids)
        return [
            Record(
                query_id=row.query_id,
                task_description=row.task_description,
                query_text=row.query_text,
                positive=texts[row.positive_id],
                negatives=tuple(texts[id_] for id_ in row.negative_ids),
                positive_span=_span(row.positive_span),
                negative_spans=tuple(map(_span, row.negative_spans)),
            )
            for row in rows
        ]


def _span(stored: list[int] | None) -> Span | None:
    return (stored[0], stored[1]) if stored else None
