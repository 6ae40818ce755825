"""docs/operations.md's backup, with PostgreSQL's own programs, of a ledger that is in the middle of its work."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, insert, text

from cli.corpus.store import import_corpus
from cli.stack import postgres
from cli.stack.processes import StackError
from services.status import bearer
from shared import ledger
from shared.labels import add_label_version
from shared.migrate import check_version
from shared.progress import conservation
from shared.records import LabelPolicy, RunConfig
from shared.reviews import save_review
from shared.runs import Run, find_run, start_run
from shared.schema import endpoints, llm_usage, training_curve
from shared.stages import Stage
from shared.trainings import start_evaluation, start_training
from tests.one_process import results, services_on, work
from tests.passages import write_corpus
from tests.servers import fresh_database
from tests.truth import counts_and_truth, every_row

# Qdrant's own, of a parameter that a server heeds
pytestmark = pytest.mark.filterwarnings("ignore:Local mode performs exact:UserWarning")


def run_program(name: str, *arguments: str) -> None:
    """One of PostgreSQL's programs: the wheel's, or those on PATH, which should be of the server's version."""
    try:
        folder = postgres._programs(None, Path())
    except StackError:
        folder = Path()
    program = folder / name if (folder / name).exists() else shutil.which(name)
    if program is None:
        pytest.skip(f"there is no {name} here")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def populated(engine: Engine, folder: Path) -> tuple[Run, Run]:
    """Rows in every table that keeps any: a finished run that was reviewed, trained on and labelled again, and the same
    one anew, in the middle of its work, with a shard whose worker is gone.
    """
    import_corpus(engine, "topics", write_corpus(folder / "topics.jsonl", 16))
    config = RunConfig(shard_size=4, num_candidates=6, query_kinds={"sentence": 1})  # some passage has none
    with engine.begin() as connection:
        done = start_run(connection, "topics", config)
    work(engine)
    with engine.begin() as connection:
        done = find_run(connection, done.name)
        assert add_label_version(connection, done, LabelPolicy(positive="p_1")) == 2
    work(engine)
    with engine.begin() as connection:
        first = connection.execute(text("SELECT query_id FROM fret_records ORDER BY query_id LIMIT 1")).scalar_one()
        save_review(connection, done, 1, first, "dropped")
        training = start_training(connection, done, 1, {}, "/models/topics")
        connection.execute(insert(training_curve).values(training_run_id=training, step=1, loss=1 / 3))
        connection.execute(insert(llm_usage).values(run_id=done.run_id, stage="generate", model="m", prompt_tokens=7))
        assert bearer.make_first_token(connection)
        start_evaluation(connection, {"split": "test"})
        connection.execute(insert(endpoints).values(base_url="http://llm:8000/v1", error="away"))
        half = start_run(connection, "topics", config)
    work(engine, (Stage.INDEX, Stage.GENERATE))
    work(engine, (Stage.RETRIEVE,), shards=1)
    with engine.begin() as connection:
        ready = text("SELECT shard_id FROM shards WHERE run_id = :id AND state = 'ready' ORDER BY shard_id LIMIT 1")
        shard_id = connection.execute(ready, {"id": half.run_id}).scalar_one()
        assert ledger.claim(connection, shard_id, "gone:1:retriever", lease_s=0.0)
    return done, half


def test_a_restored_ledger_has_every_row_and_its_runs_go_on(
    database_url: str, postgres_url: str, broker_url: str, tmp_path: Path
) -> None:
    dump = tmp_path / "fretwork.dump"
    with services_on(database_url, broker_url, tmp_path) as engine:
        done, half = populated(engine, tmp_path)
        with engine.connect() as connection:
            before = every_row(connection)
        run_program("pg_dump", "--format", "custom", "--file", str(dump), database_url.replace("+psycopg", ""))
        expected = results(engine, done.run_id)
    empty = {table for table, rows in before.items() if not rows}
    assert empty <= {"workers", "count_deltas"}, "what is there for moments alone"

    with fresh_database(postgres_url) as url:
        run_program("pg_restore", "--no-owner", "--dbname", url.replace("+psycopg", ""), str(dump))
        restored = create_engine(url)
        check_version(restored)
        with restored.connect() as connection:
            assert every_row(connection) == before
            for run in (done, half):
                counted, there = counts_and_truth(connection, run.run_id)
                assert counted == there
                assert conservation(connection, run.run_id).holds
        restored.dispose()
        with services_on(url, broker_url, tmp_path) as engine:  # the index stayed behind, as docs/operations.md says
            work(engine)
            with engine.begin() as connection:
                assert find_run(connection, half.name).state == "done"
                counted, there = counts_and_truth(connection, half.run_id)
                assert counted == there, "the triggers are there too"
                save_review(connection, done, 1, expected[-1]["query"]["query_id"], "accepted")
            first_labels = [row for row in expected if not row["record"] or row["record"]["label_version"] == 1]
            assert results(engine, half.run_id) == first_labels
