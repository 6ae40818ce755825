"""A run's FRet records out of the ledger, page by page, with their texts and judged lists. No torch here."""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property
from typing import Any, Self
from uuid import UUID

from sqlalchemy import ColumnElement, Engine, Select, desc, func, not_, select

from services.trainer.fret_records import Group, JudgedList, Record
from shared.database import one_of
from shared.masking import Span
from shared.records import Passage
from shared.reviews import reviewed_records
from shared.schema import queries, runs
from shared.store import load_passages

# what wrote no kind down is of before there were several
KIND = func.coalesce(queries.c.provenance["kind"].astext, "other")
_GROUPS: dict[Group, ColumnElement[Any]] = {"task": queries.c.task_description, "kind": KIND}


class LedgerRecords:
    """The records of one run and label version as reviewed (up to that review), read from Postgres by keyset."""

    def __init__(
        self,
        engine: Engine,
        run_id: UUID,
        label_version: int,
        reviews_until: int | None = None,
        without: Collection[UUID] = (),
        kinds: Collection[str] = (),
    ) -> None:
        """`without`: passages that no record has as its positive; `kinds`: of queries, all if none is named."""
        self._of_all = engine, run_id, label_version, reviews_until
        self._without, self._kinds = without, kinds
        self._engine = engine
        self._run_id = run_id
        self._of = reviewed_records(run_id, label_version, reviews_until)
        if without:
            self._of = select(self._of).where(not_(one_of(self._of.c.positive_id, without))).subquery()
        if kinds:
            with_query = (queries.c.run_id == self._of.c.run_id) & (queries.c.query_id == self._of.c.query_id)
            self._of = select(self._of).join(queries, with_query).where(KIND.in_(kinds)).subquery()
        self._with_query = (queries.c.run_id == self._of.c.run_id) & (queries.c.query_id == self._of.c.query_id)
        self._columns: tuple[Any, ...] = (
            self._of,
            *(queries.c[name] for name in ("task_description", "query_text")),
            *(queries.c[name] for name in ("candidate_ids", "candidate_scores", "ql_scores", "rc_scores")),
        )

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

    def count_by(self, group: Group, at_least: int) -> dict[str, int]:
        of = _GROUPS[group]
        statement = (
            select(of, func.count())
            .select_from(self._of.join(queries, self._with_query))
            .group_by(of)
            .having(func.count() >= at_least)
            .order_by(of)
        )
        with self._engine.connect() as connection:
            return {row[0]: row[1] for row in connection.execute(statement)}

    def groups(self, group: Group, after: UUID | None, limit: int) -> list[tuple[UUID, str]]:
        statement = self._after(select(self._of.c.query_id, _GROUPS[group]), after, limit)
        with self._engine.connect() as connection:
            return [(row[0], row[1]) for row in connection.execute(statement)]

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

    def passages(self, passage_ids: Collection[UUID]) -> dict[UUID, Passage]:
        with self._engine.connect() as connection:
            return load_passages(connection, self._corpus_id, passage_ids)

    def without_positives(self, passage_ids: Collection[UUID]) -> Self:
        return type(self)(*self._of_all, without=passage_ids, kinds=self._kinds)

    def of_kinds(self, kinds: Collection[str]) -> Self:
        return type(self)(*self._of_all, without=self._without, kinds=kinds)

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
                judged=JudgedList(
                    passage_ids=tuple(row.candidate_ids),
                    cosines=tuple(row.candidate_scores),
                    ql_scores=tuple(row.ql_scores),
                    rc_scores=tuple(row.rc_scores),
                    decided=row.review is not None,
                ),
            )
            for row in rows
        ]


def _span(stored: list[int] | None) -> Span | None:
    return (stored[0], stored[1]) if stored else None
