"""What SentenceTransformerTrainer takes as it is: anchor, positive, negative, in this order and nothing else.

A further column would become a further input of the model. The anchor is the query's text alone, a passage is its
title and text with a blank between, the verbatim spans masked. Prompts are the trainer's business; the card has them.

Every row has as many negatives as the record that has most. A record with fewer is left out and counted: an empty
negative would be a text to learn from, and a repeated one would weigh twice.
"""

from __future__ import annotations

from collections.abc import Iterable
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
