"""The judge's two few-shot prompts (FRet, step 2: P_QL and P_RC), read from their files and written out.

Text alone: it asks no LLM. A prompt is a constant head, then what the task and query say before the passage, the
passage, and what they say after it; the answer, whose probability is wanted, follows.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from shared.llm.prompt import passage_block
from shared.records import LLMConfig, TaskQuery


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is the same for every query and passage. Equal hashes mean that equal prompts are sent for equal ones."""

    head: str  # the instruction and the examples
    before: str  # around the passage, with {task} and {query}
    after: str
    answer: str  # with {query} or {label}; its leading blank belongs to it, since tokens take their blanks along
    labels: tuple[str, ...]  # written as answers, from the lowest grade to the highest; none for query likelihood
    grades: tuple[int, ...]
    sha256: str

    def around(self, query: TaskQuery) -> tuple[str, str]:
        """What stands before the passage, without the head, and after it."""
        values = {"task": query.task_description, "query": query.query_text}
        return self.before.format(**values), self.after.format(**values)

    def render(self, query: TaskQuery, block: str) -> str:
        before, after = self.around(query)
        return f"{self.head}{before}{block}{after}"


@dataclass(frozen=True, slots=True)
class Prompts:
    ql: Prompt
    rc: Prompt

    @property
    def each(self) -> tuple[Prompt, Prompt]:
        return self.ql, self.rc

    @property
    def sha256(self) -> dict[str, str]:
        """As they go into `LLMConfig.prompts_sha256` and into the `judge` column."""
        return {"ql": self.ql.sha256, "rc": self.rc.sha256}


@cache
def load_prompt(name: str, num_examples: int | None) -> Prompt:
    """The packaged prompt `prompts/{name}.toml` with its first `num_examples` examples, or with all that it has."""
    content = tomllib.loads(files(__package__).joinpath(f"prompts/{name}.toml").read_text(encoding="utf-8"))
    before, after, answer = content["before"], content["after"], content["answer"]
    blocks = [content["instruction"].strip()]
    blocks.extend(_example(example, before, after, answer) for example in content["examples"][:num_examples])
    head = "".join(f"{block}\n\n" for block in blocks)
    labels = sorted(content.get("labels", []), key=lambda label: label["grade"])
    written = tuple(answer.format(label=label["text"]) for label in labels)
    grades = tuple(label["grade"] for label in labels)
    # whatever reaches the LLM, written out around placeholders
    blocks = [passage_block("{title}", "{text}"), passage_block("", "{text}")]
    sent = [head, before, after, answer, blocks, written, grades]
    return Prompt(head, before, after, answer, written, grades, hashlib.sha256(json.dumps(sent).encode()).hexdigest())


def prompts_of(config: LLMConfig) -> Prompts:
    return Prompts(load_prompt("ql", config.num_examples), load_prompt(f"rc_{config.relevance}", config.num_examples))


def fixed_texts(config: LLMConfig) -> list[str]:
    """The judge's prompts as they are without a passage and a query, for whoever checks that a context holds them."""
    prompts = prompts_of(config)
    return [f"{prompt.head}{prompt.before}{prompt.after}" for prompt in prompts.each]


def _example(example: dict[str, Any], before: str, after: str, answer: str) -> str:
    block = passage_block(example["title"], example["passage"])
    return before.format(**example) + block + after.format(**example) + answer.format(**example)
