"""What is secret in the settings is printed nowhere: not whole, not in an error, not by a command's help."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError
from typer.testing import CliRunner

from cli.main import app
from cli.stack.state import Addresses
from shared.database import make_engine
from shared.settings import Settings

SECRET = "sesame-83"  # noqa: S105 - what must not be seen
SECRETS = {
    "FRETWORK_DATABASE_URL": f"postgresql+psycopg://fretwork:{SECRET}@127.0.0.1:1/fretwork",
    "FRETWORK_BROKER_URL": f"redis://:{SECRET}@127.0.0.1:1/0",
    "FRETWORK_LLM__API_KEY": SECRET,
    "FRETWORK_STATUS_TOKEN": SECRET,
}


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    return Settings()


def test_settings_never_show_a_secret(given: Settings) -> None:
    assert SECRET in given.require_database_url()
    assert SECRET in given.require_broker_url()
    engine = make_engine(given.require_database_url())
    addresses = Addresses(database_url=given.require_database_url(), broker_url=given.require_broker_url())
    for shown in (repr(given), str(given), given.model_dump_json(), repr(given.llm), repr(engine), repr(addresses)):
        assert SECRET not in shown


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FRETWORK_LLM__APIKEY", SECRET),
        ("FRETWORK_LLM__API__KEY", SECRET),
        ("FRETWORK_LLM__API_KEY__X", SECRET),
        ("FRETWORK_LLM", f'"{SECRET}"'),
        ("FRETWORK_LLM", f'{{"api_key": "{SECRET}"'),
        ("FRETWORK_LLM", f'{{"api_key": "{SECRET}", "timeout_s": 0}}'),
        ("FRETWORK_STATUS_PORT", SECRET),
    ],
)
def test_a_mistake_does_not_show_what_was_given(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises((ValidationError, SettingsError)) as refused:
        Settings()
    assert SECRET not in "".join(traceback.format_exception(refused.value))
    assert name.split("__")[0].removeprefix("FRETWORK_").lower() in str(refused.value), "the setting's name is there"


def test_every_command_has_a_help_and_none_shows_a_secret(given: Settings) -> None:
    commands = list(_commands(typer.main.get_command(app), ()))
    assert {("corpus", "add"), ("run", "start"), ("train",), ("up",)} <= set(commands)
    for command in commands:
        shown = CliRunner().invoke(app, [*command, "--help"], catch_exceptions=False)
        assert shown.exit_code == 0, command
        assert SECRET not in shown.output


def _commands(command: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    yield path
    for name, each in getattr(command, "commands", {}).items():
        yield from _commands(each, (*path, name))


def test_an_empty_variable_is_one_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "STATUS_TOKEN",
        "QDRANT_URL",
        "LLM__BASE_URL",
        "LLM__MODEL",
        "LLM__MAX_REQUESTS_PER_MINUTE",
        "LEASE_S",
    ):
        monkeypatch.setenv(f"FRETWORK_{name}", "")
    assert Settings().model_dump(exclude={"home"}) == Settings.model_construct().model_dump(exclude={"home"})
    assert not Settings().llm.is_configured
