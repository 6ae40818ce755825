"""A stub of vLLM, engines for processes that share what they know of it, and a transport in a hurry."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, create_engine

from shared.llm import breaker, transport
from tests.llm_stub import StubLLM


@pytest.fixture
def stub() -> Iterator[StubLLM]:
    with StubLLM() as server:
        yield server


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Back-offs and openings a twentieth as long."""
    monkeypatch.setattr(transport, "FIRST_BACK_OFF_S", 0.0125)
    monkeypatch.setattr(breaker, "FIRST_S", 0.25)
    monkeypatch.setattr(breaker, "MOST_S", 1.0)


@pytest.fixture
def engines(database_url: str) -> Iterator[list[Engine]]:
    """One for each of two processes."""
    made = [create_engine(database_url) for _ in range(2)]
    yield made
    for each in made:
        each.dispose()
