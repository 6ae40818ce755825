"""The trainer's subprocess as its parent sees it, on records in a real PostgreSQL: killed, orphaned, refused, done."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from sentence_transformers import SentenceTransformer
from sqlalchemy import Engine, insert, make_url

from cli.corpus.store import import_corpus
from services.trainer.child_process import run_child
from services.trainer.ledger_records import LedgerRecords
from shared.errors import TransientError
from shared.masking import verbatim_span
from shared.records import RunConfig, passage_id, query_id
from shared.runs import Run, start_run
from shared.schema import fret_records, queries
from tests.unit.tiny_model import WORDS, make_tiny_model

COUNT = 50
TEXTS = [f"{WORDS[n % 30]} {WORDS[(n * 7 + 3) % 30]} the file. Number {n} of a list. Sort." for n in range(COUNT)]
CONFIG = {
    "per_device_train_batch_size": 8,
    "num_train_epochs": 10,  # long enough to be killed in
    "prompts": "gecko",
    "matryoshka_dims": [16],
    "query_max_len": 32,
    "passage_max_len": 48,
    "checkpoint_every_s": 0,
}


@pytest.fixture
def run(engine: Engine, tmp_path: Path) -> Run:
    """A run of COUNT records: the positive is the seed, the query a sentence of it, the negative the next but one."""
    corpus = tmp_path / "passages.jsonl"
    corpus.write_text("".join(json.dumps({"_id": f"p{n}", "title": "", "text": t}) + "\n" for n, t in enumerate(TEXTS)))
    import_corpus(engine, "texts", corpus)
    ids = [passage_id("", text) for text in TEXTS]
    with engine.begin() as connection:
        run = start_run(connection, "texts", RunConfig())
        for n, text in enumerate(TEXTS):
            id_ = query_id(run.fingerprint, ids[n], 0)
            query = f"number {n} of a list."
            connection.execute(
                insert(queries).values(
                    run_id=run.run_id,
                    query_id=id_,
                    seed_passage_id=ids[n],
                    ordinal=0,
                    task_description="search result" if n % 5 else "fact checking",
                    query_text=query,
                    provenance={"kind": "title" if n % 10 == 0 else "sentence"},
                    candidate_ids=[ids[(n + place) % COUNT] for place in range(3)],
                    candidate_scores=[0.9, 0.8, 0.7],
                    ql_scores=[-10.0, -30.0, -20.0],
                    rc_scores=[3.0, 0.5, 1.0],
                )
            )
            for label_version in (1, 2):
                span = verbatim_span(query, text)
                connection.execute(
                    insert(fret_records).values(
                        run_id=run.run_id,
                        query_id=id_,
                        label_version=label_version,
                        positive_id=ids[n],
                        negative_ids=[ids[(n + 2) % COUNT]] if label_version == 1 else [],
                        positive_ql_rank=1,
                        positive_rc_rank=1,
                        positive_fused_score=2.0,
                        seed_fused_score=2.0,
                        positive_changed=False,
                        positive_span=list(span) if span else None,
                        negative_spans=[None] if label_version == 1 else [],
                    )
                )
    return run


def test_reads_each_record_once_in_the_order_of_ids(engine: Engine, run: Run) -> None:
    source = LedgerRecords(engine, run.run_id, 1)
    assert source.count() == COUNT
    assert source.task_description() == "search result"
    read = source.page(None, 20)
    while page := source.page(read[-1].query_id, 20):
        read += page
    assert len(read) == COUNT
    assert [record.query_id for record in read] == sorted(record.query_id for record in read)
    for record in read:
        n = int(record.query_text.split()[1])
        assert record.positive.text == TEXTS[n]
        assert [negative.text for negative in record.negatives] == [TEXTS[(n + 2) % COUNT]]
        assert record.negative_spans == (None,)
        assert record.positive_span is not None
        start, end = record.positive_span
        assert TEXTS[n][start:end] == f"Number {n} of a list."
    assert {record.negatives for record in LedgerRecords(engine, run.run_id, 2).page(None, 99)} == {()}
    assert LedgerRecords(engine, run.run_id, 3).count() == 0


def test_finds_records_by_their_queries_and_counts_their_tasks(engine: Engine, run: Run) -> None:
    source = LedgerRecords(engine, run.run_id, 1)
    records = source.page(None, COUNT)
    assert source.count_by("task", 10) == {"fact checking": 10, "search result": 40}
    assert source.count_by("task", 11) == {"search result": 40}
    first = source.groups("task", None, 20)
    tasks = first + source.groups("task", first[-1][0], COUNT)
    assert tasks == [(record.query_id, record.task_description) for record in records]
    some = records[::7]
    assert source.find({record.query_id for record in some}) == {record.query_id: record for record in some}


def test_records_go_by_their_positives(engine: Engine, run: Run) -> None:
    source = LedgerRecords(engine, run.run_id, 1)
    records = source.page(None, COUNT)
    some = records[::7]
    positives = [record.positive.passage_id for record in some]
    assert source.count_by_positive(positives) == dict.fromkeys(positives, 1)
    assert source.of_positives(positives) == some
    rest = source.without_positives(positives)
    assert rest.page(None, COUNT) == [record for record in records if record not in some]
    assert rest.page(records[10].query_id, 3) == [record for record in records[11:] if record not in some][:3]
    assert rest.count() == sum(rest.count_by("task", 1).values()) == COUNT - len(some)
    assert source.count() == COUNT


def test_records_go_by_the_kinds_of_their_queries(engine: Engine, run: Run) -> None:
    source = LedgerRecords(engine, run.run_id, 1)
    assert source.count_by("kind", 1) == {"sentence": 45, "title": 5}
    titles = source.of_kinds(["title"])
    assert titles.count() == 5
    assert {name for _, name in titles.groups("kind", None, 99)} == {"title"}
    some = [titles.page(None, 1)[0].positive.passage_id]
    assert titles.without_positives(some).count() == 4
    assert source.without_positives(some).of_kinds(["title", "sentence"]).count() == 49


def test_a_record_has_its_whole_judged_list(engine: Engine, run: Run) -> None:
    source = LedgerRecords(engine, run.run_id, 1)
    for record in source.page(None, COUNT):
        assert record.judged.passage_ids[0] == record.positive.passage_id
        assert (record.judged.cosines, record.judged.ql_scores) == ((0.9, 0.8, 0.7), (-10.0, -30.0, -20.0))
        assert not record.judged.decided
        texts = source.passages(record.judged.passage_ids)
        assert texts[record.negatives[0].passage_id] == record.negatives[0]
        assert len(texts) == 3


@pytest.fixture
def specification(database_url: str, run: Run, tmp_path: Path) -> dict[str, Any]:
    return {
        "database_url": database_url,
        "run_id": str(run.run_id),
        "label_version": 1,
        "reviews_until": 0,
        "config": {**CONFIG, "model_name_or_path": make_tiny_model(tmp_path / "base")},
        "work_dir": str(tmp_path / "1"),
        "resume_from": [],
    }


class Child:
    """The subprocess and its two pipes; ends with the block."""

    def __init__(self, kind: str, specification: dict[str, Any]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "services.trainer.child", kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(specification).encode() + b"\n")
        self.process.stdin.flush()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()

    def lines(self) -> Iterator[dict[str, Any]]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            yield json.loads(line)


@pytest.mark.slow
def test_a_killed_training_goes_on_from_its_checkpoint_to_the_same_end(
    specification: dict[str, Any], tmp_path: Path
) -> None:
    with Child("train", specification) as child:
        next(line for line in child.lines() if line["type"] == "progress")
        while not list((tmp_path / "1").glob("checkpoint-*")):
            assert child.process.poll() is None
        child.process.kill()
    assert not (tmp_path / "1" / "model").exists()
    second = {**specification, "work_dir": str(tmp_path / "2"), "resume_from": [str(tmp_path / "1")]}
    with Child("train", second) as child:
        resumed = list(child.lines())
        assert child.process.wait(10) == 0
    assert resumed[0]["total"] == 2 * COUNT  # texts of the projection, which is fitted anew
    assert next(line["step"] for line in resumed if "step" in line) > 1
    with Child("train", {**specification, "work_dir": str(tmp_path / "3")}) as child:
        whole = list(child.lines())[-1]
    assert whole["type"] == resumed[-1]["type"] == "result"
    assert (whole["records"], whole["steps"], whole["examples"]) == (COUNT, 70, 10 * COUNT)
    assert resumed[-1]["model_dir"] == str(tmp_path / "2" / "model")
    assert {key: resumed[-1][key] for key in ("steps", "first_loss", "last_loss")} == {
        key: whole[key] for key in ("steps", "first_loss", "last_loss")
    }
    weights = [(tmp_path / folder / "model" / "model.safetensors").read_bytes() for folder in ("2", "3")]
    assert weights[0] == weights[1]
    prompts = SentenceTransformer(str(tmp_path / "2" / "model")).prompts
    assert prompts == {"query": "task: search result | query: ", "document": "title: none | text: "}


def test_ends_when_its_parent_is_gone(specification: dict[str, Any]) -> None:
    long = {**specification, "config": {**specification["config"], "num_train_epochs": 100_000}}
    with Child("train", long) as child:
        next(line for line in child.lines() if line["type"] == "progress")
        assert child.process.stdin is not None
        child.process.stdin.close()
        assert child.process.wait(10) == 3


def together(specification: dict[str, Any], work_dir: Path, **changes: object) -> dict[str, Any]:
    """Two processes on the CPU, as on a machine with two GPUs."""
    of_one = {**specification["config"], "per_device_train_batch_size": 4, **changes}
    return {**specification, "work_dir": str(work_dir), "processes": 2, "config": of_one}


@pytest.mark.slow
def test_two_processes_train_as_one_with_their_batch(specification: dict[str, Any], tmp_path: Path) -> None:
    with Child("train", specification) as child:
        alone = list(child.lines())[-1]
    with Child("train", together(specification, tmp_path / "2")) as child:
        both = list(child.lines())[-1]
        assert child.process.wait(10) == 0
    assert (both["type"], both["steps"], both["examples"]) == ("result", alone["steps"], alone["examples"])
    assert both["last_loss"] == pytest.approx(alone["last_loss"], rel=0.02)  # bfloat16, where the processor has it
    assert SentenceTransformer(both["model_dir"]).encode("sort a list").shape == (32,)


@pytest.mark.slow
def test_one_of_two_processes_that_is_killed_ends_the_training_with_its_name(
    specification: dict[str, Any], tmp_path: Path
) -> None:
    with Child("train", together(specification, tmp_path / "2", num_train_epochs=100_000)) as child:
        lines = child.lines()
        next(line for line in lines if line["type"] == "progress")
        (peer,) = psutil.Process(child.process.pid).children()
        peer.kill()
        (error,) = (line for line in lines if line["type"] == "error")
        assert child.process.wait(10) == 1
    assert error["message"].startswith("the training's process 1 was killed by SIGKILL; perhaps memory ran out")


def test_an_error_of_the_first_of_two_processes_is_told_while_the_other_waits(
    specification: dict[str, Any], tmp_path: Path
) -> None:
    missing = {"sources": [{"kind": "pair", "name": "x", "task_description": "t", "path": "/nowhere/corpus.jsonl"}]}
    with Child("train", together(specification, tmp_path / "2", mixture=missing)) as child:
        (line,) = child.lines()
        assert child.process.wait(10) == 1
    assert (line["type"], line["error_type"]) == ("error", "InvalidInputError")


def test_a_database_that_is_away_counts_against_no_training(specification: dict[str, Any]) -> None:
    away = make_url(specification["database_url"]).set(port=9).render_as_string(hide_password=False)
    with pytest.raises(TransientError, match="OperationalError"):
        run_child("train", {**specification, "database_url": away}, lambda _: None)


def test_an_error_is_the_last_line(specification: dict[str, Any]) -> None:
    missing = {"sources": [{"kind": "pair", "name": "x", "task_description": "t", "path": "/nowhere/corpus.jsonl"}]}
    with Child("train", {**specification, "config": {**specification["config"], "mixture": missing}}) as child:
        (line,) = child.lines()
        assert child.process.wait(10) == 1
    assert (line["type"], line["error_type"]) == ("error", "InvalidInputError")
    assert "no such file" in line["message"]
    assert (line["path"], line["line"]) == ("/nowhere/corpus.jsonl", None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("STSBenchmrk", "Did you mean: 'STSBenchmark'"),
        ("STSBenchmark", "the data of mteb's task STSBenchmark cannot be had"),
    ],
)
def test_a_task_of_mteb_that_cannot_be_had(
    name: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))  # with nothing in it
    with Child("evaluate", {"config": {"model": "not loaded", "data": {"kind": "mteb", "names": [name]}}}) as child:
        (line,) = child.lines()
    assert (line["type"], line["error_type"]) == ("error", "SettingError")
    assert says in line["message"]


@pytest.mark.slow
def test_evaluates(specification: dict[str, Any], tmp_path: Path) -> None:
    base = specification["config"]["model_name_or_path"]
    (tmp_path / "qrels").mkdir()
    for name in ("corpus", "queries"):
        (tmp_path / f"{name}.jsonl").write_text('{"_id": "a", "text": "sort a list"}\n{"_id": "b", "text": "file"}\n')
    (tmp_path / "qrels" / "dev.tsv").write_text("a\ta\t1\nb\tb\t1\n")
    file = tmp_path / "per_query.jsonl"
    data = {"kind": "beir", "path": str(tmp_path), "split": "dev"}
    config = {"model": base, "baseline": base, "data": data, "dims": [16], "per_query_file": str(file)}
    with Child("evaluate", {"config": config}) as child:
        *progress, result = child.lines()
    assert [line["type"] for line in progress] == ["progress"] * len(progress)
    assert (progress[-1]["done"], progress[-1]["total"]) == (8, 8)
    assert result["type"] == "result"
    assert result["dims"]["16"]["ndcg@10"] == 1.0  # each query is its own passage
    assert len(file.read_text().splitlines()) == 2
