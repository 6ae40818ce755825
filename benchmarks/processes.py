"""Processes of a measurement: the stub on a core of its own, clients on the other, and what each costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.results_file import ROOT
from shared.llm.probe import WORDS


def cores() -> tuple[set[int], set[int]]:
    """The stub's core, and those of whoever is measured: the same number for every client."""
    first, *others = sorted(os.sched_getaffinity(0))
    if not others:
        raise SystemExit("this measurement needs two cores: one for the stub, one for who asks it")
    return {first}, {others[0]}


def cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


@dataclass(frozen=True, slots=True)
class Stub:
    base_url: str
    pid: int

    def told(self) -> dict[str, Any]:
        """When it answered (`answered_at`, seconds of its clock) and what it was asked (`seen`), since it last told."""
        with urllib.request.urlopen(self.base_url.removesuffix("/v1") + "/stub", timeout=60) as answer:  # noqa: S310
            told: dict[str, Any] = json.load(answer)
        return told

    def bodies(self) -> list[dict[str, Any]]:
        """The completions that were asked for, but for those of a probe before a run."""
        completions = [body for path, body in self.told()["seen"] if path == "/v1/completions"]
        return [body for body in completions if body["prompt"] != [WORDS]]


@contextmanager
def stub(core: set[int], *, latency_ms: float = 50.0, in_flight: int = 64, remember: bool = False) -> Iterator[Stub]:
    command = [sys.executable, "-m", "tests.llm_stub", f"--latency-ms={latency_ms}", f"--in-flight={in_flight}"]
    with subprocess.Popen(
        [*command, *(["--remember"] if remember else [])],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, core),
    ) as process:
        assert process.stdout is not None
        try:
            yield Stub(process.stdout.readline().split()[-1], process.pid)
        finally:
            process.terminate()


def steady(answered_at: Sequence[float]) -> float:
    """Answers per second, between the first and the last tenth of them."""
    at = sorted(answered_at)
    tenth = len(at) // 10
    return (len(at) - 2 * tenth - 1) / (at[-tenth - 1] - at[tenth])


@contextmanager
def written(bodies: Sequence[dict[str, Any]], folder: Path) -> Iterator[Path]:
    """A file with a body a line, as `benchmarks.bare` reads it."""
    path = folder / "bodies.jsonl"
    path.write_text("".join(json.dumps(body) + "\n" for body in bodies))
    yield path


def bare(base_url: str, bodies: Path, concurrency: int) -> dict[str, float]:
    """One run of the bare client, on the core that this process runs on."""
    command = [sys.executable, "-m", "benchmarks.bare", base_url, str(bodies), str(concurrency)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    told: dict[str, float] = json.loads(done.stdout)
    return told


def peer(name: str, base_url: str, prompts: Sequence[str], folder: Path, *, tuned: bool) -> None:
    """Runs another program over the prompts, in an environment of its own under .bench, made at first use."""
    environment = ROOT / ".bench" / name
    pinned = ROOT / "benchmarks" / "peers" / f"{name}.txt"
    if not (environment / "installed").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)], check=True)
        subprocess.run([str(environment / "bin" / "pip"), "install", "--quiet", "-r", str(pinned)], check=True)
        (environment / "installed").touch()
    path = folder / "prompts.json"
    path.write_text(json.dumps(prompts))
    script = ROOT / "benchmarks" / "peers" / f"{name}_generate.py"
    done = subprocess.run(
        [str(environment / "bin" / "python"), str(script), base_url, str(path), *(["tuned"] if tuned else [])],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
