"""One engine per process, made when first asked for: after a fork, never before (celery #1564); many rows at once."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any

import orjson
import psycopg
from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Connection,
    Engine,
    ExceptionContext,
    Table,
    any_,
    create_engine,
    event,
    literal,
    text,
)
from sqlalchemy.exc import DBAPIError, InterfaceError, InvalidatePoolError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import ConnectionPoolEntry

from shared.errors import FretworkError, TransientError
from shared.migrate import check_version
from shared.settings import settings

# what goes away by itself: a server that is away or starts anew, and what our own code says is of that kind
_TRANSIENT = (OperationalError, InterfaceError, PoolTimeoutError, ConnectionError, TimeoutError)
# what the system says, and SQLite, which is the local Qdrant's; libraries hide the number behind errors of their own
_DISK_FULL = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT), "disk is full")
TCP_IDLE_S = 30  # and 15 more until a connection that nobody answers counts as gone
RESTED_S = 1.0  # a connection that was in use less long ago is not asked whether its server is still there


def make_engine(database_url: str) -> Engine:
    """An engine whose connections are checked after a rest, so that a restarted server is not seen as an error.

    What its errors say goes into logs and the ledger, so they quote no parameter and no row.
    """
    made = create_engine(
        database_url,
        pool_size=8,
        max_overflow=8,
        hide_parameters=True,
        # a server's machine that vanishes says nothing: libpq would wait for its answer for hours
        connect_args={
            "connect_timeout": 10,
            "keepalives_idle": TCP_IDLE_S,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 1000 * (TCP_IDLE_S + 15),
        },
    )
    event.listen(made, "handle_error", _leave_out_rows)

    # pool_pre_ping asks each time: two of the seven answers that a shard's claim and finish wait for
    def ask_the_rested(connection: Any, record: ConnectionPoolEntry, _: Any) -> None:
        used_at = record.info.get("used_at")  # None: it is new
        if used_at is None or time.monotonic() - used_at < RESTED_S:
            return
        try:
            made.dialect.do_ping(connection)
        except psycopg.Error as gone:
            raise InvalidatePoolError from gone

    event.listen(made, "checkout", ask_the_rested)
    event.listen(made, "checkin", _note_when)
    return made


def _note_when(_: Any, record: ConnectionPoolEntry) -> None:
    record.info["used_at"] = time.monotonic()


def _leave_out_rows(context: ExceptionContext) -> None:
    """PostgreSQL's own words quote the row in their second half, DETAIL and CONTEXT: the first half is kept."""
    ours, error = context.sqlalchemy_exception, context.original_exception
    if ours is None or not isinstance(error, psycopg.Error) or error.diag.message_primary is None:
        return
    whole, said = str(error), error.diag.message_primary
    error.args = (said,)
    ours.args = tuple(str(part).replace(whole, said) for part in ours.args)


@cache
def engine() -> Engine:
    """The process's engine.

    What a frozen process, or a machine that is gone, holds locked in a transaction is let go by the server: at the end
    of a lease, or the shard could be given to nobody.

    Raises SettingError without FRETWORK_DATABASE_URL, SchemaVersionError where the schema is not this version's.
    """
    made = make_engine(settings().require_database_url())
    event.listen(made, "connect", _let_go_of_the_frozen)
    check_version(made)
    return made


def _let_go_of_the_frozen(connection: Any, _: Any) -> None:
    connection.execute(
        f"SET idle_in_transaction_session_timeout = {round(1000 * settings().lease_s)}; "
        f"SET tcp_keepalives_idle = {TCP_IDLE_S}; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3"
    )
    connection.commit()


def is_transient(error: Exception) -> bool:
    """Whether it goes away without a change to the work: a server that is away, a disk that is full, a process that was
    stopped in its transaction.
    """
    if isinstance(error, DBAPIError) and isinstance(error.orig, psycopg.errors.IdleInTransactionSessionTimeout):
        return True
    if isinstance(error, FretworkError):  # which may quote a text that speaks of disks
        return isinstance(error, TransientError)
    return isinstance(error, _TRANSIENT) or any(said in str(error) for said in _DISK_FULL)


def one_of(column: ColumnElement[Any], values: Collection[Any]) -> ColumnElement[bool]:
    """Whether the column has one of the values: `IN` as one parameter, for PostgreSQL takes 65,535 in a statement."""
    return column == any_(literal(list(values), ARRAY(column.type)))


def insert_rows(
    connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]], *, new_only: bool = False
) -> None:
    """Inserts all rows, which have the same columns, in one statement: the triggers that count them fire once.

    `new_only` leaves out rows that are there already. Floats come back bit for bit; none may be NaN or infinite.
    """
    if not rows:
        return
    columns = ", ".join(rows[0])
    connection.execute(
        text(
            f"INSERT INTO {table.name} ({columns}) "  # noqa: S608 - names of our own schema
            f"SELECT {columns} FROM jsonb_populate_recordset(CAST(NULL AS {table.name}), CAST(:rows AS jsonb))"
            + (" ON CONFLICT DO NOTHING" if new_only else "")
        ),
        {"rows": orjson.dumps(list(rows), default=dict).decode()},
    )
