"""Fixtures that every kind of test may use. A server that is missing skips a test on a laptop and fails it in CI.

FRETWORK_TEST_DATABASE_URL   a PostgreSQL server on which databases may be created, instead of the wheel's
FRETWORK_TEST_REDIS_URL      a Redis database that may be emptied, instead of the wheel's
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import hypothesis
import pytest
import redis
from sqlalchemy import Engine, create_engine, make_url

from cli.stack import postgres
from cli.stack.processes import StackError
from shared import migrate
from tests.servers import fresh_database, postgres_from_wheel, redis_from_wheel

# a slow machine is no failure
hypothesis.settings.register_profile("fretwork", deadline=None)
hypothesis.settings.load_profile("fretwork")


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The administrator's URL of a real PostgreSQL server."""
    named = os.environ.get("FRETWORK_TEST_DATABASE_URL")
    yield from [named] if named else _or_skip(postgres_from_wheel())


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """The URL of a real Redis server, kept through the session."""
    named = os.environ.get("FRETWORK_TEST_REDIS_URL")
    yield from [named] if named else _or_skip(redis_from_wheel())


@pytest.fixture(scope="session")
def _template(postgres_url: str) -> Iterator[str]:
    """The name of a database with this version's schema and nothing in it."""
    with fresh_database(postgres_url) as url:
        migrate.upgrade(url)
        database = make_url(url).database
        assert database is not None
        yield database


@pytest.fixture
def database_url(postgres_url: str, _template: str) -> Iterator[str]:
    """The URL of a migrated, empty database for this test alone."""
    with fresh_database(postgres_url, _template) as url:
        yield url


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An engine on `database_url`."""
    made = create_engine(database_url)
    yield made
    made.dispose()


@pytest.fixture
def broker_url(redis_url: str) -> str:
    """The URL of the session's Redis, emptied."""
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
    return redis_url


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A folder for the state of one machine; a database made for it is deleted, wherever it lies."""
    folder = tmp_path / "home"
    folder.mkdir()
    yield folder
    postgres.remove(folder)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file's tests go to one process, unless they name the group they go with: fixtures are made once."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.name))


def _or_skip(server: AbstractContextManager[str]) -> Iterator[str]:
    try:
        url = server.__enter__()
    except StackError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI runs every test: {error}")
        pytest.skip(str(error))
    try:
        yield url
    finally:
        server.__exit__(None, None, None)
