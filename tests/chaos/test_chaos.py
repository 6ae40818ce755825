"""A run while everything that can break breaks: the records are the undisturbed run's, none lost and none double.

    make test-chaos SEEDS=50       seeds 1 to 50, a line for each
    CHAOS_SEED=17 make test-chaos  one that failed, alone; several with blanks between

Processes, PostgreSQL, Redis and the dispatcher are real ones under the real supervisor; the LLM is the stub. What a
seed does stands in driver.py, how it is done in harm.py. All seeds with the same lease share a stack, each with a
corpus of its own name, so that its passages are embedded anew; the undisturbed run is made once per stack.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from cli.corpus.store import import_corpus
from cli.stack import postgres
from shared.runs import Run, find_run
from tests.chaos.drill import carry_out
from tests.chaos.driver import EXTRA, Event, lease_s, plan
from tests.chaos.harm import GRACE_S, World
from tests.e2e.stack import Stack, digest, real_stack
from tests.llm_stub import StubLLM
from tests.passages import write_corpus
from tests.servers import until

PASSAGES = 48
RECOVERY_S = 75.0
LATENCY_S, IN_FLIGHT = 0.2, 4  # so slow that the run lasts a dozen seconds, and there is something to be harmed
# in `make test` one seed of this: a kill, Redis without its memory, a worker frozen past its lease, a lost index
SHORT = {
    1: (
        Event(0.5, "kill", "generator"),
        Event(2.0, "restart redis", ""),
        Event(4.0, "freeze in its transaction", "relabeler"),
        Event(4.0, "lose the index", "with queries in it"),
    )
}


def seeds() -> list[int]:
    if "CHAOS_SEED" in os.environ:
        return [int(seed) for seed in os.environ["CHAOS_SEED"].split()]
    return list(range(1, int(os.environ.get("CHAOS_SEEDS", "0")) + 1))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "topics.jsonl", PASSAGES)


@dataclass
class Worlds:
    """One world at a time, kept for as long as seeds with its lease come."""

    folder: pytest.TempPathFactory
    corpus: Path
    lease_s: float | None = 0.0
    world: World | None = None
    records: str = ""
    stack: ExitStack = field(default_factory=ExitStack)

    def with_lease(self, lease_s: float | None) -> tuple[World, str]:
        """The world whose stack has this lease, and the digest of its undisturbed run."""
        if self.world is None or self.lease_s != lease_s:
            self.stack.close()
            self.lease_s, self.world = lease_s, self.stack.enter_context(_world(self.folder, self.corpus, lease_s))
            self.records = digest(self.world.stack.engine, self.world.exported, cosines=False)
        return self.world, self.records


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Iterator[Worlds]:
    kept = Worlds(tmp_path_factory, corpus)
    with kept.stack:
        yield kept


@contextmanager
def _world(folder: pytest.TempPathFactory, corpus: Path, lease_s: float | None) -> Iterator[World]:
    home = folder.mktemp("chaos")
    lease = {} if lease_s is None else {"FRETWORK_LEASE_S": str(lease_s)}
    try:
        with (
            StubLLM(in_flight=IN_FLIGHT, remember=False) as stub,
            real_stack(home, FRETWORK_LLM__BASE_URL=stub.base_url, **lease) as stack,
        ):
            import_corpus(stack.engine, "undisturbed", corpus)
            run = _start_by_hand(stack)
            world = World(stack, stub, run)
            world.keep_extras()
            try:
                stack.finish(run)
                stub.latency_s = LATENCY_S
                yield world
            finally:
                world.stop_extras()
    finally:
        postgres.remove(home)


def _start_by_hand(stack: Stack) -> Run:
    """Through the command line, which asks the LLM what it is."""
    options = [f"{name}={value}" for name, value in {"shard_size": 6, "num_candidates": 6}.items()]
    started = subprocess.run(
        [sys.executable, "-m", "cli.main", "--home", str(stack.home), "run", "start", "--corpus", "undisturbed"]
        + [word for option in options for word in ("--set", option)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert started.returncode == 0, started.stderr
    with stack.engine.connect() as connection:
        return find_run(connection, started.stdout.strip())


def planned() -> list[tuple[int, tuple[Event, ...]]]:
    """Seeds with the same lease stand together, for one stack."""
    chosen = {seed: plan(seed) for seed in seeds()} or SHORT
    return sorted(chosen.items(), key=lambda item: (lease_s(item[0]) is None, item[0]))


@pytest.mark.slow
def test_workers_that_are_asked_to_end_finish_what_they_hold(worlds: Worlds, corpus: Path) -> None:
    here, expected = worlds.with_lease(lease_s(1))
    import_corpus(here.stack.engine, "terminated", corpus)
    run = here.stack.start("terminated", here.exported.config)
    for name in EXTRA:
        until(lambda name=name: bool((pid := here.alive(name)) and here.claims_of(pid)), 60)  # type: ignore[misc]
        child = here.extra[name]
        child.process.terminate()
        assert child.process.wait(GRACE_S) == 0, child.last_words()
        assert here.claims_of(child.process.pid) == set()
        here.keep_extras()
    here.stack.finish(run)
    with here.stack.engine.connect() as connection:
        lost = connection.execute(
            text("SELECT count(*) FROM shards WHERE run_id = :id AND losses > 0"), {"id": run.run_id}
        ).scalar_one()
    assert lost == 0
    assert digest(here.stack.engine, run, cosines=False) == expected


@pytest.mark.parametrize(("seed", "events"), planned())
def test_seed(
    worlds: Worlds, seed: int, events: tuple[Event, ...], corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here, expected = worlds.with_lease(lease_s(seed))
    started = time.monotonic()
    engine = here.stack.engine
    until(lambda: here.rows("SELECT 1") is not None, RECOVERY_S)  # the last seed may have restarted it at its end
    import_corpus(engine, f"seed-{seed}", corpus)
    run = here.stack.start(f"seed-{seed}", here.exported.config)
    seen = carry_out(here, run, events, seed)
    lost, doubled = _lost_and_doubled(engine, here.exported, run)
    same = digest(engine, run, cosines=False) == expected
    with engine.connect() as connection:
        dead = connection.execute(
            text("SELECT stage, error_message FROM shards WHERE run_id = :id AND state = 'dead'"), {"id": run.run_id}
        ).all()
    good = same and not (lost or doubled or dead or seen.wrong)
    with capsys.disabled():
        sys.stdout.write(
            f"\nseed {seed}: {time.monotonic() - started:.0f} s, lease {lease_s(seed) or 45:g} s; "
            f"{'; '.join(seen.did)}: {'the same records' if good else 'WRONG'}, lost {lost}, doubled {doubled}, "
            f"back after {seen.recovery_s:.0f} s at most, {seen.looks} looks\n"
        )
    assert not seen.wrong
    assert not dead
    assert (lost, doubled) == (0, 0)
    assert same
    assert seen.recovery_s < RECOVERY_S
    assert seen.did, "a seed that harmed nothing shows nothing"


def _lost_and_doubled(engine: Engine, undisturbed: Run, run: Run) -> tuple[int, int]:
    """Records of the undisturbed run that are missing, and records too many, told apart by query and positive."""
    found = []
    for each in (undisturbed, run):
        with engine.connect() as connection:
            rows = connection.execute(
                text(
                    "SELECT seed_passage_id, query_text, positive_id FROM fret_records JOIN queries "
                    "USING (run_id, query_id) WHERE run_id = :id"
                ),
                {"id": each.run_id},
            )
            found.append(Counter(tuple(row) for row in rows))
    expected, got = found
    return (expected - got).total(), (got - expected).total()
