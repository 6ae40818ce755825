"""`fretwork up` and `fretwork down`."""

from __future__ import annotations

import typer

from cli import stack
from cli.context import Context, say


def up(context: typer.Context) -> None:
    """Start everything on this machine and keep it running until Ctrl-C.

    PostgreSQL, Redis, a Celery worker per queue, the dispatcher and the status API, each as a process under this one;
    what dies is started again. FRETWORK_DATABASE_URL and FRETWORK_BROKER_URL name servers to use in place of its own.
    """
    settings: Context = context.obj
    stack.up(settings.home)


def down(context: typer.Context) -> None:
    """Stop what `fretwork up` runs on this home folder.

    Shards in hand have ten seconds to finish; one that does not is done again after the next start: nothing is lost.
    """
    settings: Context = context.obj
    if not stack.down(settings.home):
        say(f"nothing runs on {settings.home}")
