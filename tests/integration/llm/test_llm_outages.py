"""LLM servers that fail in every way, before a run and during it: no record lost, none wrong, none double.

During a run: real workers and three real HTTP servers. Each kind of fault has a corpus of its own, whose passages begin
with the fault's name, so the servers know whom to harm and all kinds are tried at once. What an undisturbed run of the
same corpus came to is the measure.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from cli.corpus.store import import_corpus
from cli.stack import postgres
from services.generator.prompt import prompt_of
from services.relabeler.prompt import prompts_of
from shared.records import LLMConfig, RunConfig
from shared.runs import Run, find_run, resume_run, start_run
from tests.e2e.stack import Stack, digest, real_stack
from tests.llm_stub import ENDLESS, NOT_SENT, Fault, StubLLM
from tests.passages import write_corpus
from tests.servers import until

PASSAGES = 4
LATENCY_S = 0.01
CALM = "zzcalm"
HASHES = {"generate": prompt_of(LLMConfig()).sha256, **prompts_of(LLMConfig()).sha256}
CONFIG = RunConfig(
    teacher="llm", llm=LLMConfig(model="stub", prompts_sha256=HASHES), shard_size=PASSAGES, num_candidates=PASSAGES
)

# what happens to the n-th try of a request; the same request is the same bytes
TRANSIENT: Mapping[str, Mapping[int, Fault]] = {
    "zzerrors": {0: Fault(status=500), 1: Fault(status=502)},
    "zzresets": {0: Fault(reset=True)},
    "zztruncated": {0: Fault(truncated=True)},
    "zznojson": {0: Fault(body=b"<html>Bad gateway</html>"), 1: Fault(body=b"")},
    "zzrefusals": {0: Fault(status=503)},
    "zznull": {0: Fault(log_probs=b"null")},
    "zznan": {0: Fault(log_probs=b"NaN")},
    "zznotsent": {0: NOT_SENT},
}
LASTING: Mapping[str, Fault] = {
    "zznever": Fault(log_probs=b"NaN"),
    "zzempty": Fault(completion=""),
    "zzendless": Fault(completion=ENDLESS),
}
STORM = "zzstorm"
STORM_S = 2.0


@dataclass
class Weather:
    """The faults of all three servers. They are asked from the servers' threads."""

    stormy: bool = False
    tries: Counter[str] = field(default_factory=Counter)
    storm_until: float = 0.0
    refused: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fault(self, path: str, body: dict[str, Any], number: int) -> Fault | None:
        if not self.stormy or path != "/v1/completions":
            return None
        asked = json.dumps(body)
        with self.lock:
            number_of_try = self.tries[asked]
            self.tries[asked] += 1
            if STORM in asked:
                self.storm_until = self.storm_until or time.monotonic() + STORM_S
                if time.monotonic() < self.storm_until:
                    self.refused += 1
                    return Fault(status=429, headers={"Retry-After": "1"})
        for name, faults in TRANSIENT.items():
            fault = faults.get(number_of_try) if name in asked else None
            if fault is not None and (fault is not NOT_SENT or "prompt_logprobs" in body):
                return fault
        return next((fault for name, fault in LASTING.items() if name in asked), None)


@dataclass(frozen=True, slots=True)
class World:
    stack: Stack
    stubs: list[StubLLM]
    weather: Weather
    undisturbed: dict[str, str]  # digests by corpus

    def asked(self) -> int:
        return sum(seen.path == "/v1/completions" for stub in self.stubs for seen in stub.seen)

    def is_calm(self, run: Run) -> None:
        """Nothing was counted against any shard: the fault was the endpoint's."""
        with self.stack.engine.connect() as connection:
            counted = connection.execute(
                text("SELECT sum(failures), sum(losses), count(*) FILTER (WHERE state <> 'done') FROM shards "
                     "WHERE run_id = :id"),
                {"id": run.run_id},
            ).one()  # fmt: skip
        assert tuple(counted) == (0, 0, 0)

    def reasons(self, run: Run) -> Counter[tuple[str, str]]:
        with self.stack.engine.connect() as connection:
            rows = connection.execute(
                text("SELECT stage, reason, count(*) FROM drops WHERE run_id = :id GROUP BY 1, 2"), {"id": run.run_id}
            )
            return Counter({(stage, reason): count for stage, reason, count in rows})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    home, files = tmp_path_factory.mktemp("outages"), tmp_path_factory.mktemp("corpora")
    weather = Weather()
    try:
        with ExitStack() as opened:
            stubs = [opened.enter_context(StubLLM(latency_s=LATENCY_S)) for _ in range(3)]
            for stub in stubs:
                stub.fault = weather.fault
            urls = ",".join(stub.base_url for stub in stubs)
            stack = opened.enter_context(real_stack(home, FRETWORK_LLM__BASE_URL=urls))
            names = [*TRANSIENT, *LASTING, STORM]
            for number, name in enumerate(names):
                corpus = write_corpus(files / f"{name}.jsonl", PASSAGES, start=number * PASSAGES, mark=name)
                import_corpus(stack.engine, name, corpus)
            import_corpus(stack.engine, CALM, write_corpus(files / f"{CALM}.jsonl", 24, start=50, mark=CALM))
            runs = {name: stack.start(name, CONFIG) for name in (*names, CALM)}
            for run in runs.values():
                stack.finish(run)
            yield World(stack, stubs, weather, {name: digest(stack.engine, run) for name, run in runs.items()})
    finally:
        postgres.remove(home)


@pytest.fixture(scope="module")
def disturbed(world: World) -> dict[str, Run]:
    """A run of each corpus, all at once and with all faults, and their ends."""
    world.weather.stormy = True
    runs = {name: world.stack.start(name, CONFIG) for name in (*TRANSIENT, *LASTING, STORM)}
    for run in runs.values():
        world.stack.finish(run)
    world.weather.stormy = False
    return runs


@pytest.mark.parametrize("name", TRANSIENT)
def test_what_passes_changes_no_record(world: World, disturbed: dict[str, Run], name: str) -> None:
    hurt = [asked for asked, tries in world.weather.tries.items() if name in asked and tries > 1]
    assert hurt, "the fault never happened"
    assert digest(world.stack.engine, disturbed[name]) == world.undisturbed[name]
    world.is_calm(disturbed[name])


def test_a_storm_of_429s_is_waited_out(world: World, disturbed: dict[str, Run]) -> None:
    assert world.weather.refused
    assert digest(world.stack.engine, disturbed[STORM]) == world.undisturbed[STORM]
    world.is_calm(disturbed[STORM])
    # Retry-After was honoured: not as many calls as the time allowed for
    assert world.weather.refused < 100


@pytest.mark.parametrize(
    ("name", "reasons"),
    [
        ("zznever", {("relabel", "unusable_scores"): PASSAGES}),
        ("zzempty", {("generate", "empty_completion"): PASSAGES}),
        ("zzendless", {("generate", "endless_completion"): PASSAGES}),
    ],
)
def test_what_lasts_ends_each_item_with_its_reason(
    world: World, disturbed: dict[str, Run], name: str, reasons: dict[tuple[str, str], int]
) -> None:
    assert world.reasons(disturbed[name]) == reasons
    world.is_calm(disturbed[name])


def test_a_slow_replica_gets_less_than_its_share(world: World) -> None:
    slow = world.stubs[1]
    slow.fault = lambda path, body, number: Fault(delay_s=1.0) if path == "/v1/completions" else None
    counted = [len(stub.seen) for stub in world.stubs]
    try:
        run = world.stack.start(CALM, CONFIG)
        world.stack.finish(run)
    finally:
        slow.fault = world.weather.fault
    new = [
        sum(seen.path == "/v1/completions" for seen in stub.seen[before:])
        for stub, before in zip(world.stubs, counted, strict=True)
    ]
    assert digest(world.stack.engine, run) == world.undisturbed[CALM]
    # most calls of so small a run are made before any latency is known; the transport's tests look at what follows
    assert new[1] < sum(new) / 3, new
    world.is_calm(run)


def test_an_endpoint_that_is_away_costs_no_attempts_and_work_goes_on_by_itself(world: World) -> None:
    """One does not listen, one has another key, one has lost its model: down for everyone."""
    gone, locked, emptied = world.stubs
    before = world.asked()
    run = world.stack.start(CALM, CONFIG)
    until(lambda: world.asked() > before + 8, 60)
    locked.fault = lambda path, body, number: Fault(status=401)
    emptied.fault = lambda path, body, number: Fault(status=404)
    gone.go_away()
    try:
        with world.stack.engine.connect() as connection:
            until(lambda: _open_breakers(connection) == 3, 30)
        quiet = world.asked()
        time.sleep(2)
        # where nobody answers nobody asks, but for one probe now and then
        assert world.asked() - quiet <= 6
        with world.stack.engine.connect() as connection:
            assert find_run(connection, run.run_id).state == "running"
    finally:
        gone.come_back()
        locked.fault = emptied.fault = world.weather.fault
    world.stack.finish(run)
    assert digest(world.stack.engine, run) == world.undisturbed[CALM]
    world.is_calm(run)


def _open_breakers(connection: Any) -> int:
    count: int = connection.execute(text("SELECT count(*) FROM endpoints WHERE open_until IS NOT NULL")).scalar_one()
    connection.rollback()
    return count


def test_a_spent_budget_pauses_the_run_and_more_of_it_resumes_it(world: World) -> None:
    with world.stack.engine.begin() as connection:
        run = start_run(connection, CALM, CONFIG, max_tokens=10_000)
    for stub in world.stubs:
        stub.latency_s = 2.0  # the dispatcher looks once a second

    def state() -> str:
        with world.stack.engine.connect() as connection:
            return find_run(connection, run.run_id).state

    try:
        until(lambda: state() == "paused", 60)
    finally:
        for stub in world.stubs:
            stub.latency_s = LATENCY_S
    time.sleep(2.5)  # what was in flight comes to its end
    with world.stack.engine.connect() as connection:
        reason, used = connection.execute(
            text(
                "SELECT paused_reason, (SELECT sum(prompt_tokens + completion_tokens) FROM llm_usage AS u "
                "WHERE u.run_id = runs.run_id) FROM runs WHERE run_id = :id"
            ),
            {"id": run.run_id},
        ).one()
    assert f"fretwork run resume {run.name}" in reason
    assert used >= 10_000
    asked = world.asked()
    time.sleep(1.5)
    assert world.asked() == asked, "a paused run asks nothing"
    with world.stack.engine.begin() as connection:
        resume_run(connection, run, max_tokens=10**9)
    world.stack.finish(run)
    assert digest(world.stack.engine, run) == world.undisturbed[CALM]
    world.is_calm(run)


@dataclass(frozen=True, slots=True)
class Bad:
    """An endpoint with which no run may start, and what has to be said."""

    says: tuple[str, ...]
    serves: dict[str, Any] | None = field(default_factory=dict)  # of the stub; None: there is none
    environment: dict[str, str] = field(default_factory=dict)


BAD = {
    "wrong model": Bad(("FRETWORK_LLM__MODEL", "nope", "stub"), environment={"MODEL": "nope"}),
    "wrong key": Bad(("FRETWORK_LLM__API_KEY",), {"api_key": "right"}, {"API_KEY": "wrong"}),
    "no prompt log-probabilities": Bad(("FRETWORK_LLM__BASE_URL", "log-probabilities"), {"prompt_logprobs": False}),
    "context too small": Bad(("--max-model-len", "llm.num_examples="), {"context_tokens": 1024}),
    "not an LLM": Bad(("FRETWORK_LLM__BASE_URL", "/v1"), environment={"BASE_URL": "{root}/nothing/here"}),
    "nobody there": Bad(
        ("FRETWORK_LLM__BASE_URL", "does not answer"), None, environment={"BASE_URL": "http://127.0.0.1:9/v1"}
    ),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_a_bad_endpoint_is_refused_when_the_run_starts(bad: Bad, database_url: str, tmp_path: Path) -> None:
    engine = create_engine(database_url, poolclass=NullPool)
    import_corpus(engine, "topics", write_corpus(tmp_path / "topics.jsonl", 2))
    with ExitStack() as opened:
        stub = opened.enter_context(StubLLM(**bad.serves)) if bad.serves is not None else None
        given = {"BASE_URL": "{root}/v1", **bad.environment}
        root = stub.root_url if stub is not None else ""
        environment = {f"FRETWORK_LLM__{name}": value.format(root=root) for name, value in given.items()}
        refused = subprocess.run(
            [sys.executable, "-m", "cli.main", "--home", str(tmp_path), "run", "start", "--corpus", "topics"],
            env={**os.environ, "FRETWORK_DATABASE_URL": database_url, **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert refused.returncode == 1, refused.stdout
    assert refused.stdout == ""
    (sentence,) = refused.stderr.strip().splitlines()
    for words in bad.says:
        assert words in sentence
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM runs")).scalar_one() == 0
