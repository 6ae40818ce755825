"""The generator's few-shot prompt (FRet, step 1: LLM(P_QG, p_seed) → (t, q)), read from its file and written out.

Text alone: it asks no LLM, and what an LLM answers is read in `parse`.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

from shared.llm.prompt import passage_block
from shared.records import LLMConfig

# a blank line ends an example, and so do the labels of the next one
STOP = ("\n\n", "\nPassage:", "\nTitle:")


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is the same for every passage. Equal hashes mean that equal passages are sent in equal prompts."""

    head: str  # the instruction and the examples
    example_queries: frozenset[str]
    task_descriptions: tuple[str, ...]  # to draw from; empty where the LLM writes them
    kind_of_task: Mapping[str, str]  # of each task description that the file has
    sha256: str

    def render(self, passage_block: str, task_description: str | None) -> str:
        """The prompt for one passage: it ends in `Task:`, or after a given task description in `Query:`."""
        return self.head + passage_block + _tail(task_description)

    def draw_task(self, kind_draw: int, wording_draw: int) -> str | None:
        """A task description by two numbers of chance: of all kinds alike, whatever wordings each has."""
        if not self.task_descriptions:
            return None
        wordings: dict[str, list[str]] = {}
        for task_description in self.task_descriptions:
            wordings.setdefault(self.kind_of_task[task_description], []).append(task_description)
        of_kind = list(wordings.values())[kind_draw % len(wordings)]
        return of_kind[wording_draw % len(of_kind)]

    def kind_of(self, task_description: str) -> str:
        """What kind of query the task asks for; `other` for one that the LLM worded itself."""
        known = {_same(task): kind for task, kind in self.kind_of_task.items()}
        return known.get(_same(task_description), "other")

    def longest_fixed_text(self) -> str:
        """The longest prompt without a passage: what has to fit beside every passage."""
        return self.render("", max(self.task_descriptions, key=len, default=None))


@cache
def load_prompt(num_examples: int | None, task_sampling: Literal["free", "uniform"]) -> Prompt:
    """The packaged prompt with its first `num_examples` examples, or with all that it has."""
    content = tomllib.loads(files(__package__).joinpath("prompts/fret.toml").read_text(encoding="utf-8"))
    examples = content["examples"][:num_examples]
    blocks = [content["instruction"].strip()]
    for example in examples:
        task, query = example["task_description"], example["query"]
        blocks.append(f"{passage_block(example['title'], example['passage'])}{_tail(task)} {query}")
    head = "".join(f"{block}\n\n" for block in blocks)
    kind_of_task = {task["text"]: task["kind"] for task in content["task_descriptions"]}
    task_descriptions = tuple(kind_of_task) if task_sampling == "uniform" else ()
    # whatever reaches the LLM, written out around placeholders, and the kinds where the draw goes by them
    sent = [
        head,
        passage_block("{title}", "{text}"),
        passage_block("", "{text}"),
        _tail("{task}") if task_descriptions else _tail(None),
        STOP,
        [(kind_of_task[task], task) for task in task_descriptions],
    ]
    return Prompt(
        head=head,
        example_queries=frozenset(example["query"] for example in examples),
        task_descriptions=task_descriptions,
        kind_of_task=kind_of_task,
        sha256=hashlib.sha256(json.dumps(sent).encode()).hexdigest(),
    )


def prompt_of(config: LLMConfig) -> Prompt:
    return load_prompt(config.num_examples, config.task_sampling)


def fixed_texts(config: LLMConfig) -> list[str]:
    """The generator's prompts as they are without a passage, for whoever checks that a model's context holds them."""
    return [prompt_of(config).longest_fixed_text()]


def _tail(task_description: str | None) -> str:
    return "\nTask:" if task_description is None else f"\nTask: {task_description}\nQuery:"


def _same(task_description: str) -> str:
    """The description without what does not make it another: case, blanks and a full stop."""
    return " ".join(task_description.lower().split()).rstrip(".")
