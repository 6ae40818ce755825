"""A ledger with records to export, the rows that an export must make of them, and the way in which users load it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import datasets
from sqlalchemy import Engine, create_engine, insert

from cli.corpus.store import import_corpus
from shared.masking import verbatim_span
from shared.records import RunConfig, passage_id, query_id
from shared.runs import Run, start_run
from shared.schema import fret_records, queries

PASSAGES = [
    (f"p{n}", f"Title {n}" if n % 3 else "", f"Passage {n} begins so. Its query, number {n}, stands here. It ends.")
    for n in range(12)
]
TASKS = ["Given a query, find a passage that answers it", "Given a claim, find a passage that checks it"]


@dataclass(frozen=True)
class Ledger:
    engine: Engine
    run: Run
    rows: list[dict[str, Any]]  # what an export of label version 1 must hold, in its order


@contextmanager
def filled_ledger(database_url: str, folder: Path, count: int) -> Iterator[Ledger]:
    """A run with `count` records: passage n is the seed, n + 1 the positive of every fifth, n + 4 the negative."""
    engine = create_engine(database_url)
    corpus = folder / "passages.jsonl"
    corpus.write_text("".join(json.dumps({"_id": i, "title": t, "text": x}) + "\n" for i, t, x in PASSAGES))
    import_corpus(engine, "twelve", corpus)
    with engine.begin() as connection:
        run = start_run(connection, "twelve", RunConfig(num_candidates=5, queries_per_passage=1))
        made = [_record(run, number) for number in range(count)]
        connection.execute(insert(queries), [query for query, _, _ in made])
        connection.execute(insert(fret_records), [record for _, record, _ in made])
    yield Ledger(engine, run, sorted((row for _, _, row in made), key=lambda row: UUID(row["query_id"]).int))
    engine.dispose()


def _record(run: Run, number: int) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """A query and a record as the ledger holds them, and the row that an export must make of them."""
    candidates = [PASSAGES[(number + step) % len(PASSAGES)] for step in range(5)]
    ids = [passage_id(title, body) for _, title, body in candidates]
    seed, negative = candidates[0], candidates[4]
    at = 1 if number % 5 == 0 else 0
    positive = candidates[at]
    words = f"its query,  number {PASSAGES.index(positive)}, stands here."  # two blanks and no capital: still verbatim
    span = verbatim_span(words, positive[2])
    assert span is not None
    id_ = query_id(run.fingerprint, ids[0], number)
    cosines = [0.9 - step / 10 for step in range(5)]
    ql_scores = [-float(number + step) for step in range(5)]
    rc_scores = [number / (step + 1) for step in range(5)]
    common: dict[str, Any] = {
        "task_description": TASKS[number % 3 == 0],
        "query_text": words,
        "ordinal": number,
        "candidate_scores": cosines,
        "ql_scores": ql_scores,
        "rc_scores": rc_scores,
        "provenance": {"teacher": "offline", "sentence": number},
        "judge": {"teacher": "offline"},
    }
    labels: dict[str, Any] = {
        "positive_ql_rank": 1 + number % 3,
        "positive_rc_rank": 2,
        "positive_fused_score": 1 / (1 + number % 3) + 1 / 2,
        "seed_fused_score": 0.75,
        "positive_changed": at == 1,
        "positive_span": list(span),
        "negative_spans": [None],
    }
    query = {
        **common,
        "run_id": run.run_id,
        "query_id": id_,
        "seed_passage_id": ids[0],
        "candidate_ids": ids,
    }
    record = {
        **labels,
        "run_id": run.run_id,
        "query_id": id_,
        "label_version": 1,
        "positive_id": ids[at],
        "negative_ids": [ids[4]],
    }
    row = {
        **common,
        **labels,
        "review": None,
        "query_id": str(id_),
        "seed_passage_id": str(ids[0]),
        "seed_source_id": seed[0],
        "positive_id": str(ids[at]),
        "positive_source_id": positive[0],
        "positive_title": positive[1],
        "positive_text": positive[2],
        "positive_title_span": None,
        "positive_rank": at + 1,
        "positive_score": cosines[at],
        "positive_ql_score": ql_scores[at],
        "positive_rc_score": rc_scores[at],
        "negative_ids": [str(ids[4])],
        "negative_source_ids": [negative[0]],
        "negative_titles": [negative[1]],
        "negative_texts": [negative[2]],
        "negative_title_spans": [None],
        "negative_ranks": [5],
        "negative_scores": [cosines[4]],
        "negative_ql_scores": [ql_scores[4]],
        "negative_rc_scores": [rc_scores[4]],
        "candidate_ids": [str(candidate) for candidate in ids],
    }
    return query, record, row


def load(folder: Path, cache: Path) -> datasets.Dataset:
    """The way that the card names."""
    return datasets.load_dataset(str(folder), split="train", cache_dir=str(cache))
