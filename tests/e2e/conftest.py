"""A small corpus of real documentation, and one stack with a short lease that the tests of this folder share."""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cli.corpus.store import import_corpus
from cli.demo.corpus import build
from cli.demo.harvest import SourceRoot
from cli.stack import postgres
from shared.records import LabelPolicy, RunConfig
from shared.runs import Run
from tests.e2e.stack import Stack, fretwork, real_stack

PASSAGES = 64


@dataclass(frozen=True, slots=True)
class Trained:
    """A run with its records, a model trained on them, what `train` said, and what `evaluate` said of that model."""

    run: Run
    model: Path
    said: str
    report: dict[str, Any]


@pytest.fixture(scope="session")
def beir_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BEIR folder of passages from a corner of the standard library, with held-out summaries as queries."""
    folder = tmp_path_factory.mktemp("beir")
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    build(folder, PASSAGES, roots=[SourceRoot("python", stdlib)])
    return folder


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, beir_folder: Path) -> Iterator[Stack]:
    """A stack whose leases run out after three seconds, with the corpus `docs` in it."""
    home = tmp_path_factory.mktemp("stack")
    try:
        with real_stack(home, FRETWORK_LEASE_S="3") as running:
            import_corpus(running.engine, "docs", beir_folder)
            yield running
    finally:
        postgres.remove(home)


@pytest.fixture(scope="session")
def trained(stack: Stack, beir_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Whoever asks for it is in the group of the same name, so that one process makes it once."""
    run = stack.start("docs", RunConfig(shard_size=8, seed=11, labels=LabelPolicy(positive="p_1")))
    stack.finish(run)
    model = tmp_path_factory.mktemp("models") / "docs-small"
    few = ("--per-device-train-batch-size", "8", "--passage-max-len", "48", "--matryoshka-dims", "128")
    said = fretwork(stack, "train", run.name, "--output", str(model), *few).stderr
    compared = ("--baseline", "all-MiniLM-L6-v2", "--dims", "384,128", "--json")
    evaluated = fretwork(stack, "evaluate", str(model), "--beir", str(beir_folder), *compared)
    return Trained(run, model, said, json.loads(evaluated.stdout))
