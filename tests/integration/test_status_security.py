"""Who may read and act through the status API, and what every answer tells a browser."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from httpx2 import Response
from sqlalchemy import Engine, create_engine, text

from cli.corpus.store import import_corpus
from services.status import bearer
from services.status.app import create_app
from shared.errors import SettingError
from shared.records import RunConfig
from shared.runs import start_run
from shared.settings import settings
from tests.passages import write_corpus

HERE = "http://127.0.0.1"
THIS_MACHINE, ANOTHER = ("127.0.0.1", 50000), ("192.0.2.7", 50000)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    settings.cache_clear()
    made = create_engine(database_url)
    yield made
    settings.cache_clear()
    made.dispose()


@pytest.fixture
def token(engine: Engine) -> str:
    with engine.begin() as connection:
        made = bearer.make_first_token(connection)
    assert made is not None
    return made


def client(engine: Engine, address: tuple[str, int] = THIS_MACHINE, url: str = HERE) -> TestClient:
    return TestClient(create_app(lambda: engine), url, client=address)


def with_token(given: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {given}"}


def test_a_token_is_made_once_and_only_its_hash_is_kept(engine: Engine, token: str) -> None:
    with engine.begin() as connection:
        assert bearer.make_first_token(connection) is None
        kept = connection.execute(text("SELECT sha256 FROM status_token")).scalar_one()
        assert bearer.is_valid(connection, token)
        assert not bearer.is_valid(connection, token[:-1])
        assert token not in kept
        newer = bearer.replace_token(connection)
        assert bearer.is_valid(connection, newer)
        assert not bearer.is_valid(connection, token)


def test_the_token_that_was_set_is_the_token(engine: Engine, token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRETWORK_STATUS_TOKEN", "chosen")
    settings.cache_clear()
    with engine.begin() as connection:
        assert bearer.is_valid(connection, "chosen")
        assert not bearer.is_valid(connection, token)
        with pytest.raises(SettingError, match="FRETWORK_STATUS_TOKEN"):
            bearer.replace_token(connection)


def test_it_is_shown_at_the_first_start_and_when_replaced(database_url: str, engine: Engine) -> None:
    env = {**os.environ, "FRETWORK_DATABASE_URL": database_url}

    def new_token() -> str:
        command = [sys.executable, "-m", "services.status", "--new-token"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True)
        (shown,) = re.findall(r"shown this once: (\S+)$", done.stderr, re.MULTILINE)
        return str(shown)

    first, second = new_token(), new_token()
    with engine.connect() as connection:
        assert not bearer.is_valid(connection, first)
        assert bearer.is_valid(connection, second)
    refused = subprocess.run(
        [sys.executable, "-m", "services.status", "--new-token"],
        env={**env, "FRETWORK_STATUS_TOKEN": "chosen"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: FRETWORK_STATUS_TOKEN is the token")


@pytest.mark.parametrize("path", ["/runs", "/queues", "/workers", "/metrics", "/events"])
def test_reading_from_another_machine_needs_the_token(
    engine: Engine, token: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = client(engine, ANOTHER)
    refused = asked.get(path)
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    assert "Authorization: Bearer" in refused.json()["detail"]
    assert asked.get(path, headers=with_token("wrong")).status_code == 401
    if path == "/events":
        return  # a stream does not end; tests/integration/test_status_events.py listens
    assert asked.get(path, headers=with_token(token)).status_code == 200
    assert client(engine).get(path).status_code == 200
    monkeypatch.setenv("FRETWORK_STATUS_READ_FROM_ANYWHERE", "true")
    settings.cache_clear()
    assert asked.get(path).status_code == 200


@pytest.mark.parametrize("path", ["", "/latest/pause", "/latest/resume", "/latest/cancel", "/latest/retry"])
def test_acting_needs_the_token_on_this_machine_too(engine: Engine, token: str, path: str) -> None:
    asked = client(engine)
    assert asked.post(f"/runs{path}", json={}).status_code == 401
    assert asked.post(f"/runs{path}", json={}, headers=with_token(token + "x")).status_code == 401
    assert asked.post(f"/runs{path}", json={}, headers={"Authorization": f"Basic {token}"}).status_code == 401
    let_in = asked.post(f"/runs{path}", json={}, headers=with_token(token))
    assert let_in.status_code == (404 if path else 422)


def test_without_any_token_acting_says_how_to_get_one(engine: Engine) -> None:
    refused = client(engine).post("/runs/latest/pause", headers=with_token("guess"))
    assert (refused.status_code, "FRETWORK_STATUS_TOKEN" in refused.json()["detail"]) == (503, True)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8765", 200),
        ("localhost:8765", 200),
        ("[::1]:8765", 200),
        ("192.168.1.5", 200),
        ("Status:8765", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example:8765", 403),
        ("localhost.evil.example", 403),
        ("", 403),
    ],
)
def test_a_name_that_is_not_ours_is_refused(
    engine: Engine, host: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRETWORK_STATUS_HOSTS", "status, stack.example")
    settings.cache_clear()
    for path in ("/runs", "/healthz", "/openapi.json"):
        answer = client(engine).get(path, headers={"Host": host})
        assert answer.status_code == status
        assert answer.headers["content-security-policy"].startswith("default-src 'self'")


@pytest.mark.parametrize("path", ["/runs", "/nothing", "/metrics", "/openapi.json"])
def test_every_answer_has_the_headers_that_keep_a_browser_in(engine: Engine, path: str) -> None:
    answer = client(engine).get(path, headers={"Origin": "https://evil.example"})
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-store"
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_preflight_of_another_site_gets_nowhere(engine: Engine) -> None:
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    answer = client(engine).options("/runs", headers=asked)
    assert answer.status_code == 405
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_body_that_is_too_large_is_refused(engine: Engine, token: str) -> None:
    large = b"x" * (64 * 1024 + 1)
    for content in (large, iter([large])):
        answer = client(engine).post("/runs", content=content, headers=with_token(token))
        assert answer.status_code == 413
        assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "folder",
    ["/", "/etc", "..", ".", "../models", "models/..", "a/../../b", "./a", "a/b/c", "~/a", "a\\b", "a/", "", "a\n"],
)
def test_no_folder_is_named_through_the_api(engine: Engine, token: str, tmp_path: Path, folder: str) -> None:
    """The embedder is the one setting of a run that may be a path; an earlier run's may be taken over."""
    import_corpus(engine, "six", write_corpus(tmp_path / "six.jsonl", 6))
    with engine.begin() as connection:
        own = start_run(connection, "six", RunConfig(embedder="/models/own"))

    def start(**wanted: object) -> Response:
        return client(engine).post("/runs", json={"corpus": "six", **wanted}, headers=with_token(token))

    for like in ({}, {"like": own.name}):
        refused = start(config={"embedder": folder}, **like)
        assert (refused.status_code, "config.embedder" in refused.json()["detail"]) == (422, True)
    assert start(config={"embedder": "owner/some-model_v1.5"}).status_code == 201
    assert start(like=own.name).json()["config"]["embedder"] == "/models/own"
