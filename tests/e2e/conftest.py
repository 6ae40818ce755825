"""A small corpus of real documentation, and one stack with a short lease that the tests of this folder share."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.corpus.store import import_corpus
from cli.demo.corpus import build
from cli.demo.harvest import SourceRoot
from cli.stack import postgres
from tests.e2e.stack import Stack, real_stack

PASSAGES = 64


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
