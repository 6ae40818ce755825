"""The offline teacher's queries, of several kinds. No LLM.

    sentence   of the passage, which the rest of it should be found by: the inverse cloze task (Lee et al. 2019, arXiv
               1906.00300, section 4). They draw one at random; this takes the most informative ones
    title      of the passage, which its text should be found by
    keywords   a few of the passage's most informative terms, as somebody types who knows what to look for

Queries of several kinds train a better model than those of any one of them, whatever kind people ask (Tamber et al.,
arXiv 2505.19274). Pure: passages and corpus statistics in, queries out.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from uuid import UUID

from services.generator.extractive import MAX_WORDS, informativeness, sentences
from shared.records import Dropped, Passage, QueryKind, TaskQuery, query_id
from shared.terms import CorpusStatistics, passage_terms, terms

# Reason codes.
NOTHING_TO_ASK = "nothing_to_ask"  # no sentence of prose, no title and no words that say enough, of the kinds asked for
TOO_SHORT = "too_short"  # without the query nothing worth finding would remain

TASK_DESCRIPTION = "search result"  # one of the paper's four most frequent tasks
MIN_REMAINING_TERMS = 8
MIN_TITLE_WORDS = 3
KEYWORDS = (3, 7)  # of a query
KEYWORDS_FROM = 20  # a passage's most informative terms, which they are drawn from
MIN_KEYWORD_CHARS = 3
METHODS: dict[QueryKind, str] = {"sentence": "inverse_cloze", "title": "title", "keywords": "informative_terms"}


def needed_terms(passages: Iterable[Passage]) -> set[str]:
    """The terms whose frequencies `write_queries` reads for these passages."""
    return {term for passage in passages for term in passage_terms(passage.title, passage.text)}


def write_queries(
    passage: Passage,
    statistics: CorpusStatistics,
    *,
    run_fingerprint: UUID,
    queries_per_passage: int,
    kinds: Mapping[QueryKind, float],
) -> list[TaskQuery] | Dropped:
    """Up to `queries_per_passage` different queries, or the reason why there is none.

    Kinds come by their shares over the corpus. Where a passage has nothing more of the one that it should give, another
    takes its place.
    """
    rng = random.Random(f"{run_fingerprint}:{passage.passage_id}")  # noqa: S311
    length = len(passage_terms(passage.title, passage.text))
    offers = {kind: _offers(kind, passage, statistics, rng) for kind in kinds}
    found: dict[str, QueryKind] = {}
    too_short = False
    for wanted in drawn(kinds, queries_per_passage, rng.random()):
        for kind, text in ((each, text) for each in [wanted, *kinds] for text in offers[each]):
            if kind != "keywords" and length - len(terms(text)) < MIN_REMAINING_TERMS:
                too_short = True
            elif text not in found:
                found[text] = kind
                break
    if not found:
        reason = TOO_SHORT if too_short else NOTHING_TO_ASK
        return Dropped(passage.passage_id, reason, f"{length} terms" if too_short else "")
    return [
        TaskQuery(
            query_id=query_id(run_fingerprint, passage.passage_id, ordinal),
            seed_passage_id=passage.passage_id,
            ordinal=ordinal,
            task_description=TASK_DESCRIPTION,
            query_text=text,
            provenance={"teacher": "offline", "kind": kind, "method": METHODS[kind]},
        )
        for ordinal, (text, kind) in enumerate(found.items())
    ]


def drawn(shares: Mapping[QueryKind, float], count: int, start: float) -> list[QueryKind]:
    """The kinds of a passage's queries: systematic sampling from `start` in [0, 1), a `count`-th of the shares apart.

    So of three equal shares three queries have each kind once, and over many passages the shares hold for any count.
    """
    kinds, ends = list(shares), list(accumulate(shares.values()))
    points = ((start + number / count) % 1 * ends[-1] for number in range(count))
    return [kinds[min(bisect_right(ends, point), len(kinds) - 1)] for point in points]


def _offers(kind: QueryKind, passage: Passage, statistics: CorpusStatistics, rng: random.Random) -> Iterator[str]:
    """What the passage has of a kind, the best first."""
    match kind:
        case "sentence":
            # sorted is stable: of two equally informative sentences the earlier one comes first
            yield from sorted(
                dict.fromkeys(sentences(passage.text)), key=lambda each: -informativeness(each, statistics)
            )
        case "title":
            title = " ".join(passage.title.split())
            if MIN_TITLE_WORDS <= len(title.split()) <= MAX_WORDS:
                yield title
        case "keywords":
            yield from _keywords(passage, statistics, rng)


def _keywords(passage: Passage, statistics: CorpusStatistics, rng: random.Random) -> Iterator[str]:
    """Terms drawn without replacement by what they say of the passage, log(1 + frequency) × idf; no end of them."""
    counts = Counter(passage_terms(passage.title, passage.text))
    weights = {
        term: math.log1p(count) * statistics.idf(term)
        for term, count in counts.items()
        if len(term) >= MIN_KEYWORD_CHARS and term.isalpha()
    }
    best = sorted((term for term in weights if weights[term] > 0), key=lambda term: (-weights[term], term))
    best = best[:KEYWORDS_FROM]
    if len(best) < KEYWORDS[0] + 2:  # fewer are the whole passage
        return
    for _ in range(100):  # draws, of which none is likely to come twice
        # Efraimidis and Spirakis 2006: the largest keys are a weighted sample without replacement
        keys = {term: rng.random() ** (1 / weights[term]) for term in best}
        yield " ".join(sorted(best, key=lambda term: -keys[term])[: rng.randint(*KEYWORDS)])
