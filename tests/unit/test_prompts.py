"""The generator's prompt: what its file holds, how it is written out, and what its hash tells apart."""

from __future__ import annotations

import re
import tomllib
from importlib.resources import files

import pytest

from services.generator.parse import MAX_QUERY_WORDS, MAX_TASK_WORDS, Pair, parse
from services.generator.prompt import STOP, Prompt, fixed_texts, load_prompt
from shared.llm import Completion
from shared.llm.prompt import passage_block
from shared.records import LLMConfig

CONTENT = tomllib.loads(files("services.generator").joinpath("prompts/fret.toml").read_text(encoding="utf-8"))
ALL, NONE = load_prompt(None, "free"), load_prompt(0, "free")
UNIFORM = load_prompt(None, "uniform")


def blocks(prompt: Prompt) -> list[str]:
    assert prompt.head.endswith("\n\n")
    return prompt.head.removesuffix("\n\n").split("\n\n")


def test_examples_and_task_descriptions_are_many_and_distinct() -> None:
    examples = CONTENT["examples"]
    assert len(examples) >= 8
    for field in ("passage", "task_description", "query"):
        assert len({example[field] for example in examples}) == len(examples), field
    drawn = [task["text"] for task in CONTENT["task_descriptions"]]
    assert len(set(drawn)) == len(drawn) >= 16
    for kind in ("has the answer to", "might show up as a search result", "true or not", "similar meaning"):
        assert any(kind in task for task in drawn), kind  # the paper's four most frequent
        assert any(kind in example["task_description"] for example in examples), kind


def test_instruction_and_each_example_are_a_block_of_the_head() -> None:
    first, *rest = blocks(ALL)
    assert first == CONTENT["instruction"].strip()
    for block, example in zip(rest, CONTENT["examples"], strict=True):
        lines = block.split("\n")
        labels = ["Title", "Passage", "Task", "Query"] if example["title"] else ["Passage", "Task", "Query"]
        assert [line.split(":")[0] for line in lines] == labels
        assert lines[-2:] == [f"Task: {example['task_description']}", f"Query: {example['query']}"]


def test_what_an_example_shows_is_what_the_parser_takes() -> None:
    for example in CONTENT["examples"]:
        written = Completion(f" {example['task_description']}\nQuery: {example['query']}", finished=True)
        assert parse(written, None) == Pair(example["task_description"], example["query"])
    words = [(e["task_description"].split(), e["query"].split()) for e in CONTENT["examples"]]
    assert max(len(task) for task, _ in words) < MAX_TASK_WORDS / 2
    assert max(len(query) for _, query in words) < MAX_QUERY_WORDS / 2


def test_the_model_goes_on_where_the_prompt_ends() -> None:
    block = passage_block("Owls", "They hunt at night.")
    assert NONE.render(block, None).endswith("\n\nTitle: Owls\nPassage: They hunt at night.\nTask:")
    assert NONE.render(block, "Find it").endswith("\nPassage: They hunt at night.\nTask: Find it\nQuery:")


@pytest.mark.parametrize(
    ("title", "text", "expected"),
    [
        ("", " one ", "Passage: one"),
        ("  ", "one", "Passage: one"),
        ("T", "one\n\n  \n\n  two  \nthree\n", "Title: T\nPassage: one\n  two\nthree"),
        ("", "\r\none\r\n\r\ntwo", "Passage: one\ntwo"),
        ("", "", "Passage:"),
    ],
)
def test_a_passage_holds_no_blank_line(title: str, text: str, expected: str) -> None:
    assert passage_block(title, text) == expected


def test_every_block_begins_with_what_ends_a_completion() -> None:
    for block in blocks(ALL)[1:]:
        assert any(f"\n{block}".startswith(stop) for stop in STOP)
    assert not any(
        stop in f" {e['task_description']}\nQuery: {e['query']}" for e in CONTENT["examples"] for stop in STOP
    )


def test_num_examples_takes_the_first() -> None:
    assert len(blocks(NONE)) == 1
    assert blocks(load_prompt(2, "free")) == blocks(ALL)[:3]
    assert load_prompt(2, "free").example_queries == {e["query"] for e in CONTENT["examples"][:2]}
    assert load_prompt(10_000, "free") == ALL


def test_task_descriptions_are_drawn_only_if_asked_for() -> None:
    assert ALL.task_descriptions == ()
    assert UNIFORM.task_descriptions == tuple(task["text"] for task in CONTENT["task_descriptions"])


def test_another_hash_whenever_something_else_is_sent() -> None:
    variants = [load_prompt(n, sampling) for n in (0, 1, 2, None) for sampling in ("free", "uniform")]
    assert len({variant.sha256 for variant in variants}) == len(variants)
    assert all(re.fullmatch(r"[0-9a-f]{64}", variant.sha256) for variant in variants)
    load_prompt.cache_clear()
    assert load_prompt(None, "free").sha256 == ALL.sha256


def test_another_hash_where_the_kinds_that_are_drawn_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [{**task, "kind": "any"} for task in CONTENT["task_descriptions"]]
    monkeypatch.setattr(tomllib, "loads", lambda _: {**CONTENT, "task_descriptions": tasks})
    load_prompt.cache_clear()
    free, uniform = load_prompt(None, "free"), load_prompt(None, "uniform")
    load_prompt.cache_clear()
    assert uniform.sha256 != UNIFORM.sha256
    assert free.sha256 == ALL.sha256, "nothing is drawn"


def test_fixed_texts_are_as_long_as_any_prompt_without_a_passage() -> None:
    (fixed,) = fixed_texts(LLMConfig(num_examples=1, task_sampling="uniform"))
    prompt = load_prompt(1, "uniform")
    lengths = [len(prompt.render("", task)) for task in prompt.task_descriptions]
    assert len(fixed) == max(lengths) > min(lengths)
    assert fixed_texts(LLMConfig(num_examples=1)) == [load_prompt(1, "free").render("", None)]
