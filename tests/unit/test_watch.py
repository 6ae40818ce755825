"""What shows work while it goes on bears a database that restarts."""

from __future__ import annotations

import pytest
from sqlalchemy.exc import OperationalError

from cli import watch


class Restarting:
    """A look that the database answers from the third time on."""

    def __init__(self, answers_at: int = 3) -> None:
        self.looks, self.answers_at = 0, answers_at

    def __call__(self) -> tuple[bool, str]:
        self.looks += 1
        if self.looks < self.answers_at:
            raise OperationalError("SELECT", {}, Exception("the database system is starting up"))
        return True, "seen"


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "REFRESH_S", 0.01)


def test_a_database_that_restarts_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    look = Restarting()
    assert watch._until_done(look, lambda _: pytest.fail("no terminal"), str) == "seen"
    assert look.looks == 3
    assert capsys.readouterr().err.count("the database does not answer: waiting for it") == 1


def test_one_that_stays_away_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "AWAY_S", 0.1)
    with pytest.raises(OperationalError, match="starting up"):
        watch._until_done(Restarting(answers_at=10**9), lambda _: pytest.fail("no terminal"), str)
