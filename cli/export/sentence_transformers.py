"""What SentenceTransformerTrainer takes as it is: anchor, positive, negative, in this order and nothing else.

Or whole lists: query, positive, every other candidate, and as `label` what a loss for distillation compares with.

A further column would become a further input of the model. The anchor is the query's text alone, a passage is its
title and text with a blank between, the verbatim spans masked. Prompts are the trainer's business; the card has them.

Every triplet has as many negatives as the record that has most. A record with fewer is left out and counted: an empty
negative would be a text to learn from, and a repeated one would weigh twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pyarrow as pa

from cli.export.row_groups import write_row_groups
from cli.export.rows import ExportRow


def triplet_columns(num_negatives: int) -> list[str]:
    """`pair`, `triplet` or `triplet-N`, as sentence-transformers names its dataset formats."""
    if num_negatives == 1:
        return ["anchor", "positive", "negative"]
    return ["anchor", "positive", *(f"negative_{number}" for number in range(1, num_negatives + 1))]


def write_triplets(batches: Iterable[list[ExportRow]], path: Path, num_negatives: int) -> None:
    """Writes the parquet file, in row groups of bounded size; the rows are those of `with_masked`."""
    columns = triplet_columns(num_negatives)
    triplets = (
        [dict(zip(columns, (row["query_text"], *row["masked"]), strict=True)) for row in rows] for rows in batches
    )
    write_row_groups(triplets, path, pa.schema([(name, pa.string()) for name in columns]))


def list_columns(length: int) -> list[str]:
    """Those of a list of so many passages; the losses tell them by their order, and `label` by its name."""
    return ["query", *triplet_columns(length - 1)[1:], "label"]


def margins(scores: Sequence[float]) -> list[float]:
    """What MarginMSELoss compares with: how far the first is ahead of each other."""
    return [scores[0] - score for score in scores[1:]]


def write_lists(
    batches: Iterable[list[ExportRow]], path: Path, length: int, label: Callable[[Sequence[float]], list[float]]
) -> None:
    """Writes the parquet file; the rows are those of `shown_lists`, each with `length` passages.

    `label` makes a row's label of its scores: `list` for DistillKLDivLoss, `margins` for MarginMSELoss.
    """
    *texts, last = list_columns(length)
    lists = (
        [
            {**dict(zip(texts, (row["query_text"], *row["masked"]), strict=True)), last: label(row["scores"])}
            for row in rows
        ]
        for rows in batches
    )
    write_row_groups(lists, path, pa.schema([*((name, pa.string()) for name in texts), (last, pa.list_(pa.float64()))]))
