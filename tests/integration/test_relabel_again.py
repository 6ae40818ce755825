"""Relabelling through its own door, by either teacher, and invariant 7: a new label version comes from stored scores.

The judge is not asked again, and here it would raise.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy import Connection, Engine, insert, select, text, update

from cli.corpus.store import import_corpus
from services.relabeler.fuse import fuse
from services.relabeler.prompt import prompts_of
from services.relabeler.prompted import UNUSABLE_SCORES
from shared import ledger, meter
from shared.errors import SettingError
from shared.labels import add_label_version
from shared.llm.open import close as close_llm
from shared.progress import conservation
from shared.records import LabelPolicy, LLMConfig, RunConfig, query_id
from shared.runs import Run, start_run
from shared.schema import drops, fret_records, llm_usage, queries, shards
from shared.settings import settings
from shared.stages import Stage
from tests import llm_stub_model
from tests.llm_stub import Fault, StubLLM
from tests.own_process import process_on

TEXTS = (
    "The kettle boils water for tea. It switches itself off when the water boils.",
    "Tea is brewed with boiling water. Green tea wants it a little cooler.",
    "A bicycle has two wheels. Its chain drives the rear one.",
)
ASKED = ("water boils for tea", "green tea wants cooler water", "the chain drives the rear wheel")


@pytest.fixture
def engine(database_url: str, broker_url: str) -> Iterator[Engine]:
    with process_on(database_url, broker_url=broker_url) as made:
        yield made


def started(engine: Engine, tmp_path: Path, config: RunConfig) -> Run:
    """A run whose queries have their candidates, and shards to relabel."""
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("\n".join(json.dumps({"_id": str(i), "text": text}) for i, text in enumerate(TEXTS)))
    import_corpus(engine, "tea", corpus)
    with engine.begin() as connection:
        run = start_run(connection, "tea", config)
        connection.execute(update(shards).values(state="done"))
        ids = list(connection.execute(text("SELECT passage_id FROM passages ORDER BY source_id")).scalars())
        made = [query_id(run.fingerprint, passage, 0) for passage in ids]
        connection.execute(
            insert(queries),
            [
                {
                    "run_id": run.run_id,
                    "query_id": made[i],
                    "seed_passage_id": ids[i],
                    "ordinal": 0,
                    "task_description": "search result",
                    "query_text": ASKED[i],
                    "provenance": {},
                    "candidate_ids": ids,
                    "candidate_scores": [0.5] * 3,
                }
                for i in range(3)
            ],
        )
        ledger.add_shards(connection, run.run_id, Stage.RELABEL, [made], parent=run.run_id)
    return run


@pytest.fixture
def run(engine: Engine, tmp_path: Path) -> Run:
    """A run of the offline teacher."""
    return started(engine, tmp_path, RunConfig(num_candidates=3, labels=LabelPolicy(positive="p_1")))


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> Iterator[StubLLM]:
    """An LLM server, and the relabeler's settings lead to it."""
    with StubLLM() as stub:
        monkeypatch.setenv("FRETWORK_LLM__BASE_URL", stub.base_url)
        monkeypatch.setenv("FRETWORK_LLM__MODEL", "stub")
        settings.cache_clear()
        yield stub
        close_llm()
    meter.stop()


@pytest.fixture
def llm_run(engine: Engine, stub: StubLLM, tmp_path: Path) -> Run:
    """A run of the LLM teacher, frozen as its start freezes it."""
    config = LLMConfig(model="stub", prompts_sha256=prompts_of(LLMConfig()).sha256)
    return started(engine, tmp_path, RunConfig(teacher="llm", num_candidates=3, llm=config))


def relabel(connection: Connection) -> None:
    """Has the relabeler do what is ready, through its own door."""
    from services.relabeler import tasks

    ready = connection.execute(select(shards.c.shard_id).where(shards.c.state == "ready")).scalars().all()
    assert ready
    for shard_id in ready:
        tasks.relabel(str(shard_id))


def records(connection: Connection, label_version: int) -> Sequence[Any]:
    return connection.execute(
        select(fret_records).where(fret_records.c.label_version == label_version).order_by(fret_records.c.query_id)
    ).all()


def refuse_to_judge(*_: object) -> None:
    raise AssertionError("the judge was asked")


def test_another_policy_costs_no_judgement(engine: Engine, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from services.relabeler import statistical

    with engine.connect() as connection:
        relabel(connection)
    monkeypatch.setattr(statistical, "judge", refuse_to_judge)
    with engine.begin() as connection:
        assert ledger.finish_runs(connection) == [run.run_id]
        version = add_label_version(connection, run, LabelPolicy(positive="seed"))
    assert version == 2
    with engine.connect() as connection:
        relabel(connection)
    with engine.connect() as connection:
        judged, by_seed = records(connection, 1), records(connection, 2)
        rows = connection.execute(select(queries.c.query_id, queries.c.seed_passage_id))
        seeds = {query: seed for query, seed in rows}  # noqa: C416 - rows are no pairs to mypy
        for label_version in (1, 2):
            sums = conservation(connection, run.run_id, label_version)
            assert sums.holds
            assert sums.records == 3
    assert all(record.positive_id == seeds[record.query_id] for record in by_seed)
    assert [record.positive_ql_rank for record in judged] != [0, 0, 0]
    # the first policy again, from the stored scores: the records are the judged ones
    with engine.begin() as connection:
        connection.execute(fret_records.delete().where(fret_records.c.label_version == 1))
        connection.execute(update(shards).where(shards.c.label_version == 1).values(state="ready"))
        connection.execute(update(shards).where(shards.c.stage != "relabel").values(state="done"))
    with engine.connect() as connection:
        relabel(connection)
    with engine.connect() as connection:
        assert records(connection, 1) == judged


def test_what_is_judged_late_is_labelled_in_every_version(engine: Engine, run: Run) -> None:
    """Two queries are in dead shards when the version is made: both are put back, and one kills its workers first."""
    of_relabel = (shards.c.run_id == run.run_id) & (shards.c.stage == "relabel") & (shards.c.label_version == 1)

    def sums() -> list[tuple[int, int, int]]:
        with engine.connect() as connection:
            found = [conservation(connection, run.run_id, version) for version in (1, 2)]
        assert all(each.holds for each in found), found
        return [(each.records, each.queries_dropped, each.queries_open) for each in found]

    with engine.begin() as connection:
        asked = connection.execute(select(shards.c.item_ids).where(of_relabel)).scalar_one()
        connection.execute(shards.delete().where(of_relabel))
        late = ledger.add_shards(connection, run.run_id, Stage.RELABEL, [[q] for q in asked], parent=run.run_id)[1:]
        connection.execute(update(shards).where(shards.c.shard_id.in_(late)).values(state="dead"))
    with engine.connect() as connection:
        relabel(connection)
    with engine.begin() as connection:
        assert ledger.finish_runs(connection) == [run.run_id]
        assert add_label_version(connection, run, LabelPolicy(positive="seed", num_negatives=2)) == 2
    assert sums() == [(1, 0, 2), (0, 0, 3)]
    with engine.connect() as connection:
        relabel(connection)
    assert sums() == [(1, 0, 2), (1, 0, 2)]

    with engine.begin() as connection:
        assert ledger.retry(connection, run.run_id, late[0]) == 1
    for _ in range(2):  # the judge's shard, and the one that it makes
        with engine.connect() as connection:
            relabel(connection)
    assert sums() == [(2, 0, 1), (2, 0, 1)]
    with engine.begin() as connection:
        connection.execute(
            update(shards)
            .where(shards.c.shard_id == late[1])
            .values(
                state="claimed",
                losses=ledger.MAX_LOSSES + ledger.MAX_LOSSES_ALONE - 1,
                lease_expires_at=text("now() - interval '1 s'"),
            )
        )
        assert ledger.reap(connection) == [late[1]]
    assert sums() == [(2, 0, 1), (2, 0, 1)], "dead, and nothing is over yet"
    with engine.begin() as connection:
        assert ledger.retry(connection, run.run_id) == 1
    for _ in range(2):
        with engine.connect() as connection:
            relabel(connection)
    assert sums() == [(3, 0, 0), (3, 0, 0)]


def test_queries_that_are_not_trusted_are_left_out_with_their_reasons(engine: Engine, run: Run) -> None:
    """All cosines are equal, so that the passage with the lowest id is the first; every query has its own seed."""
    with engine.connect() as connection:
        relabel(connection)
    for policy, reason in (
        (LabelPolicy(round_trip=1), "seed_not_retrieved"),
        (LabelPolicy(min_token_log_prob=-0.001), "unlikely_query"),
    ):
        with engine.begin() as connection:
            assert ledger.finish_runs(connection) == [run.run_id]
            version = add_label_version(connection, run, policy)
        with engine.connect() as connection:
            relabel(connection)
        with engine.connect() as connection:
            reasons = connection.execute(
                text("SELECT reason, count(*) FROM drops WHERE label_version = :version GROUP BY reason"),
                {"version": version},
            ).all()
            assert conservation(connection, run.run_id).holds
            left = len(records(connection, version))
        assert dict(map(tuple, reasons)) == {reason: 3 - left}
        assert left == (1 if policy.round_trip else 0)


def test_a_run_that_counted_no_tokens_is_refused_what_divides_by_them(engine: Engine, run: Run) -> None:
    policy = LabelPolicy(min_token_log_prob=-100)
    with engine.connect() as connection:
        relabel(connection)
    with engine.begin() as connection:
        assert ledger.finish_runs(connection) == [run.run_id]
        connection.execute(text("UPDATE queries SET judge = judge - 'query_tokens'"))
        with pytest.raises(SettingError, match=r"before a query's tokens were counted.* without --follow"):
            add_label_version(connection, run, policy)
        one = text("UPDATE queries SET judge = judge || '{\"query_tokens\": 4}' WHERE query_text = :asked")
        connection.execute(one, {"asked": ASKED[0]})
        version = add_label_version(connection, run, policy)
    with engine.connect() as connection:
        relabel(connection)
        reasons = connection.execute(
            text("SELECT reason FROM drops WHERE label_version = :version"), {"version": version}
        ).scalars()
        assert list(reasons) == ["query_tokens_unknown"] * 2
        assert len(records(connection, version)) == 1
        assert conservation(connection, run.run_id, version).holds


def test_without_stored_scores_the_judge_is_asked(engine: Engine, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from services.relabeler import statistical

    monkeypatch.setattr(statistical, "judge", refuse_to_judge)
    with engine.connect() as connection:
        relabel(connection)
    with engine.connect() as connection:
        assert records(connection, 1) == []
        failed = connection.execute(select(shards.c.error_message).where(shards.c.stage == "relabel")).scalar_one()
    assert failed == "the judge was asked"


def completions(stub: StubLLM) -> list[dict[str, Any]]:
    return [seen.body for seen in stub.seen if seen.path == "/v1/completions"]


def test_the_llm_judges_and_another_policy_asks_it_nothing(engine: Engine, llm_run: Run, stub: StubLLM) -> None:
    with engine.connect() as connection:
        relabel(connection)
    with engine.connect() as connection:
        rows = {row.query_id: row for row in connection.execute(select(queries)).all()}
        usage = connection.execute(select(llm_usage)).one()
        judged = records(connection, 1)
        assert conservation(connection, llm_run.run_id).holds
    asked = completions(stub)
    scored = {body["prompt"][0].rpartition("Query: ")[2]: body for body in asked if "prompt_logprobs" in body}
    assert len(asked) == 6  # two lists for each query
    assert set(scored) == set(ASKED)
    assert len(judged) == 3
    for record in judged:
        row = rows[record.query_id]
        assert row.judge == {
            "query_tokens": len(row.query_text.split()),
            "teacher": "llm",
            "model": "stub",
            "prompts_sha256": llm_run.config.llm.prompts_sha256,
            "relevance": "graded",
            "graded_score": "expected",
            "passages_cut": 0,
        }
        # the stub's own numbers, for the tokens behind `Query:` alone
        head = [prompt.removesuffix(f" {row.query_text}") for prompt in scored[row.query_text]["prompt"]]
        for prompt, ql_score in zip(head, row.ql_scores, strict=True):
            tail = orjson.loads(llm_stub_model.score(f"{prompt} {row.query_text}").entries)[
                llm_stub_model.count(prompt) :
            ]
            wanted = sum(entry["logprob"] for token in tail for entry in token.values())
            assert ql_score == pytest.approx(wanted, abs=1e-6)
        assert all(0 < score < 3 for score in row.rc_scores)
        # the positive is p_1, the paper's, by default
        fused = fuse(row.candidate_ids, row.ql_scores, row.rc_scores)
        assert (record.positive_id, record.negative_ids) == (fused[0].passage_id, [fused[-1].passage_id])
    assert (usage.stage, usage.model, usage.requests) == ("relabel", "stub", 18)

    # another policy, and an LLM that answers nothing
    stub.fault = lambda path, body, number: Fault(status=500)
    before = len(stub.seen)
    with engine.begin() as connection:
        ledger.finish_runs(connection)
        version = add_label_version(connection, llm_run, LabelPolicy(positive="seed", num_negatives=2))
    with engine.connect() as connection:
        relabel(connection)
    with engine.connect() as connection:
        again = records(connection, version)
        assert conservation(connection, llm_run.run_id, version).holds
    assert len(stub.seen) == before
    assert [len(record.negative_ids) for record in again] == [2, 2, 2]


def test_an_endpoint_that_is_away_costs_no_failure(
    engine: Engine, llm_run: Run, stub: StubLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRETWORK_LLM__MAX_RETRIES", "0")
    settings.cache_clear()
    stub.fault = lambda path, body, number: Fault(status=500) if path == "/v1/completions" else None
    with engine.connect() as connection:
        relabel(connection)
    with engine.connect() as connection:
        shard = connection.execute(select(shards).where(shards.c.stage == "relabel")).one()
        assert records(connection, 1) == []
    assert (shard.state, shard.failures) == ("ready", 0)
    assert shard.error_type in ("CallFailedError", "EndpointError", "EndpointDownError")


def test_a_query_with_unusable_scores_ends_with_a_reason_and_the_others_go_on(
    engine: Engine, llm_run: Run, stub: StubLLM
) -> None:
    def fault(path: str, body: dict[str, Any], number: int) -> Fault | None:
        of_bicycle = path == "/v1/completions" and "the chain drives" in body["prompt"][0]
        return Fault(log_probs=b"null") if of_bicycle else None

    stub.fault = fault
    with engine.connect() as connection:
        relabel(connection)
    with engine.connect() as connection:
        assert len(records(connection, 1)) == 2
        (dropped,) = connection.execute(select(drops)).all()
        lacking = connection.execute(select(queries.c.query_text).where(queries.c.ql_scores.is_(None))).scalars().all()
        assert conservation(connection, llm_run.run_id).holds
    assert dropped.reason == UNUSABLE_SCORES
    assert lacking == ["the chain drives the rear wheel"]


def test_another_model_or_prompt_than_the_runs_is_refused(engine: Engine, stub: StubLLM, tmp_path: Path) -> None:
    hashes = prompts_of(LLMConfig()).sha256
    for number, config in enumerate(
        (LLMConfig(model="other", prompts_sha256=hashes), LLMConfig(model="stub", prompts_sha256={**hashes, "rc": "0"}))
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        started(engine, folder, RunConfig(teacher="llm", num_candidates=3, llm=config))
        with engine.connect() as connection:
            relabel(connection)
        with engine.begin() as connection:
            errors = connection.execute(select(shards.c.error_message).where(shards.c.state == "dead")).scalars().all()
            connection.execute(shards.delete().where(shards.c.stage == "relabel"))
        assert len(errors) == 1
        assert ("'other'", "prompts")[number] in errors[0]
    assert completions(stub) == []
