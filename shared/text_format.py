"""How a query and a passage are written for the encoder: Gecko, section 3.4 (arXiv 2403.20327).

The retriever, the trainer, the evaluation and the exported model's prompts must agree to the letter.
An empty title is written `none`, as EmbeddingGemma (arXiv 2509.20354) does.
"""

from __future__ import annotations


def query_prompt(task_description: str) -> str:
    """What stands before a query: `task: {task} | query: `."""
    return f"task: {task_description} | query: "


def format_query(task_description: str, query_text: str) -> str:
    return query_prompt(task_description) + query_text


def format_passage(title: str, text: str) -> str:
    return f"title: {title or 'none'} | text: {text}"
