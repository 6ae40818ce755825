"""`fretwork corpus`: add, remove and list."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy import Engine, select

from cli.context import Context, progress_console, say
from cli.corpus.lines import Skipped
from cli.corpus.remove import read_ids, remove_passages
from cli.corpus.store import import_corpus
from shared.schema import corpora, runs

app = typer.Typer(no_args_is_help=True, help="Corpora: named sets of passages.")


@app.command()
def add(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="what to call the corpus")],
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH",
            help="a BEIR folder (corpus.jsonl), a .jsonl or .parquet file, a folder of .parquet or of .txt and .md "
            "files, or hf://OWNER/NAME, with /CONFIG and /SPLIT behind it where there are several",
        ),
    ],
    replace: Annotated[
        bool, typer.Option("--replace", help="remove what PATH does not have: the corpus is what PATH is then")
    ] = False,
    skip_invalid: Annotated[
        bool, typer.Option("--skip-invalid", help="import the rest of a file whose lines break a rule, and name each")
    ] = False,
) -> None:
    """Import passages into a corpus, new or not; importing the same ones twice changes nothing.

    What was edited comes as new: with --replace the earlier text leaves the corpus. Earlier runs are what they were.

    A .jsonl line is an object with `_id`, `text` and optionally `title`; a table has these columns. A line or row
    that breaks a rule is an error that names file, line and rule, and then nothing is imported, unless --skip-invalid.
    """

    def name_skipped(skipped: Skipped) -> None:
        say(f"skipped {skipped.error()}")

    settings: Context = context.obj
    with settings.database() as engine, progress_console.status(f"importing {path}") as status:
        report = import_corpus(
            engine,
            name,
            path,
            replace=replace,
            skip_invalid=skip_invalid,
            on_skipped=name_skipped,
            on_progress=lambda done: status.update(f"importing {path}: {done:,} passages"),
        )
        following = _next(engine, name, changed=report.added + report.removed > 0)
    removed = f"{report.removed:,} removed, " if replace else ""
    skipped = "".join(f", {number:,} skipped ({rule})" for rule, number in sorted(report.skipped.items()))
    typer.echo(
        f"corpus {report.corpus}: {report.passage_count:,} passages ({report.added:,} added, {removed}"
        f"{report.unchanged:,} unchanged, {report.duplicates:,} duplicates left out{skipped})"
    )
    say(f"next: fretwork {following} --wait")


@app.command()
def remove(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="the corpus")],
    source_ids: Annotated[
        list[str] | None, typer.Option("--source-id", metavar="ID", help="a passage's `_id`; may be given often")
    ] = None,
    ids: Annotated[Path | None, typer.Option(help="a file of `_id`s, one a line")] = None,
) -> None:
    """Take passages out of a corpus, which makes a new version of it.

    Later runs are without them, in their index, candidates and records. Earlier runs are what they were: a run keeps
    the version that it was started on.
    """
    settings: Context = context.obj
    named = [(source_id, "--source-id", None) for source_id in source_ids or ()]
    with settings.database() as engine:
        report = remove_passages(engine, name, chain(named, read_ids(ids) if ids else ()))
        following = _next(engine, name, changed=report.removed > 0)
    gone = f", {report.gone:,} gone before" if report.gone else ""
    typer.echo(
        f"corpus {report.corpus}: {report.passage_count:,} passages ({report.removed:,} removed{gone}), "
        f"version {report.version}"
    )
    say(f"next: fretwork {following} --wait")


def _next(engine: Engine, corpus: str, *, changed: bool) -> str:
    """A run on a changed corpus takes over what an earlier one has; one from scratch would ask the LLM for it all."""
    newest = select(runs.c.name).join(corpora, corpora.c.corpus_id == runs.c.corpus_id)
    newest = newest.where(corpora.c.name == corpus, runs.c.state == "done").order_by(runs.c.created_at.desc()).limit(1)
    with engine.connect() as connection:
        run = connection.execute(newest).scalar_one_or_none()
    return f"run update {run}" if run and changed else f"run start --corpus {corpus}"


@app.command("list")
def list_(
    context: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="one JSON array")] = False
) -> None:
    """List the corpora with their sizes."""
    settings: Context = context.obj
    with settings.database() as engine, engine.connect() as connection:
        rows = connection.execute(
            select(corpora.c.name, corpora.c.passage_count, corpora.c.version, corpora.c.content_hash).order_by(
                corpora.c.name
            )
        ).mappings()
        found = [dict(row) for row in rows]
    if as_json:
        typer.echo(json.dumps(found))
        return
    if not found:
        say("no corpus yet: fretwork corpus add NAME PATH")
    for corpus in found:
        typer.echo(f"{corpus['name']}\t{corpus['passage_count']:,} passages\tversion {corpus['version']}")
