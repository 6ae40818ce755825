"""Exports of a ledger on a real PostgreSQL, read back with the tools that users have."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import resource
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import datasets
import pytest
from huggingface_hub import DatasetCard
from pyarrow import parquet
from sqlalchemy import delete, update

from cli.corpus.read import read_passages
from cli.export.export import ExportFormat, export_run
from cli.export.parquet_jsonl import SCHEMA
from cli.export.rows import BATCH_RECORDS, read_rows
from services.trainer.beir import read_beir
from shared.errors import InvalidInputError, NotFoundError
from shared.masking import mask, verbatim_span
from shared.records import RunConfig, passage_id
from shared.schema import fret_records, passages, queries
from shared.text_format import query_prompt
from tests.integration.export_ledger import PASSAGES, TASKS, Ledger, filled_ledger, load

RECORDS = 2 * BATCH_RECORDS + 7


@pytest.fixture
def ledger(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    with filled_ledger(database_url, tmp_path_factory.mktemp("corpus"), RECORDS) as filled:
        yield filled


def triplet(row: dict[str, Any]) -> dict[str, str]:
    cut = mask(row["positive_text"], (row["positive_span"][0], row["positive_span"][1]))
    return {
        "anchor": row["query_text"],
        "positive": f"{row['positive_title']} {cut}".strip(),
        "negative": f"{row['negative_titles'][0]} {row['negative_texts'][0]}".strip(),
    }


def test_parquet_and_jsonl_hold_every_column_of_every_record(ledger: Ledger, tmp_path: Path) -> None:
    for export_format in (ExportFormat.PARQUET, ExportFormat.JSONL):
        report = export_run(ledger.engine, ledger.run.run_id, 1, export_format, tmp_path / export_format)
        assert (report.records, report.left_out) == (RECORDS, {})

    lines = (tmp_path / "jsonl" / "train.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == ledger.rows
    file = parquet.ParquetFile(tmp_path / "parquet" / "train.parquet")
    assert file.metadata.num_row_groups == 1  # three batches
    assert file.schema_arrow.equals(SCHEMA)
    rows = file.read().to_pylist()
    for row in rows:
        row.update(provenance=json.loads(row["provenance"]), judge=json.loads(row["judge"]))
    assert rows == ledger.rows
    assert list(json.loads(lines[0])) == SCHEMA.names
    assert load(tmp_path / "parquet", tmp_path / "cache").column_names == SCHEMA.names
    assert load(tmp_path / "jsonl", tmp_path / "cache").num_rows == RECORDS


def test_sentence_transformers_gets_three_columns_with_the_spans_masked(ledger: Ledger, tmp_path: Path) -> None:
    folder = tmp_path / "triplets"
    report = export_run(ledger.engine, ledger.run.run_id, 1, ExportFormat.SENTENCE_TRANSFORMERS, folder)

    dataset = load(folder, tmp_path / "cache")
    assert report.records == RECORDS
    assert dataset.column_names == ["anchor", "positive", "negative"]
    assert dataset.to_list() == [triplet(row) for row in ledger.rows]
    assert all(verbatim_span(row["anchor"], row["positive"]) is None for row in dataset)


def test_bge_has_the_judges_scores_and_a_prompt_of_its_own_for_each_query(ledger: Ledger, tmp_path: Path) -> None:
    report = export_run(ledger.engine, ledger.run.run_id, 1, ExportFormat.BGE, tmp_path / "bge")

    assert report.records == RECORDS
    rows = load(tmp_path / "bge", tmp_path / "cache").to_list()
    assert rows == [
        {
            "query": row["query_text"],
            "pos": [triplet(row)["positive"]],
            "neg": [triplet(row)["negative"]],
            "pos_scores": [row["positive_rc_score"]],
            "neg_scores": row["negative_rc_scores"],
            "prompt": query_prompt(row["task_description"]),
        }
        for row in ledger.rows
    ]


def test_a_beir_folder_can_be_measured_on_and_imported(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "beir"
    export_run(ledger.engine, ledger.run.run_id, 1, ExportFormat.BEIR, folder)

    data = read_beir(folder, "train")
    assert [(p.passage_id, p.title, p.text) for p in data.passages] == sorted(PASSAGES)
    assert data.query_texts == {row["query_id"]: row["query_text"] for row in ledger.rows}
    assert data.qrels == {row["query_id"]: {row["positive_source_id"]: 1} for row in ledger.rows}
    assert len(list(read_passages(folder))) == len(PASSAGES)
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    loaded: dict[str, Any] = {}
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    exec(code.replace("path/to/this/folder", str(folder)), loaded)  # noqa: S102 - the card's own words
    assert loaded["corpus"].num_rows == len(PASSAGES)
    assert [row["metadata"]["positive_span"] for row in loaded["queries"]] == [
        row["positive_span"] for row in ledger.rows
    ]
    assert loaded["qrels"].column_names == ["query-id", "corpus-id", "score"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert list(manifest["files"]) == ["corpus.jsonl", "qrels/train.tsv", "queries.jsonl"]
    with ledger.engine.begin() as connection:
        connection.execute(update(passages).where(passages.c.source_id == "p3").values(source_id="p\t3"))
    with pytest.raises(InvalidInputError, match="another format"):
        export_run(ledger.engine, ledger.run.run_id, 1, ExportFormat.BEIR, tmp_path / "tab")
    assert not (tmp_path / "tab").exists()
    with ledger.engine.begin() as connection:  # as if it had been removed since, and its `_id` given to another
        taken = update(passages).where(passages.c.source_id == "p\t3").values(source_id="p2", removed_version=2)
        connection.execute(taken)
    with pytest.raises(InvalidInputError, match=r"^p2: two passages of run"):
        export_run(ledger.engine, ledger.run.run_id, 1, ExportFormat.BEIR, tmp_path / "doubled")


def test_the_manifest_says_where_the_data_comes_from(ledger: Ledger, tmp_path: Path) -> None:
    run = ledger.run
    named = ("jsonl", "parquet")
    masked_in = {each: "named" if each in named else "applied" for each in ExportFormat if each != "beir"}
    for export_format, masked in masked_in.items():
        folder = tmp_path / export_format
        export_run(ledger.engine, run.run_id, 1, ExportFormat(export_format), folder)
        manifest = json.loads((folder / "manifest.json").read_text())

        ((name, file),) = manifest["files"].items()
        data = (folder / name).read_bytes()
        assert file == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        assert sorted(path.name for path in folder.iterdir()) == sorted([name, "README.md", "manifest.json"])
        assert (manifest["format"], manifest["masked_spans"], manifest["label_version"]) == (export_format, masked, 1)
        assert manifest["run"]["name"] == "twelve-1"
        assert RunConfig(**manifest["run"]["config"]) == run.config
        assert manifest["run"]["config_hash"] == run.config.sha256()
        assert manifest["corpus"] == {
            "name": "twelve",
            "version": 1,
            "content_hash": run.corpus_hash,
            "passage_count": len(PASSAGES),
        }
        assert manifest["counts"] == {
            "records": RECORDS,
            "left_out": {},
            "reviewed": {},
            "positives_changed": sum(row["positive_changed"] for row in ledger.rows),
            "positives_with_span": RECORDS,
            "negatives_with_span": 0,
        }


def test_copies_of_the_query_in_titles_are_named_where_they_are_not_masked(ledger: Ledger, tmp_path: Path) -> None:
    record = ledger.rows[0]
    query = " ".join(record["query_text"].split())
    (negative_id,) = record["negative_ids"]
    with ledger.engine.begin() as connection:
        for id_, title in ((record["positive_id"], f"Asked: {query.upper()}"), (negative_id, query)):
            connection.execute(update(passages).where(passages.c.passage_id == UUID(id_)).values(title=title))
    for export_format in (ExportFormat.PARQUET, ExportFormat.JSONL, ExportFormat.BEIR):
        export_run(ledger.engine, ledger.run.run_id, 1, export_format, tmp_path / export_format)
    in_positive, in_negative = [7, 7 + len(query)], [0, len(query)]
    of_query = sum(row["positive_id"] == record["positive_id"] for row in ledger.rows)
    with_negative = sum(
        (row["positive_id"], row["negative_ids"]) == (record["positive_id"], [negative_id]) for row in ledger.rows
    )

    for rows in (
        parquet.read_table(tmp_path / "parquet" / "train.parquet").to_pylist(),
        [json.loads(line) for line in (tmp_path / "jsonl" / "train.jsonl").read_text().splitlines()],
    ):
        assert (rows[0]["positive_title_span"], rows[0]["negative_title_spans"]) == (in_positive, [in_negative])
        assert sum(row["positive_title_span"] is not None for row in rows) == of_query
        assert sum(row["negative_title_spans"] != [None] for row in rows) == with_negative
    lines = (tmp_path / "beir" / "queries.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["metadata"]["positive_title_span"] == in_positive
    for export_format in (ExportFormat.PARQUET, ExportFormat.JSONL, ExportFormat.BEIR):
        counts = json.loads((tmp_path / export_format / "manifest.json").read_text())["counts"]
        assert (counts["positives_with_span"], counts["negatives_with_span"]) == (RECORDS, with_negative)
        assert "`positive_title_span`" in (tmp_path / export_format / "README.md").read_text().split("## Columns")[0]


def test_a_column_that_is_null_for_long_and_then_is_not_can_be_loaded(ledger: Ledger, tmp_path: Path) -> None:
    last = ledger.rows[-1]
    query = "a query of its own that no passage has"
    with ledger.engine.begin() as connection:
        connection.execute(update(passages).values(text=passages.c.text + "a long passage " * 1_000))
        connection.execute(
            update(passages).where(passages.c.passage_id == UUID(last["positive_id"])).values(title=f"Of {query}")
        )
        connection.execute(update(queries).where(queries.c.query_id == UUID(last["query_id"])).values(query_text=query))
    export_run(ledger.engine, ledger.run.run_id, 1, ExportFormat.JSONL, tmp_path / "jsonl")

    spans = load(tmp_path / "jsonl", tmp_path / "cache")["positive_title_span"]
    assert list(spans) == [None] * (RECORDS - 1) + [[3, 3 + len(query)]]


def test_the_card_names_the_masking_and_the_prompts(ledger: Ledger, tmp_path: Path) -> None:
    for export_format in ExportFormat:
        export_run(ledger.engine, ledger.run.run_id, 1, export_format, tmp_path / export_format)
    cards = {name: DatasetCard.load(tmp_path / name / "README.md") for name in ExportFormat}

    assert "**masked: cut out" in cards[ExportFormat.SENTENCE_TRANSFORMERS].text
    assert "**unmasked**" in cards[ExportFormat.PARQUET].text
    for card in cards.values():
        assert "twelve-1" in card.data.pretty_name
        assert "no LLM" in card.text
        assert "| 1 (positive `seed`, fusion `rrf`, negative `lowest`, num_negatives `1`, range_min `0`) |" in card.text
        assert "a record with fewer negatives" not in card.text
        counted = Counter(row["task_description"] for row in ledger.rows).most_common()
        assert "\n".join(f"- {task} ({number:,})" for task, number in counted) in card.text
    code = re.findall(r"```python\n(.*?)```", cards[ExportFormat.SENTENCE_TRANSFORMERS].text, re.DOTALL)[-1]
    (prompts,) = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Dict)]
    assert ast.literal_eval(prompts) == {
        "anchor": query_prompt(TASKS[0]),
        "positive": "title: none | text: ",
        "negative": "title: none | text: ",
    }


def test_the_same_records_give_the_same_bytes(ledger: Ledger, tmp_path: Path) -> None:
    for export_format in ExportFormat:
        for name in ("one", "two"):
            export_run(ledger.engine, ledger.run.run_id, 1, export_format, tmp_path / name / export_format)
        one = tmp_path / "one" / export_format
        for path in (path for path in one.rglob("*") if path.is_file()):
            assert path.read_bytes() == (tmp_path / "two" / export_format / path.relative_to(one)).read_bytes()


def test_pages_neither_lose_nor_repeat_a_record(ledger: Ledger) -> None:
    with ledger.engine.connect() as connection:
        pages = list(read_rows(connection, ledger.run.run_id, ledger.run.corpus_id, 1, batch_records=19))

    assert {len(page) for page in pages[:-1]} == {19}
    assert [row for page in pages for row in page] == ledger.rows


def test_more_negatives_make_more_columns_and_unusable_records_are_counted(ledger: Ledger, tmp_path: Path) -> None:
    by_positive = {row["positive_id"]: row for row in ledger.rows}
    whole, too_few, all_masked = list(by_positive.values())[:3]
    with ledger.engine.begin() as connection:
        kept = [UUID(row["query_id"]) for row in (whole, too_few, all_masked)]
        connection.execute(delete(fret_records).where(fret_records.c.query_id.not_in(kept)))
        for row in (whole, all_masked):
            connection.execute(
                update(fret_records)
                .where(fret_records.c.query_id == UUID(row["query_id"]))
                .values(negative_ids=[UUID(id_) for id_ in row["candidate_ids"][2:4]], negative_spans=[None, [0, 8]])
            )
        connection.execute(
            update(passages)
            .where(passages.c.passage_id == UUID(all_masked["positive_id"]))
            .values(title="", text=all_masked["positive_text"][slice(*all_masked["positive_span"])])
        )
        connection.execute(
            update(fret_records)
            .where(fret_records.c.query_id == UUID(all_masked["query_id"]))
            .values(positive_span=[0, len(all_masked["positive_text"])])
        )
    folder = tmp_path / "triplets"

    report = export_run(ledger.engine, ledger.run.run_id, 1, ExportFormat.SENTENCE_TRANSFORMERS, folder)

    (row,) = load(folder, tmp_path / "cache").to_list()
    assert list(row) == ["anchor", "positive", "negative_1", "negative_2"]
    assert row["anchor"] == whole["query_text"]
    assert "begins so" in row["negative_1"]
    assert "Passage" not in row["negative_2"]
    assert (report.records, report.left_out) == (1, {"too_few_negatives": 1, "empty_when_masked": 1})
    counts = json.loads((folder / "manifest.json").read_text())["counts"]
    told = [counts[what] for what in ("positives_changed", "positives_with_span", "negatives_with_span")]
    assert told == [int(whole["positive_changed"]), int(whole["positive_span"] is not None), 1], "of what is written"
    card = (folder / "README.md").read_text()
    assert "left out of this format: too_few_negatives | 1 |" in card
    assert "a record with fewer negatives is left out here" in card


def test_what_stands_at_the_output_is_never_touched(ledger: Ledger, tmp_path: Path) -> None:
    taken, empty, file = tmp_path / "taken", tmp_path / "empty", tmp_path / "file"
    taken.mkdir()
    empty.mkdir()
    for path in (taken / "mine.txt", file):
        path.write_text("mine")

    for output_dir in (taken, file, file / "below"):
        with pytest.raises(InvalidInputError, match=re.escape(str(output_dir))):
            export_run(ledger.engine, ledger.run.run_id, 1, ExportFormat.JSONL, output_dir)
    export_run(ledger.engine, ledger.run.run_id, 1, ExportFormat.JSONL, empty)

    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        *("empty", "empty/README.md", "empty/manifest.json", "empty/train.jsonl"),
        *("file", "taken", "taken/mine.txt"),
    ]
    assert file.read_text() == (taken / "mine.txt").read_text() == "mine"


def test_an_export_that_fails_leaves_nothing_behind(ledger: Ledger, tmp_path: Path) -> None:
    last = ledger.rows[-1]
    with ledger.engine.begin() as connection:  # two batches are written when the third finds its passage gone
        connection.execute(
            update(fret_records)
            .where(fret_records.c.query_id == UUID(last["query_id"]))
            .values(positive_id=passage_id("", "nowhere"))
        )

    for export_format in ExportFormat:
        with pytest.raises(KeyError):
            export_run(ledger.engine, ledger.run.run_id, 1, export_format, tmp_path / "export")
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("export_format", ExportFormat)
def test_a_full_disk_is_said_in_one_line_and_leaves_nothing_behind(
    ledger: Ledger, tmp_path: Path, export_format: ExportFormat
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))  # no file of this process grows beyond it
    try:
        with pytest.raises(InvalidInputError, match=r"out: cannot be written: .*File too large"):
            export_run(ledger.engine, ledger.run.run_id, 1, export_format, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_records_is_no_export(ledger: Ledger, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="label version 2"):
        export_run(ledger.engine, ledger.run.run_id, 2, ExportFormat.JSONL, tmp_path / "export")
    with pytest.raises(NotFoundError, match="no run"):
        export_run(ledger.engine, UUID(int=1), 1, ExportFormat.JSONL, tmp_path / "export")
    with ledger.engine.begin() as connection:
        connection.execute(delete(fret_records))
    with pytest.raises(NotFoundError, match="no records"):
        export_run(ledger.engine, ledger.run.run_id, 1, ExportFormat.JSONL, tmp_path / "export")
    assert list(tmp_path.iterdir()) == []
