"""Exports of whole lists on a real PostgreSQL, read by the losses that they are for and by a mixture."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any
from uuid import UUID

import datasets
import numpy
import pytest
import torch
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sqlalchemy import delete, update

from cli.export.export import ExportFormat, export_run
from cli.export.rows import BATCH_LISTS, read_rows
from services.trainer.listwise import listwise_loss
from services.trainer.prepare import load_prepared, prepare
from shared.masking import mask
from shared.reviews import save_review
from shared.schema import fret_records, passages, queries
from shared.text_format import query_prompt
from tests.integration.export_ledger import PASSAGES, Ledger, filled_ledger, load
from tests.unit.datasets_in_files import dataset_source
from tests.unit.tiny_model import make_tiny_model

RECORDS = 2 * BATCH_LISTS + 7
TEXT = {source_id: (title, text) for source_id, title, text in PASSAGES}
KL, MARGIN_MSE, BGE = (
    ExportFormat.SENTENCE_TRANSFORMERS_KL,
    ExportFormat.SENTENCE_TRANSFORMERS_MARGIN_MSE,
    ExportFormat.BGE_LISTS,
)


@pytest.fixture
def ledger(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    with filled_ledger(database_url, tmp_path_factory.mktemp("corpus"), RECORDS) as filled:
        yield filled


def exported(ledger: Ledger, export_format: ExportFormat, folder: Path) -> list[dict[str, Any]]:
    export_run(ledger.engine, ledger.run.run_id, 1, export_format, folder / export_format)
    rows: list[dict[str, Any]] = load(folder / export_format, folder / "cache").to_list()
    return rows


def of_list(row: dict[str, Any]) -> tuple[list[str], list[float]]:
    """The passages of a row of the ledger as a list has them, and their scores, by the formula."""

    def z(values: Any) -> Any:
        values = numpy.asarray(values, dtype=float)
        return (values - values.mean()) / (values.std() or 1)

    scores = z(z(row["candidate_scores"]) + (z(row["ql_scores"]) + z(row["rc_scores"])) / 2)
    positive = row["candidate_ids"].index(row["positive_id"])
    # the five candidates are passages in their order, and the fixture's scores fall from each to the next
    first = (int(row["positive_source_id"][1:]) - positive) % len(PASSAGES)
    order = [positive, *(place for place in range(5) if place != positive)]
    texts = []
    for place in order:
        title, text = TEXT[f"p{(first + place) % len(PASSAGES)}"]
        cut = mask(text, (row["positive_span"][0], row["positive_span"][1])) if place == positive else text
        texts.append(f"{title} {cut}".strip())
    return texts, [float(scores[place]) for place in order]


def test_each_row_has_the_whole_list_and_the_teachers_scores_or_margins(ledger: Ledger, tmp_path: Path) -> None:
    columns = ["query", "positive", "negative_1", "negative_2", "negative_3", "negative_4", "label"]
    of_scores, of_margins = exported(ledger, KL, tmp_path), exported(ledger, MARGIN_MSE, tmp_path)
    assert len(of_scores) == len(of_margins) == RECORDS
    for row, scored, margin in zip(ledger.rows, of_scores, of_margins, strict=True):
        texts, scores = of_list(row)
        assert list(scored) == list(margin) == columns
        assert [scored[name] for name in columns[:-1]] == [row["query_text"], *texts]
        assert [margin[name] for name in columns[:-1]] == [row["query_text"], *texts]
        assert scored["label"] == pytest.approx(scores)
        assert margin["label"] == pytest.approx([scores[0] - score for score in scores[1:]])
    assert any(min(margin["label"]) < 0 for margin in of_margins)  # of those whose positive is not the teacher's first


def test_flag_embedding_gets_all_other_candidates_with_their_scores(ledger: Ledger, tmp_path: Path) -> None:
    for row, written in zip(ledger.rows, exported(ledger, BGE, tmp_path), strict=True):
        texts, scores = of_list(row)
        assert (written["query"], written["prompt"]) == (row["query_text"], query_prompt(row["task_description"]))
        assert (written["pos"], written["neg"]) == (texts[:1], texts[1:])
        assert [*written["pos_scores"], *written["neg_scores"]] == pytest.approx(scores)


def test_a_person_has_the_last_word(ledger: Ledger, tmp_path: Path) -> None:
    # the seed is the teacher's first, the positive the second
    of_second = next(row for row in ledger.rows if row["positive_changed"] and row["ordinal"] > 0)
    before = exported(ledger, KL, tmp_path / "before")[ledger.rows.index(of_second)]
    with ledger.engine.begin() as connection:
        save_review(connection, ledger.run, 1, UUID(of_second["query_id"]), "accepted")
    after = exported(ledger, KL, tmp_path / "after")[ledger.rows.index(of_second)]

    assert before["label"][0] < before["label"][1]
    assert after["label"] == [pytest.approx(before["label"][1] + 1), *before["label"][1:]]
    assert {**after, "label": None} == {**before, "label": None}


def test_what_the_masking_leaves_empty_is_in_no_list(ledger: Ledger, tmp_path: Path) -> None:
    """One passage is a copy of a query: where that query's it is the positive, and in another's list a candidate."""
    copied = next(row for row in ledger.rows if row["ordinal"] == 1)  # its candidates are passages 1 to 5
    other = next(row for row in ledger.rows if row["ordinal"] == 2)  # 2 to 6
    third = next(row for row in ledger.rows if row["ordinal"] == 4)  # 4 to 8
    words = " ".join(copied["query_text"].split())
    with ledger.engine.begin() as connection:
        kept = [UUID(row["query_id"]) for row in (copied, other, third)]
        connection.execute(delete(fret_records).where(fret_records.c.query_id.not_in(kept)))
        connection.execute(update(queries).where(queries.c.query_id.in_(kept[:2])).values(query_text=words))
        of_copied = passages.c.passage_id == UUID(copied["positive_id"])
        for changed in (of_copied, passages.c.source_id == "p3"):
            connection.execute(update(passages).where(changed).values(title="", text=words))
        spans = update(fret_records).where(fret_records.c.query_id == kept[0])
        connection.execute(spans.values(positive_span=[0, len(words)]))

    for export_format in (KL, MARGIN_MSE, BGE):
        folder = tmp_path / export_format
        report = export_run(ledger.engine, ledger.run.run_id, 1, export_format, folder)
        written = load(folder, tmp_path / "cache").to_list()
        # a shorter list is still one of FlagEmbedding's, and no row of a table
        shorter = {} if export_format == BGE else {"too_few_candidates": 1}
        assert report.left_out == {"empty_when_masked": 1, **shorter}
        assert len(written) == report.records == (2 if export_format == BGE else 1)
        if export_format == BGE:
            assert sorted(len(row["neg"]) for row in written) == [3, 4]
            assert all(len(row["neg"]) == len(row["neg_scores"]) for row in written)
        counts = json.loads((folder / "manifest.json").read_text())["counts"]
        assert counts["negatives_with_span"] == 0, "of what is written"
        for reason in report.left_out:
            assert f"left out of this format: {reason} | 1 |" in (folder / "README.md").read_text()


def test_lists_are_cut_to_the_length_that_keeps_most_scores(ledger: Ledger, tmp_path: Path) -> None:
    def shorten(rows: list[dict[str, Any]]) -> None:
        with ledger.engine.begin() as connection:
            for row in rows:
                names = ("candidate_ids", "candidate_scores", "ql_scores", "rc_scores")
                values = {name: row[name][:3] for name in names}
                connection.execute(update(queries).where(queries.c.query_id == UUID(row["query_id"])).values(values))

    shorten(ledger.rows[:30])
    report = export_run(ledger.engine, ledger.run.run_id, 1, KL, tmp_path / "few")
    assert (report.records, report.left_out) == (RECORDS - 30, {"too_few_candidates": 30})
    shorten(ledger.rows[30:90])
    export_run(ledger.engine, ledger.run.run_id, 1, KL, tmp_path / "most")
    dataset = load(tmp_path / "most", tmp_path / "cache")
    assert dataset.num_rows == RECORDS
    assert dataset.column_names == ["query", "positive", "negative_1", "negative_2", "label"]
    last, (texts, scores) = dataset.to_list()[-1], of_list(ledger.rows[-1])
    assert [last["positive"], last["negative_1"], last["negative_2"]] == texts[:3]
    assert last["label"] == pytest.approx(scores[:3])


def test_pages_of_lists_neither_lose_nor_repeat_a_record(ledger: Ledger) -> None:
    with ledger.engine.connect() as connection:
        run = ledger.run
        pages = list(read_rows(connection, run.run_id, run.corpus_id, 1, whole_lists=True, batch_records=19))
    assert {len(page) for page in pages[:-1]} == {19}
    assert [row["query_id"] for page in pages for row in page] == [row["query_id"] for row in ledger.rows]


@pytest.mark.parametrize("export_format", [KL, MARGIN_MSE])
def test_sentence_transformers_trains_on_it_as_the_card_says(
    ledger: Ledger, tmp_path: Path, export_format: ExportFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, base = tmp_path / "lists", make_tiny_model(tmp_path / "base")
    export_run(ledger.engine, ledger.run.run_id, 1, export_format, folder)
    code = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    said: dict[str, Any] = {}
    for old, new in (("path/to/this/folder", str(folder)), ("all-MiniLM-L6-v2", base), ('"model"', f'"{tmp_path}"')):
        code = [block.replace(old, new) for block in code]
    exec("\n".join(code), said)  # noqa: S102 - the card's own words

    model, batch = said["model"], said["dataset"].select(range(4))
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path / "out"),
        prompts=said["arguments"].prompts,
        per_device_train_batch_size=4,
        max_steps=6,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = SentenceTransformerTrainer(model=model, args=arguments, train_dataset=batch, loss=said["loss"])
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.9 * losses[0]


def test_its_divergence_is_this_trainers_own(ledger: Ledger, tmp_path: Path) -> None:
    said: dict[str, Any] = {}
    rows = exported(ledger, KL, tmp_path)[:6]
    model = SentenceTransformer(make_tiny_model(tmp_path / "base")).eval()
    (code,) = [
        block
        for block in re.findall(r"```python\n(.*?)```", (tmp_path / KL / "README.md").read_text(), re.DOTALL)
        if "loss" in block
    ]
    exec(code.replace("all-MiniLM-L6-v2", str(tmp_path / "base")), said)  # noqa: S102 - the card's own words
    texts = [[row[name] for row in rows] for name in list(rows[0])[:-1]]
    embeddings = [model.encode(column, convert_to_tensor=True) for column in texts]
    scores = torch.tensor([row["label"] for row in rows])

    theirs = said["loss"].compute_loss_from_embeddings(embeddings, scores)
    # theirs knows no other passages of the batch, so ours gets a batch of one query
    ours = fmean(
        listwise_loss(
            query[None],
            torch.stack(passages),
            torch.arange(len(passages))[None],
            of_query[None],
            form="kl",
            temperature=0.05,
            teacher_temperature=1.0,
            weight_by_dim={len(query): 1.0},
        ).item()
        for query, *passages, of_query in zip(*embeddings, scores, strict=True)
    )
    assert float(theirs) == pytest.approx(float(ours), rel=1e-5)


@pytest.mark.parametrize(
    ("export_format", "file", "fields"),
    [
        (BGE, "train.jsonl", {"passages": ["pos", "neg"], "scores": ["pos_scores", "neg_scores"]}),
        (KL, "train.parquet", {"passages": ["positive", *(f"negative_{n}" for n in range(1, 5))], "scores": ["label"]}),
    ],
)
def test_a_mixture_reads_it(
    ledger: Ledger, tmp_path: Path, export_format: ExportFormat, file: str, fields: dict[str, Any]
) -> None:
    exported(ledger, export_format, tmp_path)
    prepare(dataset_source("list", tmp_path / export_format / file, fields=fields), tmp_path / "prepared")
    _, dataset = load_prepared(tmp_path / "prepared")
    for row, read in zip(ledger.rows, dataset, strict=True):
        texts, scores = of_list(row)
        assert (read["query"], read["passages"]) == (row["query_text"], texts)
        assert read["scores"] == pytest.approx(scores)
