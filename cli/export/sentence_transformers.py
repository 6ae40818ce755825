"""What SentenceTransformerTrainer takes as it is: anchor, positive, negative, in this order and nothing else.

A further column would become a further input of the model. The anchor is the query's text alone, a passage is its
title and text with a blank between, the verbatim spans masked. Prompts are the trainer's business; the card has them.

Every row has as many negatives as the record that has most. A record with fewer is left out and counted: an empty
negative would be a text to learn from, and a repeated one would weigh twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa

from cli.export.row_groups import write_row_groups
from cli.export.rows import ExportRow
from shared.masking import mask, mask_title


def triplet_columns(num_negatives: int) -> list[str]:
    """`pair`, `triplet` or `triplet-N`, as sentence-transformers names its dataset formats."""
    if num_negatives == 1:
        return ["anchor", "positive", "negative"]
    return ["anchor", "positive", *(f"negative_{number}" for number in range(1, num_negatives + 1))]


def with_masked(batches: Iterable[list[ExportRow]]) -> Iterator[list[ExportRow]]:
    """The same rows, each with `masked`: its positive, then its negatives, each without copies of the query."""
    for rows in batches:
        yield [row | {"masked": _masked_passages(row)} for row in rows]


def write_triplets(batches: Iterable[list[ExportRow]], path: Path, num_negatives: int) -> None:
    """Writes the parquet file, in row groups of bounded size; the rows are those of `with_masked`."""
    columns = triplet_columns(num_negatives)
    triplets = (
        [dict(zip(columns, (row["query_text"], *row["masked"]), strict=True)) for row in rows] for rows in batches
    )
    write_row_groups(triplets, path, pa.schema([(name, pa.string()) for name in columns]))


def _masked_passages(row: ExportRow) -> list[str]:
    """The record's positive, then its negatives, each without copies of the query."""
    query = row["query_text"]
    negatives = zip(row["negative_titles"], row["negative_texts"], row["negative_spans"], strict=True)
    return [
        masked(query, row["positive_title"], row["positive_text"], row["positive_span"]),
        *(masked(query, *negative) for negative in negatives),
    ]


def masked(query: str, title: str, text: str, span: list[int] | None) -> str:
    """A passage as one text, without the span, and without a title that is the query."""
    return f"{mask_title(query, title)} {mask(text, (span[0], span[1]) if span else None)}".strip()
