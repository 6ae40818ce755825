"""The status API: how far the runs are, read from the ledger. It moves nothing, and its transactions are read-only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from http import HTTPStatus
from importlib.metadata import version
from typing import Annotated, Any
from uuid import UUID

import structlog
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException as StarletteHTTPException

from services.status.models import Health, Problem, RunPage, RunStatus
from shared import database
from shared.errors import NotFoundError, SchemaVersionError, SettingError
from shared.progress import describe, list_runs
from shared.runs import Run, find_run

PROBLEM = "application/problem+json"
VERSION = version("fretwork")

log = structlog.get_logger()
router = APIRouter()


def _connection(request: Request) -> Iterator[Connection]:
    """One snapshot for all of an answer's figures, so that they agree with each other while workers run."""
    with request.app.state.engine().connect() as connection:
        yield connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)


Ledger = Annotated[Connection, Depends(_connection)]
# PostgreSQL's texts hold no NUL
NAME = {"max_length": 300, "pattern": r"^[^\x00]+$"}


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    content = {PROBLEM: {"schema": Problem.model_json_schema()}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def _find(connection: Connection, name_or_id: str) -> Run:
    try:
        run_id = UUID(name_or_id)
    except ValueError:
        run_id = None
    try:
        # a run's name may be 32 hexadecimal digits and a hyphen too: only an id's usual form is one
        return find_run(connection, run_id if run_id and str(run_id) == name_or_id.lower() else name_or_id)
    except NotFoundError:
        raise HTTPException(404, f"there is no run {name_or_id!r}: GET /runs lists the runs") from None


@router.get("/healthz")
def healthz() -> Health:
    """Whether this process lives; it asks nothing of the database."""
    return Health(version=VERSION)


@router.get("/runs", responses=_problems(404, 422, 503))
def runs(
    connection: Ledger,
    limit: Annotated[int, Query(ge=1, le=100, description="runs to a page")] = 20,
    after: Annotated[str | None, Query(**NAME, description="`next` of the page before")] = None,
) -> RunPage:
    """The runs, newest first."""
    last = _find(connection, after).name if after is not None else None
    found = list_runs(connection, limit + 1, last)
    more = found[limit - 1]["name"] if len(found) > limit else None
    return RunPage.model_validate({"runs": found[:limit], "next": more})


@router.get("/runs/{run}", responses=_problems(404, 422, 503))
def run_status(
    connection: Ledger,
    run: Annotated[str, Path(**NAME, description="a run's name or id, or `latest`", examples=["scifact-1"])],
) -> RunStatus:
    """How far a run is: per stage the items, rate and ETA, what was dropped and why, and whether the counts add up."""
    return RunStatus.model_validate(describe(connection, _find(connection, run)))


def _problem(status: int, detail: str, headers: Any = None) -> JSONResponse:
    content = Problem(title=HTTPStatus(status).phrase, status=status, detail=detail).model_dump()
    return JSONResponse(content, status, media_type=PROBLEM, headers=headers)


def _http_problem(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, StarletteHTTPException)  # noqa: S101 - as registered
    ours = isinstance(error, HTTPException)
    detail = error.detail if ours else f"{error.detail}: GET /openapi.json says what there is"
    return _problem(error.status_code, detail, error.headers)


def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - as registered
    first = error.errors()[0]
    return _problem(422, f"{first['loc'][-1]}: {first['msg']}; GET /openapi.json says what is taken")


def _not_configured(_: Request, error: Exception) -> JSONResponse:
    return _problem(503, str(error))


def _no_database(_: Request, error: Exception) -> JSONResponse:
    log.warning("the database did not answer", error=str(error))
    return _problem(503, "the database does not answer: try again, and see the status service's log")


def create_app(engine: Callable[[], Engine] = database.engine) -> FastAPI:
    """The API; `engine` is called with the first request that needs the database."""
    app = FastAPI(
        title="Fretwork status",
        version=VERSION,
        docs_url=None,  # the pages that FastAPI offers load their scripts from a CDN
        redoc_url=None,
    )
    app.state.engine = engine
    app.include_router(router)
    app.add_exception_handler(StarletteHTTPException, _http_problem)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(SettingError, _not_configured)
    app.add_exception_handler(SchemaVersionError, _not_configured)
    app.add_exception_handler(OperationalError, _no_database)
    app.add_exception_handler(InterfaceError, _no_database)
    app.add_exception_handler(PoolTimeoutError, _no_database)
    return app
