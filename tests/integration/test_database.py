"""What an error of the database says, on a real PostgreSQL: it goes into logs and the ledger, and texts do not."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import time
import traceback
from collections.abc import Iterator
from uuid import uuid4

import pytest
from sqlalchemy import Connection, Engine, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from cli import main
from cli.corpus.version import copy_rows
from shared.database import insert_rows, is_transient, make_engine
from shared.errors import FretworkError, SettingError, TransientError
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


def test_rows_that_cannot_be_copied_are_an_error_that_quotes_none(engine: Engine) -> None:
    def staged() -> None:
        with engine.begin() as connection:
            connection.execute(text("CREATE TEMPORARY TABLE staged (body text CHECK (length(body) < 3))"))
            copy_rows(connection, "COPY staged FROM STDIN", [(SECRET,)])

    with pytest.raises(FretworkError, match="did not take the corpus: new row for relation") as caught:
        staged()
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    with engine.begin() as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), True),
        (shutil.Error([("a", "b", f"[Errno 28] {os.strerror(errno.ENOSPC)}: 'b'")]), True),
        (sqlite3.OperationalError("database or disk is full"), True),
        (OSError(errno.EACCES, os.strerror(errno.EACCES)), False),
        (KeyError("disk"), False),
        (SettingError("the query 'what to do when the disk is full' is no setting"), False),
        (TransientError("Qdrant is away"), True),
    ],
)
def test_a_full_disk_is_nobodys_fault(error: Exception, transient: bool) -> None:
    assert is_transient(error) == transient


def test_a_process_that_is_stopped_in_its_transaction_is_not_the_works_fault(engine: Engine) -> None:
    def frozen() -> None:
        with engine.begin() as connection:
            connection.execute(text("SET idle_in_transaction_session_timeout = 50"))
            time.sleep(0.3)
            connection.execute(text("SELECT 1"))

    with pytest.raises(DBAPIError) as caught:
        frozen()
    assert is_transient(caught.value)


def backend(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())


def lose(engine: Engine) -> int:
    """Ends the server's side of the connection that the engine's pool holds; returns which it was."""
    pid = backend(engine)
    with create_engine(engine.url, poolclass=NullPool).connect() as connection:
        connection.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
    return pid


def test_a_connection_that_was_lost_while_it_rested_is_replaced(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.database.RESTED_S", 0.0)
    lost = lose(engine)
    assert backend(engine) != lost


def test_a_connection_that_is_lost_at_work_is_a_transient_error_and_replaced_then(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.database.RESTED_S", 3600.0)
    lost = lose(engine)
    with pytest.raises(DBAPIError) as caught:
        backend(engine)
    assert is_transient(caught.value)
    assert backend(engine) != lost


def test_a_server_that_is_away_is_told_from_one_that_answers(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asks(url: str, statement: str) -> str:
        def ask() -> None:
            with create_engine(url, poolclass=NullPool).connect() as connection:
                connection.execute(text(statement))

        monkeypatch.setattr(main, "app", ask)
        with pytest.raises(SystemExit) as ended:
            main.main()
        return str(ended.value)

    nobody = make_url(database_url).set(port=9).render_as_string(hide_password=False)
    assert "did not answer" in asks(nobody, "SELECT 1")
    ended = asks(database_url, "SET statement_timeout = 20; SELECT pg_sleep(5)")
    assert ended == "error: the database says: canceling statement due to statement timeout"


@pytest.mark.parametrize("act", [bound, breaks_a_rule, is_there_already, cannot_be_held])
def test_an_error_quotes_no_text(engine: Engine, act: object) -> None:
    assert callable(act)
    with pytest.raises(DBAPIError) as caught, engine.begin() as connection:
        act(connection)
    told = str(caught.value) + "".join(traceback.format_exception(caught.value))
    assert SECRET[:20] not in told
    assert str(caught.value.orig) in told, "what happened is still said"
