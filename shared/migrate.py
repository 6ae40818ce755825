"""Upgrades the schema. Only `migrate` and `fretwork up` do this; a worker checks the version and refuses another.

python -m shared.migrate          upgrades the database that FRETWORK_DATABASE_URL names
"""

from __future__ import annotations

import sys
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.pool import NullPool

from shared.errors import FretworkError, SchemaVersionError, SettingError
from shared.settings import settings

MIGRATION_LOCK = 0x46524554  # "FRET": one migration at a time, whoever starts it


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    return config


def head_version() -> str:
    head = ScriptDirectory.from_config(_config()).get_current_head()
    assert head is not None  # noqa: S101 - the first migration is part of this package
    return head


def upgrade(database_url: str) -> None:
    """Brings the schema to this version's, under an advisory lock; does nothing where it is there already.

    Raises SettingError for a database that is not in UTF-8: it could not hold every text. Raises SchemaVersionError for
    a schema that this program does not know, as after a step back to an older Fretwork.
    """
    # of an SQL_ASCII database even the server's version would come as bytes, and the sentence below is the better error
    engine = create_engine(database_url, poolclass=NullPool, connect_args={"client_encoding": "utf8"})
    config = _config()
    with engine.begin() as connection:
        encoding = connection.execute(text("SHOW server_encoding")).scalar_one()
        if encoding != "UTF8":
            raise SettingError(
                f"the database is encoded in {encoding}, and passages may hold any character: make it anew with "
                "CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0"
            )
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise SchemaVersionError(
                f"the database was made by a newer Fretwork than this one, whose schema is {head_version()} ({error}): "
                "update Fretwork, or restore the backup of before that upgrade"
            ) from error


def check_version(engine: Engine) -> None:
    """Raises SchemaVersionError unless the database has exactly this version's schema."""
    with engine.connect() as connection:
        found = MigrationContext.configure(connection).get_current_revision()
    if found == head_version():
        return
    earlier = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    raise SchemaVersionError(
        f"the database has schema version {found or 'none'} and this program needs {head_version()}: "
        + (
            "run `fretwork up`, or `python -m shared.migrate` where the services run apart"
            if found is None or found in earlier
            else "a newer Fretwork made it, so update this program"
        )
    )


if __name__ == "__main__":
    try:
        upgrade(settings().require_database_url())
    except FretworkError as error:
        sys.exit(f"error: {error}")
