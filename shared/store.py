"""Reads what a shard works on: its passages, queries and the statistics of the terms it needs. Writes nothing."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, select

from shared.database import one_of
from shared.records import Passage, TaskQuery
from shared.runs import Run
from shared.schema import corpus_terms, fret_records, passages, queries
from shared.terms import CorpusStatistics


@dataclass(frozen=True, slots=True)
class StoredQuery:
    """A query as far as the stages have come with it; the arrays run parallel, empty before their stage."""

    query: TaskQuery
    candidate_ids: tuple[UUID, ...]
    candidate_scores: tuple[float, ...]
    ql_scores: tuple[float, ...]
    rc_scores: tuple[float, ...]
    query_tokens: int | None = None  # that its likelihoods are of; None where it was judged before that was kept


def load_passages(connection: Connection, corpus_id: UUID, passage_ids: Collection[UUID]) -> dict[UUID, Passage]:
    """The passages by id; an unknown id has none."""
    rows = connection.execute(
        select(passages.c.passage_id, passages.c.title, passages.c.text, passages.c.source_id).where(
            passages.c.corpus_id == corpus_id, one_of(passages.c.passage_id, passage_ids)
        )
    )
    return {row.passage_id: Passage(*row) for row in rows}


def load_statistics(connection: Connection, run: Run, terms: Collection[str]) -> CorpusStatistics:
    """The corpus's statistics as they were when the run started, for these terms alone."""
    rows = connection.execute(
        select(corpus_terms.c.term, corpus_terms.c.document_frequency, corpus_terms.c.collection_frequency).where(
            corpus_terms.c.corpus_id == run.corpus_id,
            corpus_terms.c.version == run.corpus_version,
            one_of(corpus_terms.c.term, terms),
        )
    ).all()
    return CorpusStatistics(
        run.passage_count,
        run.term_count,
        {term: document_frequency for term, document_frequency, _ in rows},
        {term: collection_frequency for term, _, collection_frequency in rows},
    )


def load_queries(connection: Connection, run: Run, query_ids: Sequence[UUID]) -> list[StoredQuery]:
    """The queries in the order of `query_ids`."""
    rows = connection.execute(
        select(queries).where(queries.c.run_id == run.run_id, one_of(queries.c.query_id, query_ids))
    ).mappings()
    found = {
        row["query_id"]: StoredQuery(
            TaskQuery(
                row["query_id"],
                row["seed_passage_id"],
                row["ordinal"],
                row["task_description"],
                row["query_text"],
                row["provenance"],
            ),
            tuple(row["candidate_ids"] or ()),
            tuple(row["candidate_scores"] or ()),
            tuple(row["ql_scores"] or ()),
            tuple(row["rc_scores"] or ()),
            (row["judge"] or {}).get("query_tokens"),
        )
        for row in rows
    }
    return [found[query_id] for query_id in query_ids if query_id in found]


def recorded_query_ids(connection: Connection, run: Run, query_ids: Sequence[UUID]) -> list[UUID]:
    """Those of the queries that have a record by the run's first labelling."""
    with_record = select(fret_records.c.query_id).where(
        fret_records.c.run_id == run.run_id,
        fret_records.c.label_version == 1,
        one_of(fret_records.c.query_id, query_ids),
    )
    return list(connection.execute(with_record).scalars())


def retrieved_query_ids(connection: Connection, run: Run, first: UUID, limit: int = 512) -> list[UUID]:
    """Queries that have candidates, the next ones from the id `first` on."""
    page = (
        select(queries.c.query_id)
        .where(queries.c.run_id == run.run_id, queries.c.query_id >= first, queries.c.candidate_ids.is_not(None))
        .order_by(queries.c.query_id)
        .limit(limit)
    )
    return list(connection.execute(page).scalars())
