"""Errors as application/problem+json (RFC 9457): what happened, and what to do about it."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException as StarletteHTTPException

from services.status.models import Problem
from shared.errors import FretworkError, NotFoundError, SchemaVersionError, SettingError

PROBLEM = "application/problem+json"

log = structlog.get_logger()


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a route may answer beside its model, for OpenAPI."""
    content = {PROBLEM: {"schema": Problem.model_json_schema()}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def problem(status: int, detail: str, headers: Any = None) -> JSONResponse:
    content = Problem(title=HTTPStatus(status).phrase, status=status, detail=detail).model_dump()
    return JSONResponse(content, status, media_type=PROBLEM, headers=headers)


def _http_problem(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, StarletteHTTPException)  # noqa: S101 - as registered
    ours = isinstance(error, HTTPException)
    detail = error.detail if ours else f"{error.detail}: GET /openapi.json says what there is"
    return problem(error.status_code, detail, error.headers)


def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - as registered
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:]) or first["loc"][0]
    return problem(422, f"{where}: {first['msg']}; GET /openapi.json says what is taken")


def _not_found(_: Request, error: Exception) -> JSONResponse:
    return problem(404, str(error))


def _conflict(_: Request, error: Exception) -> JSONResponse:
    """Fretwork could, and will not: the run is in another state, say."""
    return problem(409, str(error))


def _not_configured(_: Request, error: Exception) -> JSONResponse:
    return problem(503, str(error))


def _no_database(_: Request, error: Exception) -> JSONResponse:
    log.warning("the database did not answer", error=str(error))
    return problem(503, "the database does not answer: try again, and see the status service's log")


def register(app: FastAPI) -> None:
    app.add_exception_handler(StarletteHTTPException, _http_problem)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(FretworkError, _conflict)
    app.add_exception_handler(NotFoundError, _not_found)
    for not_configured in (SettingError, SchemaVersionError):
        app.add_exception_handler(not_configured, _not_configured)
    for no_database in (OperationalError, InterfaceError, PoolTimeoutError):
        app.add_exception_handler(no_database, _no_database)
