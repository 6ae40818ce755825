"""Examples as the encoder and the loss get them from a dataset."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from services.trainer.config import TrainingConfig
from services.trainer.fret_records import Example
from services.trainer.prepare import load_prepared, prepare
from services.trainer.sources import DatasetExamples
from tests.unit.datasets_in_files import LABELLED, dataset_source, jsonl

TRIPLETS = [{"query": f"q {n}", "positive": f"p {n}", "negative": f"n {n}"} for n in range(23)]


def opened(
    folder: Path, kind: str, rows: list[dict[str, Any]], changes: dict[str, Any] | None = None, **values: Any
) -> DatasetExamples:
    source = dataset_source(kind, jsonl(folder / "rows.jsonl", rows), **values)
    prepare(source, folder / "out")
    config = TrainingConfig.model_validate({"prompts": "gecko", **(changes or {})})
    return DatasetExamples(source, config, *load_prepared(folder / "out"))


def first(folder: Path, symmetric: bool, **changes: Any) -> Example:
    (example,) = opened(folder, "triplet", TRIPLETS[:1], changes, symmetric=symmetric).examples([0])
    return example


@pytest.mark.parametrize(
    ("symmetric", "prompts", "texts"),
    [
        (False, "gecko", ("task: task of triplet | query: q 0", "title: none | text: p 0", "title: none | text: n 0")),
        (True, "gecko", tuple(f"task: task of triplet | query: {text}" for text in ("q 0", "p 0", "n 0"))),
        (False, "none", ("q 0", "p 0", "n 0")),
    ],
)
def test_texts_are_written_as_the_prompts_and_the_symmetry_say(
    tmp_path: Path, symmetric: bool, prompts: str, texts: tuple[str, str, str]
) -> None:
    example = first(tmp_path, symmetric, prompts=prompts)
    assert (example.query, example.positive, *example.negatives) == texts


def test_hard_negatives_can_be_off(tmp_path: Path) -> None:
    assert first(tmp_path, False, hard_negatives=False).negatives == ()


@pytest.mark.parametrize(
    ("own", "of_training", "used"), [(None, True, True), (None, False, False), (True, False, True)]
)
def test_same_tower_negatives_of_the_source_or_of_the_training(
    tmp_path: Path, own: bool | None, of_training: bool, used: bool
) -> None:
    changes = {"same_tower_negatives": of_training}
    source = opened(tmp_path, "triplet", TRIPLETS, changes, same_tower_negatives=own)
    assert {example.same_tower_negatives for example in source.examples(range(4))} == {used}


def test_each_example_comes_once_an_epoch_in_another_order(tmp_path: Path) -> None:
    source = opened(tmp_path, "triplet", TRIPLETS)
    epochs = [[example.query for example in source.examples(range(start, start + 23))] for start in (0, 23)]
    assert set(epochs[0]) == set(epochs[1])
    assert len(set(epochs[0])) == 23
    assert epochs[0] != epochs[1]
    # a batch may lie across the border of two epochs
    assert [example.query for example in source.examples(range(20, 26))] == [*epochs[0][20:], *epochs[1][:3]]


def test_labels_give_positives_and_negatives_and_are_what_the_batch_is_masked_by(tmp_path: Path) -> None:
    source = opened(tmp_path, "classification", LABELLED, {"prompts": "none"})
    epochs = [source.examples(range(start, start + 15)) for start in range(0, 15 * 20, 15)]
    id_of: dict[str, UUID] = {}
    for example in chain.from_iterable(epochs):
        query, positive, negative = (text.split()[0] for text in (example.query, example.positive, *example.negatives))
        assert query == positive != negative
        assert example.query != example.positive
        assert id_of.setdefault(query, example.positive_id) == example.positive_id
    assert len(set(id_of.values())) == len(id_of) == 3
    drawn = {example.positive for epoch in epochs for example in epoch if example.query == "green text number 0"}
    assert drawn == {f"green text number {n}" for n in range(1, 5)}  # anew in every epoch
    others = {example.negatives for epoch in epochs for example in epoch if example.query == "green text number 0"}
    assert {text.split()[0] for (text,) in others} == {"red", "blue"}


def test_equal_positives_have_equal_ids(tmp_path: Path) -> None:
    rows = [{"query": f"q {n}", "positive": "the same" if n < 2 else f"p {n}"} for n in range(4)]
    examples = opened(tmp_path, "pair", rows).examples(range(4))
    assert len({example.positive_id for example in examples}) == 3


def test_a_pairs_title_is_written_as_the_prompts_say(tmp_path: Path) -> None:
    rows = [{"query": "q", "positive": "p", "title": "T"}]
    fields = {"query": "query", "positive": "positive", "title": "title"}
    for prompts, written in (("gecko", "title: T | text: p"), ("none", "T p")):
        folder = tmp_path / prompts
        folder.mkdir()
        (example,) = opened(folder, "pair", rows, {"prompts": prompts}, fields=fields).examples([0])
        assert example.positive == written


def test_of_many_negatives_three_are_drawn_anew_in_every_epoch(tmp_path: Path) -> None:
    rows = [{"query": "q", "positive": "p", "negative": [f"n {n}" for n in range(30)]}]
    source = opened(tmp_path, "triplet", rows, {"prompts": "none"})
    drawn = [source.examples([epoch])[0].negatives for epoch in range(20)]
    assert {len(set(negatives)) for negatives in drawn} == {3}
    assert len(set(chain.from_iterable(drawn))) > 20
    assert source.examples([7])[0].negatives == drawn[7]


def test_in_batch_negatives_can_be_off_for_a_source(tmp_path: Path) -> None:
    source = opened(tmp_path, "triplet", TRIPLETS, in_batch_negatives=False)
    assert {example.in_batch_negatives for example in source.examples(range(4))} == {False}
