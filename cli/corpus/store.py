"""A corpus goes into the ledger here: one import, one transaction, so nothing half-imported stays behind.

Passages are copied into a temporary table and compared with the corpus by set, so memory stays bounded and a second
import of the same files changes nothing. No file is opened here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid5

import psycopg
from sqlalchemy import Connection, Engine, text

from cli.corpus.lines import LocatedPassage, Rule, Skipped
from cli.corpus.read import read_passages
from shared.errors import InvalidInputError
from shared.records import NAMESPACE
from shared.terms import passage_terms

PROGRESS_EVERY = 1_000  # lines
MAX_COUNTED_TERMS = 100_000  # distinct ones held in memory before they go to the database

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import did; added + unchanged + duplicates + skipped lines are all the passages that were read."""

    corpus: str
    version: int
    passage_count: int  # of the corpus, after the import
    added: int
    unchanged: int  # already there under the same `_id`
    duplicates: int  # already there, title and text, under another `_id`; left out
    skipped: dict[str, int]  # lines by the code of the rule that they break


def import_corpus(
    engine: Engine,
    name: str,
    path: Path | str,
    *,
    skip_invalid: bool = False,
    on_skipped: Callable[[Skipped], None] = lambda _: None,
    on_progress: Callable[[int], None] = lambda _: None,
) -> ImportReport:
    """Adds the passages of `path` to the corpus `name`, which is made if there is none.

    A corpus that gains passages gains a version; one that does not stays as it was to the letter. Two imports of one
    name wait for each other. `on_skipped` is told each line that `skip_invalid` leaves out, `on_progress` the number
    of passages read so far.

    Raises InvalidInputError, with nothing imported, for a line that breaks a rule (unless `skip_invalid`), for a path
    that cannot be read or holds no passage, and for a name that cannot be a corpus's.
    """
    if not _NAME.fullmatch(name):
        raise InvalidInputError(
            name,
            None,
            "no name for a corpus: at most 63 letters, digits, dots, hyphens and underscores, not led by one",
        )
    skipped: Counter[str] = Counter()

    def skip(line: Skipped) -> None:
        if not skip_invalid:
            raise line.error()
        skipped[line.rule.code] += 1
        on_skipped(line)

    corpus_id = uuid5(NAMESPACE, name)
    with engine.begin() as connection:
        version = _lock_corpus(connection, corpus_id, name)
        _stage(connection, read_passages(path), skip, on_progress)
        _take_two_texts(connection, corpus_id, skip)
        staged = connection.execute(text("SELECT count(*) FROM staged")).scalar_one()
        if not staged:
            rules = f": {skipped.total():,} lines, and each breaks a rule" if skipped else ""
            raise InvalidInputError(path, None, f"there is no passage to import{rules}")
        added = _insert_new(connection, corpus_id, version + 1)
        same_id = connection.execute(_COUNT_SAME_ID, {"corpus_id": corpus_id}).scalar_one()
        if added:
            version += 1
            _count_terms(connection, corpus_id, version)
            connection.execute(_UPDATE_CORPUS, {"corpus_id": corpus_id, "version": version})
        passage_count = connection.execute(_PASSAGE_COUNT, {"corpus_id": corpus_id}).scalar_one()
    return ImportReport(
        corpus=name,
        version=version,
        passage_count=passage_count,
        added=added,
        unchanged=same_id - added,
        duplicates=staged - same_id,
        skipped=dict(skipped),
    )


def _lock_corpus(connection: Connection, corpus_id: UUID, name: str) -> int:
    """The corpus's version, its row made if need be and held until the transaction ends.

    NO KEY UPDATE is the lock that another import waits for and a foreign key's check does not.
    """
    key = {"corpus_id": corpus_id, "name": name}
    connection.execute(
        text("INSERT INTO corpora (corpus_id, name) VALUES (:corpus_id, :name) ON CONFLICT DO NOTHING"), key
    )
    row = connection.execute(text("SELECT version FROM corpora WHERE corpus_id = :corpus_id FOR NO KEY UPDATE"), key)
    return int(row.scalar_one())


def _copy(connection: Connection, statement: str, rows: Iterable[tuple[Any, ...]]) -> None:
    driver = cast("psycopg.Connection[Any]", connection.connection.driver_connection)
    with driver.cursor() as cursor, cursor.copy(statement) as copy:
        for row in rows:
            copy.write_row(row)


def _stage(
    connection: Connection,
    items: Iterable[LocatedPassage | Skipped],
    skip: Callable[[Skipped], None],
    on_progress: Callable[[int], None],
) -> None:
    connection.execute(
        text(
            "CREATE TEMPORARY TABLE staged (position bigint, path text, line integer, source_id text, "
            "passage_id uuid, title text, text text) ON COMMIT DROP"
        )
    )

    def rows() -> Iterable[tuple[Any, ...]]:
        position = 0
        for position, item in enumerate(items, start=1):
            if position % PROGRESS_EVERY == 0:
                on_progress(position)
            if isinstance(item, Skipped):
                skip(item)
                continue
            passage = item.passage
            yield (
                position,
                str(item.path),
                item.line,
                passage.source_id,
                passage.passage_id,
                passage.title,
                passage.text,
            )
        on_progress(position)

    _copy(connection, "COPY staged FROM STDIN", rows())
    connection.execute(text("ANALYZE staged"))  # nobody else can: the table is this session's


# An `_id` stands for what the corpus has under it, else for what it first stood for in this import.
_FIND_TWO_TEXTS = text(
    """
    CREATE TEMPORARY TABLE two_texts ON COMMIT DROP AS
    SELECT position, path, line, added_version, first_line
    FROM (
        SELECT staged.*, stored.added_version,
               first_value(staged.line) OVER same_id AS first_line,
               coalesce(stored.passage_id, first_value(staged.passage_id) OVER same_id) AS owner_id
        FROM staged LEFT JOIN passages AS stored
          ON stored.corpus_id = :corpus_id AND stored.source_id = staged.source_id
        WINDOW same_id AS (PARTITION BY staged.source_id ORDER BY staged.position)
    ) AS owned
    WHERE passage_id <> owner_id
    """
)


def _take_two_texts(connection: Connection, corpus_id: UUID, skip: Callable[[Skipped], None]) -> None:
    """Takes from the staged passages those whose `_id` already stands for another; the first to have it keeps it."""
    connection.execute(_FIND_TWO_TEXTS, {"corpus_id": corpus_id})
    connection.execute(text("DELETE FROM staged USING two_texts WHERE staged.position = two_texts.position"))
    with connection.execute(
        text("SELECT path, line, added_version, first_line FROM two_texts ORDER BY position"),
        execution_options={"yield_per": PROGRESS_EVERY},
    ) as taken:
        for row in taken:
            first = (
                f"line {row.first_line}" if row.added_version is None else f"version {row.added_version} of the corpus"
            )
            skip(Skipped(row.path, row.line, Rule.ID_WITH_TWO_TEXTS, f"the first is in {first}"))


def _insert_new(connection: Connection, corpus_id: UUID, version: int) -> int:
    """Adds the staged passages that the corpus lacks, each under the first `_id` that it came with; how many."""
    statement = text(
        """
        INSERT INTO passages (corpus_id, passage_id, source_id, title, text, added_version)
        SELECT :corpus_id, passage_id, source_id, title, text, :version
        FROM staged JOIN (SELECT min(position) AS position FROM staged GROUP BY passage_id) AS first USING (position)
        WHERE NOT EXISTS (
            SELECT FROM passages WHERE corpus_id = :corpus_id AND passages.passage_id = staged.passage_id
        )
        """
    )
    return connection.execute(statement, {"corpus_id": corpus_id, "version": version}).rowcount


_COUNT_SAME_ID = text(
    "SELECT count(*) FROM staged JOIN passages USING (passage_id, source_id) WHERE corpus_id = :corpus_id"
)


def _count_terms(connection: Connection, corpus_id: UUID, version: int) -> None:
    """Writes this version's corpus_terms: the version's before it, and the counts of what `version` added."""
    connection.execute(text("CREATE TEMPORARY TABLE counted (term text, df bigint, cf bigint) ON COMMIT DROP"))
    document_frequency: Counter[str] = Counter()
    collection_frequency: Counter[str] = Counter()

    def flush() -> None:
        rows = ((term, document_frequency[term], count) for term, count in collection_frequency.items())
        _copy(connection, "COPY counted FROM STDIN", rows)
        document_frequency.clear()
        collection_frequency.clear()

    key = {"corpus_id": corpus_id, "version": version}
    with connection.execute(
        text("SELECT title, text FROM passages WHERE corpus_id = :corpus_id AND added_version = :version"),
        key,
        execution_options={"yield_per": PROGRESS_EVERY},
    ) as added:
        for title, body in added:
            counts = Counter(passage_terms(title, body))
            collection_frequency.update(counts)
            document_frequency.update(counts.keys())
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
            GROUP BY term
            """
        ),
        key,
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
        FROM passages WHERE corpus_id = :corpus_id
    ) AS content
    WHERE corpus_id = :corpus_id
    """
)

_PASSAGE_COUNT = text("SELECT passage_count FROM corpora WHERE corpus_id = :corpus_id")
