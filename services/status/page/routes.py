"""GET / and its <main> alone, which the page's script fetches while a run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from sqlalchemy import Connection

from services.status import reading
from services.status.page import figures
from services.status.page.charts import HEIGHT, WIDTH, loss_chart, throughput_chart
from services.status.security import may_read
from shared.stages import ROUTES

MAX_RUNS_TO_CHOOSE = 50
RECORDS, POINTS = 5, 120
LOOK_BACK_S = 6 * 3600

router = APIRouter(dependencies=[Depends(may_read)], include_in_schema=False, default_response_class=HTMLResponse)

_environment = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.filters |= {
    function.__name__: function
    for function in (figures.count, figures.short, figures.score, figures.duration, figures.clock, figures.age)
}
_environment.globals |= {
    "WIDTH": WIDTH,
    "HEIGHT": HEIGHT,
    "items": {stage: route.items for stage, route in ROUTES.items()},
}

Name = Annotated[str, Query(**reading.NAME)]


class _Filter:
    """Which records to show, from the page's own address."""

    def __init__(self, moved: bool | None = None, disagree: bool | None = None, after: reading.After = None) -> None:
        self.moved, self.disagree, self.after = moved, disagree, after


Filter = Annotated[_Filter, Depends()]


@router.get("/")
def page(connection: reading.Ledger, wanted: Filter, run: Name = "latest") -> str:
    """The newest run, or the one that `run` names."""
    runs = reading.runs(connection, MAX_RUNS_TO_CHOOSE)
    if not runs.runs:
        return _environment.get_template("empty.html").render()
    return _environment.get_template("page.html").render(runs=runs.runs, **_seen(connection, run, wanted, slow=True))


@router.get("/page/runs/{run}")
def main(request: Request, connection: reading.Ledger, run: reading.RunName, wanted: Filter, slow: bool = True) -> str:
    """The sections of a run; without `slow` those alone that change by the second."""
    return _environment.get_template("main.html").render(_seen(connection, run, wanted, slow))


def _seen(connection: Connection, name: str, wanted: _Filter, slow: bool) -> dict[str, Any]:
    """What the templates draw: the API's own answers, and charts of them."""
    run = reading.find(connection, name)
    seen: dict[str, Any] = {
        "slow": slow,
        "run": reading.run_status(connection, run),
        "queues": reading.queues(connection).queues,
        "workers": reading.workers(connection).workers,
        "dead": reading.run_dead(connection, run, limit=20).dead,
    }
    if slow:
        trainings = reading.run_trainings(connection, run, limit=3).training_runs
        seen |= {
            "throughput": throughput_chart(reading.run_throughput(connection, run, LOOK_BACK_S, POINTS)),
            "trainings": [(training, loss_chart(training.curve)) for training in trainings],
            "wanted": wanted,
            "page": reading.run_records(
                connection, run, RECORDS, wanted.after, moved=wanted.moved, disagree=wanted.disagree
            ),
        }
    return seen
