"""The offline teacher's queries: the inverse cloze task (Lee et al. 2019, arXiv 1906.00300, section 4). No LLM.

A sentence of the passage becomes a query that the rest of the passage should be found by. Lee et al. draw the
sentence at random; this takes the most informative ones. Pure: passages and corpus statistics in, queries out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from uuid import UUID

from shared.records import Dropped, Passage, TaskQuery, query_id
from shared.terms import CorpusStatistics, passage_terms, terms

# Reason codes.
NO_SENTENCE = "no_sentence"  # nothing in the passage reads as a sentence of prose
TOO_SHORT = "too_short"  # without the sentence nothing worth finding would remain

TASK_DESCRIPTION = "search result"  # one of the paper's four most frequent tasks
MIN_WORDS, MAX_WORDS = 5, 40
MIN_REMAINING_TERMS = 8

# A blank line ends a block of prose, and so does a line of markup, a doctest, a rule, a table row or a field.
_BREAK = re.compile(r"\s*(?:$|>>>|\.\.\.|\.\. |```|~~~|[@:\\]\w|#|[|+=~^*_-]{3,}|\|)")
_LIST_MARKER = re.compile(r"\s*(?:[-*+•]|\d{1,3}[.)])\s+")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”’)\]]*\s+(?=[\"'“‘(\[`*]*[A-Z0-9])")
_ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|et al|cf|vs|Fig|Figs|Eq|Eqs|Sec|No|Dr|Mr|Mrs|St|approx|resp)|\b[A-Z])\.$"
)
_WORD = re.compile(r"[^\W\d_]{2,}")


def needed_terms(passages: Iterable[Passage]) -> set[str]:
    """The terms whose frequencies `write_queries` reads for these passages."""
    return {term for passage in passages for term in passage_terms(passage.title, passage.text)}


def sentences(text: str) -> list[str]:
    """The sentences of prose in `text`, in order, each with its blanks normalised; code and tables are left out."""
    return [sentence for block in _blocks(text) for sentence in _split(block) if _is_prose(sentence)]


def write_queries(
    passage: Passage,
    statistics: CorpusStatistics,
    *,
    run_fingerprint: UUID,
    queries_per_passage: int,
    titles_as_queries: bool = False,
) -> list[TaskQuery] | Dropped:
    """Up to `queries_per_passage` queries, the most informative sentence first, or the reason why there is none.

    With `titles_as_queries` the title comes before the sentences, if it is long enough.
    """
    title = " ".join(passage.title.split())
    titles = [title] if titles_as_queries and MIN_WORDS <= len(title.split()) <= MAX_WORDS else []
    found = list(dict.fromkeys([*titles, *sentences(passage.text)]))
    if not found:
        return Dropped(passage.passage_id, NO_SENTENCE)
    length = len(passage_terms(passage.title, passage.text))
    usable = [query for query in found if length - len(terms(query)) >= MIN_REMAINING_TERMS]
    if not usable:
        return Dropped(passage.passage_id, TOO_SHORT, f"{length} terms")
    # sorted is stable: of two equally informative sentences the earlier one comes first
    best = sorted(usable, key=lambda query: (query not in titles, -informativeness(query, statistics)))
    return [
        TaskQuery(
            query_id=query_id(run_fingerprint, passage.passage_id, ordinal),
            seed_passage_id=passage.passage_id,
            ordinal=ordinal,
            task_description=TASK_DESCRIPTION,
            query_text=query,
            provenance={"teacher": "offline", "method": "title" if query in titles else "inverse_cloze"},
        )
        for ordinal, query in enumerate(best[:queries_per_passage])
    ]


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


def _split(block: str) -> Sequence[str]:
    parts: list[str] = []
    start = 0
    for end in _SENTENCE_END.finditer(block):
        if _ABBREVIATION.search(block[start : end.start()]):
            continue
        parts.append(block[start : end.end()].strip())
        start = end.end()
    return [*parts, block[start:].strip()]


def _is_prose(sentence: str) -> bool:
    """A capital first, a full stop last, a sensible length, and mostly words."""
    words = sentence.split()
    return (
        MIN_WORDS <= len(words) <= MAX_WORDS
        and re.match(r"[\"'“‘(\[`*]*[A-Z0-9]", sentence) is not None
        and re.search(r"[.!?][\"'”’)\]*`]*$", sentence) is not None
        and sum(_WORD.search(word) is not None for word in words) >= 0.7 * len(words)
        and sum(c.isalpha() or c.isspace() for c in sentence) >= 0.8 * len(sentence)
    )
