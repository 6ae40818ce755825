"""The generator's door: a shard of passages in, their task–query pairs out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import Connection

from services.generator import earlier, offline, prompted
from services.generator.prompt import prompt_of
from shared import store
from shared.celery_app import app
from shared.counts import count
from shared.database import engine, insert_rows
from shared.errors import SettingError
from shared.ledger import Claim
from shared.llm.loop import on_loop
from shared.llm.open import open_run_llm
from shared.meter import metered
from shared.records import Dropped, Passage, TaskQuery
from shared.runs import Run, find_followed, find_run
from shared.schema import queries
from shared.stages import ROUTES, Stage, task_name
from shared.worker import Output, perform

Written = Sequence[list[TaskQuery] | Dropped]


@app.task(name=task_name(Stage.GENERATE))  # type: ignore[untyped-decorator]
def generate(shard_id: str) -> None:
    perform(Stage.GENERATE, shard_id, _generate)


def _generate(claim: Claim) -> Output:
    assert claim.run_id is not None  # noqa: S101 - a generate shard always belongs to a run
    with engine().connect() as connection:
        run = find_run(connection, claim.run_id)
        found = store.load_passages(connection, run.corpus_id, claim.item_ids)
    passages = [found[passage_id] for passage_id in claim.item_ids]
    taken_over = _taken_over(run, passages)
    written = [*taken_over.values(), *_written(run, [p for p in passages if p.passage_id not in taken_over])]
    made = [query for item in written if not isinstance(item, Dropped) for query in item]

    def save(connection: Connection) -> None:
        rows = [
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
        ]
        insert_rows(connection, queries, rows)
        count(connection, run.run_id, Stage.GENERATE, "taken_over", sum(map(len, taken_over.values())))
        for kind, number in Counter(query.kind for query in made).items():
            count(connection, run.run_id, Stage.GENERATE, f"kind:{kind}", number)

    dropped = tuple(item for item in written if isinstance(item, Dropped))
    return Output(save, dropped, tuple(query.query_id for query in made))


def _taken_over(run: Run, passages: Sequence[Passage]) -> dict[UUID, list[TaskQuery]]:
    """What the run that this one follows has of these passages."""
    with engine().connect() as connection:
        followed = find_followed(connection, run)
        if followed is None:
            return {}
        ids = earlier.ids_in(followed.fingerprint, passages, run.config.queries_per_passage)
        found = store.load_queries(connection, followed, ids)
    return earlier.taken_over((item.query for item in found), run.fingerprint)


def _written(run: Run, passages: Sequence[Passage]) -> Written:
    if not passages:
        return []
    return _by_llm(run, passages) if run.config.teacher == "llm" else _offline(run, passages)


def _by_llm(run: Run, passages: Sequence[Passage]) -> Written:
    config = run.config.llm
    prompt = prompt_of(config)
    with metered(run.run_id, Stage.GENERATE, config.model) as meter:
        llm = open_run_llm(run.name, config, meter.spent)
        if prompt.sha256 != config.prompts_sha256.get("generate"):
            raise SettingError(
                f"run {run.name} was started with another version of the generator's prompt than this worker has: "
                "run this worker from the version of Fretwork that started the run"
            )
        writing = prompted.write_all(
            llm,
            passages,
            config,
            prompt,
            run_fingerprint=run.fingerprint,
            queries_per_passage=run.config.queries_per_passage,
            seed=run.config.seed,
        )
        return on_loop(writing, ROUTES[Stage.GENERATE].max_calls_s)


def _offline(run: Run, passages: Sequence[Passage]) -> Written:
    with engine().connect() as connection:
        statistics = store.load_statistics(connection, run, offline.needed_terms(passages))
    return [
        offline.write_queries(
            passage,
            statistics,
            run_fingerprint=run.fingerprint,
            queries_per_passage=run.config.queries_per_passage,
            kinds=run.config.query_kinds,
        )
        for passage in passages
    ]
