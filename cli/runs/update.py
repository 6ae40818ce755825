"""`fretwork run update`: a run on the corpus as it is now, from what an earlier one on it has."""

from __future__ import annotations

from typing import Annotated

import typer
from sqlalchemy import select

from cli.context import Context, say
from cli.runs.settings import MaxHours, MaxTokens
from cli.runs.teacher import settle
from cli.watch import wait_for
from shared.errors import NotDoneError, SettingError
from shared.runs import find_run, start_run
from shared.schema import corpora


def update(
    context: typer.Context,
    run: Annotated[str, typer.Argument(help="the run's name, or `latest`")],
    wait: Annotated[bool, typer.Option("--wait", help="watch the new run until it is done")] = False,
    max_tokens: MaxTokens = None,
    max_hours: MaxHours = None,
) -> None:
    """Start a run with the settings of a finished one, on its corpus as it is now, after passages came or went.

    The new run follows the earlier one: what its LLM wrote of a passage that is still there is taken over, and what it
    judged of a query and a candidate. It is asked about new passages, and about candidates that are new to a query's
    neighbourhood. Prints the new run's name; the earlier run stays as it is.
    """
    settings: Context = context.obj
    with settings.database(workers=wait) as engine:
        with engine.connect() as connection:
            found = find_run(connection, run)
            corpus = connection.execute(select(corpora).where(corpora.c.corpus_id == found.corpus_id)).one()
        if found.state != "done":
            raise NotDoneError(f"run {found.name} is {found.state}: only a run that is done can be updated")
        if corpus.content_hash == found.corpus_hash:
            raise SettingError(f"the corpus {corpus.name} is as run {found.name} has it: there is nothing to update")
        config = settle(found.config, found.name).model_copy(update={"follows": found.run_id})
        with engine.begin() as connection:
            made = start_run(connection, corpus.name, config, max_tokens=max_tokens, max_hours=max_hours)
        typer.echo(made.name)
        if wait:
            wait_for(engine, made.run_id, made.name)
            say(f"next: fretwork run status {made.name}")
        else:
            settings.say_if_nobody_works()
