"""`fretwork run refuse`: another labelling of a run, from the scores that it has."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.context import Context, say
from cli.runs.settings import parse_policy
from cli.watch import wait_for
from shared.labels import add_label_version, find_policies
from shared.progress import conservation
from shared.runs import find_run


def refuse(
    context: typer.Context,
    run: Annotated[str, typer.Argument(help="the run's name, or `latest`")],
    wait: Annotated[bool, typer.Option("--wait", help="watch the labelling until it is done")] = False,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="a setting of the labelling, see below")
    ] = None,
) -> None:
    """Label a finished run anew: fuse its stored scores and choose positives and negatives under other settings.

    No teacher is asked, so it costs no token. Prints the number of the new label version; earlier versions stay as they
    are, and `export` and `train` take any of them with --label-version. A setting that is left out is at its default,
    not as in the version before. Without --wait the workers of `fretwork up` do it.
    """
    policy = parse_policy(assignments or [])
    settings: Context = context.obj
    with settings.database(workers=wait) as engine:
        with engine.begin() as connection:
            found = find_run(connection, run)
            before = find_policies(connection, found)
            version = add_label_version(connection, found, policy)
        typer.echo(version)
        if version in before:
            say(f"{found.name} has this labelling already: label version {version}")
        if wait:
            wait_for(engine, found.run_id, found.name)
            with engine.connect() as connection:
                records = conservation(connection, found.run_id, version).records
            say(f"{records:,} records; next: fretwork train {found.name} --label-version {version} --output DIR")
        else:
            settings.say_if_nobody_works()
