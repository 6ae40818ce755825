"""The routes that act, each behind the token: start, pause, resume, cancel, retry. shared/runs.py does it."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, HTTPException, Request, Response
from pydantic import ValidationError
from sqlalchemy import Connection

from services.status.examples import example
from services.status.models import Limits, RetriedShards, Retry, RunStatus, StartRun
from services.status.problems import problems
from services.status.reading import RunName, find
from services.status.security import MAX_BODY_BYTES, may_act
from shared import ledger
from shared.errors import NotFoundError, SettingError, first_problem
from shared.progress import describe
from shared.records import RunConfig
from shared.runs import cancel_run, find_run, pause_run, resume_run, start_run

# a body that does not say how large it is, is counted
router = APIRouter(tags=["acting"], dependencies=[Depends(may_act)], max_body_size=MAX_BODY_BYTES)
# the hub's form, so that nobody has a worker read whatever folder they name from afar
_MODEL_NAME = re.compile(r"(?:(?!\.+/)[\w.-]+/)?(?!\.+$)[\w.-]+", re.ASCII)
ACTING = problems(400, 401, 403, 404, 409, 413, 422, 503)


@router.post("/runs", status_code=201, responses=example("run", 201) | ACTING)
def start(
    request: Request, response: Response, wanted: Annotated[StartRun, Body(openapi_examples=StartRun.EXAMPLES)]
) -> RunStatus:
    """Start a run of a corpus that was added before, as `fretwork run start` does.

    An LLM teacher is looked at before a run starts, by the command line, which holds the prompts: here such a run
    starts `like` an earlier one, with the teacher that was found good then.
    """
    with request.app.state.engine().begin() as connection:
        config = _config(connection, wanted)
        try:
            run = start_run(connection, wanted.corpus, config, max_tokens=wanted.max_tokens, max_hours=wanted.max_hours)
        except SettingError as error:
            raise HTTPException(422, str(error)) from None
        response.headers["Location"] = f"/runs/{run.name}"
        return _status(connection, run.name)


def _config(connection: Connection, wanted: StartRun) -> RunConfig:
    """Raises HTTPException 422 for a value that does not fit, 404 where there is no run to be like."""
    earlier = find(connection, wanted.like).config if wanted.like is not None else None
    values = _over(earlier.model_dump(mode="json", exclude={"follows"}), wanted.config) if earlier else wanted.config
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        place, said = first_problem(error)
        where = ".".join(map(str, ("config", *place)))
        raise HTTPException(422, f"{where}: {said}; `fretwork run start --help` lists the settings") from None
    if config.teacher == "llm" and (earlier is None or (earlier.teacher, earlier.llm) != (config.teacher, config.llm)):
        raise HTTPException(
            422,
            "an LLM teacher has to be looked at first: start with `fretwork run start`, or `like` an earlier run "
            "with the `llm` that it has",
        )
    if not _MODEL_NAME.fullmatch(config.embedder) and (earlier is None or earlier.embedder != config.embedder):
        raise HTTPException(
            422,
            "config.embedder: here it is a model's name, or the embedder of the run that this one is `like`; "
            "`fretwork run start --set embedder=FOLDER` takes a folder",
        )
    return config


def _over(values: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    """`others` laid over `values`, group by group."""
    laid = {
        key: _over(values[key], value) if isinstance(value, dict) and isinstance(values.get(key), dict) else value
        for key, value in others.items()
    }
    return values | laid


@router.post("/runs/{run}/pause", responses=example("run") | ACTING)
def pause(request: Request, run: RunName) -> RunStatus:
    """Start nothing new of a running run; what is in hand is finished or given back."""
    with request.app.state.engine().begin() as connection:
        pause_run(connection, found := find(connection, run))
        return _status(connection, found.name)


@router.post("/runs/{run}/resume", responses=example("run") | ACTING)
def resume(request: Request, run: RunName, limits: Limits | None = None) -> RunStatus:
    """Go on with a paused run, under new limits or the old ones; a running run only gets the limits."""
    limits = limits or Limits()
    with request.app.state.engine().begin() as connection:
        found = find(connection, run)
        try:
            resume_run(connection, found, max_tokens=limits.max_tokens, max_hours=limits.max_hours)
        except SettingError as error:
            raise HTTPException(422, str(error)) from None
        return _status(connection, found.name)


@router.post("/runs/{run}/cancel", responses=example("run") | ACTING)
def cancel(request: Request, run: RunName) -> RunStatus:
    """End a running or paused run for good; what it has so far stays."""
    with request.app.state.engine().begin() as connection:
        cancel_run(connection, found := find(connection, run))
        return _status(connection, found.name)


@router.post("/runs/{run}/retry", responses=example("retried") | ACTING)
def retry(request: Request, run: RunName, wanted: Retry | None = None) -> RetriedShards:
    """Put a run's dead shards back to work, or one of them, once what ended them is mended."""
    shard_id = wanted.shard_id if wanted else None
    with request.app.state.engine().begin() as connection:
        found = find(connection, run)
        put_back = ledger.retry(connection, found.run_id, shard_id)
        if shard_id is not None and not put_back:
            raise NotFoundError(f"{found.name} has no dead shard {shard_id}: GET /runs/{found.name}/dead lists them")
        return RetriedShards(shards=put_back)


def _status(connection: Connection, name: str) -> RunStatus:
    return RunStatus.model_validate(describe(connection, find_run(connection, name)))
