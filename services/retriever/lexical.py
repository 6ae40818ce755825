"""BM25 as a dot product of sparse vectors, so that a vector index finds passages by the words of a query. Pure.

What changes with the rest of the corpus, how rare a term is, stands in the query's vector, by the run's frozen
statistics. Of a passage's only the mean length is the corpus's.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from itertools import chain
from uuid import UUID

import numpy as np
from scipy.sparse import csr_array

from services.retriever.neighbours import DECIMALS, Neighbour
from shared.records import Passage
from shared.terms import K1, B, CorpusStatistics, passage_terms, terms

Weights = dict[int, float]  # a sparse vector: weights by the ids of terms, which are below 2^32


def needed_terms(query_texts: Iterable[str]) -> set[str]:
    """The terms whose frequencies `query_weights` reads for these queries."""
    return {term for query_text in query_texts for term in terms(query_text)}


def passage_weights(passage: Passage, mean_length: float) -> Weights:
    """Of each term c / (c + k1 (1 - b + b length / mean length)), c being how often it stands in title and text.

    `mean_length`: terms per passage of the corpus.
    """
    found = passage_terms(passage.title, passage.text)
    norm = K1 * (1 - B + B * len(found) / mean_length)
    return _by_id((term, count / (count + norm)) for term, count in Counter(found).items())


def query_weights(query_text: str, statistics: CorpusStatistics) -> Weights:
    """Of each term how often it stands in the query times its idf."""
    return _by_id((term, count * statistics.idf(term)) for term, count in Counter(terms(query_text)).items())


def _by_id(weighted: Iterable[tuple[str, float]]) -> Weights:
    """The ids are hashes: of two terms that have the same one the weights add up."""
    weights: defaultdict[int, float] = defaultdict(float)
    for term, weight in weighted:
        weights[int.from_bytes(blake2b(term.encode(), digest_size=4).digest())] += weight
    return dict(weights)


class Postings:
    """Passages by the terms that they hold, for a search inside this process: 12 MB for a million of those."""

    def __init__(self, weights: Mapping[UUID, Weights]) -> None:
        self._ids = sorted(weights)  # so that the lower position is the lower id
        held = [weights[passage_id] for passage_id in self._ids]
        lengths = [len(each) for each in held]
        term_ids = np.fromiter(chain.from_iterable(held), np.int64, sum(lengths))
        values = np.fromiter(chain.from_iterable(each.values() for each in held), np.float32, sum(lengths))
        self._term_ids, columns = np.unique(term_ids, return_inverse=True)
        starts = np.cumsum([0, *lengths])
        by_passage = csr_array((values, columns, starts), shape=(len(held), len(self._term_ids)))
        self._by_term = by_passage.T.tocsr()

    def nearest(self, query: Weights, limit: int) -> list[Neighbour]:
        """The passages that share a term with the query, by falling score, of equal ones the lower id first."""
        known = {term_id: row for term_id in query if (row := self._row(term_id)) is not None}
        asked = csr_array(
            ([query[term_id] for term_id in known], list(known.values()), [0, len(known)]),
            shape=(1, len(self._term_ids)),
        )
        found = asked @ self._by_term
        scores = found.data.round(DECIMALS)
        best = np.lexsort((found.indices, -scores))[:limit]
        return [(self._ids[found.indices[place]], float(scores[place])) for place in best]

    def _row(self, term_id: int) -> int | None:
        row = int(np.searchsorted(self._term_ids, term_id))
        return row if row < len(self._term_ids) and self._term_ids[row] == term_id else None
