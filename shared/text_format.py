"""How a query and a passage are written for the encoder: Gecko, section 3.4 (arXiv 2403.20327), or a model's own way.

The retriever, the trainer, the evaluation and the exported model's prompts must agree to the letter.
An empty title is written `none`, as EmbeddingGemma (arXiv 2509.20354) does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


def query_prompt(task_description: str) -> str:
    """What stands before a query: `task: {task} | query: `."""
    return f"task: {task_description} | query: "


def format_query(task_description: str, query_text: str) -> str:
    return query_prompt(task_description) + query_text


def format_passage(title: str, text: str) -> str:
    return f"title: {title or 'none'} | text: {text}"


def plain_passage(title: str, text: str) -> str:
    """Title and text with a blank between, as BEIR has them."""
    return f"{title} {text}".strip()


# what `encode_document` puts before a text without a title; one with a title is written by `format_passage`
DOCUMENT_PROMPT = format_passage("", "")
_OF_DOCUMENTS = ("document", "passage", "corpus")  # the names that encode_document looks for, in its order


@dataclass(frozen=True, slots=True)
class PutBefore:
    """What is put before each query and each passage; a target of symmetric data is written as a query."""

    query: str = ""
    document: str = ""

    @property
    def is_gecko(self) -> bool:
        """Whether they are Gecko's: then queries have their own task descriptions, and passages their titles."""
        return self.document == DOCUMENT_PROMPT


def own_prompts(prompts: Mapping[str, str | None], default_name: str | None) -> PutBefore:
    """What a SentenceTransformer with these `prompts` and `default_prompt_name` puts before its texts."""
    by_default = prompts.get(default_name or "") or ""
    named = [prompts[name] for name in _OF_DOCUMENTS if name in prompts]
    return PutBefore(prompts.get("query", by_default) or "", (named[0] if named else by_default) or "")
