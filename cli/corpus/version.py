"""A corpus's versions: its lock, and what is counted anew when passages came or went. The caller's transaction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, cast
from uuid import UUID

import psycopg
from sqlalchemy import Connection, text

from shared.errors import FretworkError
from shared.terms import passage_terms

BATCH_PASSAGES = 1_000
MAX_COUNTED_TERMS = 100_000  # distinct ones held in memory before they go to the database

PASSAGE_COUNT = text("SELECT passage_count FROM corpora WHERE corpus_id = :corpus_id")


def lock_corpus(connection: Connection, corpus_id: UUID, name: str) -> int:
    """The corpus's version, its row made if need be and held until the transaction ends.

    NO KEY UPDATE is the lock that another import waits for and a foreign key's check does not.
    """
    key = {"corpus_id": corpus_id, "name": name}
    connection.execute(
        text("INSERT INTO corpora (corpus_id, name) VALUES (:corpus_id, :name) ON CONFLICT DO NOTHING"), key
    )
    row = connection.execute(text("SELECT version FROM corpora WHERE corpus_id = :corpus_id FOR NO KEY UPDATE"), key)
    return int(row.scalar_one())


def copy_rows(connection: Connection, statement: str, rows: Iterable[tuple[Any, ...]]) -> None:
    """Raises FretworkError where PostgreSQL cannot take them, as with a full disk; it quotes none of them."""
    driver = cast("psycopg.Connection[Any]", connection.connection.driver_connection)
    try:
        with driver.cursor() as cursor, cursor.copy(statement) as copy:
            for row in rows:
                copy.write_row(row)
    except psycopg.Error as error:
        said = error.diag.message_primary or str(error).strip()
        raise FretworkError(f"the database did not take the corpus: {said}; nothing of it was kept") from None


def close_version(connection: Connection, corpus_id: UUID, version: int) -> None:
    """Makes this the corpus's version, once the passages that it adds and removes are marked with it."""
    _count_terms(connection, corpus_id, version)
    key = {"corpus_id": corpus_id, "version": version}
    connection.execute(_UPDATE_CORPUS, key)
    connection.execute(_FORGET_TERMS, key)


def _count_terms(connection: Connection, corpus_id: UUID, version: int) -> None:
    """Writes this version's corpus_terms: those of the version before, with what this one added and removed."""
    connection.execute(text("CREATE TEMPORARY TABLE counted (term text, df bigint, cf bigint) ON COMMIT DROP"))
    document_frequency: Counter[str] = Counter()
    collection_frequency: Counter[str] = Counter()

    def flush() -> None:
        rows = ((term, document_frequency[term], count) for term, count in collection_frequency.items())
        copy_rows(connection, "COPY counted FROM STDIN", rows)
        document_frequency.clear()
        collection_frequency.clear()

    key = {"corpus_id": corpus_id, "version": version}
    with connection.execute(
        text(
            "SELECT title, text, coalesce(removed_version = :version, false) AS is_removed FROM passages "
            "WHERE corpus_id = :corpus_id AND (added_version = :version OR removed_version = :version)"
        ),
        key,
        execution_options={"yield_per": BATCH_PASSAGES},
    ) as changed:
        for title, body, is_removed in changed:
            sign = -1 if is_removed else 1
            for term, count in Counter(passage_terms(title, body)).items():
                collection_frequency[term] += sign * count
                document_frequency[term] += sign
            if len(collection_frequency) > MAX_COUNTED_TERMS:
                flush()
    flush()
    connection.execute(
        text(
            """
            INSERT INTO corpus_terms (corpus_id, version, term, document_frequency, collection_frequency)
            SELECT :corpus_id, :version, term, sum(df), sum(cf)
            FROM (
                SELECT term, df, cf FROM counted
                UNION ALL
                SELECT term, document_frequency, collection_frequency FROM corpus_terms
                WHERE corpus_id = :corpus_id AND version = :version - 1
            ) AS versions
            GROUP BY term HAVING sum(df) > 0
            """
        ),
        key,
    )


# No run is started on an earlier version in the meantime: starting one takes the same lock. What no run was frozen with
# nobody reads, and a copy of all terms for each change would outgrow the corpus.
_FORGET_TERMS = text(
    """
    DELETE FROM corpus_terms
    WHERE corpus_id = :corpus_id AND version < :version
      AND version NOT IN (SELECT corpus_version FROM runs WHERE corpus_id = :corpus_id)
    """
)

# The hash runs over the ids' 16 bytes each, in order, so it tells two corpora of other content apart and nothing else.
_UPDATE_CORPUS = text(
    """
    UPDATE corpora SET
        version = :version,
        passage_count = content.passage_count,
        content_hash = content.content_hash,
        term_count = (
            SELECT coalesce(sum(collection_frequency), 0) FROM corpus_terms
            WHERE corpus_id = :corpus_id AND version = :version
        )
    FROM (
        SELECT count(*) AS passage_count,
               encode(sha256(string_agg(uuid_send(passage_id), ''::bytea ORDER BY passage_id)), 'hex') AS content_hash
        FROM passages WHERE corpus_id = :corpus_id AND removed_version IS NULL
    ) AS content
    WHERE corpus_id = :corpus_id
    """
)
