"""Verbatim spans: where a query stands word for word in a passage, the passage would be found by copying.

The inverse cloze task (Lee et al. 2019, arXiv 1906.00300, section 4) removes the sentence from its passage in 90% of
the examples. The relabeler masks the span when it scores, the trainer when it trains, and every export applies or
names it; so the span is a column of the record.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

Span = tuple[int, int]

# A query of fewer words that stands in a passage is a mention, and finding it there is what lexical matching is for; a
# longer one is a copy. The offline teacher's queries all have as many (`extractive.MIN_WORDS`).
MIN_COPIED_WORDS = 5


def verbatim_span(query_text: str, text: str) -> Span | None:
    """The first place, as [start, end) in characters, where `query_text` stands in `text`, blanks and case aside."""
    words = query_text.split()
    if not words:
        return None
    found = re.search(r"\s+".join(map(re.escape, words)), text, re.IGNORECASE)
    return found.span() if found else None


def copied_span(query_text: str, text: str) -> Span | None:
    """Where the query stands word for word in `text`, if it is long enough to be a copy and no mention."""
    return verbatim_span(query_text, text) if len(query_text.split()) >= MIN_COPIED_WORDS else None


def mask_titles(query_text: str, titles: Sequence[str]) -> list[str]:
    """A record's titles, the positive's first, each without a copy of the query; no column has the spans: the texts do.

    Where no word is left of the positive's, the others go as well. Else a title would be the mark of a negative, and
    what a training learns is to look for one. What other queries of a batch have for positives keeps its titles.
    """
    left = [mask(title, copied_span(query_text, title)) for title in titles]
    return [""] * len(left) if titles[0] and not re.search(r"\w", left[0]) else left


def mask(text: str, span: Span | None) -> str:
    """`text` without the span; what stood on its two sides is joined by one blank."""
    if span is None:
        return text
    return f"{text[: span[0]].rstrip()} {text[span[1] :].lstrip()}".strip()
