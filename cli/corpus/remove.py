"""Passages leave a corpus here: one removal, one transaction, one new version.

Their rows stay, for the runs that were started on a version that had them; later runs do without. What a passage said
is not erased by this.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid5

from sqlalchemy import Engine, text

from cli.corpus.lines import BrokenRuleError, Skipped, decode, numbered_lines
from cli.corpus.version import PASSAGE_COUNT, close_version, copy_rows, lock_corpus
from shared.errors import InvalidInputError, NotFoundError
from shared.records import NAMESPACE

LocatedId = tuple[str, Path | str, int | None]  # an `_id`, and the file and line that name it


@dataclass(frozen=True, slots=True)
class RemovalReport:
    corpus: str
    version: int
    passage_count: int  # of the corpus, after the removal
    removed: int
    gone: int  # named, and not there since an earlier removal


def read_ids(path: Path) -> Iterable[LocatedId]:
    """The `_id`s of a file, one a line. Raises InvalidInputError where a line is no text."""
    for number, line in numbered_lines(path):
        try:
            source_id = decode(line).strip("\r\n")
        except BrokenRuleError as broken:
            raise Skipped(path, number, broken.rule, broken.detail).error() from None
        if source_id:
            yield source_id, path, number


def remove_passages(engine: Engine, name: str, source_ids: Iterable[LocatedId]) -> RemovalReport:
    """Takes the passages of these `_id`s out of the corpus. Removing the same ones twice changes nothing.

    Raises NotFoundError without such a corpus, InvalidInputError, with nothing removed, for an `_id` that the corpus
    never had, and where no passage would be left.
    """
    corpus_id = uuid5(NAMESPACE, name)
    key = {"corpus_id": corpus_id}
    with engine.begin() as connection:
        if connection.execute(PASSAGE_COUNT, key).scalar_one_or_none() is None:
            raise NotFoundError(f"there is no corpus {name!r}: `fretwork corpus list` shows the corpora")
        version = lock_corpus(connection, corpus_id, name)
        connection.execute(
            text("CREATE TEMPORARY TABLE named (source_id text, path text, line integer) ON COMMIT DROP")
        )
        rows = ((source_id, str(path), line) for source_id, path, line in source_ids)
        copy_rows(connection, "COPY named FROM STDIN", rows)
        unknown = connection.execute(_UNKNOWN, key).first()
        if unknown is not None:
            raise InvalidInputError(
                unknown.path, unknown.line, f"the corpus {name} never had the _id {unknown.source_id!r}"
            )
        removed = connection.execute(_REMOVE, {**key, "version": version + 1}).rowcount
        if removed:
            version += 1
            if not connection.execute(_IS_ANY_LEFT, key).scalar_one():
                raise InvalidInputError(name, None, "no passage of the corpus would be left")
            close_version(connection, corpus_id, version)
        named = connection.execute(text("SELECT count(DISTINCT source_id) FROM named")).scalar_one()
        passage_count = connection.execute(PASSAGE_COUNT, key).scalar_one()
    return RemovalReport(name, version, passage_count, removed, named - removed)


_UNKNOWN = text(
    """
    SELECT source_id, path, line FROM named WHERE NOT EXISTS (
        SELECT FROM passages WHERE corpus_id = :corpus_id AND passages.source_id = named.source_id
    ) ORDER BY line LIMIT 1
    """
)
_REMOVE = text(
    """
    UPDATE passages SET removed_version = :version
    WHERE corpus_id = :corpus_id AND removed_version IS NULL AND source_id IN (SELECT source_id FROM named)
    """
)
_IS_ANY_LEFT = text("SELECT EXISTS (SELECT FROM passages WHERE corpus_id = :corpus_id AND removed_version IS NULL)")
