"""A worker of every queue whose work is synthetic: what it stores is stored as the services do, what it costs is not.

Started by `benchmarks.ledger`, as Celery starts a service's worker. Everything around the work is the real thing:
`shared.worker.perform` with its lease, fence and doorbells, and the services' own statements. For each shard a line
goes to the file that FRETWORK_BENCH_TIMES names: stage, items, ms of claim and finish, ms of storing the outputs.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from uuid import UUID

from sqlalchemy import Connection

from services.relabeler.judged import Judged
from services.relabeler.save import save_records, save_scores
from services.retriever.save import save_candidates
from shared import store
from shared.celery_app import app
from shared.database import engine, insert_rows
from shared.ledger import Claim
from shared.records import Candidate, FRetRecord, Judgement, query_id
from shared.runs import Run, find_run, sample_passages
from shared.schema import queries
from shared.stages import RUN_STAGES, Stage, task_name
from shared.worker import Output, perform

_times = open(os.environ["FRETWORK_BENCH_TIMES"], "a", buffering=1)  # noqa: SIM115 - for as long as the process lives

TASK = "Given a question, find a passage that has the answer to it"
JUDGE = {"judge": "synthetic", "model": "none", "prompts": {"ql": "0" * 64, "rc": "0" * 64}}
PROVENANCE = {"teacher": "synthetic", "model": "none", "prompt": "0" * 64, "seed": 0, "temperature": 0.7, "top_p": 0.95}


def _do(stage: Stage, shard_id: str) -> None:
    """Notes how long the shard took, without the work itself."""
    started = at_work = time.perf_counter()
    worked = stored = 0.0
    items = 0

    def work(claim: Claim) -> Output:
        nonlocal at_work, worked, items
        at_work = time.perf_counter()
        output = WORK[stage](claim)
        worked, items = time.perf_counter(), len(claim.item_ids)
        return Output(partial(store_outputs, output.store), output.dropped, output.survivors)

    def store_outputs(save: Callable[[Connection], None], connection: Connection) -> None:
        nonlocal stored
        begun = time.perf_counter()
        save(connection)
        stored = time.perf_counter() - begun

    perform(stage, shard_id, work)
    if items:
        ledger_s = at_work - started + time.perf_counter() - worked - stored
        _times.write(f"{stage} {items} {1000 * ledger_s:.3f} {1000 * stored:.3f}\n")


def _run(claim: Claim) -> Run:
    assert claim.run_id is not None
    return _found(claim.run_id)


@cache
def _found(run_id: UUID) -> Run:
    with engine().connect() as connection:
        return find_run(connection, run_id)


@cache
def _some_passages(run_id: UUID) -> Sequence[UUID]:
    with engine().connect() as connection:
        return sample_passages(connection, _found(run_id), 1000)


def _generate(claim: Claim) -> Output:
    run = _run(claim)
    with engine().connect() as connection:
        passages = store.load_passages(connection, run.corpus_id, claim.item_ids)
    rows = [
        {
            "run_id": run.run_id,
            "query_id": query_id(run.fingerprint, passage_id, 0),
            "seed_passage_id": passage_id,
            "ordinal": 0,
            "task_description": TASK,
            "query_text": " ".join(passages[passage_id].text.split()[:10]),
            "provenance": PROVENANCE,
        }
        for passage_id in claim.item_ids
    ]
    return Output(
        lambda connection: insert_rows(connection, queries, rows), survivors=tuple(row["query_id"] for row in rows)
    )


def _candidates(run: Run, id_: UUID) -> list[Candidate]:
    """Passages by a hash of the query's id, with scores that fall."""
    some = _some_passages(run.run_id)
    first = int.from_bytes(hashlib.sha256(id_.bytes).digest()[:8], "big")
    count = min(run.config.num_candidates, len(some))
    return [
        Candidate(some[(first + rank) % len(some)], rank + 1, round(0.9 - 0.01234 * rank, 5)) for rank in range(count)
    ]


def _retrieve(claim: Claim) -> Output:
    run = _run(claim)
    found = {id_: _candidates(run, id_) for id_ in claim.item_ids}
    return Output(lambda connection: save_candidates(connection, run, found), survivors=claim.item_ids)


def _relabel(claim: Claim) -> Output:
    run = _run(claim)
    with engine().connect() as connection:
        stored = store.load_queries(connection, run, claim.item_ids)
    judged, records = {}, []
    for item in stored:
        judgements = [
            Judgement(passage_id, -1.0 - 0.37123456789 * rank, -0.1 - 0.1123456789 * rank)
            for rank, passage_id in enumerate(item.candidate_ids)
        ]
        judged[item.query.query_id] = Judged(judgements, JUDGE)
        record = FRetRecord(
            query_id=item.query.query_id,
            positive_id=item.candidate_ids[0],
            negative_ids=(item.candidate_ids[-1],),
            positive_ql_rank=1,
            positive_rc_rank=1,
            positive_fused_score=2.0,
            seed_fused_score=0.1,
            runner_up_fused_score=0.7,
            negative_spans=(None,),
        )
        records.append((record, True))

    def save(connection: Connection) -> None:
        save_scores(connection, run, judged)
        save_records(connection, run, claim.label_version, records)

    return Output(save)


WORK: dict[Stage, Callable[[Claim], Output]] = {
    Stage.INDEX: lambda claim: Output(),
    Stage.GENERATE: _generate,
    Stage.RETRIEVE: _retrieve,
    Stage.DEDUP: lambda claim: Output(survivors=claim.item_ids),
    Stage.RELABEL: _relabel,
}


def _answer(stage: Stage) -> None:
    """Takes a stage's doorbells."""

    @app.task(name=task_name(stage))  # type: ignore[untyped-decorator]
    def do(shard_id: str) -> None:
        _do(stage, shard_id)


for _stage in RUN_STAGES:
    _answer(_stage)
