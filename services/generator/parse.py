"""Reads a task description and a query out of what an LLM wrote, tolerantly; or says by a code what is wrong with it.

Pure. It mends what is only form (labels, quotes, markdown, blanks) and rejects what is no task or no query. Whether to
ask again is not its business.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from shared.llm import Completion

# Reason codes.
EMPTY_COMPLETION = "empty_completion"  # nothing but blanks
ENDLESS_COMPLETION = "endless_completion"  # cut off at max_completion_tokens before the query's line was complete
NO_QUERY = "no_query"  # no line is labelled as the query
EMPTY_TASK = "empty_task"  # a task description without a letter or digit
EMPTY_QUERY = "empty_query"  # a query without a letter or digit
OVERLONG_TASK = "overlong_task"
OVERLONG_QUERY = "overlong_query"
BROKEN_TEXT = "broken_text"  # bytes that are no characters
PLACEHOLDER = "placeholder"  # "<query>" and the like where a query should be
COPIED_EXAMPLE = "copied_example"  # the query of one of the prompt's own examples
COPIED_PASSAGE = "copied_passage"  # the whole passage as its own query

# Well above any example of the prompt. Characters count where no blanks part the words.
MAX_TASK_WORDS, MAX_TASK_CHARS = 64, 512
MAX_QUERY_WORDS, MAX_QUERY_CHARS = 96, 1024

_LABEL = re.compile(
    r"""(?P<opening>[\s>*_\#`"'“‘•(\[{-]*) (?:\d{1,3}[.)][\s*_]*)?
        (?P<name>task(?:\ description)?|(?:search\ )?query) (?:\ ?\#?\d{1,2})?
        [\s*_`"'”’)\]]*[:：][*_]*""",
    re.IGNORECASE | re.VERBOSE,
)
_BULLET = re.compile(r"[-*•>]\s+")
_MARKS = ("**", "__", "*", "_", "`", '"')
# no underscores, which are more often a name's (__init__) than markdown's
_WRAPPERS = (*((mark, mark) for mark in ("**", "*", "`", '"', "'")), ("“", "”"), ("‘", "’"), ("«", "»"), ("„", "“"))
_OPENERS = frozenset(first[0] for first, _ in _WRAPPERS)
_PLACEHOLDER = re.compile(
    r"[<{\[(]*\s*(?:(?:the|your|a|insert)\s+)*(?:search\s+)?(?:query|task)(?:\s+(?:text|description|here))*\s*[>}\])]*",
    re.IGNORECASE,
)
_BROKEN = re.compile("[\ufffd\ud800-\udfff]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class Pair:
    """A task description and a query, each a single line that holds a letter or digit and has no blanks at its ends."""

    task_description: str
    query_text: str


@dataclass(frozen=True, slots=True)
class Malformed:
    reason: str


def parse(
    completion: Completion,
    task_description: str | None,
    *,
    passage_text: str = "",
    example_queries: Collection[str] = (),
) -> Pair | Malformed:
    """What stands in the completion of a prompt that ends in `Task:`, or in `Query:` after a given task description.

    The query ends with its line: what follows is left out, so that a completion cut off there is as good as a finished
    one. A label that is written again begins its field anew.
    """
    if not completion.text.strip():
        return Malformed(EMPTY_COMPLETION if completion.finished else ENDLESS_COMPLETION)
    # a mark at the end tells a last line that was cut off from one that was complete
    lines = completion.text.splitlines() if completion.finished else f"{completion.text}|".splitlines()[:-1]
    sections = _sections("task" if task_description is None else "query", lines)
    queries = [i for i, (label, _) in enumerate(sections) if label == "query"]
    found = next((i for i in queries if sections[i][1]), None)
    if found is None:
        if not completion.finished:
            return Malformed(ENDLESS_COMPLETION)
        return Malformed(EMPTY_QUERY if queries else NO_QUERY)
    query_text = sections[found][1][0]
    if task_description is None:
        tasks = [" ".join(values) for label, values in sections[:found] if label == "task" and values]
        task_description = tasks[-1] if tasks else ""
    reason = _reason_against(task_description, query_text, passage_text, example_queries)
    return Malformed(reason) if reason else Pair(task_description, query_text)


def _reason_against(
    task_description: str, query_text: str, passage_text: str, example_queries: Collection[str]
) -> str | None:
    if _BROKEN.search(task_description + query_text):
        return BROKEN_TEXT
    if not any(map(str.isalnum, task_description)):
        return EMPTY_TASK
    if not any(map(str.isalnum, query_text)):
        return EMPTY_QUERY
    if _is_longer(task_description, MAX_TASK_WORDS, MAX_TASK_CHARS):
        return OVERLONG_TASK
    if _is_longer(query_text, MAX_QUERY_WORDS, MAX_QUERY_CHARS):
        return OVERLONG_QUERY
    if _PLACEHOLDER.fullmatch(task_description) or _PLACEHOLDER.fullmatch(query_text):
        return PLACEHOLDER
    if query_text in example_queries:
        return COPIED_EXAMPLE
    if len(passage_text) < 2 * MAX_QUERY_CHARS and _folded(query_text) == _folded(passage_text):
        return COPIED_PASSAGE
    return None


def _sections(label: str, lines: list[str]) -> list[tuple[str, list[str]]]:
    """Each label with the values under it, blank ones left out; `label` is what the prompt ended in."""
    sections: list[tuple[str, list[str]]] = [(label, [])]
    for line in lines:
        match = _LABEL.match(line)
        if match:
            sections.append(("query" if match["name"].lower().endswith("query") else "task", []))
        value = _tidy(line[match.end() :], match["opening"]) if match else _tidy(line)
        if value:
            sections[-1][1].append(value)
    return sections


def _tidy(text: str, opening: str = "") -> str:
    """One line without bullets, and without the quotes and markdown that wrap all of it, or that `opening` opened."""
    text = " ".join(_CONTROL.sub(" ", text).split())
    for mark in _MARKS if opening else ():
        if mark in opening and text.endswith(mark) and text.count(mark) == 1:
            text = text.removesuffix(mark)
    text = _BULLET.sub("", text, count=1) if _BULLET.match(text) else text
    for first, last in _WRAPPERS * 2 if text[:1] in _OPENERS else ():
        inner = text[len(first) : len(text) - len(last)]
        if len(text) > len(first) + len(last) and text == first + inner + last and first not in inner:
            text = inner.strip()
    return text.strip()


def _is_longer(text: str, words: int, chars: int) -> bool:
    return len(text) > chars or len(text.split()) > words


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())
