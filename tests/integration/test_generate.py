"""Generating through the generator's own door, by either teacher; the LLM is a server that speaks HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, Row, select

from cli.corpus.store import import_corpus
from services.generator.parse import NO_QUERY, Pair, parse
from services.generator.prompt import prompt_of
from services.generator.prompted import PROMPT_REFUSED
from shared.llm import Completion
from shared.llm.open import close as close_llm
from shared.progress import conservation
from shared.records import LLMConfig, RunConfig, query_id
from shared.runs import Run, start_run
from shared.schema import drops, llm_usage, passages, queries, shards
from shared.settings import settings
from tests.llm_stub import Fault, StubLLM
from tests.llm_stub_model import write
from tests.own_process import process_on
from tests.passages import write_corpus

PASSAGES, BAD, MARK = 6, 2, "zzbad"
LLM = LLMConfig(model="stub", num_examples=2)


@pytest.fixture
def engine(database_url: str, broker_url: str) -> Iterator[Engine]:
    with process_on(database_url, broker_url=broker_url) as made:
        yield made


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> Iterator[StubLLM]:
    with StubLLM() as stub:
        monkeypatch.setenv("FRETWORK_LLM__BASE_URL", stub.base_url)
        monkeypatch.setenv("FRETWORK_LLM__MAX_RETRIES", "0")
        monkeypatch.setenv("FRETWORK_LLM__MODEL", "stub")
        settings.cache_clear()
        yield stub
        close_llm()


def started(engine: Engine, tmp_path: Path, **config: Any) -> Run:
    good = write_corpus(tmp_path / "good.jsonl", PASSAGES - BAD)
    bad = write_corpus(tmp_path / "bad.jsonl", BAD, start=PASSAGES, mark=MARK)
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(good.read_text() + bad.read_text())
    import_corpus(engine, "topics", corpus)
    with engine.begin() as connection:
        return start_run(connection, "topics", RunConfig(shard_size=PASSAGES, **config))


def by_llm(engine: Engine, tmp_path: Path, **llm: Any) -> Run:
    """A run of the LLM teacher, frozen as its start freezes it."""
    config = LLM.model_copy(update={"prompts_sha256": {"generate": prompt_of(LLM).sha256}, **llm})
    return started(engine, tmp_path, teacher="llm", llm=config)


def generate(engine: Engine) -> Row[Any]:
    """Has the generator do its one shard, and returns what became of it."""
    from services.generator import tasks

    shard = select(shards).where(shards.c.stage == "generate")
    with engine.connect() as connection:
        shard_id = connection.execute(shard).one().shard_id
    tasks.generate(str(shard_id))
    with engine.connect() as connection:
        return connection.execute(shard).one()


def spoil(path: str, body: dict[str, Any], number: int) -> Fault | None:
    if path != "/v1/completions" or MARK not in body["prompt"]:
        return None
    return Fault(completion="I would rather not.")


def test_the_llms_queries_are_stored_and_every_other_passage_has_its_reason(
    engine: Engine, stub: StubLLM, tmp_path: Path
) -> None:
    stub.fault = spoil
    run = by_llm(engine, tmp_path)
    assert generate(engine).state == "done"
    with engine.connect() as connection:
        made = connection.execute(select(queries)).all()
        dropped = connection.execute(select(drops)).all()
        texts = {row.passage_id: row.text for row in connection.execute(select(passages))}
        usage = connection.execute(select(llm_usage)).one()
        assert conservation(connection, run.run_id).holds
    asked = [seen.body for seen in stub.seen if seen.path == "/v1/completions"]
    assert (len(made), len(dropped), len(asked)) == (PASSAGES - BAD, BAD, PASSAGES - BAD + BAD * LLM.max_attempts)
    for query in made:
        (body,) = [body for body in asked if texts[query.seed_passage_id] in body["prompt"]]
        written = parse(Completion(write(body["prompt"], body["seed"]), True), None)
        assert Pair(query.task_description, query.query_text) == written
        assert query.query_id == query_id(run.fingerprint, query.seed_passage_id, 0)
        assert query.provenance["seed"] == body["seed"]
        assert query.provenance["prompt_sha256"] == run.config.llm.prompts_sha256["generate"]
    for row in dropped:
        assert MARK in texts[row.item_id]
        assert (row.stage, row.reason, row.detail) == ("generate", NO_QUERY, "3 attempts: 3 × no_query")
    assert (usage.stage, usage.model, usage.requests) == ("generate", "stub", len(asked))
    assert usage.prompt_tokens > 0 < usage.completion_tokens


def test_a_refused_prompt_ends_its_passage_alone(engine: Engine, stub: StubLLM, tmp_path: Path) -> None:
    stub.fault = lambda path, body, number: Fault(status=400) if spoil(path, body, number) else None
    run = by_llm(engine, tmp_path)
    assert generate(engine).state == "done"
    with engine.connect() as connection:
        assert [row.reason for row in connection.execute(select(drops))] == [PROMPT_REFUSED] * BAD
        assert len(connection.execute(select(queries)).all()) == PASSAGES - BAD
        assert conservation(connection, run.run_id).holds


def test_an_endpoint_that_is_away_costs_no_failure(engine: Engine, stub: StubLLM, tmp_path: Path) -> None:
    stub.fault = lambda path, body, number: Fault(status=500) if spoil(path, body, number) else None
    by_llm(engine, tmp_path)
    shard = generate(engine)
    assert (shard.state, shard.failures) == ("ready", 0)
    assert shard.error_type in ("CallFailedError", "EndpointError", "EndpointDownError")
    with engine.connect() as connection:
        assert connection.execute(select(queries)).all() == []


@pytest.mark.parametrize(
    ("frozen", "message"),
    [
        ({"model": "another"}, "the model 'another', and this worker's is 'stub'"),
        ({"prompts_sha256": {"generate": "0" * 64}}, "another version of the generator's prompt"),
    ],
)
def test_a_worker_that_would_write_something_else_does_not(
    engine: Engine, stub: StubLLM, tmp_path: Path, frozen: dict[str, Any], message: str
) -> None:
    by_llm(engine, tmp_path, **frozen)
    shard = generate(engine)
    assert (shard.failures, shard.error_type) == (1, "SettingError")
    assert message in shard.error_message
    assert not any(seen.path == "/v1/completions" for seen in stub.seen)


def test_the_offline_teacher_asks_no_llm(engine: Engine, stub: StubLLM, tmp_path: Path) -> None:
    run = started(engine, tmp_path)
    assert generate(engine).state == "done"
    assert stub.seen == []
    with engine.connect() as connection:
        made = connection.execute(select(queries)).all()
        assert made
        assert {query.provenance["teacher"] for query in made} == {"offline"}
        assert conservation(connection, run.run_id).holds
