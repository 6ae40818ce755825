"""What FlagEmbedding's trainers take: a line per query with its positive, its negatives and the judge's scores of them.

A passage is its title and text with a blank between, the verbatim spans masked. `prompt` is what FlagEmbedding puts
before the query. The scores, for its distillation, are the raw relevance scores (`rc_score`); of whole lists they are
the teacher's standardised ones, for it takes the softmax of them as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import orjson

from cli.export.rows import ExportRow
from shared.text_format import query_prompt

COLUMNS = ["query", "pos", "neg", "pos_scores", "neg_scores", "prompt"]


def write_bge(batches: Iterable[list[ExportRow]], path: Path) -> None:
    """One object per line; the rows are those of `with_masked` or of `shown_lists`."""
    with path.open("wb") as file:
        for rows in batches:
            for row in rows:
                positive, *negatives = row["masked"]
                of_judge = [row["positive_rc_score"], *row["negative_rc_scores"]]
                positive_score, *negative_scores = row.get("scores", of_judge)
                values = (
                    row["query_text"],
                    [positive],
                    negatives,
                    [positive_score],
                    negative_scores,
                    query_prompt(row["task_description"]),
                )
                line = dict(zip(COLUMNS, values, strict=True))
                file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
