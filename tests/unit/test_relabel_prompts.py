"""The judge's prompts: their examples, their labels, their hashes, and what they are without a passage and a query."""

from __future__ import annotations

import tomllib
from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from services.relabeler.prompt import fixed_texts, load_prompt, prompts_of
from shared.records import LLMConfig, TaskQuery
from tests.unit.test_prompted_relabel import GRADED, QUERY


def content(name: str) -> dict[str, Any]:
    return tomllib.loads(files("services.relabeler").joinpath(f"prompts/{name}.toml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["ql", "rc_graded", "rc_binary"])
def test_examples_are_written_as_what_is_asked(name: str) -> None:
    examples = content(name)["examples"]
    for field in ("query", "passage"):
        assert len({example[field] for example in examples}) == len(examples), field
    prompt = load_prompt(name, None)
    instruction, *blocks, end = prompt.head.split("\n\n")
    assert end == ""
    assert instruction == content(name)["instruction"].strip()
    for block, example in zip(blocks, examples, strict=True):
        query = TaskQuery(UUID(int=1), UUID(int=1), 0, example["task"], example["query"])
        title = f"Title: {example['title']}\n" if example["title"] else ""
        answer = prompt.answer.format(query=example["query"], label=example.get("label"))
        assert block == prompt.render(query, f"{title}Passage: {example['passage']}").removeprefix(prompt.head) + answer
    assert load_prompt(name, 0).head == f"{instruction}\n\n"


@pytest.mark.parametrize(("name", "labels"), [("rc_graded", 4), ("rc_binary", 2)])
def test_examples_are_balanced_over_the_labels(name: str, labels: int) -> None:
    examples = [example["label"] for example in content(name)["examples"]]
    known = [label["text"] for label in content(name)["labels"]]
    assert set(examples) == set(known)
    for end in range(labels, len(examples) + 1, labels):
        assert len(set(Counter(examples[:end]).values())) == 1
    assert load_prompt(name, None).grades == tuple(range(labels))
    assert len({label[0] for label in known}) == labels  # no two begin alike
    assert load_prompt(name, None).labels[-1] == f" {known[-1]}"


def test_the_head_never_changes_and_is_what_comes_first() -> None:
    for prompt in prompts_of(LLMConfig()).each:
        for block in ("Passage: a", "Passage: b"):
            assert prompt.render(QUERY, block).startswith(prompt.head)


def test_hashes_tell_prompts_apart_and_nothing_else() -> None:
    variants = [
        LLMConfig(),
        LLMConfig(num_examples=0),
        LLMConfig(num_examples=2),
        LLMConfig(relevance="binary"),
        LLMConfig(relevance="binary", num_examples=0),
    ]
    assert len({prompts_of(config).rc.sha256 for config in variants}) == len(variants)
    assert prompts_of(LLMConfig()).sha256 == prompts_of(LLMConfig(temperature=0.1, graded_score="peak")).sha256
    assert set(prompts_of(LLMConfig()).sha256) == {"ql", "rc"}


def test_fixed_texts_are_the_prompts_without_passage_and_query() -> None:
    assert [text[:20] for text in fixed_texts(LLMConfig())] == [p.head[:20] for p in prompts_of(LLMConfig()).each]
    assert len(fixed_texts(GRADED)[1]) < len(fixed_texts(LLMConfig())[1])


def test_the_prompts_files_are_packaged() -> None:
    assert Path(str(files("services.relabeler").joinpath("prompts/ql.toml"))).is_file()
