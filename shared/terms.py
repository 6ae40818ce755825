"""The one tokeniser of the statistical teacher, and a corpus's frequencies in its terms.

The import counts with it, the generator, the retriever and the relabeler score with it: they must agree to the letter,
so this is part of the contract. It is no model's tokeniser and stems nothing.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

# Longer ones are hashes and base64; a database index also refuses what is longer than a third of a page.
MAX_TERM_CHARS = 64

K1, B = 1.2, 0.75  # of BM25: how fast repeats saturate, and how much length counts; Lucene's defaults

_WORD = re.compile(r"[^\W_]+")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def terms(text: str) -> list[str]:
    """The terms of `text` in order, with repeats: words in lower case, identifiers in their parts.

    `max_pool2d` and `maxPool2d` both give `max`, `pool2d`. Compatibility forms are unified (NFKC). Every term is
    counted, also the frequent ones, whose weight is the scoring function's business.
    """
    words = _WORD.findall(unicodedata.normalize("NFKC", text))
    return [part.lower()[:MAX_TERM_CHARS] for word in words for part in _CAMEL.split(word)]


def passage_terms(title: str, text: str) -> list[str]:
    """The terms of a passage: title and text count alike."""
    return terms(f"{title}\n{text}")


@dataclass(frozen=True, slots=True)
class CorpusStatistics:
    """Frequencies over a whole corpus, with the mappings cut down to the terms that a shard needs.

    A term that the mappings lack counts as one that no passage holds, so load every term that will be scored.
    """

    passage_count: int
    term_count: int
    document_frequency: Mapping[str, int]
    collection_frequency: Mapping[str, int]

    @property
    def mean_length(self) -> float:
        """Terms per passage; 1 for an empty corpus, since scores divide by it."""
        return self.term_count / self.passage_count if self.passage_count and self.term_count else 1.0

    def idf(self, term: str) -> float:
        """log(1 + (N - n + 0.5) / (n + 0.5)), never negative: Robertson and Spärck Jones's weight as Lucene has it."""
        n = self.document_frequency.get(term, 0)
        return math.log1p((max(self.passage_count, n) - n + 0.5) / (n + 0.5))

    def collection_probability(self, term: str) -> float:
        """p(term | corpus), never zero: a term that the corpus lacks counts as half an occurrence."""
        return max(self.collection_frequency.get(term, 0), 0.5) / max(self.term_count, 1)
