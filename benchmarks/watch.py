"""What watching a large run costs: `make bench-watch`. Figures to benchmarks/results/watch.json.

run_status_p95_ms       95th percentile of GET /runs/{run}, asked twenty times a second, of a run over a million
                        passages while eight generators work on it
page_p95_ms             the same of what the open page fetches, once a second: its sections, the slow ones with every
                        other fetch
metrics_p95_ms          the same of GET /metrics, once a second too, where Prometheus asks every fifteen
watched_throughput      passages/s of generation while all of these are asked ÷ while nobody asks, in turns of one run

The run is a real one: passages imported by `corpus add`, queries written by the offline teacher in real workers. All of
it shares the machine's cores with who asks.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.pipeline import more_workers
from benchmarks.results_file import RESULTS, figure, write
from cli.corpus.store import import_corpus
from cli.stack import postgres, running_stack
from shared.progress import stage_progress
from shared.records import RunConfig
from shared.runs import Run
from shared.stages import Stage
from tests.e2e.stack import Stack, real_stack
from tests.servers import until

GENERATORS = 8
WORDS = 24


def write_corpus(path: Path, count: int) -> None:
    """Passages of words that follow from their number, no two alike."""
    with path.open("w") as file:
        for number in range(count):
            words = (f"w{(number * 2654435761 + place * 40503) % 50021}" for place in range(WORDS))
            text = f"Passage {number} says {' '.join(words)}. It has a second sentence about w{number % 997}."
            file.write(json.dumps({"_id": str(number), "text": text}) + "\n")


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def asked(url: str, paths: Sequence[str], every_s: float, seconds: float) -> list[float]:
    """How many ms each answer took, over one connection, asked so often for so long."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    took = []
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        started = time.perf_counter()
        connection.request("GET", paths[len(took) % len(paths)])
        answer = connection.getresponse()
        answer.read()
        took.append(1000 * (time.perf_counter() - started))
        assert answer.status == 200, answer.status
        time.sleep(max(0.0, every_s - took[-1] / 1000))
    connection.close()
    return took


def generated(stack: Stack, run: Run) -> int:
    with stack.engine.connect() as connection:
        return next(stage.done for stage in stage_progress(connection, run.run_id) if stage.stage == Stage.GENERATE)


def nobody_asks(seconds: float) -> Iterator[list[float]]:
    time.sleep(seconds)
    yield []


def rate(stack: Stack, run: Run, while_: Iterator[list[float]]) -> tuple[float, list[list[float]]]:
    """Passages/s over the time that `while_` takes, and what it returned."""
    before, started = generated(stack, run), time.monotonic()
    result = list(while_)
    return (generated(stack, run) - before) / (time.monotonic() - started), result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=20, help="of each part of a turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS / "watch.json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fretwork-bench-") as folder:
        os.chmod(folder, 0o711)  # noqa: S103 - PostgreSQL may run as another user
        home = Path(folder) / "home"
        home.mkdir()
        corpus = Path(folder) / "million.jsonl"
        write_corpus(corpus, given.passages)
        try:
            with real_stack(home, FRETWORK_MAX_LOCAL_PASSAGES=str(given.passages)) as stack:
                write(given.output, measure(stack, corpus, given))
        finally:
            postgres.remove(home)


def measure(stack: Stack, corpus: Path, given: argparse.Namespace) -> list[dict[str, object]]:
    state = running_stack(stack.home)
    assert state is not None
    assert state.addresses is not None
    url = state.addresses.status_url
    assert url is not None
    started = time.monotonic()
    import_corpus(stack.engine, "million", corpus)
    sys.stderr.write(f"  imported in {time.monotonic() - started:.0f} s\n")
    run = stack.start("million", RunConfig(shard_size=32))
    of_run = f"/runs/{run.name}"
    looks = {
        "run_status_p95_ms": ([of_run], 0.05),
        "page_p95_ms": ([f"/page{of_run}?slow=false", f"/page{of_run}?slow=true"], 1.0),
        "metrics_p95_ms": (["/metrics"], 1.0),
    }
    quiet_rates, watched_rates, answers = [], [], dict[str, list[float]]()
    with more_workers(stack, state.addresses, "generator", GENERATORS - 1):
        until(lambda: generated(stack, run) > 2_000, 300, every_s=1)
        for _ in range(given.turns):
            quiet, _ = rate(stack, run, nobody_asks(given.seconds))
            watched, took = rate(stack, run, (asked(url, *look, given.seconds) for look in looks.values()))
            for name, values in zip(looks, took, strict=True):
                answers.setdefault(name, []).extend(values)
            quiet_rates.append(quiet)
            watched_rates.append(watched)
            p95 = ", ".join(f"{name} {percentile(values, 0.95):.0f}" for name, values in zip(looks, took, strict=True))
            sys.stderr.write(f"  {quiet:.0f} passages/s quiet, {watched:.0f} watched; {p95}\n")
    found: list[dict[str, object]] = []
    for name, values in answers.items():
        account = {f"p{share}": round(percentile(values, share / 100), 1) for share in (50, 95, 99)}
        found.append(figure(name, "ms", 50, [percentile(values, 0.95)], [account | {"answers": len(values)}]))
    ratios = [watched / quiet for watched, quiet in zip(watched_rates, quiet_rates, strict=True)]
    found.append(figure("watched_throughput", "ratio", 0.9, ratios))
    return found


if __name__ == "__main__":
    main()
