"""`fretwork export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.context import Context, say
from cli.export.export import ExportFormat, export_run
from shared.runs import find_run


def export(
    context: typer.Context,
    run: Annotated[str, typer.Argument(help="the run whose records to write, or `latest`")],
    output: Annotated[Path, typer.Option(help="a new folder for the data, its card and its manifest")],
    export_format: Annotated[
        ExportFormat,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="parquet or jsonl: all columns;\n\n"
            "sentence-transformers: anchor, positive, negative;\n\n"
            "sentence-transformers-kl: a query's whole list with the teacher's scores, for DistillKLDivLoss;\n\n"
            "sentence-transformers-margin-mse: the same with margins, for MarginMSELoss;\n\n"
            "bge: a line per query, for FlagEmbedding;\n\n"
            "bge-lists: the same with the whole list and its scores;\n\n"
            "beir: a folder of corpus, queries and qrels",
        ),
    ] = ExportFormat.PARQUET,
    label_version: Annotated[int, typer.Option(help="which labelling of the run's queries")] = 1,
) -> None:
    """Write a run's FRet records to files, with a dataset card and a manifest beside them."""
    settings: Context = context.obj
    with settings.database() as engine:
        with engine.connect() as connection:
            found = find_run(connection, run)
        report = export_run(engine, found.run_id, label_version, export_format, output)
    for reason, number in report.left_out.items():
        say(f"{number:,} records left out: {reason}")
    say(f"{report.records:,} records of {found.name}, label version {label_version}")
    typer.echo(report.output_dir)
