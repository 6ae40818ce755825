"""`fretwork demo`: the main job on the documentation that the environment brings along."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from cli.context import Context, say
from cli.demo.job import run_demo
from cli.demo.present import write_reports
from cli.models.command import comparison_table
from shared.models import WHEEL_MODEL, as_given


def demo(
    context: typer.Context,
    passages: Annotated[int, typer.Option(min=8, help="size of the corpus; a quarter gives held-out queries")] = 2_000,
    seed: Annotated[int, typer.Option(help="seeds the corpus, the run and the training")] = 0,
    model: Annotated[str, typer.Option(help="the base: a SentenceTransformer folder or a hub name")] = WHEEL_MODEL,
) -> None:
    """Run the whole job for real, and measure it: corpus, queries, neighbours, judgements, training, before/after.

    The corpus is the documentation of the Python libraries in this environment; the held-out queries are summary
    lines that people wrote. The teacher is `offline`: statistical methods, no LLM. The report goes to
    HOME/demo/report.json and report.html.
    """
    settings: Context = context.obj
    folder = settings.home / "demo"
    outcome = run_demo(settings, folder, passages, seed, as_given(model))
    report = write_reports(folder, outcome)
    typer.echo("")
    Console().print(comparison_table(outcome.evaluation))
    typer.echo(
        f"\nFor {report['positive_changed']:.1%} of the queries the judge prefers another passage to the one that they "
        "were written from."
    )
    counts, reasons = report["counts"], report["reasons"]
    typer.echo(f"{counts['passages']:,} passages → {counts['queries']:,} queries → {counts['records']:,} records.")
    for stage, by_reason in reasons.items():
        for reason, number in by_reason.items():
            typer.echo(f"  {stage}: {number:,} {reason}")
    typer.echo(f"The trained model: {outcome.model_dir}\nThe report, with records to read: {folder / 'report.html'}")
    say(
        "The queries were written and judged by statistical methods, not by an LLM: that is the baseline an LLM has to "
        "beat. The same job with one: set FRETWORK_LLM__BASE_URL and use `fretwork run start`; docs/llm.md."
    )
