"""What an error of the database says, on a real PostgreSQL: it goes into logs and the ledger, and texts do not."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from uuid import uuid4

import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from shared.database import insert_rows, make_engine
from shared.schema import corpora, passages

SECRET = "a passage that nobody else may read"  # noqa: S105 - a text
PASSAGE = {"corpus_id": uuid4(), "passage_id": uuid4(), "source_id": "a", "title": "", "text": SECRET}


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    made = make_engine(database_url)
    yield made
    made.dispose()


def bound(connection: Connection) -> None:
    connection.execute(text("SELECT 1 / 0 WHERE 'x' <> :text"), {"text": SECRET})


def breaks_a_rule(connection: Connection) -> None:  # "Failing row contains (…)"
    insert_rows(connection, passages, [PASSAGE])


def is_there_already(connection: Connection) -> None:  # "Key (name)=(…) already exists"
    for _ in range(2):
        connection.execute(corpora.insert(), {"corpus_id": uuid4(), "name": SECRET})


def cannot_be_held(connection: Connection) -> None:  # "JSON data, line 1: …"
    insert_rows(connection, passages, [{**PASSAGE, "text": f"{SECRET}\0"}])


@pytest.mark.parametrize("act", [bound, breaks_a_rule, is_there_already, cannot_be_held])
def test_an_error_quotes_no_text(engine: Engine, act: object) -> None:
    assert callable(act)
    with pytest.raises(DBAPIError) as caught, engine.begin() as connection:
        act(connection)
    told = str(caught.value) + "".join(traceback.format_exception(caught.value))
    assert SECRET[:20] not in told
    assert str(caught.value.orig) in told, "what happened is still said"
