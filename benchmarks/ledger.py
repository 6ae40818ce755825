"""What the ledger costs as a run grows: `make bench-ledger`. Figures to benchmarks/results/ledger.json.

cost_1m_vs_10k          ms in the ledger per record (claims, finishes, storing the outputs, over all stages), of a run
                        over a million passages ÷ of one over ten thousand
claim_finish_p95_ms     95th percentile of a shard's claim and finish at a million, with the doorbells that follow, and
                        without the outputs' rows, whose time stands beside it
progress_query_ms       the same of all that a run's status shows, asked twice a second while workers work on it
memory_delta_mb         how much more memory any process needed at its most, at a million than at ten thousand: the
                        dispatcher, a worker, an export

The run is a real one but for the work (benchmarks/ledger_worker.py): imported passages, PostgreSQL, Redis, the
dispatcher, Celery's workers. There are no vectors. `--passages 20000` is a quick look.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import Engine, create_engine, text

from benchmarks.results_file import RESULTS, ROOT, figure, write
from benchmarks.watch import percentile, write_corpus
from cli.corpus.store import import_corpus
from cli.stack import children, ensure_stack, postgres, redis_server, running_stack
from cli.stack.processes import Child, ChildSpec, start, stop
from cli.stack.state import Addresses
from shared.progress import conservation, describe
from shared.records import RunConfig
from shared.runs import start_run
from tests.servers import until

WORKERS = 2
SLOTS = 1  # what is measured is the ledger, not how long eight threads wait for a processor
SHARD_SIZE = 32
SMALL = 10_000
TIMEOUT_S = 4 * 3600.0
TABLES = ("passages", "corpus_terms", "shards", "queries", "fret_records", "drops", "counts", "throughput")


@dataclass(frozen=True, slots=True)
class Machine:
    """PostgreSQL, Redis, the dispatcher and the synthetic workers; `times` is the file that they write to."""

    home: Path
    addresses: Addresses
    engine: Engine
    processes: dict[str, Child]
    times: Path

    def postgres_cpu_s(self) -> float:
        """Of all its processes, ended ones too."""
        state = running_stack(self.home)
        assert state is not None
        server = psutil.Process(next(child.pid for child in state.children if child.name == "postgres"))
        ours = server.cpu_times()
        spent = ours.user + ours.system + ours.children_user + ours.children_system
        for backend in server.children():
            try:
                times = backend.cpu_times()
                spent += times.user + times.system
            except psutil.NoSuchProcess:
                continue
        return float(spent)

    def cpu_s(self) -> dict[str, float]:
        spent = {name: sum(psutil.Process(c.process.pid).cpu_times()[:2]) for name, c in self.processes.items()}
        return {**spent, "postgres": self.postgres_cpu_s()}

    def peak_mb(self) -> dict[str, float]:
        """What each process needed at its most since its start."""
        return {name: _peak_mb(child.process.pid) for name, child in self.processes.items()}


@dataclass
class Account:
    """What a run over `passages` came to."""

    passages: int
    wall_s: float = 0.0
    cpu_s: dict[str, float] = field(default_factory=dict)
    peak_mb: dict[str, float] = field(default_factory=dict)
    ledger_ms: list[float] = field(default_factory=list)  # of each shard's claim and finish
    stored_ms: list[float] = field(default_factory=list)  # of storing its outputs
    by_stage: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    progress_ms: list[float] = field(default_factory=list)
    export_s: float = 0.0

    @property
    def ms_per_record(self) -> float:
        return (sum(self.ledger_ms) + sum(self.stored_ms)) / self.passages

    def plain(self) -> dict[str, Any]:
        return {
            "passages": self.passages,
            "wall_s": round(self.wall_s, 1),
            "shards": len(self.ledger_ms),
            "shards_per_s": round(len(self.ledger_ms) / self.wall_s, 1),
            "ledger_ms_per_record": round(self.ms_per_record, 4),
            "cpu_ms_per_record": {name: round(1000 * s / self.passages, 4) for name, s in self.cpu_s.items()},
            "claim_finish_ms": _spread(self.ledger_ms),
            "claim_finish_and_outputs_ms": _spread(
                [a + b for a, b in zip(self.ledger_ms, self.stored_ms, strict=True)]
            ),
            "claim_finish_p95_ms_by_stage": {s: round(percentile(each, 0.95), 2) for s, each in self.by_stage.items()},
            "progress_ms": _spread(self.progress_ms),
            "peak_mb": {name: round(mb, 1) for name, mb in self.peak_mb.items()},
            "export_s": round(self.export_s, 1),
        }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {f"p{share}": round(percentile(values, share / 100), 2) for share in (50, 95, 99)}


def _peak_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return float(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 1024


@contextmanager
def machine(folder: Path) -> Iterator[Machine]:
    home = folder / "home"
    home.mkdir()
    times = folder / "times"
    times.touch()
    try:
        with ensure_stack(home, workers=False) as database:
            broker = redis_server.prepare(home)
            addresses = Addresses(database_url=database.database_url, broker_url=broker.url)
            started: dict[str, Child] = {}
            engine = create_engine(addresses.database_url)
            try:
                redis = start(broker.spec, home / "logs")
                until(lambda: broker.spec.ready(redis), 60)
                started["dispatcher"] = start(children.dispatcher(home, addresses), home / "logs")
                for number in range(WORKERS):
                    started[f"worker-{number}"] = start(_worker(home, addresses, number, times), home / "logs")
                for name, child in started.items():
                    if name != "dispatcher":
                        until(lambda child=child: " ready." in child.output(), 60)  # type: ignore[misc]
                yield Machine(home, addresses, engine, started, times)
            finally:
                engine.dispose()
                stop([*started.values(), redis])
    finally:
        postgres.remove(home)


def _worker(home: Path, addresses: Addresses, number: int, times: Path) -> ChildSpec:
    spec = children.worker(home, addresses, "generator", SLOTS)
    changed = {
        "services.generator.tasks": "benchmarks.ledger_worker",
        "generator": "generator,retriever,relabeler",
        "generator@%h": f"ledger-{number}@%h",
    }
    env = {**spec.env, "PYTHONPATH": str(ROOT), "FRETWORK_BENCH_TIMES": str(times)}
    return replace(
        spec, name=f"ledger-{number}", command=tuple(changed.get(part, part) for part in spec.command), env=env
    )


def measured(on: Machine, name: str, passages: int) -> Account:
    """A run over the corpus, to its end, and its export."""
    account = Account(passages)
    on.times.write_text("")
    before, started = on.cpu_s(), time.monotonic()
    with on.engine.begin() as connection:
        run = start_run(connection, name, RunConfig(shard_size=SHARD_SIZE))
    while True:
        asked = time.perf_counter()
        with on.engine.connect() as connection:
            seen = describe(connection, run)
        account.progress_ms.append(1000 * (time.perf_counter() - asked))
        assert seen["conservation"]["holds"], seen["conservation"]
        if seen["state"] == "done":
            break
        assert time.monotonic() < started + TIMEOUT_S, "the run does not end"
        time.sleep(0.5)
    account.wall_s = time.monotonic() - started
    account.cpu_s = {each: spent - before[each] for each, spent in on.cpu_s().items()}
    with on.engine.connect() as connection:
        sums = conservation(connection, run.run_id)
    assert sums.records == passages, sums
    for line in on.times.read_text().splitlines():
        stage, _, ledger_ms, stored_ms = line.split()
        account.ledger_ms.append(float(ledger_ms))
        account.stored_ms.append(float(stored_ms))
        account.by_stage[stage].append(float(ledger_ms))
    account.peak_mb = on.peak_mb()
    account.export_s, account.peak_mb["export"] = _exported(on, run.name)
    sys.stderr.write(f"  {account.plain()}\n")
    return account


def _exported(on: Machine, run_name: str) -> tuple[float, float]:
    """Seconds, and the most memory in MB, of an export."""
    folder = on.home / f"export-{run_name}"
    command = [sys.executable, "-m", "cli.main", "--home", str(on.home), "export", run_name, "--output", str(folder)]
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return time.monotonic() - started, usage.ru_maxrss / 1024


def bytes_of(engine: Engine) -> dict[str, dict[str, float]]:
    """Bytes of each table with its indexes, and by row."""
    found = {}
    with engine.connect() as connection:
        for table in TABLES:
            size = connection.execute(text(f"SELECT pg_total_relation_size('{table}')")).scalar_one()
            indexes = connection.execute(text(f"SELECT pg_indexes_size('{table}')")).scalar_one()
            rows = connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one()  # noqa: S608 - our own
            found[table] = {
                "rows": rows,
                "bytes": size,
                "bytes_per_row": round(size / rows, 1) if rows else 0,
                "of_these_indexes": round(indexes / rows, 1) if rows else 0,
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--output", type=Path, default=RESULTS / "ledger.json")
    given = parser.parse_args()
    for name in [name for name in os.environ if name.startswith("FRETWORK_")]:
        del os.environ[name]
    os.environ["FRETWORK_MAX_LOCAL_PASSAGES"] = str(max(SMALL, given.passages))
    with tempfile.TemporaryDirectory(prefix="fretwork-bench-") as folder:
        os.chmod(folder, 0o711)  # noqa: S103 - PostgreSQL may run as another user
        with machine(Path(folder)) as on:
            write(given.output, measure(on, Path(folder), given.passages))


def measure(on: Machine, folder: Path, passages: int) -> list[dict[str, object]]:
    accounts = []
    for name, count in (("warm-up", 2_000), ("small", SMALL), ("large", passages)):
        path = folder / f"{name}.jsonl"
        write_corpus(path, count)
        started = time.monotonic()
        import_corpus(on.engine, name, path)
        path.unlink()
        sys.stderr.write(f"{name}: {count:,} passages imported in {time.monotonic() - started:.0f} s\n")
        accounts.append(measured(on, name, count))
    _, small, large = accounts
    told = [{"small": small.plain(), "large": large.plain(), "bytes": bytes_of(on.engine)}]
    more_mb = {name: large.peak_mb[name] - small.peak_mb[name] for name in large.peak_mb}
    return [
        figure("cost_1m_vs_10k", "ratio", 1.2, [large.ms_per_record / small.ms_per_record], told),
        figure("claim_finish_p95_ms", "ms", 10, [percentile(large.ledger_ms, 0.95)]),
        figure("progress_query_ms", "ms", 50, [percentile(large.progress_ms, 0.95)]),
        figure("memory_delta_mb", "MB", 50, [max(more_mb.values())], [{n: round(mb, 1) for n, mb in more_mb.items()}]),
    ]


if __name__ == "__main__":
    main()
