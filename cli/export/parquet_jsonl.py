"""All columns, as parquet or as jsonl.

Titles and texts are unmasked; `positive_span`, `negative_spans` and, of the titles, `positive_title_span` and
`negative_title_spans` name the spans.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import orjson
import pyarrow as pa

from cli.export.row_groups import write_row_groups
from cli.export.rows import ExportRow

_SPAN = pa.list_(pa.int32())
_FREE_FORM = {"provenance", "judge"}  # parquet has no type for an object of any keys: there they are JSON text

# Ranks count from 1. The candidate_ids, candidate_scores, ql_scores and rc_scores of a row run in parallel, in
# retrieval order; so do all negative_* among each other.
SCHEMA = pa.schema(
    {
        "query_id": pa.string(),
        "task_description": pa.string(),
        "query_text": pa.string(),
        "seed_passage_id": pa.string(),
        "seed_source_id": pa.string(),
        "ordinal": pa.int32(),
        "positive_id": pa.string(),
        "positive_source_id": pa.string(),
        "positive_title": pa.string(),
        "positive_text": pa.string(),
        "positive_span": _SPAN,
        "positive_title_span": _SPAN,
        "positive_changed": pa.bool_(),
        "positive_rank": pa.int32(),
        "positive_score": pa.float64(),
        "positive_ql_score": pa.float64(),
        "positive_rc_score": pa.float64(),
        "positive_ql_rank": pa.int32(),
        "positive_rc_rank": pa.int32(),
        "positive_fused_score": pa.float64(),
        "seed_fused_score": pa.float64(),
        "review": pa.string(),
        "negative_ids": pa.list_(pa.string()),
        "negative_source_ids": pa.list_(pa.string()),
        "negative_titles": pa.list_(pa.string()),
        "negative_texts": pa.list_(pa.string()),
        "negative_spans": pa.list_(_SPAN),
        "negative_title_spans": pa.list_(_SPAN),
        "negative_ranks": pa.list_(pa.int32()),
        "negative_scores": pa.list_(pa.float64()),
        "negative_ql_scores": pa.list_(pa.float64()),
        "negative_rc_scores": pa.list_(pa.float64()),
        "candidate_ids": pa.list_(pa.string()),
        "candidate_scores": pa.list_(pa.float64()),
        "ql_scores": pa.list_(pa.float64()),
        "rc_scores": pa.list_(pa.float64()),
        "provenance": pa.string(),
        "judge": pa.string(),
    }
)


def write_parquet(batches: Iterable[list[ExportRow]], path: Path) -> None:
    """The columns of SCHEMA, in row groups of bounded size."""
    flat = ([row | {name: orjson.dumps(row[name]).decode() for name in _FREE_FORM} for row in rows] for rows in batches)
    write_row_groups(flat, path, SCHEMA)


def write_jsonl(batches: Iterable[list[ExportRow]], path: Path) -> None:
    """One object per line, its keys in the order of SCHEMA."""
    with path.open("wb") as file:
        for rows in batches:
            file.writelines(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
