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
from typing import Any
from uuid import UUID, uuid5

from sqlalchemy import Connection, Engine, text

from cli.corpus.lines import LocatedPassage, Rule, Skipped
from cli.corpus.read import read_passages
from cli.corpus.tables import HUB
from cli.corpus.version import PASSAGE_COUNT, close_version, copy_rows, lock_corpus
from shared.errors import InvalidInputError, SettingError
from shared.records import NAMESPACE

PROGRESS_EVERY = 1_000  # lines

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import did; added + unchanged + duplicates + skipped lines are all the passages that were read."""

    corpus: str
    version: int
    passage_count: int  # of the corpus, after the import
    added: int
    removed: int  # in the corpus, and not among what was read; with `replace` alone
    unchanged: int  # already there under the same `_id`
    duplicates: int  # already there, title and text, under another `_id`; left out
    skipped: dict[str, int]  # lines by the code of the rule that they break


def import_corpus(
    engine: Engine,
    name: str,
    path: Path | str,
    *,
    replace: bool = False,
    skip_invalid: bool = False,
    on_skipped: Callable[[Skipped], None] = lambda _: None,
    on_progress: Callable[[int], None] = lambda _: None,
) -> ImportReport:
    """Adds the passages of `path` to the corpus `name`, which is made if there is none.

    With `replace` it has none but these afterwards, under these `_id`s. A corpus that gains or loses passages gains a
    version; one that does not keeps its own. Two imports of one name wait for each other. `on_skipped` is told each
    line that `skip_invalid` leaves out, `on_progress` the number of passages read so far.

    Raises InvalidInputError, with nothing imported, for a line that breaks a rule (unless `skip_invalid`), for a path
    that cannot be read or holds no passage, and for a name that cannot be a corpus's. Raises SettingError for `replace`
    with `skip_invalid`.
    """
    if replace and skip_invalid:
        raise SettingError("--replace with --skip-invalid would remove what the broken lines hold: mend them first")
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
        version = lock_corpus(connection, corpus_id, name)
        _stage(connection, read_passages(path), skip, on_progress)
        key = {"corpus_id": corpus_id, "version": version + 1}
        removed = 0
        if replace:  # before `_id`s are looked at: a passage that was changed leaves its own to the new text
            removed = connection.execute(_REMOVE_OTHERS, key).rowcount
            connection.execute(_LAY_IDS_DOWN, key)
        _take_two_texts(connection, corpus_id, skip)
        if replace:
            connection.execute(_TAKE_NEW_IDS, key)
        staged = connection.execute(text("SELECT count(*) FROM staged")).scalar_one()
        if not staged:
            rules = f": {skipped.total():,} lines, and each breaks a rule" if skipped else ""
            raise InvalidInputError(path, None, f"there is no passage to import{rules}")
        added = _insert_new(connection, corpus_id, version + 1)
        same_id = connection.execute(_COUNT_SAME_ID, {"corpus_id": corpus_id}).scalar_one()
        if added or removed:
            version += 1
            close_version(connection, corpus_id, version)
        passage_count = connection.execute(PASSAGE_COUNT, {"corpus_id": corpus_id}).scalar_one()
    return ImportReport(
        corpus=name,
        version=version,
        passage_count=passage_count,
        added=added,
        removed=removed,
        unchanged=same_id - added,
        duplicates=staged - same_id,
        skipped=dict(skipped),
    )


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

    copy_rows(connection, "COPY staged FROM STDIN", rows())
    connection.execute(text("ANALYZE staged"))  # nobody else can: the table is this session's


_REMOVE_OTHERS = text(
    """
    UPDATE passages SET removed_version = :version
    WHERE corpus_id = :corpus_id AND removed_version IS NULL
      AND NOT EXISTS (SELECT FROM staged WHERE staged.passage_id = passages.passage_id)
    """
)
# What stays has the `_id` that it has now, in two steps: two passages may have changed theirs with each other.
_LAY_IDS_DOWN = text(
    """
    UPDATE passages SET source_id = chr(1) || passage_id
    WHERE corpus_id = :corpus_id AND removed_version IS NULL AND NOT EXISTS (
        SELECT FROM staged WHERE staged.passage_id = passages.passage_id AND staged.source_id = passages.source_id
    )
    """
)
_TAKE_NEW_IDS = text(
    """
    UPDATE passages SET source_id = named.source_id
    FROM (SELECT DISTINCT ON (passage_id) passage_id, source_id FROM staged ORDER BY passage_id, position) AS named
    WHERE corpus_id = :corpus_id AND named.passage_id = passages.passage_id
      AND passages.source_id = chr(1) || passages.passage_id
    """
)

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
          ON stored.corpus_id = :corpus_id AND stored.source_id = staged.source_id AND stored.removed_version IS NULL
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
            path = row.path if row.path.startswith(HUB) else Path(row.path)
            skip(Skipped(path, row.line, Rule.ID_WITH_TWO_TEXTS, f"the first is in {first}"))


def _insert_new(connection: Connection, corpus_id: UUID, version: int) -> int:
    """Adds the staged passages that the corpus lacks, each under the first `_id` that it came with; how many.

    One that was removed before comes back.
    """
    statement = text(
        """
        INSERT INTO passages (corpus_id, passage_id, source_id, title, text, added_version)
        SELECT :corpus_id, passage_id, source_id, title, text, :version
        FROM staged JOIN (SELECT min(position) AS position FROM staged GROUP BY passage_id) AS first USING (position)
        WHERE NOT EXISTS (
            SELECT FROM passages WHERE corpus_id = :corpus_id AND passages.passage_id = staged.passage_id
              AND removed_version IS NULL
        )
        ON CONFLICT (corpus_id, passage_id) DO UPDATE SET
            source_id = excluded.source_id, added_version = excluded.added_version, removed_version = NULL
        """
    )
    return connection.execute(statement, {"corpus_id": corpus_id, "version": version}).rowcount


_COUNT_SAME_ID = text(
    "SELECT count(*) FROM staged JOIN passages USING (passage_id, source_id) "
    "WHERE corpus_id = :corpus_id AND removed_version IS NULL"
)
