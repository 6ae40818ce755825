"""An export is a folder: the data, `manifest.json` and a dataset card. It is there whole, or not at all."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import orjson
from sqlalchemy import Connection, Engine, func, select

from cli.export import beir, bge, lists
from cli.export.card import render_card
from cli.export.parquet_jsonl import SCHEMA, write_jsonl, write_parquet
from cli.export.rows import BATCH_LISTS, BATCH_RECORDS, ExportRow, read_rows, with_masked
from cli.export.sentence_transformers import list_columns, margins, triplet_columns, write_lists, write_triplets
from shared.durably import rename_durably
from shared.errors import InvalidInputError, NotFoundError
from shared.labels import find_policy
from shared.records import LabelPolicy
from shared.reviews import DROPPED, count_reviews, reviewed_records
from shared.runs import Run, find_run
from shared.schema import corpora, queries

TASK_DESCRIPTIONS_IN_CARD = 10


class ExportFormat(StrEnum):
    PARQUET = "parquet"
    JSONL = "jsonl"
    SENTENCE_TRANSFORMERS = "sentence-transformers"
    SENTENCE_TRANSFORMERS_KL = "sentence-transformers-kl"
    SENTENCE_TRANSFORMERS_MARGIN_MSE = "sentence-transformers-margin-mse"
    BGE = "bge"
    BGE_LISTS = "bge-lists"
    BEIR = "beir"

    @property
    def masked_spans(self) -> str:
        """Whether the texts are without their verbatim spans, or the data names them."""
        of_pairs = self in (ExportFormat.SENTENCE_TRANSFORMERS, ExportFormat.BGE)
        return "applied" if of_pairs or self.whole_lists else "named"

    @property
    def whole_lists(self) -> bool:
        """Whether it has every candidate of a record, with the teacher's score of each."""
        return self in (
            ExportFormat.SENTENCE_TRANSFORMERS_KL,
            ExportFormat.SENTENCE_TRANSFORMERS_MARGIN_MSE,
            ExportFormat.BGE_LISTS,
        )


@dataclass(frozen=True, slots=True)
class ExportReport:
    output_dir: Path
    records: int  # written
    left_out: dict[str, int]  # records by the reason that this format cannot hold them, or that a person dropped them


def export_run(
    engine: Engine, run_id: UUID, label_version: int, export_format: ExportFormat, output_dir: Path
) -> ExportReport:
    """Writes the records of one label version, as they stand at one moment, into the new folder `output_dir`.

    Raises NotFoundError for an unknown run or one without records of that label version, InvalidInputError where
    something stands at `output_dir` already or nothing can be written.
    """
    output_dir = output_dir.resolve()
    if output_dir.exists() and not (output_dir.is_dir() and not any(output_dir.iterdir())):
        raise InvalidInputError(output_dir, None, "is there already: name a new folder, or remove this one first")
    partial = output_dir.with_name(f"{output_dir.name}.partial-{uuid4().hex[:8]}")
    snapshot = engine.connect().execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    with snapshot as connection:
        run = find_run(connection, run_id)
        policy = find_policy(connection, run, label_version)
        num_negatives = _num_negatives(connection, run, label_version)
        try:
            partial.mkdir(parents=True)
        except OSError as error:
            raise InvalidInputError(output_dir, None, f"cannot be written: {error.strerror}") from error
        try:
            data = _write_data(connection, run, label_version, export_format, num_negatives, partial)
            manifest = _manifest(connection, run, label_version, policy, export_format, data) | {
                "files": _files(partial)
            }
            (partial / "manifest.json").write_bytes(orjson.dumps(manifest, option=orjson.OPT_INDENT_2))
            card = render_card(manifest, _task_descriptions(connection, run_id, label_version))
            (partial / "README.md").write_text(card, encoding="utf-8")
            rename_durably(partial, output_dir)
        except OSError as error:  # as with a full disk
            shutil.rmtree(partial)
            raise InvalidInputError(output_dir, None, f"cannot be written: {error.strerror or error}") from error
        except BaseException:
            shutil.rmtree(partial)
            raise
    return ExportReport(output_dir, manifest["counts"]["records"], manifest["counts"]["left_out"])


@dataclass(frozen=True, slots=True)
class _Data:
    columns: list[str]
    counts: Counter[str]
    left_out: Counter[str]


def _num_negatives(connection: Connection, run: Run, label_version: int) -> int:
    """How many negatives a record of this label version has at most."""
    records = reviewed_records(run.run_id, label_version)
    found = connection.execute(select(func.max(func.cardinality(records.c.negative_ids)))).scalar_one()
    if found is None:
        raise NotFoundError(
            f"the run {run.name} has no records of label version {label_version} yet: "
            f"`fretwork run status {run.name}` says how far it is"
        )
    return int(found)


def _list_lengths(connection: Connection, run: Run, label_version: int) -> dict[int, int]:
    """Numbers of candidates, each with how many records have so many."""
    records, length = reviewed_records(run.run_id, label_version), func.cardinality(queries.c.candidate_ids)
    statement = (
        select(length, func.count())
        .join_from(
            records, queries, (queries.c.run_id == records.c.run_id) & (queries.c.query_id == records.c.query_id)
        )
        .group_by(length)
    )
    return {row[0]: row[1] for row in connection.execute(statement)}


def _task_descriptions(connection: Connection, run_id: UUID, label_version: int) -> list[tuple[str, int]]:
    count = func.count().label("records")
    records = reviewed_records(run_id, label_version)
    statement = (
        select(queries.c.task_description, count)
        .join_from(
            records, queries, (queries.c.run_id == records.c.run_id) & (queries.c.query_id == records.c.query_id)
        )
        .group_by(queries.c.task_description)
        .order_by(count.desc(), queries.c.task_description)
        .limit(TASK_DESCRIPTIONS_IN_CARD)
    )
    return [(row.task_description, row.records) for row in connection.execute(statement)]


def _write_data(
    connection: Connection,
    run: Run,
    label_version: int,
    export_format: ExportFormat,
    num_negatives: int,
    folder: Path,
) -> _Data:
    counts, left_out, columns = Counter[str](), Counter[str](), SCHEMA.names
    shortest, longest = lists.SHORTEST, None
    if export_format in (ExportFormat.SENTENCE_TRANSFORMERS_KL, ExportFormat.SENTENCE_TRANSFORMERS_MARGIN_MSE):
        shortest = longest = lists.common_length(_list_lengths(connection, run, label_version))

    def reason(row: ExportRow) -> str | None:
        if export_format == ExportFormat.SENTENCE_TRANSFORMERS and len(row["negative_ids"]) < num_negatives:
            return "too_few_negatives"
        if not all(row.get("masked", ())):
            return "empty_when_masked"
        return "too_few_candidates" if export_format.whole_lists and len(row["masked"]) < shortest else None

    rows = read_rows(
        connection,
        run.run_id,
        run.corpus_id,
        label_version,
        whole_lists=export_format.whole_lists,
        batch_records=BATCH_LISTS if export_format.whole_lists else BATCH_RECORDS,
    )
    if export_format.masked_spans == "applied":
        rows = with_masked(rows)
    if export_format.whole_lists:
        rows = lists.shown_lists(rows, longest)
    batches = _counted(_without(rows, reason, left_out), counts)
    match export_format:
        case ExportFormat.PARQUET:
            write_parquet(batches, folder / "train.parquet")
        case ExportFormat.JSONL:
            write_jsonl(batches, folder / "train.jsonl")
        case ExportFormat.SENTENCE_TRANSFORMERS:
            columns = triplet_columns(num_negatives)
            write_triplets(batches, folder / "train.parquet", num_negatives)
        case ExportFormat.SENTENCE_TRANSFORMERS_KL:
            columns = list_columns(shortest)
            write_lists(batches, folder / "train.parquet", shortest, list)
        case ExportFormat.SENTENCE_TRANSFORMERS_MARGIN_MSE:
            columns = list_columns(shortest)
            write_lists(batches, folder / "train.parquet", shortest, margins)
        case ExportFormat.BGE | ExportFormat.BGE_LISTS:
            columns = bge.COLUMNS
            bge.write_bge(batches, folder / "train.jsonl")
        case ExportFormat.BEIR:
            columns = beir.COLUMNS
            beir.write_beir(connection, run, batches, folder)
    return _Data(columns, counts, left_out)


def _without(
    batches: Iterable[list[ExportRow]], reason: Callable[[ExportRow], str | None], left_out: Counter[str]
) -> Iterator[list[ExportRow]]:
    """The records that the format can hold; the others are counted by the reason that it cannot."""
    for rows in batches:
        reasons = [reason(row) for row in rows]
        left_out.update(why for why in reasons if why is not None)
        yield [row for row, why in zip(rows, reasons, strict=True) if why is None]


def _counted(batches: Iterable[list[ExportRow]], counts: Counter[str]) -> Iterator[list[ExportRow]]:
    for rows in batches:
        counts["records"] += len(rows)
        counts["positives_changed"] += sum(row["positive_changed"] for row in rows)
        for row in rows:
            of_negatives = zip(row["negative_spans"], row["negative_title_spans"], strict=True)
            counts["positives_with_span"] += any((row["positive_span"], row["positive_title_span"]))
            counts["negatives_with_span"] += sum(any(spans) for spans in of_negatives)
        yield rows


def _manifest(
    connection: Connection, run: Run, label_version: int, policy: LabelPolicy, export_format: ExportFormat, data: _Data
) -> dict[str, Any]:
    reviewed = count_reviews(connection, run.run_id, label_version)
    left_out = {**data.left_out, **({DROPPED: reviewed["dropped"]} if "dropped" in reviewed else {})}
    corpus_name = connection.execute(select(corpora.c.name).where(corpora.c.corpus_id == run.corpus_id)).scalar_one()
    return {
        "fretwork": version("fretwork"),
        "run": {
            "name": run.name,
            "run_id": str(run.run_id),
            "state": run.state,
            "fingerprint": str(run.fingerprint),
            "config": run.config.model_dump(mode="json"),
            "config_hash": run.config.sha256(),
        },
        "corpus": {
            "name": corpus_name,
            "version": run.corpus_version,
            "content_hash": run.corpus_hash,
            "passage_count": run.passage_count,
        },
        "label_version": label_version,
        "label_policy": policy.model_dump(mode="json"),
        "format": str(export_format),
        "columns": data.columns,
        "masked_spans": export_format.masked_spans,
        "counts": {
            "records": data.counts["records"],
            "left_out": left_out,
            "reviewed": reviewed,
            "positives_changed": data.counts["positives_changed"],
            "positives_with_span": data.counts["positives_with_span"],
            "negatives_with_span": data.counts["negatives_with_span"],
        },
    }


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and hash of what the folder holds so far, by path below it."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        found[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": sha256}
    return found
