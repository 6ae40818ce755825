"""The migrations on a real PostgreSQL: they make what schema.py says, and a program of another version is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, Engine, create_engine, make_url, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.pool import NullPool

from shared.errors import SchemaVersionError, SettingError
from shared.migrate import _config, check_version, upgrade
from shared.schema import metadata
from tests.servers import fresh_database
from tests.truth import counts_and_truth, every_row


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


def test_a_database_that_cannot_hold_every_text_is_refused(postgres_url: str) -> None:
    administrator = create_engine(postgres_url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with administrator.connect() as connection:
        connection.execute(text("CREATE DATABASE ascii ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0"))
        url = make_url(postgres_url).set(database="ascii").render_as_string(hide_password=False)
        try:
            with pytest.raises(SettingError, match="ENCODING 'UTF8'"):
                upgrade(url)
        finally:
            connection.execute(text("DROP DATABASE ascii WITH (FORCE)"))


def test_another_schema_version_is_refused(database_url: str) -> None:
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    with pytest.raises(SchemaVersionError, match="fretwork up"):
        check_version(engine)
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE alembic_version"))
    with pytest.raises(SchemaVersionError, match="none"):
        check_version(engine)
    engine.dispose()


def test_the_schema_of_a_newer_program_is_left_alone(database_url: str) -> None:
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaVersionError, match=r"version 9999 .* update this program"):
        check_version(engine)
    with pytest.raises(SchemaVersionError, match=r"a newer Fretwork .*'9999'.* restore the backup"):
        upgrade(database_url)
    migrate = subprocess.run(
        [sys.executable, "-m", "shared.migrate"],
        env={**os.environ, "FRETWORK_DATABASE_URL": database_url},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert migrate.returncode == 1
    assert migrate.stderr.startswith("error: the database was made by a newer Fretwork")
    with engine.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one() == "9999"
    engine.dispose()


POPULATED = """
    INSERT INTO corpora (corpus_id, name, version, passage_count, term_count, content_hash)
    VALUES (md5('corpus')::uuid, 'ten', 1, 10, 70, 'abc');
    INSERT INTO passages (corpus_id, passage_id, source_id, title, text, added_version)
    SELECT md5('corpus')::uuid, md5('passage' || n)::uuid, n, 'title ' || n, 'text ' || n, 1
    FROM generate_series(1, 10) AS n;
    INSERT INTO runs (run_id, name, corpus_id, corpus_version, corpus_hash, passage_count, term_count, config,
                      config_hash, sampled_count, fingerprint, state, finished_at)
    VALUES (md5('done')::uuid, 'ten-1', md5('corpus')::uuid, 1, 'abc', 10, 70, '{"seed": 1}', 'def', 10,
            md5('one')::uuid, 'done', now()),
           (md5('running')::uuid, 'ten-2', md5('corpus')::uuid, 1, 'abc', 10, 70, '{"seed": 2}', 'def', 10,
            md5('two')::uuid, 'running', NULL);
    INSERT INTO label_versions (run_id, label_version, policy)
    SELECT run_id, 1, '{"positive": "seed"}' FROM runs;
    INSERT INTO shards (shard_id, run_id, stage, state, item_ids, item_count, claim_seq, claimed_by, error_message)
    SELECT md5(name || n)::uuid, run_id, 'generate', CASE WHEN state = 'done' THEN 'done' ELSE 'claimed' END,
           ARRAY[md5('passage' || n)::uuid], 1, 2, 'host:1:generator', 'once' FROM runs, generate_series(1, 10) AS n;
    INSERT INTO queries (run_id, query_id, seed_passage_id, ordinal, task_description, query_text, provenance,
                         candidate_ids, candidate_scores, ql_scores, rc_scores)
    SELECT md5('done')::uuid, md5('query' || n)::uuid, md5('passage' || n)::uuid, 0, 'search result', 'what ' || n,
           '{"teacher": "offline"}', ARRAY[md5('passage1')::uuid, md5('passage2')::uuid],
           '{0.5, 0.25}', '{-1, -2}', '{3, 4}'
    FROM generate_series(1, 9) AS n;
    INSERT INTO drops (run_id, stage, item_id, reason, detail)
    VALUES (md5('done')::uuid, 'generate', md5('passage10')::uuid, 'no_sentence', 'too short');
    INSERT INTO fret_records (run_id, query_id, label_version, positive_id, negative_ids, positive_ql_rank,
                              positive_rc_rank, positive_fused_score, seed_fused_score, positive_changed,
                              negative_spans)
    SELECT run_id, query_id, 1, candidate_ids[1], ARRAY[candidate_ids[2]], 1, 1, 2.0, 2.0, false, '[null]' FROM queries;
    INSERT INTO training_runs (training_run_id, run_id, label_version, config, output_dir, result)
    VALUES (md5('training')::uuid, md5('done')::uuid, 1, '{}', '/models/a', '{"steps": 3}');
    INSERT INTO evaluations (evaluation_id, config) VALUES (md5('evaluation')::uuid, '{"split": "test"}')
"""
NEW_COLUMNS = {
    "shards": ("setbacks",),
    "runs": ("max_tokens", "deadline_at", "paused_reason"),
    "fret_records": ("runner_up_fused_score",),
    "training_runs": ("reviews_until",),
    "passages": ("removed_version",),
}


def rows_of(connection: Connection) -> dict[str, list[Any]]:
    """Every row, without the columns that later versions add."""
    return every_row(connection, NEW_COLUMNS)


Migrate = Callable[[Callable[[Config, str], None], str], dict[str, list[Any]]]


@pytest.fixture
def in_use(postgres_url: str) -> Iterator[tuple[Engine, Migrate]]:
    """A ledger of version 0001 with rows in its tables, and what moves it to a version and returns all rows then."""
    with fresh_database(postgres_url) as url:
        engine = create_engine(url)
        config = _config()

        def migrate(move: Callable[[Config, str], None], revision: str) -> dict[str, list[Any]]:
            with engine.begin() as connection:
                config.attributes["connection"] = connection
                move(config, revision)
            with engine.connect() as connection:
                return rows_of(connection)

        migrate(command.upgrade, "0001")
        with engine.begin() as connection:
            connection.execute(text(POPULATED))
        yield engine, migrate
        engine.dispose()


def test_a_ledger_in_use_loses_nothing_on_its_way_to_0002_and_back(in_use: tuple[Engine, Migrate]) -> None:
    engine, migrate = in_use
    with engine.connect() as connection:
        before = rows_of(connection)
    assert len(before) == 11
    assert all(rows for table, rows in before.items() if table != "corpus_terms")
    after = migrate(command.upgrade, "0002")
    assert {table: after.pop(table) for table in ("endpoints", "llm_usage")} == {"endpoints": [], "llm_usage": []}
    assert after == before
    with engine.begin() as connection:
        assert (
            connection.execute(text("SELECT max_tokens, deadline_at, paused_reason FROM runs")).all()
            == [(None, None, None)] * 2
        )
        connection.execute(text("UPDATE runs SET state = 'paused', paused_reason = 'spent' WHERE name = 'ten-2'"))
    with pytest.raises(IntegrityError), engine.begin() as connection:
        connection.execute(text("UPDATE runs SET state = 'asleep'"))
    assert migrate(command.downgrade, "0001") == before, "a paused run is a running one to the version before"


def test_a_ledger_in_use_is_counted_on_its_way_to_0003(in_use: tuple[Engine, Migrate]) -> None:
    engine, migrate = in_use
    before = migrate(command.upgrade, "0002")
    after = migrate(command.upgrade, "0003")
    assert {table: rows for table, rows in after.items() if table in before} == before
    assert {table for table, rows in after.items() if rows} - set(before) == {"counts"}
    with engine.begin() as connection:
        for name in ("done", "running"):
            run_id = connection.execute(text("SELECT CAST(md5(:name) AS uuid)"), {"name": name}).scalar_one()
            counted, there = counts_and_truth(connection, run_id)
            there.pop(("relabel", 1, "judged"), None)  # the relabeler itself counts those, since then
            assert counted == there
            assert there
        connection.execute(text("UPDATE runs SET state = 'cancelled' WHERE name = 'ten-2'"))
    back = migrate(command.downgrade, "0002")
    states = {run["name"]: run["state"] for run in back["runs"]}
    assert states == {"ten-1": "done", "ten-2": "paused"}, "a cancelled run must not go on in the version before"
    del before["runs"], back["runs"]
    assert back == before


def test_a_ledger_in_use_loses_nothing_on_its_way_to_0004_and_back(in_use: tuple[Engine, Migrate]) -> None:
    engine, migrate = in_use
    before = migrate(command.upgrade, "0003")
    after = migrate(command.upgrade, "0004")
    assert after == {**before, "reviews": []}
    with engine.begin() as connection:
        assert connection.execute(text("SELECT reviews_until FROM training_runs")).scalar_one() == 0
        connection.execute(
            text(
                "INSERT INTO reviews (run_id, query_id, label_version, decision) "
                "SELECT run_id, query_id, label_version, 'dropped' FROM fret_records"
            )
        )
        connection.execute(text("UPDATE passages SET removed_version = 2 WHERE source_id = '3'"))
        connection.execute(
            text(
                "INSERT INTO passages (corpus_id, passage_id, source_id, title, text, added_version) "
                "SELECT corpus_id, md5('other')::uuid, source_id, title, 'another text', 3 FROM passages "
                "WHERE source_id = '3'"
            )
        )
    back = migrate(command.downgrade, "0003")
    names = sorted(row["source_id"] for row in back.pop("passages"))
    assert [name for name in names if name.startswith("3")] == ["3", next(n for n in names if "removed" in n)]
    assert len(names) == len(before.pop("passages")) + 1
    assert back == before
