"""A run with the LLM teacher through the command line, from a corpus to records, against a server that speaks HTTP.

The server is the stub, whose answers are functions of the requests, so what the ledger says can be checked against it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from cli.stack import postgres
from tests.e2e.stack import Stack, real_stack
from tests.e2e.test_pipeline import fretwork
from tests.llm_stub import Fault, StubLLM
from tests.llm_stub_answers import completions
from tests.passages import write_corpus

KEY = "sk-that-nobody-may-see"
PASSAGES = 20
BAD = 2
MARK = "zzunwritable"
REFUSAL = "I would rather not write anything about this."


@dataclass(frozen=True, slots=True)
class Ran:
    stack: Stack
    stub: StubLLM
    name: str
    previewed: str
    status: dict[str, Any]


def _refuses_marked(path: str, body: dict[str, Any], number: int) -> Fault | None:
    asked_to_write = path == "/v1/completions" and "seed" in body
    return Fault(completion=REFUSAL) if asked_to_write and MARK in body["prompt"] else None


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    home = tmp_path_factory.mktemp("llm")
    good = write_corpus(tmp_path_factory.mktemp("corpus") / "good.jsonl", PASSAGES - BAD)
    bad = write_corpus(good.with_name("bad.jsonl"), BAD, start=PASSAGES, mark=MARK)
    everything = good.with_name("all.jsonl")
    everything.write_text(good.read_text() + bad.read_text())
    try:
        with (
            StubLLM(api_key=KEY) as stub,
            real_stack(home, FRETWORK_LLM__BASE_URL=stub.base_url, FRETWORK_LLM__API_KEY=KEY) as stack,
        ):
            stub.fault = _refuses_marked
            fretwork(stack, "corpus", "add", "topics", str(everything))
            shown = fretwork(stack, "run", "start", "--corpus", "topics", "--preview", "2")
            stub.seen.clear()
            started = fretwork(
                stack, "run", "start", "--corpus", "topics", "--wait", "--set", "shard_size=8",
                "--set", "num_candidates=6",
            )  # fmt: skip
            name = started.stdout.strip()
            status = json.loads(fretwork(stack, "run", "status", name, "--json").stdout)
            yield Ran(stack, stub, name, shown.stdout + shown.stderr, status)
    finally:
        postgres.remove(home)


def test_the_llm_is_the_teacher_where_one_is_configured(ran: Ran) -> None:
    assert ran.name == "topics-1", "a preview starts no run"
    config = ran.status["config"]
    assert config["teacher"] == "llm"
    assert config["llm"]["model"] == "stub"
    assert all(len(digest) == 64 for digest in config["llm"]["prompts_sha256"].values())


def test_every_passage_ends_as_a_record_or_with_its_reason(ran: Ran) -> None:
    assert ran.status["state"] == "done"
    assert ran.status["dead"] == []
    sums = ran.status["conservation"]
    assert sums["holds"]
    assert sums["sampled"] == PASSAGES
    reasons = {stage["stage"]: stage["reasons"] for stage in ran.status["stages"]}
    assert reasons["generate"] == {"no_query": BAD}
    assert sums["records"] == PASSAGES - BAD
    with ran.stack.engine.connect() as connection:
        details = connection.execute(text("SELECT detail FROM drops WHERE reason = 'no_query'")).scalars().all()
    assert set(details) == {"3 attempts: 3 × no_query"}


def test_a_query_is_what_the_llm_wrote_and_says_how(ran: Ran) -> None:
    with ran.stack.engine.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT task_description, query_text, provenance, title FROM queries JOIN passages "
                "ON passage_id = seed_passage_id JOIN runs USING (run_id) WHERE passages.corpus_id = runs.corpus_id"
            )
        ).all()
    assert len(rows) == PASSAGES - BAD
    for task_description, query_text, provenance, title in rows:
        assert task_description.startswith("Given a query, find a passage that")
        assert query_text.split()[0] in f"{title} {topics[title]}".lower()
        assert provenance["teacher"] == "llm"
        assert provenance["model"] == "stub"
        assert provenance["attempts"] == 1
        asked = [s.body for s in ran.stub.seen if s.body.get("seed") == provenance["seed"]]
        assert [body["temperature"] for body in asked] == [provenance["temperature"]]


def test_every_candidate_has_two_scores_of_its_own(ran: Ran) -> None:
    with ran.stack.engine.connect() as connection:
        rows = connection.execute(text("SELECT candidate_ids, ql_scores, rc_scores, judge FROM queries")).all()
    for candidate_ids, ql_scores, rc_scores, judge in rows:
        assert len(candidate_ids) == len(set(ql_scores)) == len(rc_scores) == 6
        assert all(score < 0 for score in ql_scores)
        assert all(0 <= score <= 3 for score in rc_scores), "an expected grade"
        assert judge["teacher"] == "llm"


def test_the_tokens_are_those_that_the_server_counted(ran: Ran) -> None:
    counted: Counter[str] = Counter()
    for seen in ran.stub.seen:
        # what is asked before the run starts, and when a worker first opens the endpoint, is no call of the run
        if seen.path != "/v1/completions" or seen.body["prompt"] == ["Once upon a"]:
            continue
        fault = _refuses_marked(seen.path, seen.body, 0) or Fault()
        usage = json.loads(completions(ran.stub.server, seen.body, fault))["usage"]
        stage = "generate" if "seed" in seen.body else "relabel"
        counted[f"{stage} requests"] += 1 if isinstance(seen.body["prompt"], str) else len(seen.body["prompt"])
        counted[f"{stage} prompt"] += usage["prompt_tokens"]
        counted[f"{stage} completion"] += usage["completion_tokens"]
    told = {
        f"{usage['stage']} {name}": usage[key]
        for usage in ran.status["usage"]
        for name, key in [("requests", "requests"), ("prompt", "prompt_tokens"), ("completion", "completion_tokens")]
    }
    assert told == counted
    assert counted["generate requests"] == PASSAGES - BAD + 3 * BAD
    assert "tokens" in fretwork(ran.stack, "run", "status", ran.name).stdout


def test_the_preview_shows_prompts_completions_and_what_the_run_would_cost(ran: Ran) -> None:
    assert "Passage:" in ran.previewed
    assert "Query:" in ran.previewed
    assert "tokens" in ran.previewed


def test_neither_keys_nor_prompts_reach_a_log(ran: Ran) -> None:
    logs = [path.read_text(errors="replace") for path in (ran.stack.home / "logs").iterdir()]
    assert any("shard done" in log for log in logs)
    with ran.stack.engine.connect() as connection:
        written = "SELECT text FROM passages UNION ALL SELECT query_text FROM queries"
        texts = connection.execute(text(written)).scalars().all()
    for secret in [KEY, *(each[:40] for each in texts)]:
        assert not any(secret in log for log in logs)


def test_a_passage_is_not_asked_about_again(ran: Ran) -> None:
    asked = Counter(json.dumps(seen.body) for seen in ran.stub.seen if seen.path == "/v1/completions")
    probes = {body for body in asked if "Once upon a" in body}
    assert {asked[body] for body in asked.keys() - probes} == {1}


def test_an_update_asks_about_new_passages_and_changed_neighbourhoods_alone(ran: Ran, tmp_path: Path) -> None:
    """The last test of this file: it makes the corpus another one, and has the server count anew."""
    gone = sorted(topics)[0]
    fretwork(ran.stack, "corpus", "remove", "topics", "--source-id", gone)
    fretwork(ran.stack, "corpus", "add", "topics", str(write_corpus(tmp_path / "new.jsonl", 2, start=PASSAGES + BAD)))
    ran.stub.seen.clear()
    assert fretwork(ran.stack, "run", "update", ran.name, "--wait").stdout == "topics-2\n"
    status = json.loads(fretwork(ran.stack, "run", "status", "topics-2", "--json").stdout)
    assert status["conservation"]["holds"]
    assert (status["updates"], status["records"]) == (ran.name, PASSAGES - BAD - 1 + 2)
    with ran.stack.engine.connect() as connection:
        found: dict[str, dict[tuple[UUID, int], Any]] = {}
        for name in (ran.name, "topics-2"):
            rows = connection.execute(
                text(
                    "SELECT seed_passage_id, ordinal, query_text, provenance, candidate_ids, ql_scores, rc_scores, "
                    "judge FROM queries JOIN runs USING (run_id) WHERE name = :name"
                ),
                {"name": name},
            )
            found[name] = {(row.seed_passage_id, row.ordinal): row for row in rows}
        removed = connection.execute(
            text("SELECT passage_id FROM passages WHERE source_id = :id"), {"id": gone}
        ).scalar()
    before, after = found[ran.name], found["topics-2"]
    assert len(after.keys() - before.keys()) == 2
    assert {seed for seed, _ in before.keys() - after.keys()} == {removed}
    kept = 0
    for key in before.keys() & after.keys():
        old, new = before[key], after[key]
        assert (old.query_text, old.provenance) == (new.query_text, new.provenance)
        assert removed not in new.candidate_ids
        if set(old.candidate_ids) == set(new.candidate_ids):
            kept += 1
            scores = [dict(zip(row.candidate_ids, zip(row.ql_scores, row.rc_scores))) for row in (old, new)]  # noqa: B905
            assert scores[0] == scores[1]
            assert old.judge == new.judge
    assert status["judgements_kept"] == kept
    assert 0 < kept < len(before) - 1
    assert f"{kept} queries kept" in fretwork(ran.stack, "run", "status", "topics-2").stdout
    asked = [
        seen.body
        for seen in ran.stub.seen
        if seen.path == "/v1/completions" and "Once upon a" not in seen.body["prompt"]
    ]
    assert sum("seed" in body for body in asked) == 2, "the two new passages; a passage that came to nothing stays so"
    assert sum("seed" not in body for body in asked) == 2 * (len(after) - kept)
    again = fretwork(ran.stack, "run", "update", "topics-2", exit_status=1)
    assert "nothing to update" in again.stderr
