"""This process as one of Fretwork's own: its settings and its engine lead to a test's servers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Engine, create_engine

from shared import heartbeat, lease, meter
from shared.database import engine as process_engine
from shared.settings import settings


@contextmanager
def process_on(database_url: str, **named: str) -> Iterator[Engine]:
    """An engine of the test's own; the process's leads to the same database, and its threads end with the block.

    `named` are other settings: `broker_url=…` is FRETWORK_BROKER_URL.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"database_url": database_url, **named}.items():
            patch.setenv(f"FRETWORK_{name.upper()}", value)
        settings.cache_clear()
        process_engine.cache_clear()
        made = create_engine(database_url)
        try:
            yield made
        finally:
            for thread in (meter, lease, heartbeat):
                thread.stop()
            process_engine().dispose()
            process_engine.cache_clear()
            settings.cache_clear()
            made.dispose()
