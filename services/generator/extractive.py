"""The sentences of a passage that read as prose, and how much one says: what the offline teacher asks with. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from shared.terms import CorpusStatistics, terms

MIN_WORDS, MAX_WORDS = 5, 40
CASELESS_LETTERS = 200  # a text of so many letters without a capital is of a corpus that has none

# A blank line ends a block of prose, and so does a line of markup, a doctest, a rule, a table row or a field.
_BREAK = re.compile(r"\s*(?:$|>>>|\.\.\.|\.\. |```|~~~|[@:\\]\w|#|[|+=~^*_-]{3,}|\|)")
_LIST_MARKER = re.compile(r"\s*(?:[-*+•]|\d{1,3}[.)])\s+")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”’)\]]*\s+(?=[\"'“‘(\[`*]*[A-Z0-9])")
_CASELESS_END = re.compile(r"(?<=[.!?])[\"'”’)\]]*\s+(?=\S)")
_ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|et al|cf|vs|Fig|Figs|Eq|Eqs|Sec|No|Dr|Mr|Mrs|St|approx|resp)|\b[A-Z])\.$"
)
_WORD = re.compile(r"[^\W\d_]{2,}")


def sentences(text: str) -> list[str]:
    """The sentences of prose in `text`, in order, each with its blanks normalised; code and tables are left out.

    A sentence begins with a capital, unless the text is long and has none at all.
    """
    has_case = any(map(str.isupper, text)) or sum(map(str.isalpha, text)) < CASELESS_LETTERS
    found = [sentence for block in _blocks(text) for sentence in _split(block, has_case)]
    return [sentence for sentence in found if _is_prose(sentence, has_case)]


def informativeness(sentence: str, statistics: CorpusStatistics) -> float:
    """The mean inverse document frequency of the sentence's distinct terms, in nats."""
    distinct = sorted(set(terms(sentence)))
    return sum(map(statistics.idf, distinct)) / len(distinct) if distinct else 0.0


def _blocks(text: str) -> Iterable[str]:
    """Runs of lines that belong together, each joined by single blanks."""
    block: list[str] = []
    indent = 0
    for line in text.splitlines():
        marker = _LIST_MARKER.match(line)
        start = marker.end() if marker else len(line) - len(line.lstrip())
        if _BREAK.match(line) or marker or start != indent:
            yield " ".join(block)
            block = []
        indent = start
        if not _BREAK.match(line):
            block.append(" ".join(line[start:].split()))
    yield " ".join(block)


def _split(block: str, has_case: bool) -> Sequence[str]:
    parts: list[str] = []
    start = 0
    for end in (_SENTENCE_END if has_case else _CASELESS_END).finditer(block):
        if _ABBREVIATION.search(block[start : end.start()]):
            continue
        parts.append(block[start : end.end()].strip())
        start = end.end()
    return [*parts, block[start:].strip()]


def _is_prose(sentence: str, has_case: bool) -> bool:
    """A capital first, where there are any, a full stop last, a sensible length, and mostly words."""
    words = sentence.split()
    return (
        MIN_WORDS <= len(words) <= MAX_WORDS
        and (not has_case or re.match(r"[\"'“‘(\[`*]*[A-Z0-9]", sentence) is not None)
        and re.search(r"[.!?][\"'”’)\]*`]*$", sentence) is not None
        and sum(_WORD.search(word) is not None for word in words) >= 0.7 * len(words)
        and sum(c.isalpha() or c.isspace() for c in sentence) >= 0.8 * len(sentence)
    )
