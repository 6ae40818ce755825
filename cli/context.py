"""What every command needs: the home folder, and an engine on a running stack's database."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from sqlalchemy import Engine

from cli.stack import ensure_stack, running_stack
from shared.database import make_engine
from shared.migrate import check_version
from shared.settings import settings

progress_console = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class Context:
    home: Path

    @contextmanager
    def database(self, *, workers: bool = False) -> Iterator[Engine]:
        """An engine on the stack's database, with workers or just the servers; what was started here stops here."""
        with ensure_stack(self.home, workers=workers) as addresses:
            engine = make_engine(addresses.database_url)
            try:
                check_version(engine)
                yield engine
            finally:
                engine.dispose()

    def say_if_nobody_works(self) -> None:
        """A stack may be servers alone; the database that FRETWORK_DATABASE_URL names may have workers elsewhere."""
        running = running_stack(self.home)
        if (running is None or not running.has_workers) and settings().database_url is None:
            say("nothing works on it yet: start the workers with `fretwork up`")


def say(message: str) -> None:
    """A line for the person who watches: standard error, so that data stays alone on standard output."""
    print(message, file=sys.stderr, flush=True)  # noqa: T201
