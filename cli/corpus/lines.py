"""The rules of an input and what all its readers share: lines with their numbers, checked passages. No database.

Memory is bounded by `MAX_LINE_BYTES`, whatever the size of a file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO

from shared.errors import InvalidInputError
from shared.records import Passage, passage_id

MAX_LINE_BYTES = 4 * 2**20
MAX_TEXT_CHARS = 100_000
MAX_ID_CHARS = 512  # at four bytes each still within what an index of PostgreSQL takes

_BOM = b"\xef\xbb\xbf"


class Rule(Enum):
    """What an input must keep to; the value is what is wrong with one that does not."""

    LINE_TOO_LONG = f"the line is longer than {MAX_LINE_BYTES:,} bytes"
    NUL_BYTE = "a NUL character, which PostgreSQL cannot store"
    INVALID_UTF8 = "not valid UTF-8; convert it, for example with iconv"
    MALFORMED_JSON = "not one complete JSON value"
    REPEATED_KEY = "a key stands twice in one object"
    NOT_AN_OBJECT = "a line must be a JSON object with `_id` and `text`"
    MISSING_ID = "`_id` is missing or empty"
    MISSING_TEXT = "`text` is missing or empty"
    NOT_A_STRING = "`_id`, `title` and `text` must be strings"
    UNPAIRED_SURROGATE = "half of a surrogate pair, which is no character"
    ID_TOO_LONG = f"`_id` is longer than {MAX_ID_CHARS} characters"
    TEXT_TOO_LONG = f"title and text together are longer than {MAX_TEXT_CHARS:,} characters"
    ID_WITH_TWO_TEXTS = (
        "this `_id` already stands for another title or text; give the new passage an `_id` of its own, or, where the "
        "corpus has the other, name all passages with --replace, which takes that out"
    )

    @property
    def code(self) -> str:
        """The rule's short name, as reports count it: `missing-text`."""
        return self.name.lower().replace("_", "-")


@dataclass(frozen=True, slots=True)
class LocatedPassage:
    """A passage and the file and line (from 1) that it begins on, or a dataset's address and its row."""

    passage: Passage
    path: Path | str
    line: int


@dataclass(frozen=True, slots=True)
class Skipped:
    """A line (from 1) that breaks a rule, and so is no passage of the corpus."""

    path: Path | str
    line: int
    rule: Rule
    detail: str = ""

    def error(self) -> InvalidInputError:
        detail = f" ({self.detail})" if self.detail else ""
        return InvalidInputError(self.path, self.line, f"{self.rule.code}: {self.rule.value}{detail}")


class BrokenRuleError(Exception):
    """How a reader's inner functions tell its outer one, which knows the line."""

    def __init__(self, rule: Rule, detail: str = "") -> None:
        self.rule, self.detail = rule, detail


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise InvalidInputError(path, None, f"cannot be read: {error.strerror}") from error


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Each line with its number from 1; one over the limit is cut right behind it, and still seen to be over it."""
    with _open(path) as file:
        if file.read(len(_BOM)) != _BOM:
            file.seek(0)
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            rest = line
            while len(rest) > MAX_LINE_BYTES and not rest.endswith(b"\n"):
                rest = file.readline(MAX_LINE_BYTES + 1)
            yield number, line


def decode(line: bytes) -> str:
    """Raises BrokenRuleError for what no reader can use."""
    if len(line) > MAX_LINE_BYTES:
        raise BrokenRuleError(Rule.LINE_TOO_LONG)
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise BrokenRuleError(Rule.INVALID_UTF8, f"byte {error.start + 1} of the line") from None
    if "\0" in text:
        raise BrokenRuleError(Rule.NUL_BYTE)
    return text


_JSON_NAMES = {bool: "boolean", int: "number", float: "number", list: "array", dict: "object"}


def passage_of(row: dict[str, Any]) -> Passage:
    """The passage that a line's object, or a table's row, is. Raises BrokenRuleError."""
    source_id, title, text = (row.get(key) for key in ("_id", "title", "text"))
    if type(source_id) is int:
        source_id = str(source_id)
    for key, field in (("_id", source_id), ("title", title), ("text", text)):
        if not isinstance(field, str | None):
            name = _JSON_NAMES.get(type(field), type(field).__name__)
            raise BrokenRuleError(Rule.NOT_A_STRING, f"{key} is a JSON {name}")
    return checked_passage(source_id or "", title or "", text or "")


def checked_passage(source_id: str, title: str, text: str) -> Passage:
    """Raises BrokenRuleError for what the ledger cannot hold."""
    if not source_id.strip():
        raise BrokenRuleError(Rule.MISSING_ID)
    if not text.strip():
        raise BrokenRuleError(Rule.MISSING_TEXT)
    if len(source_id) > MAX_ID_CHARS:
        raise BrokenRuleError(Rule.ID_TOO_LONG)
    if len(title) + len(text) > MAX_TEXT_CHARS:
        raise BrokenRuleError(Rule.TEXT_TOO_LONG, f"{len(title) + len(text):,}")
    for name, value in (("_id", source_id), ("title", title), ("text", text)):
        if "\0" in value:
            raise BrokenRuleError(Rule.NUL_BYTE, name)
        try:
            value.encode()
        except UnicodeEncodeError:
            raise BrokenRuleError(Rule.UNPAIRED_SURROGATE, name) from None
    return Passage(passage_id(title, text), title, text, source_id)
