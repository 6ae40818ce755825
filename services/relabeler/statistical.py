"""The offline teacher's judgement of a query's candidates: two classical relevance scores. No LLM.

QL is the Dirichlet-smoothed unigram query likelihood (Zhai and Lafferty, SIGIR 2001), the quantity that an LLM's query
likelihood generalises; RC is BM25 (Robertson and Zaragoza 2009), in place of a relevance label's likelihood. Pure, and
each candidate is judged on its own, so their order does not matter.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from shared.masking import mask, verbatim_span
from shared.records import Judgement, Passage
from shared.terms import K1, B, CorpusStatistics, passage_terms, terms

MU = 500.0  # terms of the corpus added to each passage; around 2,000 in the paper's newswire, less suits short passages
PROVENANCE = {"teacher": "offline", "ql": "dirichlet", "mu": MU, "rc": "bm25", "k1": K1, "b": B}
DECIMALS = 6  # coarser than the last bit of a logarithm, which differs between machines


def provenance(query_text: str) -> dict[str, Any]:
    """How the scores of a query's candidates came about; its terms are what the likelihood is the product over."""
    return {**PROVENANCE, "query_tokens": len(terms(query_text))}


def needed_terms(query_text: str) -> set[str]:
    """The terms whose frequencies `judge` reads for this query."""
    return set(terms(query_text))


def judge(query_text: str, passages: Sequence[Passage], statistics: CorpusStatistics) -> list[Judgement]:
    """Both scores of each passage, in the order given; a verbatim copy of the query is masked before scoring.

    `ql_score` is log p(query | passage) in nats, at most 0; `rc_score` is at least 0. Both are finite, also for a query
    without a known term.
    """
    query = Counter(terms(query_text))
    judgements = []
    for passage in passages:
        title = mask(passage.title, verbatim_span(query_text, passage.title))
        text = mask(passage.text, verbatim_span(query_text, passage.text))
        found = passage_terms(title, text)
        counts, length = Counter(found), len(found)
        judgements.append(
            Judgement(
                passage.passage_id,
                ql_score=round(query_likelihood(query, counts, length, statistics), DECIMALS),
                rc_score=round(bm25(query, counts, length, statistics), DECIMALS),
            )
        )
    return judgements


def query_likelihood(
    query: Counter[str], passage: Counter[str], length: int, statistics: CorpusStatistics, mu: float = MU
) -> float:
    """Sum over the query's terms of log((c(w; passage) + mu p(w | corpus)) / (length + mu)), in nats."""
    return sum(
        count * math.log((passage[term] + mu * statistics.collection_probability(term)) / (length + mu))
        for term, count in query.items()
    )


def bm25(
    query: Counter[str],
    passage: Counter[str],
    length: int,
    statistics: CorpusStatistics,
    k1: float = K1,
    b: float = B,
) -> float:
    """Sum over the query's terms of idf(w) c(w; passage) / (c(w; passage) + k1 (1 - b + b length / mean length))."""
    norm = k1 * (1 - b + b * length / statistics.mean_length)
    return (
        sum(
            count * statistics.idf(term) * passage[term] / (passage[term] + norm)
            for term, count in query.items()
            if passage[term]
        )
        or 0.0
    )
