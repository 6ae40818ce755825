"""Every error that Fretwork raises on purpose; an error's docstring is its default message.

An error says what happened, where, and what to do. Whether the work may be tried again is a matter of class:
`TransientError` gives a shard back without counting a failure, everything else counts as one.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError


def first_problem(error: ValidationError) -> tuple[tuple[str | int, ...], str]:
    """Where the first problem is, and what it is, in the user's words."""
    first = error.errors()[0]
    match first["type"]:
        case "value_error":
            said = str(first["ctx"]["error"])
        case "extra_forbidden":
            said = "there is nothing of that name"
        case "union_tag_not_found":
            said = f"{first['ctx']['discriminator']} is missing"
        case _:
            said = first["msg"]
    return first["loc"], said


class FretworkError(Exception):
    """Fretwork could not go on."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").strip())


class TransientError(FretworkError):
    """A dependency did not answer; the shard goes back to its queue and is tried again."""


class SetbackError(TransientError):
    """The shard itself may be why this failed; after three of these it is halved, down to the item that it is about."""


class TooSlowError(TransientError):
    """The shard's calls took longer than a shard may; it is halved, which loses nothing."""


class BarrierClosedError(TransientError):
    """What this stage waits for is no longer complete; the shard waits behind its barrier again."""


class RunPausedError(TransientError):
    """The run is paused, its budget being spent; its shards go back and wait until it is resumed."""


class IndexIncompleteError(FretworkError):
    """Passages are missing from the index, and the shards that should bring them are dead."""


class LeaseLostError(FretworkError):
    """The shard was claimed by another worker in the meantime, so this result is thrown away."""


class NotFoundError(FretworkError):
    """There is nothing of that name."""


class NotDoneError(FretworkError):
    """This needs a finished run."""


class SettingError(FretworkError):
    """A setting is missing, or this mode cannot honour it."""


class SchemaVersionError(FretworkError):
    """The database schema is of another version; run `fretwork up` (or the `migrate` service) first."""


class InvalidInputError(FretworkError):
    """The input breaks a rule."""

    def __init__(self, path: Path | str, line: int | None, rule: str) -> None:
        self.path, self.line, self.rule = Path(path), line, rule
        where = f"{path}:{line}" if line is not None else str(path)
        super().__init__(f"{where}: {rule}")
