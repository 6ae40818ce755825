"""A newcomer's path through the command line, with real processes: corpus, run, export, train, evaluate."""

from __future__ import annotations

import json
import re
from pathlib import Path
from uuid import UUID

import pyarrow.parquet
import pytest
from sqlalchemy import text

from cli.demo.corpus import normalise
from shared.fleet import list_workers
from shared.stages import QUEUES, RUN_STAGES
from shared.throughput import throughput
from tests.e2e.conftest import Trained
from tests.e2e.stack import Stack, fretwork
from tests.truth import counts_and_truth

pytestmark = pytest.mark.xdist_group("trained")


@pytest.fixture(scope="module")
def run_name(stack: Stack, beir_folder: Path) -> str:
    added = fretwork(stack, "corpus", "add", "newcomer", str(beir_folder))
    assert "added" in added.stdout
    started = fretwork(stack, "run", "start", "--corpus", "newcomer", "--wait", "--set", "shard_size=16")
    assert started.stdout == "newcomer-1\n", "data alone on standard output"
    assert "relabel" in started.stderr
    return "newcomer-1"


def test_adding_the_same_corpus_again_changes_nothing(stack: Stack, run_name: str, beir_folder: Path) -> None:
    before = json.loads(fretwork(stack, "corpus", "list", "--json").stdout)
    assert "0 added" in fretwork(stack, "corpus", "add", "newcomer", str(beir_folder)).stdout
    assert json.loads(fretwork(stack, "corpus", "list", "--json").stdout) == before


def test_status_says_what_became_of_every_item(stack: Stack, run_name: str) -> None:
    seen = json.loads(fretwork(stack, "run", "status", run_name, "--json").stdout)
    assert seen["state"] == "done"
    assert seen["conservation"]["holds"]
    assert seen["dead"] == []
    assert seen["conservation"]["records"] > 40
    assert [stage["stage"] for stage in seen["stages"]] == ["index", "generate", "retrieve", "dedup", "relabel"]
    assert "the counts add up" in fretwork(stack, "run", "status", "latest").stdout
    assert all(stage["started_at"] for stage in seen["stages"])
    with stack.engine.connect() as connection:
        counted, there = counts_and_truth(connection, UUID(seen["run_id"]))
        workers = list_workers(connection)
        points = throughput(connection, UUID(seen["run_id"]), since_s=3600, points=60).points
    assert counted == there
    assert {worker.queue for worker in workers if worker.state == "alive"} == {*QUEUES, "dispatcher"}
    assert {point.stage for point in points} == set(RUN_STAGES)


def test_no_held_out_query_stands_in_a_passage_or_record(stack: Stack, run_name: str, beir_folder: Path) -> None:
    lines = (beir_folder / "queries.jsonl").read_text().splitlines()
    held_out = [normalise(json.loads(line)["text"]) for line in lines]
    with stack.engine.connect() as connection:
        passages = list(connection.execute(text("SELECT text FROM passages")).scalars())
        queries = list(connection.execute(text("SELECT query_text FROM queries")).scalars())
    assert held_out
    assert queries
    for written in (normalise(t) for t in [*passages, *queries]):
        assert not any(f" {query} " in f" {written} " for query in held_out)


def test_export_has_the_columns_that_trainers_read(stack: Stack, run_name: str, tmp_path: Path) -> None:
    output = tmp_path / "triplets"
    fretwork(stack, "export", run_name, "--format", "sentence-transformers", "--output", str(output))
    (data,) = output.glob("*.parquet")
    table = pyarrow.parquet.read_table(data)
    assert table.column_names == ["anchor", "positive", "negative"]
    records = json.loads(fretwork(stack, "run", "status", run_name, "--json").stdout)["conservation"]["records"]
    assert table.num_rows == records
    again = fretwork(stack, "export", run_name, "--output", str(output), exit_status=1)
    assert str(output) in again.stderr


def test_another_labelling_costs_no_judgement_and_both_are_exported(
    stack: Stack, run_name: str, tmp_path: Path
) -> None:
    chosen = ("--set", "positive=p_1", "--set", "fusion=rc", "--set", "num_negatives=2")
    assert fretwork(stack, "run", "refuse", run_name, "--wait", *chosen).stdout == "2\n"
    again = fretwork(stack, "run", "refuse", run_name, *chosen)
    assert again.stdout == "2\n"
    assert "has this labelling already" in again.stderr
    seen = json.loads(fretwork(stack, "run", "status", run_name, "--json").stdout)
    first, second = seen["label_versions"]
    assert (first["policy"]["positive"], first["moved"]) == ("seed", 0)
    assert second["policy"] == {**first["policy"], "positive": "p_1", "fusion": "rc", "num_negatives": 2}
    assert second["records"] == first["records"] == seen["records"]
    assert second["holds"]
    shown = fretwork(stack, "run", "status", run_name).stdout
    assert "label version 2 (positive=p_1, fusion=rc, num_negatives=2): " in shown
    rows = {}
    for version in ("1", "2"):
        output = tmp_path / version
        fretwork(stack, "export", run_name, "--label-version", version, "--output", str(output))
        rows[version] = pyarrow.parquet.read_table(output / "train.parquet").to_pylist()
    assert all(row["positive_id"] == row["seed_passage_id"] for row in rows["1"])
    assert all(row["positive_rc_rank"] == 1 for row in rows["2"])
    assert {len(row["negative_ids"]) for row in rows["2"]} == {2}
    for one, two in zip(rows["1"], rows["2"], strict=True):
        assert (one["query_id"], one["ql_scores"], one["judge"]) == (two["query_id"], two["ql_scores"], two["judge"])


def test_training_and_evaluation_go_through_the_trainers_queue(stack: Stack, trained: Trained) -> None:
    written = {file.name for file in trained.model.iterdir()}
    assert {"modules.json", "config_sentence_transformers.json", "README.md"} <= written
    assert json.loads((trained.model / "config.json").read_text())["matryoshka_dimensions"] == [384, 128]
    told = r"about \d+% of the positives are longer than the 48 tokens that were read; --passage-max-len reads more"
    assert re.search(f"{told}, up to 512", " ".join(trained.said.split()))
    report = trained.report
    assert set(report["dims"]) == {"384", "128"}
    low, high = report["delta"]["384"]["ndcg@10"]["ci95"]
    assert low <= report["delta"]["384"]["ndcg@10"]["mean"] <= high
    assert report["baseline"]["dims"]["384"]["ndcg@10"] > 0.5
    with stack.engine.connect() as connection:
        workers = connection.execute(
            text("SELECT stage, state, claimed_by FROM shards WHERE stage IN ('train', 'evaluate')")
        ).all()
    assert {(stage, state) for stage, state, _ in workers} == {("train", "done"), ("evaluate", "done")}
    trainer = str(stack.pid("trainer"))
    assert all(claimed_by.split(":")[1:] == [trainer, "trainer"] for _, _, claimed_by in workers)


def test_an_embedder_that_cannot_be_loaded_ends_the_run_and_says_so(stack: Stack, run_name: str) -> None:
    started = fretwork(
        stack, "run", "start", "--corpus", "newcomer", "--wait", "--set", "embedder=/no/such/model", exit_status=3
    )
    name = started.stdout.strip()
    assert "items are dead" in started.stderr
    status = fretwork(stack, "run", "status", name, exit_status=3).stdout
    assert "the model '/no/such/model' cannot be loaded" in status
    assert "shards of" in fretwork(stack, "run", "retry", name).stdout
    early = fretwork(stack, "train", "nothing-1", "--output", "/tmp/never", exit_status=1)  # noqa: S108
    assert "nothing-1" in early.stderr


@pytest.mark.parametrize(
    ("arguments", "exit_status", "says"),
    [
        (("run", "status", "nothing-1"), 1, "fretwork run list"),
        (("run", "start", "--corpus", "nothing"), 1, "fretwork corpus add nothing"),
        (("run", "start", "--corpus", "newcomer", "--set", "queries_per_passage=0"), 1, "queries_per_passage"),
        (("run", "start", "--corpus", "newcomer", "--set", "colour=red"), 1, "colour"),
        (("corpus", "add", "x", "/no/such/path"), 1, "/no/such/path"),
        (("evaluate", "all-MiniLM-L6-v2", "--beir", "/no/such/path"), 1, "/no/such/path"),
        (("train", "newcomer-1"), 2, "--output"),
        (("ablate", "newcomer-1", "--output", "x"), 2, "--beir"),
    ],
)
def test_mistakes_get_a_sentence_and_an_exit_status(
    stack: Stack, run_name: str, arguments: tuple[str, ...], exit_status: int, says: str
) -> None:
    failed = fretwork(stack, *arguments, exit_status=exit_status)
    assert says in failed.stderr
    assert "Traceback" not in failed.stderr
    assert failed.stdout == ""
