"""How fast the LLM teacher is: `make bench-llm`. Figures to benchmarks/results/llm.json, a table to standard output.

generate_vs_bare_client     queries/s of generation ÷ requests/s of a bare client that sends the same requests
relabel_vs_bare_client      scored prompts/s of relabelling (20 candidates a query, QL and RC) ÷ the bare client's
records_vs_distilabel       steady rate of generation ÷ distilabel's TextGeneration, over the same 2,000 prompts
records_vs_curator          the same ÷ Bespoke Curator's; both as they come, but for caps per minute
records_vs_…_tuned          the same, with batches and calls in flight set for this endpoint
relabelers_1_to_4           steady rate with four relabelers ÷ with one, on a stub that is bound by its latency
vllm_saturation             tokens/s of generation ÷ the bare client's, same prompts, at FRETWORK_TEST_VLLM_URL

The stub has a core of its own; whoever is measured has the other, the stack's servers among them. Both sides of a ratio
are measured in turn, in one run; a value is the median of the pairs' ratios. Rates are over the whole time from the
first claim to the last finish, or over all requests, but for the steady ones: those are the stub's answers between the
first and the last tenth.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.pipeline import generation, llm_config, more_workers, relabelling, tokens_of
from benchmarks.processes import Stub, bare, cores, cpu_s, peer, steady, stub, written
from benchmarks.results_file import RESULTS, figure, write
from cli.corpus.store import import_corpus
from cli.demo.corpus import build
from cli.stack import postgres, running_stack
from shared.records import RunConfig
from shared.settings import settings
from tests.e2e.stack import Stack, real_stack

CONCURRENCY = 64


@dataclass(frozen=True, slots=True)
class Bench:
    passages: int
    queries: int
    repeats: int
    folder: Path
    stub_core: set[int]

    def llm(self, **config: object) -> RunConfig:
        return RunConfig(teacher="llm", llm=llm_config(**config))

    @contextmanager
    def stack(self, **llm: str) -> Iterator[Stack]:
        """A stack with the corpus `docs`, whose processes stay on this process's core."""
        home = Path(tempfile.mkdtemp(dir=self.folder))
        corpus = self.folder / "docs"
        if not corpus.exists():
            build(corpus, self.passages)
        try:
            with real_stack(home, **{f"FRETWORK_LLM__{name}": value for name, value in llm.items()}) as running:
                settings.cache_clear()
                import_corpus(running.engine, "docs", corpus)
                yield running
        finally:
            settings.cache_clear()
            postgres.remove(home)

    def pairs(self, ours: Callable[[int], dict[str, float]], theirs: Callable[[int], dict[str, float]]) -> list[Any]:
        """Both sides in turn, ours first and theirs first by turns."""
        runs = []
        for number in range(self.repeats):
            sides = [("ours", ours), ("theirs", theirs)]
            measured = {name: measure(number) for name, measure in (sides if number % 2 else sides[::-1])}
            runs.append(
                {
                    "ratio": measured["ours"]["rate"] / measured["theirs"]["rate"],
                    **{name: {key: round(value, 3) for key, value in side.items()} for name, side in measured.items()},
                }
            )
            sys.stderr.write(f"  {json.dumps(runs[-1])}\n")
        return runs


def generate_vs_bare_client(bench: Bench) -> dict[str, Any]:
    with stub(bench.stub_core, remember=True) as llm, bench.stack(BASE_URL=llm.base_url) as stack:
        config = bench.llm().model_copy(update={"queries_per_passage": 4})
        worker = stack.pid("generator")

        def ours(_: int) -> dict[str, float]:
            stub_cpu = cpu_s(llm.pid)
            timing = generation(stack, "docs", config, lambda: cpu_s(worker))
            return {
                "rate": timing.items * config.queries_per_passage / timing.wall_s,
                "cpu": timing.cpu_s / timing.wall_s,
                "stub_cpu": (cpu_s(llm.pid) - stub_cpu) / timing.wall_s,
            }

        generation(stack, "docs", config, lambda: cpu_s(worker))  # the requests, and everything warm
        with written(llm.bodies(), bench.folder) as bodies:
            return _figure("generate_vs_bare_client", "ratio", 0.90, bench.pairs(ours, _bare(llm, bodies)))


def relabel_vs_bare_client(bench: Bench) -> dict[str, Any]:
    with stub(bench.stub_core, remember=True) as llm, bench.stack(BASE_URL=llm.base_url) as stack:
        config, worker = bench.llm(), stack.pid("relabeler")

        def ours(_: int) -> dict[str, float]:
            stub_cpu = cpu_s(llm.pid)
            timing = relabelling(stack, "docs", config, bench.queries, lambda: cpu_s(worker))
            return {
                "rate": prompts / timing.wall_s,
                "cpu": timing.cpu_s / timing.wall_s,
                "stub_cpu": (cpu_s(llm.pid) - stub_cpu) / timing.wall_s,
            }

        relabelling(stack, "docs", config, bench.queries, lambda: cpu_s(worker))
        asked = llm.bodies()
        prompts = sum(len(body["prompt"]) for body in asked)
        with written(asked, bench.folder) as bodies:
            client = _bare(llm, bodies)

            def theirs(number: int) -> dict[str, float]:
                measured = client(number)
                return {**measured, "rate": measured["rate"] * prompts / len(asked)}

            return _figure("relabel_vs_bare_client", "ratio", 0.90, bench.pairs(ours, theirs))


def _bare(llm: Stub, bodies: Path) -> Callable[[int], dict[str, float]]:
    count = len(bodies.read_bytes().splitlines())

    def measure(_: int) -> dict[str, float]:
        stub_cpu = cpu_s(llm.pid)
        told = bare(llm.base_url, bodies, CONCURRENCY)
        return {
            "rate": count / told["wall_s"],
            "cpu": told["cpu_s"] / told["wall_s"],
            "stub_cpu": (cpu_s(llm.pid) - stub_cpu) / told["wall_s"],
        }

    return measure


def records_vs_peers(bench: Bench) -> list[dict[str, Any]]:
    with stub(bench.stub_core, remember=True) as llm, bench.stack(BASE_URL=llm.base_url) as stack:
        worker = stack.pid("generator")

        def ours(_: int) -> dict[str, float]:
            llm.told()
            generation(stack, "docs", bench.llm(), lambda: cpu_s(worker))
            return {"rate": steady(llm.told()["answered_at"])}

        llm.told()
        generation(stack, "docs", bench.llm(), lambda: cpu_s(worker))
        prompts = [body["prompt"] for body in llm.bodies()]
        figures = []
        for name, target in (("distilabel", 6.0), ("curator", 2.0)):
            for tuned in (False, True):

                def theirs(_: int, name: str = name, tuned: bool = tuned) -> dict[str, float]:
                    llm.told()
                    peer(name, llm.base_url, prompts, bench.folder, tuned=tuned)
                    return {"rate": steady(llm.told()["answered_at"])}

                figure = f"records_vs_{name}" + ("_tuned" if tuned else "")
                figures.append(_figure(figure, "ratio", target, bench.pairs(ours, theirs)))
        return figures


def relabelers_1_to_4(bench: Bench) -> dict[str, Any]:
    """2 s a request, 64 in flight per relabeler: the stub's core must not be what holds four of them back."""
    with (
        stub(bench.stub_core, latency_ms=2000, in_flight=4 * CONCURRENCY) as llm,
        bench.stack(BASE_URL=llm.base_url) as stack,
    ):

        def rate(pids: list[int], queries: int, number: int) -> dict[str, float]:
            llm.told()
            stub_cpu = cpu_s(llm.pid)
            timing = relabelling(stack, "docs", bench.llm(), queries, lambda: sum(map(cpu_s, pids)), number=number)
            return {
                "rate": steady(llm.told()["answered_at"]),
                "cpu": timing.cpu_s / timing.wall_s,
                "stub_cpu": (cpu_s(llm.pid) - stub_cpu) / timing.wall_s,
            }

        def one(number: int) -> dict[str, float]:
            return rate([stack.pid("relabeler")], bench.queries, 2 * number)

        def four(number: int) -> dict[str, float]:
            state = running_stack(stack.home)
            assert state is not None
            assert state.addresses is not None
            with more_workers(stack, state.addresses, "relabeler", 3) as pids:
                return rate([stack.pid("relabeler"), *pids], 4 * bench.queries, 2 * number + 1)

        return _figure("relabelers_1_to_4", "ratio", 3.6, bench.pairs(four, one))


def vllm_saturation(bench: Bench) -> dict[str, Any] | None:
    base_url = os.environ.get("FRETWORK_TEST_VLLM_URL")
    if base_url is None:
        sys.stderr.write("vllm_saturation: left out, FRETWORK_TEST_VLLM_URL names no server\n")
        return None
    from benchmarks.recorder import bodies_of

    # one completion a passage, so that both sides ask the same; a short prompt, for the smallest model's context
    small: dict[str, object] = {"num_examples": 0, "task_sampling": "uniform", "max_attempts": 1}
    with bench.stack(BASE_URL=base_url) as stack:
        worker = stack.pid("generator")
        config = bench.llm(**small, max_completion_tokens=64).model_copy(
            update={"num_seed_passages": min(bench.passages, 1600)}
        )

        def ours(_: int) -> dict[str, float]:
            timing = generation(stack, "docs", config, lambda: cpu_s(worker), may_drop=True)
            return {"rate": tokens_of(stack, timing.run.run_id) / timing.wall_s, "cpu": timing.cpu_s / timing.wall_s}

        with written(bodies_of(stack, "docs", config), bench.folder) as bodies:

            def theirs(_: int) -> dict[str, float]:
                told = bare(base_url, bodies, CONCURRENCY)
                return {"rate": told["tokens"] / told["wall_s"], "cpu": told["cpu_s"] / told["wall_s"]}

            theirs(0)  # both sides find the prefix cache warm
            return _figure("vllm_saturation", "ratio", 0.95, bench.pairs(ours, theirs))


def _figure(name: str, unit: str, target: float, runs: list[Any]) -> dict[str, Any]:
    return figure(name, unit, target, [run["ratio"] for run in runs], runs)


FIGURES: dict[str, Callable[[Bench], Any]] = {
    "a": generate_vs_bare_client,
    "b": relabel_vs_bare_client,
    "c": records_vs_peers,
    "d": relabelers_1_to_4,
    "vllm": vllm_saturation,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default=",".join(FIGURES), help="a, b, c, d, vllm; separated by commas")
    parser.add_argument("--passages", type=int, default=2000)
    parser.add_argument(
        "--queries", type=int, default=320, help="of a relabelling; for four relabelers four times that"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS / "llm.json")
    given = parser.parse_args()
    stub_core, our_core = cores()
    os.sched_setaffinity(0, our_core)  # and whatever is started from here
    os.environ["OMP_NUM_THREADS"] = "1"
    figures: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="fretwork-bench-") as folder:
        os.chmod(folder, 0o711)  # noqa: S103 - PostgreSQL may run as another user
        bench = Bench(given.passages, given.queries, given.repeats, Path(folder), stub_core)
        for key in given.only.split(","):
            made = FIGURES[key](bench)
            figures += made if isinstance(made, list) else [made] if made else []
    write(given.output, figures)


if __name__ == "__main__":
    main()
