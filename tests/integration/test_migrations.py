"""The migrations on a real PostgreSQL: they make what schema.py says, and a program of another version is refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, text

from shared.errors import SchemaVersionError
from shared.migrate import check_version, upgrade
from shared.schema import metadata


def test_models_and_migrations_agree(database_url: str) -> None:
    engine = create_engine(database_url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_upgrading_again_or_at_once_changes_nothing(database_url: str) -> None:
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(upgrade, [database_url, database_url]))
    engine = create_engine(database_url)
    check_version(engine)
    engine.dispose()


def test_another_schema_version_is_refused(database_url: str) -> None:
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0000'"))
    with pytest.raises(SchemaVersionError, match="fretwork up"):
        check_version(engine)
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE alembic_version"))
    with pytest.raises(SchemaVersionError, match="none"):
        check_version(engine)
    engine.dispose()
