"""The offline teacher's queries: of which kinds, from where, and what has none."""

from __future__ import annotations

import math
from collections import Counter
from itertools import chain
from typing import Any
from uuid import UUID, uuid5

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cli.runs.settings import parse_config, settings_help
from services.generator.extractive import sentences
from services.generator.offline import NOTHING_TO_ASK, TOO_SHORT, drawn, needed_terms, write_queries
from services.generator.prompt import load_prompt
from shared.errors import SettingError
from shared.masking import verbatim_span
from shared.records import Dropped, Passage, QueryKind, RunConfig, TaskQuery, query_id
from shared.runs import as_stored
from shared.terms import CorpusStatistics, passage_terms
from tests.unit.test_extractive import ABSTRACT

RUN = UUID(int=7)
TITLE = "Loss of p53  in murine fibroblasts"
ALL: dict[QueryKind, float] = {"sentence": 1, "title": 1, "keywords": 1}


def statistics_of(*passages: Passage) -> CorpusStatistics:
    bags = [passage_terms(p.title, p.text) for p in passages]
    every = [term for bag in bags for term in bag]
    return CorpusStatistics(
        len(bags),
        len(every),
        {term: sum(term in bag for bag in bags) for term in every},
        {term: every.count(term) for term in every},
    )


def queries_of(
    passage: Passage, count: int = 1, kinds: dict[QueryKind, float] | None = None
) -> list[TaskQuery] | Dropped:
    # a second passage, without which every term is in all of them and says nothing
    statistics = statistics_of(passage, Passage(UUID(int=99), "", "of the other passage"))
    asked = kinds or {"sentence": 1}
    return write_queries(passage, statistics, run_fingerprint=RUN, queries_per_passage=count, kinds=asked)


def test_a_query_carries_its_origin() -> None:
    passage = Passage(UUID(int=1), "", ABSTRACT)
    queries = queries_of(passage, count=2)
    assert isinstance(queries, list)
    assert [query.ordinal for query in queries] == [0, 1]
    for query in queries:
        assert query.query_id == query_id(RUN, passage.passage_id, query.ordinal)
        assert query.seed_passage_id == passage.passage_id
        assert query.task_description == "search result"
        assert query.provenance == {"teacher": "offline", "kind": "sentence", "method": "inverse_cloze"}
        assert query.kind == "sentence"


def test_no_more_queries_than_sentences_and_none_twice() -> None:
    queries = queries_of(Passage(UUID(int=1), "", ABSTRACT + " " + ABSTRACT), count=20)
    assert isinstance(queries, list)
    assert sorted(query.query_text for query in queries) == sorted(sentences(ABSTRACT))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = 1; y = 2; z = 3", NOTHING_TO_ASK),
        ("A passage that is a single sentence of its own.", TOO_SHORT),
        ("A passage that is a single sentence of its own. And a rest.", TOO_SHORT),
    ],
)
def test_a_passage_without_a_query_says_why(text: str, reason: str) -> None:
    dropped = queries_of(Passage(UUID(int=1), "", text))
    assert isinstance(dropped, Dropped)
    assert (dropped.item_id, dropped.reason) == (UUID(int=1), reason)


def test_needed_terms_are_all_of_a_passages() -> None:
    passages = [Passage(UUID(int=1), "A title", "the max_pool"), Passage(UUID(int=2), "", "pool")]
    assert needed_terms(passages) == {"a", "title", "the", "max", "pool"}


_fragment = st.sampled_from(
    [
        "The cells divide fast in vitro.",
        "Rates of growth (of it) vary!",
        "code() = 1",
        ">>> f(x)",
        "- An item of a list.",
    ]
)
_prose = st.lists(st.tuples(_fragment, st.sampled_from([" ", "\n", "\n\n", "\n    "])), max_size=12).map(
    lambda parts: "".join(fragment + blank for fragment, blank in parts)
)


@given(text=_prose, title=st.sampled_from(["", "Growth", TITLE]), count=st.integers(1, 5))
def test_a_query_stands_in_its_passage_or_is_of_its_words(text: str, title: str, count: int) -> None:
    queries = queries_of(Passage(UUID(int=1), title, text), count, ALL)
    if isinstance(queries, list):
        assert 1 <= len(queries) <= count
        assert len({query.query_text for query in queries}) == len(queries)
        for query in queries:
            if query.kind == "keywords":
                words = query.query_text.split()
                assert 3 <= len(words) <= 7
                assert len(set(words)) == len(words)
                assert set(words) <= set(passage_terms(title, text))
            else:
                assert verbatim_span(query.query_text, title if query.kind == "title" else text)
    assert queries_of(Passage(UUID(int=1), title, text), count, ALL) == queries


@pytest.mark.parametrize(("title", "kinds"), [(TITLE, {"title", "sentence"}), ("Loss", {"sentence"})])
def test_where_there_is_no_title_to_ask_with_another_kind_takes_its_turn(title: str, kinds: set[str]) -> None:
    queries = queries_of(Passage(UUID(int=1), title, ABSTRACT), 2, {"title": 1, "sentence": 1})
    assert isinstance(queries, list)
    assert len(queries) == 2
    assert {query.kind for query in queries} == kinds
    assert "Loss of p53 in murine fibroblasts" in {query.query_text for query in queries} or title == "Loss"


def test_keywords_are_words_that_say_something() -> None:
    passages = [
        Passage(
            UUID(int=n), "", f"The common words of all passages and the rare one ofit{chr(97 + n) * 3} 12345 {ABSTRACT}"
        )
        for n in range(20)
    ]
    statistics = statistics_of(*passages)
    asked: dict[QueryKind, float] = {"keywords": 1}
    found = [
        write_queries(each, statistics, run_fingerprint=RUN, queries_per_passage=5, kinds=asked) for each in passages
    ]
    words = Counter(
        word for queries in found if isinstance(queries, list) for query in queries for word in query.query_text.split()
    )
    assert words["12345"] == words["of"] == 0
    assert sum(count for word, count in words.items() if word.startswith("ofit")) > 60  # of 100 queries


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_shares_hold_over_many_passages(count: int) -> None:
    shares: dict[QueryKind, float] = {"sentence": 2, "title": 1, "keywords": 1}
    starts = [n / 1000 for n in range(1000)]
    found = Counter(chain.from_iterable(drawn(shares, count, start) for start in starts))
    assert {kind: number / 1000 / count for kind, number in found.items()} == pytest.approx(
        {"sentence": 0.5, "title": 0.25, "keywords": 0.25}, abs=0.01
    )


def test_three_of_three_equal_shares_are_one_of_each() -> None:
    for start in (0.0, 0.1, 0.5, 0.999):
        assert sorted(drawn(ALL, 3, start)) == sorted(ALL)


def test_kinds_come_in_one_order_whatever_order_they_are_named_in() -> None:
    assert RunConfig(query_kinds={"keywords": 1, "title": 2}).query_kinds == {"title": 2.0, "keywords": 1.0}
    one, other = (RunConfig(query_kinds=kinds) for kinds in ({"keywords": 1, "title": 2}, {"title": 2, "keywords": 1}))
    assert one.sha256() == other.sha256()
    assert list(one.query_kinds) == list(other.query_kinds)


def test_kinds_that_cannot_be_asked_for_are_refused() -> None:
    with pytest.raises(ValidationError, match="the teacher llm writes its own queries"):
        RunConfig(teacher="llm", query_kinds={"title": 1})
    assert RunConfig(teacher="llm").query_kinds
    for kinds in ({}, {"title": 0}, {"title": -1}, {"title": math.nan}, {"title": math.inf}):
        with pytest.raises(ValidationError, match="at least one kind of query, each with a share above 0"):
            RunConfig.model_validate({"query_kinds": kinds})
    with pytest.raises(ValidationError):
        RunConfig.model_validate({"query_kinds": {"question": 1}})


def test_kinds_are_set_one_by_one_or_all_together() -> None:
    for assignments, wanted in (
        (["query_kinds.title=2"], {"sentence": 1, "title": 2, "keywords": 1}),
        (['query_kinds={"sentence":1}'], {"sentence": 1}),
        (['query_kinds={"sentence":1}', "query_kinds.title=2"], {"sentence": 1, "title": 2}),
        ([], {"sentence": 1, "title": 1, "keywords": 1}),
    ):
        assert parse_config(assignments).query_kinds == wanted
    with pytest.raises(SettingError, match=r"--set query_kinds\.question: .*'keywords'"):
        parse_config(["query_kinds.question=1"])
    assert 'query_kinds (default {"sentence":1,"title":1,"keywords":1}): ' in settings_help(RunConfig, "Settings")


@pytest.mark.parametrize(
    ("stored", "kinds"),
    [
        ({}, {"sentence": 1}),
        ({"teacher": "offline", "titles_as_queries": False}, {"sentence": 1}),
        ({"titles_as_queries": True}, {"sentence": 1, "title": 1}),
        ({"query_kinds": {"keywords": 1, "title": 3}}, {"title": 3, "keywords": 1}),
        ({"teacher": "llm", "titles_as_queries": False}, RunConfig(teacher="llm").query_kinds),
    ],
)
def test_a_run_of_before_is_read_as_what_it_was(stored: dict[str, Any], kinds: dict[str, float]) -> None:
    config = as_stored(stored)
    assert config.query_kinds == kinds
    assert as_stored(config.model_dump(mode="json")) == config


def test_an_llms_task_descriptions_are_drawn_uniformly_over_their_kinds() -> None:
    prompt = load_prompt(None, "uniform")
    rng_draws = [(uuid5(RUN, f"k{n}").int, uuid5(RUN, f"w{n}").int) for n in range(4000)]
    tasks = [prompt.draw_task(*draws) for draws in rng_draws]
    kinds = Counter(prompt.kind_of(task) for task in tasks if task)
    known = set(prompt.kind_of_task.values())
    assert set(kinds) == known
    assert set(tasks) == set(prompt.kind_of_task)
    assert all(abs(number / 4000 - 1 / len(known)) < 0.02 for number in kinds.values())
    assert load_prompt(None, "free").draw_task(1, 2) is None


def test_a_task_that_the_llm_worded_itself_is_of_another_kind() -> None:
    prompt = load_prompt(None, "free")
    assert prompt.kind_of("given a query,  find a passage that has the answer to the query.") == "question answering"
    assert prompt.kind_of("Given a recipe, find a wine") == "other"


def test_queries_that_cost_nothing_are_three_a_passage() -> None:
    assert RunConfig().queries_per_passage == 3
    assert RunConfig(teacher="llm").queries_per_passage == 1
    assert RunConfig(teacher="llm", queries_per_passage=2).queries_per_passage == 2
    assert as_stored({}).queries_per_passage == 1  # as runs of before had it
