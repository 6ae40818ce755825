"""Three passages, files of them, and what a corpus of them should be in the database."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, select, text

from shared.schema import corpora, corpus_terms, passages
from shared.terms import passage_terms

Line = tuple[str, str, str]  # _id, title, text

A: Line = ("a", "Alpha", "the first letter of the Greek alphabet")
B: Line = ("b", "", "the second letter")
C: Line = ("c", "Gamma", "the third; the third again")


def jsonl(folder: Path, lines: Sequence[Line | bytes], name: str = "passages.jsonl") -> Path:
    path = folder / name
    path.write_bytes(
        b"".join(
            (
                line
                if isinstance(line, bytes)
                else json.dumps(dict(zip(("_id", "title", "text"), line, strict=True))).encode()
            )
            + b"\n"
            for line in lines
        )
    )
    return path


def everything(engine: Engine) -> dict[str, list[Any]]:
    """All rows of all three tables, with the transactions that wrote them."""
    with engine.connect() as connection:
        return {
            table.name: sorted(connection.execute(text(f"SELECT xmin, * FROM {table.name}")).all(), key=str)  # noqa: S608
            for table in (corpora, passages, corpus_terms)
        }


def stored(engine: Engine) -> dict[str, tuple[str, str, int]]:
    with engine.connect() as connection:
        return {row.source_id: (row.title, row.text, row.added_version) for row in connection.execute(select(passages))}


def statistics(engine: Engine, version: int) -> dict[str, tuple[int, int]]:
    """The document and the collection frequency of each term."""
    with engine.connect() as connection:
        rows = connection.execute(select(corpus_terms).where(corpus_terms.c.version == version))
        return {row.term: (row.document_frequency, row.collection_frequency) for row in rows}


def recounted(lines: Sequence[Line]) -> dict[str, tuple[int, int]]:
    per_passage = [Counter(passage_terms(title, body)) for _, title, body in lines]
    return {
        term: (sum(term in counts for counts in per_passage), sum(counts[term] for counts in per_passage))
        for term in set().union(*per_passage)
    }
