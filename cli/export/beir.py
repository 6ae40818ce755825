"""The synthetic set as a BEIR folder: the run's corpus, its queries, and their positives as judgements.

The passages are the corpus's own, unmasked, since queries share them: each query's metadata names where it stands
verbatim in its positive's text and title.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import ColumnElement, Connection, func, select

from cli.export.rows import ExportRow
from shared.errors import InvalidInputError
from shared.runs import Run
from shared.schema import passages, shards
from shared.stages import Stage

COLUMNS = ["query-id", "corpus-id", "score"]
METADATA = ["task_description", "positive_span", "positive_title_span"]
BATCH_PASSAGES = 1_000


def write_beir(connection: Connection, run: Run, batches: Iterable[list[ExportRow]], folder: Path) -> None:
    """Writes corpus.jsonl, queries.jsonl and qrels/train.tsv; a passage has the `_id` that it came with.

    Raises InvalidInputError for an `_id` that a line of qrels cannot hold, or that two of the run's passages have.
    """
    (folder / "qrels").mkdir()
    _refuse_doubles(connection, run)
    with (folder / "corpus.jsonl").open("wb") as file:
        for row in _corpus(connection, run):
            file.write(_line({"_id": row.source_id, "title": row.title, "text": row.text}))
    with (folder / "queries.jsonl").open("wb") as queries, (folder / "qrels" / "train.tsv").open("w") as qrels:
        qrels.write("\t".join(COLUMNS) + "\n")
        for rows in batches:
            for row in rows:
                metadata = {name: row[name] for name in METADATA}
                queries.write(_line({"_id": row["query_id"], "text": row["query_text"], "metadata": metadata}))
                qrels.write(f"{row['query_id']}\t{_fitting(row['positive_source_id'])}\t1\n")


def _corpus(connection: Connection, run: Run) -> Iterable[Any]:
    statement = (
        select(passages.c.source_id, passages.c.title, passages.c.text)
        .where(*_of_run(run))
        .order_by(passages.c.passage_id)
    )
    return connection.execute(statement, execution_options={"yield_per": BATCH_PASSAGES})


def _of_run(run: Run) -> tuple[ColumnElement[bool], ...]:
    indexed = select(func.unnest(shards.c.item_ids)).where(shards.c.run_id == run.run_id, shards.c.stage == Stage.INDEX)
    return passages.c.corpus_id == run.corpus_id, passages.c.passage_id.in_(indexed)


def _refuse_doubles(connection: Connection, run: Run) -> None:
    """A passage that was removed after the run keeps its `_id`, which another of the run's may have since."""
    doubled = select(passages.c.source_id).where(*_of_run(run)).group_by(passages.c.source_id)
    found = connection.execute(doubled.having(func.count() > 1).order_by(passages.c.source_id).limit(1)).scalar()
    if found is not None:
        raise InvalidInputError(
            found,
            None,
            f"two passages of run {run.name} have this `_id` since its corpus was added anew, and a BEIR folder holds "
            "each once: start a run on the corpus as it is now, or export another format",
        )


def _line(value: dict[str, object]) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)


def _fitting(source_id: str) -> str:
    if set(source_id) & set('\t\r\n"'):
        raise InvalidInputError(
            source_id,
            None,
            "a BEIR folder cannot hold this `_id`, with a tab, a quote or a line's end: export another format",
        )
    return source_id
