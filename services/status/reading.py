"""The routes that read. Each answer is one snapshot of the ledger, so that its figures agree while workers run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from importlib.metadata import version
from typing import Annotated, Any
from uuid import UUID

import redis
from fastapi import APIRouter, Depends, HTTPException, Path, Query, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from pydantic import BaseModel, TypeAdapter
from sqlalchemy import Connection

from services.status.events import Watch, changes
from services.status.examples import example
from services.status.exposition import exposition
from services.status.models import (
    DeadPage,
    Health,
    Queues,
    Readiness,
    RecordPage,
    RunPage,
    RunStatus,
    Trainings,
    TrainingStatus,
    Workers,
)
from services.status.problems import problems
from services.status.readiness import ask_all
from services.status.security import may_read
from shared.errors import NotFoundError
from shared.fleet import list_queues, list_workers
from shared.labels import find_policy
from shared.progress import describe, list_runs
from shared.reading import dead_shards, list_records, list_trainings, read_training
from shared.runs import Run, find_run
from shared.settings import settings
from shared.throughput import Throughput, throughput

VERSION = version("fretwork")
# PostgreSQL's texts hold no NUL
NAME: dict[str, Any] = {"max_length": 300, "pattern": r"^[^\x00]+$"}
MAX_PAGE = 100
MAX_LABEL_VERSION = 2**31 - 1

open_router = APIRouter(tags=["reading"])  # for probes, which have no token
router = APIRouter(tags=["reading"], dependencies=[Depends(may_read)])


def snapshot(request: Request) -> Iterator[Connection]:
    with request.app.state.engine().connect() as connection:
        yield connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)


def find(connection: Connection, name_or_id: str) -> Run:
    """The run of that name or id, or the newest for `latest`. Raises HTTPException 404."""
    try:
        run_id = UUID(name_or_id)
    except ValueError:
        run_id = None
    try:
        # a run's name may be 32 hexadecimal digits and a hyphen too: only an id's usual form is one
        return find_run(connection, run_id if run_id and str(run_id) == name_or_id.lower() else name_or_id)
    except NotFoundError:
        raise HTTPException(404, f"there is no run {name_or_id!r}: GET /runs lists the runs") from None


Ledger = Annotated[Connection, Depends(snapshot)]
RunName = Annotated[str, Path(**NAME, description="a run's name or id, or `latest`", examples=["scifact-1"])]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="entries to a page")]
After = Annotated[UUID | None, Query(description="`next` of the page before")]


def _run(connection: Ledger, run: RunName) -> Run:
    return find(connection, run)


Found = Annotated[Run, Depends(_run)]
OF_A_RUN = problems(401, 403, 404, 422, 503)
OF_ALL = problems(401, 403, 422, 503)


def queue_depth(queue: str) -> int | None:
    """The doorbells in a queue; None where the broker is away or not configured."""
    if settings().broker_url is None:
        return None
    try:
        with redis.Redis.from_url(
            settings().require_broker_url(), socket_timeout=2, socket_connect_timeout=2
        ) as broker:
            return int(broker.llen(queue))
    except redis.RedisError:
        return None


@open_router.get("/healthz", responses=example("health") | problems(403))
def healthz() -> Health:
    """Whether this process lives; it asks nothing of the database."""
    return Health(version=VERSION)


@open_router.get("/readyz", responses=example("readiness") | {503: {"model": Readiness, "description": "Not ready"}})
def readyz(request: Request, response: Response) -> Readiness:
    """Whether what Fretwork leans on answers, and why not. Database and broker decide; the others are reported."""
    found = ask_all(request.app.state.engine)
    response.status_code = 200 if found.ready else 503
    return found


@router.get("/runs", responses=example("runs") | OF_A_RUN)
def runs(
    connection: Ledger,
    limit: Limit = 20,
    after: Annotated[str | None, Query(**NAME, description="`next` of the page before")] = None,
) -> RunPage:
    """The runs, newest first."""
    last = find(connection, after).name if after is not None else None
    found = list_runs(connection, limit + 1, last)
    more = found[limit - 1]["name"] if len(found) > limit else None
    return RunPage.model_validate({"runs": found[:limit], "next": more})


@router.get("/runs/{run}", responses=example("run") | OF_A_RUN)
def run_status(connection: Ledger, run: Found) -> RunStatus:
    """How far a run is: per stage the items, rates and ETA, what was dropped and why, and whether the counts add up."""
    return RunStatus.model_validate(describe(connection, run))


@router.get("/runs/{run}/records", responses=example("records") | OF_A_RUN)
def run_records(
    connection: Ledger,
    run: Found,
    limit: Limit = 20,
    after: After = None,
    label_version: Annotated[int, Query(ge=1, le=MAX_LABEL_VERSION)] = 1,
    moved: Annotated[bool | None, Query(description="only those whose positive is (not) another than the seed")] = None,
    disagree: Annotated[
        bool | None, Query(description="only those whose positive is (not) second or worse by QL or by RC")
    ] = None,
) -> RecordPage:
    """FRet records side by side with their passages, in order of the query's id."""
    find_policy(connection, run, label_version)
    found = list_records(
        connection, run, label_version=label_version, limit=limit + 1, after=after, moved=moved, disagree=disagree
    )
    more = found[limit - 1].query_id if len(found) > limit else None
    return RecordPage(records=found[:limit], next=more)


@router.get("/runs/{run}/dead", responses=example("dead") | OF_A_RUN)
def run_dead(connection: Ledger, run: Found, limit: Limit = 20, after: After = None) -> DeadPage:
    """The shards that failed for good, with their errors, in order of their ids."""
    found = dead_shards(connection, run.run_id, limit + 1, after)
    more = found[limit - 1].shard_id if len(found) > limit else None
    return DeadPage(dead=found[:limit], next=more)


@router.get("/runs/{run}/throughput", responses=example("throughput") | OF_A_RUN)
def run_throughput(
    connection: Ledger,
    run: Found,
    since_s: Annotated[int, Query(ge=10, le=30 * 86400, description="how far to look back")] = 1800,
    points: Annotated[int, Query(ge=1, le=1000, description="at most about so many per stage")] = 180,
) -> Throughput:
    """What got done over time: in the last `since_s` seconds of the run, up to now or to its end."""
    return throughput(connection, run.run_id, since_s, points)


@router.get("/runs/{run}/training-runs", responses=example("trainings") | OF_A_RUN)
def run_trainings(connection: Ledger, run: Found, limit: Limit = 20) -> Trainings:
    """The trainings on a run's records, newest first."""
    return Trainings(training_runs=_trainings(list_trainings(connection, run.run_id, limit)))


@router.get("/training-runs/{training_run_id}", responses=example("training") | OF_A_RUN)
def training_run(connection: Ledger, training_run_id: UUID) -> TrainingStatus:
    """One training: how far it is, its loss, and the evaluations of its model."""
    (found,) = _trainings([read_training(connection, training_run_id)])
    return found


_trainings = TypeAdapter(list[TrainingStatus], config={"from_attributes": True}).validate_python


@router.get("/queues", responses=example("queues") | OF_ALL)
def queues(connection: Ledger) -> Queues:
    """Each queue's doorbells, the shards that are ready for it and for how long, and who serves it."""
    return Queues(queues=list_queues(connection, queue_depth))


@router.get("/workers", responses=example("workers") | OF_ALL)
def workers(connection: Ledger) -> Workers:
    """The worker processes and the dispatcher, by their own word."""
    return Workers(workers=list_workers(connection))


@router.get(
    "/metrics",
    response_class=Response,
    responses=OF_ALL | {200: {"content": {CONTENT_TYPE_PLAIN_0_0_4: {"schema": {"type": "string"}}}}},
)
def metrics(connection: Ledger) -> Response:
    """For Prometheus: the newest runs, queues and workers, and every living process's own counts."""
    return Response(exposition(connection, queue_depth), media_type=CONTENT_TYPE_PLAIN_0_0_4)


def _look(request: Request, run: Annotated[str | None, Query(**NAME)] = None) -> tuple[str, Callable[[], Any]]:
    """What a listener listens to: a name, and a look at it. Raises HTTPException 404 before the stream begins."""
    engine = request.app.state.engine

    def take(look: Callable[[Connection], BaseModel]) -> Callable[[], Any]:
        def taken() -> Any:
            with engine().connect() as connection:
                seen = look(connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True))
            return seen.model_dump(mode="json")

        return taken

    if run is None:
        return "", take(lambda connection: runs(connection, MAX_PAGE))
    with engine().connect() as connection:
        found = find(connection, run)
    # found anew each time: its state is part of it
    return str(found.run_id), take(lambda connection: run_status(connection, find_run(connection, found.run_id)))


@router.get("/events", response_class=EventSourceResponse, responses=OF_A_RUN)
async def events(
    request: Request, look: Annotated[tuple[str, Callable[[], Any]], Depends(_look)]
) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events: with `?run=` an event `run` whenever that run changes, with what GET /runs/{run} answers;
    without it an event `runs` whenever the list of runs does. At once, and then at most one a second.
    """
    name, take = look
    watch: Watch = request.app.state.watch
    async for event in changes(watch, "run" if name else "runs", name, take):
        yield event
