"""The lines of a text file with their places, for errors that name file and line. Of formats it knows JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import orjson

from shared.errors import InvalidInputError

Where = tuple[Path | str, int]
"""A file, or a dataset's name, and a line or row of it, from 1."""

_BOM = b"\xef\xbb\xbf"


def text_lines(path: Path) -> Iterator[tuple[Where, str]]:
    """Each line, its end included. Raises InvalidInputError for a file that is not there or a line not in UTF-8."""
    if not path.is_file():
        raise InvalidInputError(path, None, "there is no such file")
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                yield (path, number), (raw.removeprefix(_BOM) if number == 1 else raw).decode("utf-8")
            except UnicodeDecodeError as error:
                raise InvalidInputError(path, number, f"not valid UTF-8 at byte {error.start} of the line") from None


def lines(path: Path) -> Iterator[tuple[Where, str]]:
    """The lines that are not blank, without their ends. Raises as `text_lines` does."""
    for where, line in text_lines(path):
        if line.strip():
            yield where, line.rstrip("\r\n")


def json_lines(path: Path) -> Iterator[tuple[Where, dict[str, object]]]:
    """The object on each line that is not blank. Raises InvalidInputError for a line that holds no JSON object."""
    for where, line in lines(path):
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise InvalidInputError(*where, f"not valid JSON: {error}") from None
        if not isinstance(row, dict):
            raise InvalidInputError(*where, "a line has to be a JSON object")
        yield where, row


def text_of(where: Where, row: Mapping[str, object], column: str, default: str | None = None) -> str:
    """The row's text in that column. Raises InvalidInputError where there is none, or no text."""
    if column not in row and default is None:
        raise InvalidInputError(*where, f"the column {column} is missing; there are {', '.join(row) or 'none'}")
    value = row.get(column, default)
    if not isinstance(value, str):
        raise InvalidInputError(*where, f"{column} has to be a text")
    return value
