"""Unit tests have no network: a connection is an error, not a slow test."""

from __future__ import annotations

import socket
from typing import NoReturn

import pytest


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny model, to be trained or measured."""
    from tests.unit.tiny_model import make_tiny_model  # loads torch, which few of these tests need

    return make_tiny_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(autouse=True)
def _no_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: socket.socket, address: object) -> NoReturn:
        raise AssertionError(f"a unit test must not use sockets, and this one meant to use {address!r}")

    for method in ("bind", "connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, method, refuse)
