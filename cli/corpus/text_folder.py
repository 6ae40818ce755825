"""A folder of `.txt` and `.md` files, cut into passages at paragraph boundaries. No database."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from cli.corpus.lines import BrokenRuleError, LocatedPassage, Skipped, checked_passage, decode, numbered_lines
from shared.errors import InvalidInputError

PASSAGE_CHARS = 1_200  # the most that a passage cut from a text file holds
ID_DIGITS = 12  # of the hash of title and text

_HEADING = re.compile(r" {0,3}#{1,6}[ \t]+(.+)")
_FENCE = re.compile(r" {0,3}(```|~~~)")
_SENTENCE_END = re.compile(r"[.!?][\"')\]]*\s")


def read_text_folder(root: Path) -> Iterator[LocatedPassage | Skipped]:
    found = False
    for path in text_files(root):
        found = True
        yield from _read_text_file(root, path)
    if not found:
        raise InvalidInputError(
            root, None, "there is no corpus.jsonl and no .txt or .md or .parquet file in this folder"
        )


def text_files(root: Path) -> Iterator[Path]:
    """Every .txt and .md file below `root`, sorted folder by folder; what is hidden by a leading dot stays hidden."""

    def unreadable(error: OSError) -> NoReturn:
        raise InvalidInputError(error.filename or root, None, f"cannot be read: {error.strerror}") from error

    for folder, subfolders, names in os.walk(root, onerror=unreadable):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and Path(name).suffix.lower() in {".txt", ".md"}:
                yield Path(folder, name)


def _read_text_file(root: Path, path: Path) -> Iterator[LocatedPassage | Skipped]:
    """Its passages, named `relative/path.md#3f9c2a7be104`; the title is the first heading, else the file's name.

    The name is of the content: numbers would name other texts as soon as a paragraph is added at the top.
    """
    title, title_line = _title(path)
    name = path.relative_to(root).as_posix()
    for item in _packed(_paragraphs(path, title_line)):
        if isinstance(item, Skipped):
            yield item
            continue
        line, text = item
        try:
            passage = checked_passage(f"{name}#{'0' * ID_DIGITS}", title, text)
        except BrokenRuleError as broken:
            yield Skipped(path, line, broken.rule, broken.detail)
        else:
            source_id = f"{name}#{passage.passage_id.hex[:ID_DIGITS]}"
            yield LocatedPassage(replace(passage, source_id=source_id), path, line)


@dataclass(frozen=True, slots=True)
class _TextLine:
    number: int
    text: str
    heading: str  # its words, empty where the line is none


def _text_lines(path: Path) -> Iterator[_TextLine | Skipped]:
    markdown, fence = path.suffix.lower() == ".md", ""
    for number, raw in numbered_lines(path):
        try:
            text = decode(raw).rstrip()
        except BrokenRuleError as broken:
            yield Skipped(path, number, broken.rule, broken.detail)
            continue
        mark = _FENCE.match(text) if markdown else None
        if mark and fence in ("", mark[1]):
            fence = "" if fence else mark[1]
        heading = _HEADING.match(text) if markdown and not fence else None
        yield _TextLine(number, text, heading[1].rstrip("#").strip() if heading else "")


def _title(path: Path) -> tuple[str, int]:
    """The title and the line that it stands on, 0 for a file's name."""
    if path.suffix.lower() == ".md":
        for line in _text_lines(path):
            if isinstance(line, _TextLine) and line.heading:
                return line.heading, line.number
    return path.stem, 0


def _paragraphs(path: Path, title_line: int) -> Iterator[tuple[int, str] | Skipped]:
    """(first line, paragraph of at most PASSAGE_CHARS); a line that breaks a rule ends a paragraph as a blank one does.

    A heading begins a paragraph and stays with what follows it. The title's own line is left out.
    """
    held: list[str] = []
    first, size, only_headings = 0, 0, True
    for line in _text_lines(path):
        text = "" if isinstance(line, Skipped) or line.number == title_line else line.text
        heading = isinstance(line, _TextLine) and bool(line.heading) and bool(text)
        if held and not only_headings and (heading or not text):
            yield first, "\n".join(held)
            held = []
        if isinstance(line, Skipped):
            yield line
        elif text:
            if not held:
                first, size, only_headings = line.number, 0, True
            held.append(text)
            size += len(text) + 1
            only_headings = only_headings and heading
            if size > PASSAGE_CHARS:
                *whole, rest = _pieces("\n".join(held))
                yield from ((first, piece) for piece in whole)
                held, size, only_headings = [rest], len(rest), False
    if held:
        yield first, "\n".join(held)


def _pieces(paragraph: str) -> Iterator[str]:
    """`paragraph` cut into pieces of at most PASSAGE_CHARS: behind a sentence, else at a blank, else anywhere."""
    start = 0
    while len(paragraph) - start > PASSAGE_CHARS:
        window = paragraph[start : start + PASSAGE_CHARS]
        cut = max((end.end() for end in _SENTENCE_END.finditer(window)), default=0)
        if cut < PASSAGE_CHARS // 2:
            blank = max(window.rfind(" "), window.rfind("\n"))
            cut = blank + 1 if blank > 0 else PASSAGE_CHARS
        if piece := window[:cut].strip():
            yield piece
        start += cut
    yield paragraph[start:].strip()


def _packed(paragraphs: Iterable[tuple[int, str] | Skipped]) -> Iterator[tuple[int, str] | Skipped]:
    """Neighbouring paragraphs together, as many as PASSAGE_CHARS holds, with the line of the first."""
    first, text = 0, ""
    for item in paragraphs:
        if isinstance(item, Skipped):
            yield item
            continue
        line, paragraph = item
        if text and len(text) + 2 + len(paragraph) > PASSAGE_CHARS:
            yield first, text
            text = ""
        first, text = (first, f"{text}\n\n{paragraph}") if text else (line, paragraph)
    if text:
        yield first, text
