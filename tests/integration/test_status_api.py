"""The status API over a real ledger: its figures are the ledger's, its errors say what to do."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from pydantic import SecretStr, TypeAdapter
from sqlalchemy import Engine, select, text, update

from cli.corpus.store import import_corpus
from cli.stack.processes import free_port
from cli.stack.supervisor import listen
from services.status import acting, readiness, reading
from services.status.app import create_app
from services.status.examples import EXAMPLES
from services.status.models import StartRun
from services.trainer.config import BeirFolder, ClassificationFolder, EvaluationConfig, StsFile, TrainingConfig
from shared import ledger
from shared.counts import add_up
from shared.database import make_engine
from shared.errors import SettingError, TransientError
from shared.records import Dropped, RunConfig
from shared.runs import Run, start_run
from shared.schema import evaluations, shards
from shared.schema import runs as runs_table
from shared.settings import LLMSettings, Settings
from shared.stages import Stage
from shared.trainings import start_evaluation, start_training
from tests.servers import until

RUNS = 5
HERE = "http://127.0.0.1"
THIS_MACHINE = ("127.0.0.1", 50000)
JSON = "application/json"


@pytest.fixture
def client(engine: Engine) -> Iterator[TestClient]:
    with TestClient(create_app(lambda: engine), HERE, client=THIS_MACHINE) as made:
        yield made


@pytest.fixture
def runs(engine: Engine, tmp_path: Path) -> list[Run]:
    """Runs over ten passages in shards of four, the newest last."""
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"_id": str(i), "text": f"Passage {i} of ten."}) + "\n" for i in range(10)))
    import_corpus(engine, "ten", corpus)
    made = []
    for seed in range(RUNS):
        with engine.begin() as connection:
            made.append(start_run(connection, "ten", RunConfig(seed=seed, shard_size=4)))
    return made


def test_health_needs_no_database() -> None:
    def never() -> Engine:
        raise AssertionError("the database was asked for")

    answer = TestClient(create_app(never), HERE).get("/healthz")
    assert answer.status_code == 200
    assert answer.json() == {"status": "ok", "version": version("fretwork")}


def test_a_run_is_shown_as_the_ledger_has_it(engine: Engine, client: TestClient, runs: list[Run]) -> None:
    run = runs[0]
    with engine.begin() as connection:
        sizes = select(shards.c.shard_id).where(shards.c.run_id == run.run_id, shards.c.stage == Stage.GENERATE)
        first, second, third = connection.execute(sizes.order_by(shards.c.item_count.desc())).scalars()
        done = ledger.claim(connection, first, "me", 45)
        assert done is not None
        ledger.finish(connection, done, [Dropped(item, "no_sentence") for item in done.item_ids], [])
        dead = ledger.claim(connection, second, "me", 45)
        assert dead is not None
        ledger.fail(connection, dead, SettingError("the endpoint has no log-probabilities"))
        assert ledger.claim(connection, third, "me", 45) is not None
        add_up(connection)  # the dispatcher's: without it no stage has begun and nothing has a rate
    answer = client.get(f"/runs/{run.name}")
    assert answer.status_code == 200
    seen = answer.json()
    assert (seen["run"], seen["run_id"], seen["state"]) == ("ten-1", str(run.run_id), "running")
    assert seen["config"] == run.config.model_dump(mode="json")
    by_stage = {stage["stage"]: stage for stage in seen["stages"]}
    generate = by_stage["generate"]
    assert {key: generate[key] for key in ("total", "done", "claimed", "dead", "reasons")} == {
        "total": 10,
        "done": 4,
        "claimed": 2,
        "dead": 4,
        "reasons": {"no_sentence": 4},
    }
    # four in the second or so since the stage began
    assert 1.0 <= generate["rate_1m"] <= 4.0
    assert generate["rate_10m"] == generate["rate_1m"]
    assert generate["eta_s"] == pytest.approx(2 / generate["rate_1m"])
    assert (by_stage["index"]["done"], by_stage["index"]["eta_s"]) == (0, None)
    assert seen["dead"] == [
        {
            "stage": "generate",
            "shards": 1,
            "error_type": "SettingError",
            "error_message": "the endpoint has no log-probabilities",
        }
    ]
    sums = seen["conservation"]
    assert (sums["sampled"], sums["passages_dropped"], sums["passages_open"], sums["holds"]) == (10, 4, 6, True)

    assert client.get(f"/runs/{run.run_id}").json()["run"] == "ten-1"
    assert client.get("/runs/latest").json()["run"] == f"ten-{RUNS}"


def test_the_page_says_why_shards_went_back(engine: Engine, client: TestClient, runs: list[Run]) -> None:
    run = runs[0]
    with engine.begin() as connection:
        of_index = select(shards.c.shard_id).where(shards.c.run_id == run.run_id, shards.c.stage == Stage.INDEX)
        held = ledger.claim(connection, connection.execute(of_index).scalars().first(), "me", 45)  # type: ignore[arg-type]
        assert held is not None
        ledger.release(connection, held, TransientError("Qdrant is <away>"), 5)
    shown = client.get(f"/page/runs/{run.name}").text
    assert "1 of index, for TransientError: Qdrant is &lt;away&gt;" in shown
    assert "Shards given back last" not in client.get(f"/page/runs/{runs[1].name}").text


def test_the_page_shows_measures_of_every_kind_before_and_after(
    engine: Engine, client: TestClient, runs: list[Run]
) -> None:
    kinds = (BeirFolder(path="/beir/cats"), StsFile(path="/f.csv"), ClassificationFolder(path="/banking"))
    with engine.begin() as connection:
        start_training(connection, runs[0], 1, TrainingConfig().model_dump(mode="json"), "/models/cats")
        for data, metric in zip(kinds, ("ndcg@10", "cosine_spearman", "accuracy"), strict=True):
            config = EvaluationConfig(model="/models/cats", data=data, baseline="all-MiniLM-L6-v2")
            evaluation_id = start_evaluation(connection, config.model_dump(mode="json"))
            result = {
                "main_metric": metric,
                "dims": {"384": {metric: 0.75}},
                "baseline": {"dims": {"384": {metric: 0.5}}},
                "delta": {"384": {metric: {"mean": 0.25, "ci95": [0.1, 0.4]}}},
            }
            of_this = evaluations.c.evaluation_id == evaluation_id
            connection.execute(update(evaluations).where(of_this).values(result=result))
    shown = client.get("/", params={"run": runs[0].name})
    assert shown.status_code == 200
    for caption in (
        "nDCG@10 on cats (test), before",
        "cosine spearman on f.csv, before",
        "accuracy on banking, before",
    ):
        assert caption in shown.text


def test_a_run_like_one_that_followed_another_follows_none(engine: Engine, runs: list[Run]) -> None:
    with engine.begin() as connection:
        config = RunConfig(seed=1, shard_size=4, follows=runs[0].run_id).model_dump(mode="json")
        connection.execute(update(runs_table).where(runs_table.c.run_id == runs[1].run_id).values(config=config))
        wanted = StartRun(corpus="ten", like=runs[1].name, config={"seed": 7})
        assert acting._config(connection, wanted) == RunConfig(seed=7, shard_size=4)


def test_a_server_that_answers_nonsense_is_not_ok_and_stops_no_answer(
    engine: Engine, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(5)

        def babble() -> None:
            with suppress(TimeoutError, OSError):
                while True:
                    with other.accept()[0] as one:
                        one.recv(4096)
                        one.sendall(b"SSH-2.0-none\r\n")

        Thread(target=babble, daemon=True).start()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        llm = LLMSettings(base_url=f"http://me:word@{address}/v1,http://[half/v1")
        monkeypatch.setattr(readiness, "settings", lambda: Settings(broker_url=SecretStr(redis_url), llm=llm))
        found = readiness.ask_all(lambda: engine)
    assert found.ready
    assert {each.name: (each.ok, each.reason) for each in found.dependencies} == {
        "database": (True, None),
        "broker": (True, None),
        "llm 1": (False, "BadStatusLine: it does not answer as it should"),
        "llm 2": (False, "ValueError: it does not answer as it should"),
    }


def test_counts_that_do_not_add_up_are_said_not_to(engine: Engine, client: TestClient, runs: list[Run]) -> None:
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM shards WHERE stage = 'generate'"))
    assert client.get(f"/runs/{runs[0].name}").json()["conservation"]["holds"] is False


def test_the_pages_hold_every_run_once_newest_first(client: TestClient, runs: list[Run]) -> None:
    names: list[str] = []
    sizes: list[int] = []
    after: dict[str, str] = {}
    while True:
        page = client.get("/runs", params={"limit": "2", **after}).json()
        names += [run["name"] for run in page["runs"]]
        sizes.append(len(page["runs"]))
        if page["next"] is None:
            break
        after = {"after": page["next"]}
    assert names == [run.name for run in reversed(runs)]
    assert sizes == [2, 2, 1]
    assert client.get("/runs", params={"limit": RUNS}).json()["next"] is None


def test_an_error_is_a_problem_that_says_what_to_do(client: TestClient) -> None:
    for path, status, advice in (
        ("/runs/ten-9", 404, "GET /runs"),
        ("/runs/0f8d1c9e-6a53-5d0e-8c11-2b1f6b7f4a10", 404, "GET /runs"),
        ("/runs?after=ten-9", 404, "GET /runs"),
        ("/runs/%00", 422, "/openapi.json"),
        ("/runs?limit=0", 422, "limit"),
        ("/nothing", 404, "/openapi.json"),
    ):
        answer = client.get(path)
        problem = answer.json()
        assert (answer.status_code, problem["status"]) == (status, status), path
        assert answer.headers["content-type"] == "application/problem+json"
        assert advice in problem["detail"]


def test_every_answer_has_an_example_that_is_one(client: TestClient) -> None:
    described = client.get("/openapi.json").json()["paths"]
    routers = (reading.open_router, reading.router, acting.router)
    routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    assert {route.path for route in routes} == set(described)
    for route in routes:
        if route.path in ("/metrics", "/events"):
            continue
        (method,) = route.methods or set()
        operation = described[route.path][method.lower()]
        assert operation["summary"], route.path
        assert operation["description"], route.path
        shown = operation["responses"][str(route.status_code or 200)]["content"][JSON]["example"]
        (example,) = [each for each in EXAMPLES.values() if without_nulls(each) == shown]
        TypeAdapter(route.response_model).validate_python(example)


def without_nulls(value: Any) -> Any:
    """As FastAPI leaves them out of what it says about itself."""
    if isinstance(value, dict):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list) else value


def test_a_database_that_does_not_answer_is_a_503() -> None:
    nowhere = make_engine("postgresql+psycopg://nobody:secret@127.0.0.1:1/none")
    answer = TestClient(create_app(lambda: nowhere), HERE, client=THIS_MACHINE).get("/runs")
    assert answer.status_code == 503
    assert "try again" in answer.json()["detail"]
    assert "secret" not in answer.text


@pytest.mark.parametrize("handed", [False, True])
def test_the_service_answers_as_a_process(database_url: str, runs: list[Run], handed: bool) -> None:
    listener = listen(Settings(status_port=free_port()))
    port, fd = listener.getsockname()[1], listener.fileno()
    env = {**os.environ, "FRETWORK_DATABASE_URL": database_url, "FRETWORK_STATUS_PORT": str(port)}
    if handed:
        env = {**env, "FRETWORK_STATUS_FD": str(fd)}
    else:
        listener.close()

    def get(path: str) -> int:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return int(answer.status)
        except (urllib.error.URLError, TimeoutError):
            return 0

    command, pass_fds = [sys.executable, "-m", "services.status"], (fd,) if handed else ()
    with listener, subprocess.Popen(command, env=env, pass_fds=pass_fds) as service:
        try:
            until(lambda: service.poll() is not None or get("/healthz") == 200, 30)
            assert get("/runs/latest") == 200
        finally:
            service.terminate()
    assert service.returncode == -signal.SIGTERM  # uvicorn ends in order and then lets the signal have its way
