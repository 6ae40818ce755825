"""The relabeler's door: a shard of queries with candidates in, their scores and FRet records out.

Queries that carry scores already, as under a new label version, are fused and selected from them: no judge is called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from uuid import UUID

from sqlalchemy import Connection

from services.relabeler import earlier, prompted, statistical
from services.relabeler.fuse import fuse
from services.relabeler.judged import Judged, how_many
from services.relabeler.prompt import prompts_of
from services.relabeler.save import save_records, save_scores
from services.relabeler.select import select
from shared import store
from shared.celery_app import app
from shared.counts import count
from shared.database import engine
from shared.errors import SettingError
from shared.labels import find_policy, label_latecomers
from shared.ledger import Claim
from shared.llm.loop import on_loop
from shared.llm.open import open_run_llm
from shared.meter import metered
from shared.records import Dropped, FRetRecord, Passage
from shared.runs import Run, find_followed, find_run
from shared.stages import ROUTES, Stage, task_name
from shared.store import StoredQuery
from shared.worker import Output, perform


@app.task(name=task_name(Stage.RELABEL))  # type: ignore[untyped-decorator]
def relabel(shard_id: str) -> None:
    perform(Stage.RELABEL, shard_id, _relabel)


def _relabel(claim: Claim) -> Output:
    assert claim.run_id is not None  # noqa: S101 - a relabel shard always belongs to a run
    with engine().connect() as connection:
        run = find_run(connection, claim.run_id)
        policy = find_policy(connection, run, claim.label_version)
        stored = store.load_queries(connection, run, claim.item_ids)
        candidate_ids = {passage_id for item in stored for passage_id in item.candidate_ids}
        passages = store.load_passages(connection, run.corpus_id, candidate_ids)
        unjudged = [item for item in stored if not item.ql_scores]
    texts = {passage_id: passage.text for passage_id, passage in passages.items()}
    outcomes = _judge(run, unjudged, passages)
    judged = {query_id: found for query_id, found in outcomes.items() if isinstance(found, Judged)}
    dropped = [found for found in outcomes.values() if isinstance(found, Dropped)]
    records: list[tuple[FRetRecord, bool]] = []
    for item in stored:
        query_id = item.query.query_id
        if isinstance(outcomes.get(query_id), Dropped):
            continue
        scored = judged[query_id].scores_of(item) if query_id in judged else item
        fused = fuse(scored.candidate_ids, scored.ql_scores, scored.rc_scores, policy.fusion)
        chosen = select(scored, fused, texts, policy)
        if isinstance(chosen, Dropped):
            dropped.append(chosen)
        else:
            records.append((chosen, chosen.positive_id != item.query.seed_passage_id))

    def save(connection: Connection) -> None:
        save_scores(connection, run, judged)
        for what, amount in how_many(judged.values()).items():
            count(connection, run.run_id, Stage.RELABEL, what, amount)
        save_records(connection, run, claim.label_version, records)
        label_latecomers(connection, run, claim)

    return Output(save, tuple(dropped))


def _judge(run: Run, unjudged: Sequence[StoredQuery], passages: Mapping[UUID, Passage]) -> dict[UUID, Judged | Dropped]:
    """What the run's teacher says of each query, by query id."""
    if not unjudged:
        return {}
    by_teacher = _by_llm if run.config.teacher == "llm" else _offline
    known = _known(run, unjudged)
    asked = [item for item in unjudged if not set(item.candidate_ids) <= set(known[item.query.query_id])]
    candidates = [
        [passages[id_] for id_ in item.candidate_ids if id_ not in known[item.query.query_id]] for item in asked
    ]
    fresh = dict(zip((item.query.query_id for item in asked), by_teacher(run, asked, candidates), strict=True))
    if run.config.follows is None or not any(known.values()):
        return fresh
    return {
        query_id: earlier.completed(item, known[query_id], fresh.get(query_id), run.config.follows)
        for item in unjudged
        for query_id in [item.query.query_id]
    }


def _known(run: Run, unjudged: Sequence[StoredQuery]) -> dict[UUID, earlier.Known]:
    """What the run that this one follows knows of each query's passages, by query id."""
    with engine().connect() as connection:
        followed = find_followed(connection, run)
        if followed is None:
            return {item.query.query_id: {} for item in unjudged}
        ids = {item.query.query_id: earlier.id_in(followed.fingerprint, item) for item in unjudged}
        found = {item.query.query_id: item for item in store.load_queries(connection, followed, list(ids.values()))}
    return {item.query.query_id: earlier.known(item, found.get(ids[item.query.query_id])) for item in unjudged}


def _by_llm(
    run: Run, unjudged: Sequence[StoredQuery], candidates: Sequence[Sequence[Passage]]
) -> Sequence[Judged | Dropped]:
    config = run.config.llm
    prompts = prompts_of(config)
    with metered(run.run_id, Stage.RELABEL, config.model) as meter:
        llm = open_run_llm(run.name, config, meter.spent)
        if not prompts.sha256.items() <= config.prompts_sha256.items():
            raise SettingError(
                f"run {run.name} was started with another version of the relabeler's prompts than this worker has: "
                "run this worker from the version of Fretwork that started the run"
            )
        queries = [(item.query, passages) for item, passages in zip(unjudged, candidates, strict=True)]
        judging = prompted.judge_all(llm, queries, config, prompts)
        return on_loop(judging, ROUTES[Stage.RELABEL].max_calls_s)


def _offline(
    run: Run, unjudged: Sequence[StoredQuery], candidates: Sequence[Sequence[Passage]]
) -> Sequence[Judged | Dropped]:
    terms = set[str]().union(*(statistical.needed_terms(item.query.query_text) for item in unjudged))
    with engine().connect() as connection:
        statistics = store.load_statistics(connection, run, terms)
    return [
        Judged(
            statistical.judge(item.query.query_text, passages, statistics),
            statistical.provenance(item.query.query_text),
        )
        for item, passages in zip(unjudged, candidates, strict=True)
    ]
