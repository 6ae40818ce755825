"""The dataset card beside an export, from the manifest and README.md.j2. It says what the data is and no more."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from shared.text_format import DOCUMENT_PROMPT, query_prompt

# `datasets` takes a column's type from the first bytes of a jsonl file, 10 MB where nothing is said, and fails at the
# first span after them if all of those were null. So it is told to look at the whole file, or at as much as this.
LOOK_AT_BYTES = 2**30


def _parts(files: Iterable[str]) -> dict[str, str]:
    """The hub's configurations, each with its file: two of a BEIR folder, whose qrels are of another format."""
    names = {"train.parquet": "default", "train.jsonl": "default", "corpus.jsonl": "corpus", "queries.jsonl": "queries"}
    return {names[path]: path for path in files if path in names}


def render_card(manifest: dict[str, Any], descriptions: Sequence[tuple[str, int]]) -> str:
    """Markdown with the hub's YAML front matter; `descriptions` are the most frequent ones and their records."""
    environment = Environment(
        loader=PackageLoader("cli.export", "."),
        autoescape=False,  # noqa: S701 - Markdown, not HTML
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters["pystring"] = repr
    return environment.get_template("README.md.j2").render(
        **manifest,
        parts=_parts(manifest["files"]),
        look_at_bytes=LOOK_AT_BYTES,
        descriptions=[(" ".join(description.split()), records) for description, records in descriptions],
        query_prompt=query_prompt(descriptions[0][0]),
        passage_prompt=DOCUMENT_PROMPT,
    )
