"""`fretwork`: the command line. Commands are thin: they start things, watch the ledger, and print.

Progress goes to standard error, data to standard output. Exit status: 0 done · 1 an error that is explained ·
2 wrong usage · 3 some of the work is dead, or its run is paused (`fretwork run status` says why) · 130 interrupted.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy.exc import OperationalError

from cli.ablate import command as ablate
from cli.context import Context
from cli.corpus import command as corpus
from cli.demo import command as demo
from cli.export import command as export
from cli.models import command as models
from cli.review import command as review
from cli.runs import command as runs
from cli.stack import command as stack
from shared.errors import FretworkError

app = typer.Typer(
    name="fretwork",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="""Turns an LLM's knowledge into a compact text-embedding model (Gecko's FRet, arXiv 2403.20327).

A corpus of passages goes in. Task–query pairs are written for them, their neighbours retrieved and judged, and the
resulting FRet records train an encoder.

[bold]First steps[/bold]

  fretwork demo                              all of it, on Python's own docs

  fretwork corpus add mine ./my-texts        your passages: files or a folder

  fretwork run start --corpus mine --wait    make FRet records of them

  fretwork train mine-1 --output ./model     train an encoder on the records

  fretwork evaluate ./model --beir DIR       measure it

Every command starts the servers that it needs on this machine and stops them again, unless `fretwork up` keeps them
running or FRETWORK_DATABASE_URL and FRETWORK_BROKER_URL name others.""",
    epilog="Exit status: 0 done, 1 error, 2 wrong usage, 3 work is dead or its run paused, 130 interrupted.",
)


@app.callback()
def configure(
    context: typer.Context,
    home: Annotated[
        Path, typer.Option(envvar="FRETWORK_HOME", help="where the servers, vectors and training runs keep their state")
    ] = Path(".fretwork"),
) -> None:
    context.obj = Context(home.absolute())


app.command("demo")(demo.demo)
app.command("up")(stack.up)
app.command("down")(stack.down)
app.add_typer(corpus.app, name="corpus")
app.add_typer(runs.app, name="run")
app.command("review")(review.review)
app.command("export")(export.export)
app.command("train")(models.train)
app.command("evaluate")(models.evaluate)
app.command("ablate")(ablate.ablate)


def main() -> None:
    try:
        app()
    except FretworkError as error:
        sys.exit(f"error: {error}")
    except OperationalError as error:
        reason = str(error.orig).strip().splitlines()[0] if error.orig else str(error)
        code = getattr(error.orig, "sqlstate", None)
        if code and not code.startswith(("08", "57P")):  # it did answer: its disk is full, a statement was ended
            sys.exit(f"error: the database says: {reason}")
        sys.exit(
            f"error: the database did not answer: {reason}. Is FRETWORK_DATABASE_URL right, or `fretwork up` running?"
        )
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
