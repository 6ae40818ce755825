"""The status API, put together: it reads the ledger, acts on runs for who has the token, and serves the page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from sqlalchemy import Engine

from services.status import acting, problems, reading
from services.status.events import Watch
from services.status.page import routes as page
from services.status.security import Guard
from shared import database

STATIC = Path(__file__).parent / "page" / "static"


def create_app(
    engine: Callable[[], Engine] = database.engine, is_ending: Callable[[], bool] = lambda: False
) -> FastAPI:
    """The API; `engine` is called with the first request that needs the database, `is_ending` ends event streams."""
    app = FastAPI(
        title="Fretwork status",
        version=reading.VERSION,
        description="How far the runs are, and what to do about it. docs/status-api.md has examples of use.",
        docs_url=None,  # the pages that FastAPI offers load their scripts from a CDN
        redoc_url=None,
    )
    app.state.engine = engine
    app.state.watch = Watch(is_ending)
    app.include_router(reading.open_router)
    app.include_router(reading.router)
    app.include_router(acting.router)
    app.include_router(page.router)
    app.mount("/static", StaticFiles(directory=STATIC))
    app.add_middleware(Guard)
    problems.register(app)
    return app
