"""Held-out records: none is trained on, and they choose how much of the tuned weights is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
import torch
from sentence_transformers import SentenceTransformer

from services.trainer.config import Prompts, TrainingConfig
from services.trainer.development import (
    FEWEST_QUERIES,
    MOST_KEPT,
    MOST_QUERIES,
    SHARES,
    choose_share,
    copied,
    hold_out,
    search_task,
)
from services.trainer.encoder import load_model
from services.trainer.fret_records import Record
from services.trainer.lengths import measured_length
from services.trainer.model_card import render
from services.trainer.train import train
from shared.masking import copied_span
from shared.records import Passage
from tests.records_in_memory import Records
from tests.unit.test_train import config, records
from tests.unit.tiny_model import with_max_seq_length


@pytest.mark.parametrize(("count", "held"), [(10 * FEWEST_QUERIES - 1, 0), (10 * FEWEST_QUERIES, FEWEST_QUERIES)])
def test_the_rest_is_all_but_what_is_held_out(count: int, held: int) -> None:
    source = records(count)
    held_out, rest = hold_out(source)
    assert len(held_out) == held
    everything = [record.query_id for record in source.page(None, count)]
    assert [record.query_id for record in held_out] == everything[:held]
    assert [record.query_id for record in rest.page(None, count)] == everything[held:]
    assert [query_id for query_id, _ in rest.groups("task", None, count)] == everything[held:]
    assert rest.count() == count - held == sum(rest.count_by("task", 1).values())
    assert [record.query_id for record in rest.page(everything[held + 3], 2)] == everything[held + 4 : held + 6]


def test_no_more_than_some_are_held_out() -> None:
    held_out, _ = hold_out(records(11 * MOST_QUERIES))
    assert len(held_out) == MOST_QUERIES


def test_records_with_one_positive_are_held_out_together_or_not_at_all() -> None:
    """Else a held-out query's positive would be one that another query was trained with."""
    pairs = records(300).page(None, 300)
    positives = [pair.positive for pair in pairs]
    source = Records([replace(pair, positive=positives[n % 140]) for n, pair in enumerate(pairs)])
    held_out, rest = hold_out(source)
    assert FEWEST_QUERIES <= len(held_out) <= 30
    kept = rest.page(None, 300)
    assert len(held_out) + len(kept) == len(pairs)
    assert rest.count() == len(kept)
    assert not {record.positive for record in held_out} & {record.positive for record in kept}
    one = Records([replace(pair, positive=positives[0]) for pair in pairs])
    assert hold_out(one) == ([], one)


def test_no_held_out_query_stands_in_a_passage_that_is_searched() -> None:
    text = "Locks keep two threads apart. A queue hands over one item at a time. Both may wait."
    queries = ["Locks keep two threads apart.", "A queue hands over one item at a time."]
    passage, other = Passage(UUID(int=1), "", text), Passage(UUID(int=2), "", "Files are opened by name.")
    copy = Passage(UUID(int=3), "", queries[1])
    held_out = [
        Record(UUID(int=n), "search result", query, passage, (other, copy), copied_span(query, text), (None, None))
        for n, query in enumerate(queries)
    ]
    _, passages, rows = search_task(held_out, TrainingConfig(prompts=Prompts.NONE))
    assert passages == ["Both may wait.", other.text]
    assert rows == [0, 0]


def test_texts_are_read_as_far_as_the_exported_model_reads(base: str) -> None:
    """A training on the first tokens alone may harm what the model makes of the others."""
    held_out = [
        replace(record, positive=replace(record.positive, text=f"thread lock {record.positive.text}"))
        for record in records(40).page(None, 40)
    ]
    model = load_model(base)
    chosen = choose_share(model, copied(model), held_out, config(base, prompts="none", passage_max_len=4))
    assert chosen["development_ndcg@10"]["1"] > 0.05  # all alike in the first four tokens: 0


@pytest.mark.parametrize(("of_folder", "trained", "read"), [(256, 128, 256), (8192, 128, 512), (8192, 4096, 4096)])
def test_a_base_that_reads_books_is_not_measured_on_them(of_folder: int, trained: int, read: int) -> None:
    transformer = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=8192))
    model: Any = SimpleNamespace(max_seq_length=of_folder, transformers_model=transformer)
    assert measured_length(model, TrainingConfig(passage_max_len=trained)) == read


def test_the_share_that_finds_most_is_kept(base: str) -> None:
    held_out, _ = hold_out(records(10 * FEWEST_QUERIES))
    model, other = load_model(base), load_model(base)
    with torch.no_grad():  # as bad as can be: every text has the same vector
        for weight in other.parameters():
            weight.zero_()
    own = config(base, prompts="own")
    chosen: dict[str, Any] = choose_share(model, other.state_dict(), held_out, own)
    assert chosen["interpolation"] > 0
    found = chosen["development_ndcg@10"]
    assert chosen["interpolation"] <= MOST_KEPT
    assert found[f"{chosen['interpolation']:g}"] == max(found[f"{share:g}"] for share in SHARES if share <= MOST_KEPT)
    worse = choose_share(other, load_model(base).state_dict(), held_out, own)
    assert worse["interpolation"] < 1
    assert len(worse["development_ndcg@10"]) == len(SHARES)


def test_a_training_that_harms_hands_over_its_base_and_says_so(base: str, tmp_path: Path) -> None:
    harmful = config(base, learning_rate=5.0, num_train_epochs=1)
    facts = train(harmful, records(10 * FEWEST_QUERIES), tmp_path)
    scores = facts["development_ndcg@10"]
    assert facts["interpolation"] == 0
    assert scores["1"] < scores["0"]
    assert facts["records"] == 9 * FEWEST_QUERIES
    handed, before = (load_model(path).state_dict() for path in (facts["model_dir"], base))
    # and the projection
    assert all(torch.equal(handed[name], weight) for name, weight in before.items() if weight.is_floating_point())
    assert "This model is its base, unchanged" in (Path(facts["model_dir"]) / "README.md").read_text()


def test_the_card_says_what_the_held_out_queries_found() -> None:
    facts = {
        "config": TrainingConfig().model_dump(mode="json"),
        "dims": [384],
        "prompts": {"query": "", "document": ""},
        "interpolation": 0.5,
        "development_queries": 40,
        "development_ndcg@10": {"1": 0.6, "0.5": 0.7, "0": 0.65},
    }
    card = render(facts, None)
    assert "No record was held out" not in card
    assert "On 40 of the run's own queries" in card
    assert "0.6500 with the base and 0.7000 with these weights, which are 50% tuned" in card
    assert "do not tell" not in card
    alike = facts | {"interpolation": 1.0, "development_ndcg@10": {"1": 0.97, "0.5": 0.97, "0": 0.97}}
    assert "All shares of the tuned weights do alike there, so they do not tell" in render(alike, None)


def test_the_card_of_a_training_on_datasets_alone_speaks_of_no_records() -> None:
    """The first of two stages: the run lends it nothing but held-out queries."""
    sources = [{"kind": "pair", "name": "faq", "path": "faq.jsonl", "task_description": "question answering"}]
    about = {"run": "mine-1", "teacher": "llm", "positive": "fused_best", "negative": "lowest"}
    facts = {
        "config": TrainingConfig.model_validate({"mixture": {"sources": sources}}).model_dump(mode="json"),
        "sources": {"faq": {"batches": 3, "examples": 96}},
        "dims": [384],
        "records": 0,
        "interpolation": 1.0,
        "development_queries": 40,
        "development_ndcg@10": {"1": 0.61234, "0": 0.6},
        **about,
    }
    card = render(facts, None)
    assert "tuned\n" in card
    assert "The queries are synthetic: written" not in card
    assert "Tuned to the datasets of the table above and to no record of the run" in card
    assert "fused_best" not in card
    assert "| development_ndcg@10 | 1: 0.6123, 0: 0.6 |" in card
    of_records = render({**facts, "records": 90}, None)
    assert "tuned on FRet records" in of_records
    assert "fused_best" in of_records


@pytest.mark.parametrize(("given", "why"), [(None, "fewer than 200 records"), (1.0, "the tuned weights was given")])
def test_the_card_says_where_nothing_was_held_out(base: str, tmp_path: Path, given: float | None, why: str) -> None:
    train(config(base, num_train_epochs=1, interpolation=given), records(16), tmp_path)
    card = (tmp_path / "model" / "README.md").read_text()
    assert "No record was held out" in card
    assert why in card


def test_a_base_that_is_better_with_its_own_prompts_is_handed_over_with_them(base: str, tmp_path: Path) -> None:
    # six tokens of `task: search result | query: …` are the same for every query
    short = with_max_seq_length(base, tmp_path / "short", 6)
    lengths = {"query_max_len": 6, "passage_max_len": 6}
    facts = train(config(short, num_train_epochs=1, **lengths), records(10 * FEWEST_QUERIES), tmp_path)
    scores = facts["development_ndcg@10"]
    assert scores["base_as_it_is"] > max(scores[f"{share:g}"] for share in SHARES)
    assert facts["interpolation"] == 0
    handed = load_model(facts["model_dir"])
    assert handed.prompts == {"query": "", "document": ""}
    before = load_model(base).state_dict()
    after = handed.state_dict()  # and the projection
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    card = (Path(facts["model_dir"]) / "README.md").read_text()
    assert f"{scores['base_as_it_is']:.4f} with the base" in card


def test_a_base_that_is_better_as_far_as_its_folder_reads_is_handed_over_so(base: str, tmp_path: Path) -> None:
    cut = with_max_seq_length(base, tmp_path / "cut", 16)
    # behind the first 16 tokens all passages are alike
    source = Records(
        [
            replace(record, positive=replace(record.positive, text=record.positive.text + " thread lock" * 40))
            for record in records(10 * FEWEST_QUERIES).page(None, 1000)
        ]
    )
    lengths = {"query_max_len": 16, "passage_max_len": 64}
    wanted = config(cut, num_train_epochs=1, prompts="none", learning_rate=1e-9, **lengths)
    facts = train(wanted, source, tmp_path / "work")
    scores = facts["development_ndcg@10"]
    assert scores["base_as_it_is"] > max(scores[f"{share:g}"] for share in SHARES)
    assert facts["interpolation"] == 0
    assert SentenceTransformer(facts["model_dir"]).max_seq_length == 16
    assert "is its base, unchanged" in (Path(facts["model_dir"]) / "README.md").read_text()
