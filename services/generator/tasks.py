"""The generator's door: a shard of passages in, their task–query pairs out."""

from __future__ import annotations

from sqlalchemy import Connection
from sqlalchemy.dialects.postgresql import insert

from services.generator import extractive
from shared import store
from shared.celery_app import app
from shared.database import engine
from shared.ledger import Claim
from shared.records import Dropped, TaskQuery
from shared.runs import find_run
from shared.schema import queries
from shared.stages import Stage, task_name
from shared.worker import Output, perform


@app.task(name=task_name(Stage.GENERATE))  # type: ignore[untyped-decorator]
def generate(shard_id: str) -> None:
    perform(Stage.GENERATE, shard_id, _generate)


def _generate(claim: Claim) -> Output:
    assert claim.run_id is not None  # noqa: S101 - a generate shard always belongs to a run
    with engine().connect() as connection:
        run = find_run(connection, claim.run_id)
        passages = store.load_passages(connection, run, claim.item_ids)
        statistics = store.load_statistics(connection, run, extractive.needed_terms(passages.values()))
    made: list[TaskQuery] = []
    dropped: list[Dropped] = []
    for passage_id in claim.item_ids:
        written = extractive.write_queries(
            passages[passage_id],
            statistics,
            run_fingerprint=run.fingerprint,
            queries_per_passage=run.config.queries_per_passage,
        )
        if isinstance(written, Dropped):
            dropped.append(written)
        else:
            made.extend(written)

    def save(connection: Connection) -> None:
        if made:
            connection.execute(
                insert(queries),
                [
                    {
                        "run_id": run.run_id,
                        "query_id": query.query_id,
                        "seed_passage_id": query.seed_passage_id,
                        "ordinal": query.ordinal,
                        "task_description": query.task_description,
                        "query_text": query.query_text,
                        "provenance": query.provenance,
                    }
                    for query in made
                ],
            )

    return Output(save, tuple(dropped), tuple(query.query_id for query in made))
