"""`run start --preview N`: what a few passages would give, before a run is paid for. Writes nothing."""

from __future__ import annotations

import typer
from sqlalchemy import Engine

from cli.context import say
from services.generator import extractive
from shared import store
from shared.records import Dropped, RunConfig
from shared.runs import draft_run, sample_passages


def preview(engine: Engine, corpus: str, config: RunConfig, count: int) -> None:
    """Prints the queries of `count` sampled passages, or the reason why there is none."""
    with engine.connect() as connection:
        run = draft_run(connection, corpus, config)
        ids = sample_passages(connection, run, count)
        passages = store.load_passages(connection, run, ids)
        statistics = store.load_statistics(connection, run, extractive.needed_terms(passages.values()))
    for passage_id in ids:
        passage = passages[passage_id]
        typer.echo(f"\n── {passage.source_id}  {passage.title}\n{passage.text}")
        written = extractive.write_queries(
            passage,
            statistics,
            run_fingerprint=run.fingerprint,
            queries_per_passage=config.queries_per_passage,
        )
        if isinstance(written, Dropped):
            typer.echo(f"   dropped: {written.reason} {written.detail}")
        else:
            for query in written:
                typer.echo(f"   task:  {query.task_description}\n   query: {query.query_text}")
    sampled = min(config.num_seed_passages or run.passage_count, run.passage_count)
    say(f"the run would sample {sampled:,} of {run.passage_count:,} passages; the offline teacher uses no LLM tokens")
