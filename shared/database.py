"""One engine per process, made when first asked for: after a fork, never before (celery #1564)."""

from __future__ import annotations

from functools import cache

from sqlalchemy import Engine, create_engine

from shared.migrate import check_version
from shared.settings import settings


def make_engine(database_url: str) -> Engine:
    """An engine whose connections are checked before use, so that a restarted server is not seen as an error."""
    return create_engine(
        database_url, pool_pre_ping=True, pool_size=8, max_overflow=8, connect_args={"connect_timeout": 10}
    )


@cache
def engine() -> Engine:
    """The process's engine.

    Raises SettingError without FRETWORK_DATABASE_URL, SchemaVersionError where the schema is not this version's.
    """
    made = make_engine(settings().require_database_url())
    check_version(made)
    return made
