"""Reads files of rows, .jsonl, .csv and .tsv, line by line, each row with its place. No model here.

What breaks the format's rules is an InvalidInputError with file, line and rule; nothing is guessed or skipped.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import orjson

from shared.errors import InvalidInputError

Where = tuple[Path, int]
Row = dict[str, object]

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl")


def lines(path: Path) -> Iterator[tuple[Where, str]]:
    """The lines that are not blank, without their ends, each with its place."""
    for where, line in _raw_lines(path):
        if line.strip():
            yield where, line.rstrip("\r\n")


def json_rows(path: Path) -> Iterator[tuple[Where, Row]]:
    """The objects of a .jsonl file."""
    for where, line in lines(path):
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise InvalidInputError(*where, f"not valid JSON: {error}") from None
        if not isinstance(row, dict):
            raise InvalidInputError(*where, "a line has to be a JSON object")
        yield where, row


def table_rows(path: Path) -> Iterator[tuple[Where, Row]]:
    """The rows of a .jsonl file, or of a .csv or .tsv with the columns' names in the first line.

    Where that line has a tab, tabs part the fields and quotes mean nothing; else commas do, and a field may be quoted.
    """
    if path.suffix == ".jsonl":
        yield from json_rows(path)
        return
    if path.suffix not in TABLE_SUFFIXES:
        raise InvalidInputError(path, None, f"the file's name has to end in one of {', '.join(TABLE_SUFFIXES)}")
    header = next((line for _, line in lines(path)), "")
    texts = (line for _, line in _raw_lines(path))
    reader = csv.reader(texts, delimiter="\t", quoting=csv.QUOTE_NONE) if "\t" in header else csv.reader(texts)
    columns: list[str] | None = None
    try:
        for fields in reader:
            where = path, reader.line_num
            if not fields:  # a blank line
                continue
            if columns is None:
                columns = fields
            elif len(fields) != len(columns):
                raise InvalidInputError(*where, f"{len(fields)} fields, and the first line names {len(columns)}")
            else:
                yield where, dict(zip(columns, fields, strict=True))
    except csv.Error as error:
        raise InvalidInputError(path, reader.line_num, f"not valid CSV: {error}") from None


def text_of(where: Where, row: Row, column: str, default: str | None = None) -> str:
    """The row's text in that column. Raises InvalidInputError where there is none, or no text."""
    if column not in row and default is None:
        raise InvalidInputError(*where, f"the column {column} is missing; there are {', '.join(row) or 'none'}")
    value = row.get(column, default)
    if not isinstance(value, str):
        raise InvalidInputError(*where, f"{column} has to be a text")
    return value


def _raw_lines(path: Path) -> Iterator[tuple[Where, str]]:
    if not path.is_file():
        raise InvalidInputError(path, None, "there is no such file")
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                yield (path, number), raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise InvalidInputError(path, number, f"not valid UTF-8 at byte {error.start} of the line") from None
