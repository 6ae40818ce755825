"""A label version's records, as reviewed, out of the ledger, a batch at a time, with their passages. Writes no file.

Keyset pagination over the query id: a batch costs the same at the end of 6.6M records as at the start, and no more
than one is in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Text, bindparam, cast, select
from sqlalchemy.dialects.postgresql import ARRAY

from shared.list_scores import decided, list_scores
from shared.masking import Span, copied_span, mask, mask_titles
from shared.records import Passage
from shared.reviews import reviewed_records
from shared.schema import queries
from shared.store import load_passages
from shared.text_format import plain_passage

BATCH_RECORDS = 500
BATCH_LISTS = 50  # records with all their candidates, of which each has some twenty

ExportRow = dict[str, Any]  # the columns of parquet_jsonl.SCHEMA; ids as text, spans as [start, end] or None


def read_rows(
    connection: Connection,
    run_id: UUID,
    corpus_id: UUID,
    label_version: int,
    *,
    whole_lists: bool = False,
    batch_records: int = BATCH_RECORDS,
) -> Iterator[list[ExportRow]]:
    """Batches of rows in the order of their query ids; open the connection at REPEATABLE READ to see one moment.

    With `whole_lists` all other candidates are a record's negatives, and `scores` has the teacher's score of each.
    """
    of_version = reviewed_records(run_id, label_version)
    columns: dict[str, ColumnElement[Any]] = {column.name: column for column in (*queries.c, *of_version.c)}
    # most of a row's values: made into UUIDs, only to be written as text again, they would double an export's time
    columns["candidate_ids"] = cast(queries.c.candidate_ids, ARRAY(Text)).label("candidate_ids")
    page = (
        select(*columns.values())
        .join_from(of_version, queries, (queries.c.run_id == run_id) & (queries.c.query_id == of_version.c.query_id))
        # of both tables: a bound on one is not taken over to the other, which a merge join would read from its start
        .where(of_version.c.query_id > bindparam("after"), queries.c.query_id > bindparam("after"))
        .order_by(of_version.c.query_id)
        .limit(batch_records)
    )
    after = UUID(int=0)
    while records := connection.execute(page, {"after": after}).all():
        after = records[-1].query_id
        wanted = {id_ for each in records for id_ in (each.seed_passage_id, each.positive_id, *each.negative_ids)}
        if whole_lists:
            wanted.update(UUID(id_) for each in records for id_ in each.candidate_ids)
        texts = load_passages(connection, corpus_id, wanted)
        if whole_lists:
            yield [_whole_list(record, texts) for record in records]
        else:
            yield [_row(record, texts, record.negative_ids, record.negative_spans) for record in records]


def _whole_list(record: Any, texts: dict[UUID, Passage]) -> ExportRow:
    """The row with all other candidates as its negatives, the best first; in `scores` the positive's is the first."""
    place = {UUID(id_): index for index, id_ in enumerate(record.candidate_ids)}
    ids, positive = list(place), place[record.positive_id]
    scores = list_scores(
        record.candidate_scores, record.ql_scores, record.rc_scores, judged_by="both", retriever_weight=1.0
    )
    if record.review is not None:
        scores = decided(scores, positive)
    others = sorted((index for index in place.values() if index != positive), key=lambda index: -scores[index])
    spans = [copied_span(record.query_text, texts[ids[index]].text) for index in others]
    row = _row(record, texts, [ids[index] for index in others], spans)
    return row | {"scores": [scores[index] for index in (positive, *others)]}


def _row(
    record: Any, texts: dict[UUID, Passage], negative_ids: Sequence[UUID], negative_spans: Sequence[Span | None]
) -> ExportRow:
    place = {id_: index for index, id_ in enumerate(record.candidate_ids)}
    positive, positive_at = texts[record.positive_id], place[str(record.positive_id)]
    negatives = [texts[id_] for id_ in negative_ids]
    negatives_at = [place[str(id_)] for id_ in negative_ids]
    return {
        "query_id": str(record.query_id),
        "task_description": record.task_description,
        "query_text": record.query_text,
        "seed_passage_id": str(record.seed_passage_id),
        "seed_source_id": texts[record.seed_passage_id].source_id,
        "ordinal": record.ordinal,
        "positive_id": str(record.positive_id),
        "positive_source_id": positive.source_id,
        "positive_title": positive.title,
        "positive_text": positive.text,
        "positive_span": record.positive_span,
        "positive_title_span": _title_span(record, positive),
        "positive_changed": record.positive_changed,
        "positive_rank": positive_at + 1,
        "positive_score": record.candidate_scores[positive_at],
        "positive_ql_score": record.ql_scores[positive_at],
        "positive_rc_score": record.rc_scores[positive_at],
        "positive_ql_rank": record.positive_ql_rank,
        "positive_rc_rank": record.positive_rc_rank,
        "positive_fused_score": record.positive_fused_score,
        "seed_fused_score": record.seed_fused_score,
        "review": record.review,
        "negative_ids": [str(id_) for id_ in negative_ids],
        "negative_source_ids": [negative.source_id for negative in negatives],
        "negative_titles": [negative.title for negative in negatives],
        "negative_texts": [negative.text for negative in negatives],
        "negative_spans": negative_spans,
        "negative_title_spans": [_title_span(record, negative) for negative in negatives],
        "negative_ranks": [at + 1 for at in negatives_at],
        "negative_scores": [record.candidate_scores[at] for at in negatives_at],
        "negative_ql_scores": [record.ql_scores[at] for at in negatives_at],
        "negative_rc_scores": [record.rc_scores[at] for at in negatives_at],
        "candidate_ids": record.candidate_ids,
        "candidate_scores": record.candidate_scores,
        "ql_scores": record.ql_scores,
        "rc_scores": record.rc_scores,
        "provenance": record.provenance,
        "judge": record.judge,
    }


def _title_span(record: Any, passage: Any) -> list[int] | None:
    """No column of the ledger: the two texts say it (shared/masking.py)."""
    span = copied_span(record.query_text, passage.title)
    return list(span) if span else None


def with_masked(batches: Iterable[list[ExportRow]]) -> Iterator[list[ExportRow]]:
    """The same rows, each with `masked`: its positive, then its negatives, each without copies of the query."""
    for rows in batches:
        yield [row | {"masked": _masked_passages(row)} for row in rows]


def _masked_passages(row: ExportRow) -> list[str]:
    """The record's positive, then its negatives, each without copies of the query (`mask_titles`)."""
    titles = mask_titles(row["query_text"], [row["positive_title"], *row["negative_titles"]])
    texts, spans = [row["positive_text"], *row["negative_texts"]], [row["positive_span"], *row["negative_spans"]]
    return [
        plain_passage(title, mask(text, (span[0], span[1]) if span else None))
        for title, text, span in zip(titles, texts, spans, strict=True)
    ]
