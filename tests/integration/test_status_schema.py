"""The status API against its own description: schemathesis sends what that allows, and what it forbids."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from sqlalchemy import Engine, create_engine, text

from cli.corpus.store import import_corpus
from services.status.app import create_app
from shared import ledger
from shared import settings as environment
from shared.errors import SettingError
from shared.records import RunConfig
from shared.runs import start_run

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
TOKEN = "secret"  # noqa: S105
HERE, THIS_MACHINE = "http://127.0.0.1", ("127.0.0.1", 50000)


@pytest.fixture
def engine(database_url: str, broker_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """A ledger with two runs, one of them with a dead shard; the API's token is `secret`."""
    monkeypatch.setenv("FRETWORK_STATUS_TOKEN", TOKEN)
    monkeypatch.setenv("FRETWORK_BROKER_URL", broker_url)
    environment.settings.cache_clear()
    made = create_engine(database_url)
    yield made
    made.dispose()
    environment.settings.cache_clear()


@pytest.fixture
def schema(engine: Engine, tmp_path: Path) -> Any:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"_id": str(i), "text": f"Passage {i}."}) + "\n" for i in range(10)))
    import_corpus(engine, "ten", corpus)
    for seed in range(2):
        with engine.begin() as connection:
            start_run(connection, "ten", RunConfig(seed=seed, shard_size=4))
    with engine.begin() as connection:
        shard = connection.execute(text("SELECT shard_id FROM shards WHERE stage = 'generate' LIMIT 1")).scalar_one()
        held = ledger.claim(connection, shard, "me", 45)
        assert held is not None
        ledger.fail(connection, held, SettingError("no log-probabilities"))
    app = create_app(lambda: engine)
    return schemathesis.openapi.from_dict(TestClient(app, HERE).get("/openapi.json").json()), app


@pytest.mark.parametrize("mode", GenerationMode)
@pytest.mark.parametrize("token", [TOKEN, "wrong"])
def test_no_request_gets_a_5xx_or_an_answer_that_is_not_described(
    schema: Any, mode: GenerationMode, token: str
) -> None:
    described, app = schema
    client = TestClient(app, HERE, client=THIS_MACHINE)
    statuses: Counter[int] = Counter()
    for result in described.get_all_operations():
        operation = result.ok()
        if operation.path == "/events":
            continue  # does not end: tests/integration/test_status_events.py listens to it
        if mode is GenerationMode.NEGATIVE and not list(operation.iter_parameters()) and not operation.body:
            continue  # there is nothing to get wrong
        there = {"run": "ten-1"} if mode is GenerationMode.POSITIVE and "{run}" in operation.path else None

        @given(case=operation.as_strategy(generation_mode=mode, path_parameters=there))
        @settings(max_examples=10, suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate])
        def send(case: Case[Any]) -> None:
            sent = case.as_transport_kwargs()
            body = {"content": sent["data"]} if isinstance(sent.get("data"), bytes) else {"json": sent.get("json")}
            headers = dict(sent["headers"]) | {"Authorization": f"Bearer {token}"}
            answer = client.request(case.method, case.formatted_path, params=sent["params"], headers=headers, **body)
            statuses[answer.status_code] += 1
            case.validate_response(answer, checks=CHECKS)

        send()
    assert (401 in statuses) == (token != TOKEN)
    assert token != TOKEN or {200, 404, 422} <= set(statuses)
