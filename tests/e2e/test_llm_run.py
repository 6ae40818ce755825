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
from tests.e2e.stack import Stack, fretwork, real_stack
from tests.llm_stub import Fault, StubLLM
from tests.llm_stub_answers import completions
from tests.passages import write_corpus
from tests.truth import counts_and_truth

KEY = "sk-that-nobody-may-see"
PASSAGES = 20
BAD = 2
NEW = 3
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


def test_an_updated_run_asks_about_what_is_new_alone_and_equals_one_from_scratch(ran: Ran, tmp_path: Path) -> None:
    gone = sorted(topics)[0]
    fretwork(ran.stack, "corpus", "remove", "topics", "--source-id", gone)
    fretwork(ran.stack, "corpus", "add", "topics", str(write_corpus(tmp_path / "new.jsonl", NEW, start=PASSAGES + BAD)))
    ran.stub.seen.clear()
    updated = fretwork(ran.stack, "run", "update", ran.name, "--wait").stdout.strip()
    written = [seen for seen in ran.stub.seen if "seed" in seen.body]
    same = ("--corpus", "topics", "--wait", "--set", "shard_size=8", "--set", "num_candidates=6")
    scratch = fretwork(ran.stack, "run", "start", *same).stdout.strip()

    def outcome(name: str) -> list[Any]:
        with ran.stack.engine.connect() as connection:
            return list(
                connection.execute(
                    text(
                        "SELECT query_id, seed_passage_id, task_description, query_text, candidate_ids, ql_scores, "
                        "rc_scores, positive_id, negative_ids FROM queries JOIN runs USING (run_id) "
                        "JOIN fret_records USING (run_id, query_id) WHERE name = :name ORDER BY query_id"
                    ),
                    {"name": name},
                )
            )

    before, after = ({row.seed_passage_id: row for row in outcome(name)} for name in (ran.name, updated))
    assert len(after) == PASSAGES - BAD - 1 + NEW
    assert outcome(updated) == outcome(scratch)
    assert len(written) == NEW + 3 * BAD, "passages that came to nothing are tried again"
    known = {seed: set(before[seed].candidate_ids) if seed in before else set() for seed in after}
    new_pairs = sum(len(set(row.candidate_ids) - known[seed]) for seed, row in after.items())
    seen = json.loads(fretwork(ran.stack, "run", "status", updated, "--json").stdout)
    assert seen["conservation"]["holds"]
    assert seen["queries_taken_over"] == PASSAGES - BAD - 1
    assert seen["judged"] == new_pairs
    assert 6 * NEW < new_pairs < 12 * NEW, "those of the new queries, and new neighbours of the old ones"
    assert seen["judged"] + seen["judgements_taken_over"] == 6 * len(after)
    with ran.stack.engine.connect() as connection:
        counted, there = counts_and_truth(connection, UUID(seen["run_id"]))
        judged_by = connection.execute(
            text("SELECT DISTINCT judge ->> 'from_run' FROM queries WHERE run_id = :id AND judge ? 'taken_over'"),
            {"id": seen["run_id"]},
        ).scalars()
        assert set(judged_by) == {ran.status["run_id"]}
    assert counted.pop(("generate", 1, "taken_over")) == PASSAGES - BAD - 1
    assert counted == there
    assert "taken over" in fretwork(ran.stack, "run", "status", updated).stdout
    assert "nothing to update" in fretwork(ran.stack, "run", "update", updated, exit_status=1).stderr
    other = (*same, "--follow", updated, "--set", "llm.temperature=0.2")
    assert "llm.temperature" in fretwork(ran.stack, "run", "start", *other, exit_status=1).stderr


@pytest.mark.slow
def test_a_second_round_retrieves_with_an_embedder_trained_on_the_first_and_judges_what_is_new(
    ran: Ran, tmp_path: Path
) -> None:
    corpus = write_corpus(tmp_path / "rounds.jsonl", PASSAGES, start=PASSAGES + BAD + NEW)
    fretwork(ran.stack, "corpus", "add", "rounds", str(corpus))
    given = ("--corpus", "rounds", "--set", "num_candidates=6", "--embedders", str(tmp_path / "embedders"))
    names = fretwork(ran.stack, "run", "start", *given, "--rounds", "2").stdout.split()
    assert names == ["rounds-1", "rounds-2"]
    first, second = (json.loads(fretwork(ran.stack, "run", "status", name, "--json").stdout) for name in names)
    assert second["config"]["embedder"] == str(tmp_path / "embedders" / "rounds-1")
    assert (tmp_path / "embedders" / "rounds-1" / "modules.json").is_file()
    assert (first["judged"], first["judgements_taken_over"]) == (6 * PASSAGES, 0)
    assert second["queries_taken_over"] == PASSAGES
    assert second["judgements_taken_over"] >= PASSAGES, "each query's seed passage, if nothing else"
    assert second["judged"] + second["judgements_taken_over"] == 6 * PASSAGES
    assert second["records"] == PASSAGES

    runs = fretwork(ran.stack, "run", "list", "--json").stdout
    again = fretwork(ran.stack, "run", "start", *given, "--rounds", "2", "--resume", "if_possible")
    assert again.stdout.split() == names, "a script that is run again finds what it had"
    assert fretwork(ran.stack, "run", "list", "--json").stdout == runs
