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
from shared.records import passage_id
from tests.unit.datasets_in_files import LABELLED, dataset_source, jsonl

LIST: dict[str, Any] = {
    "query": "q",
    "passages": [f"p {n}" for n in range(30)],
    "scores": [n % 30 for n in range(7, 37)],
}
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


def test_of_a_long_list_the_best_the_last_and_others_drawn_anew_are_read(tmp_path: Path) -> None:
    source = opened(tmp_path, "list", [LIST], {"prompts": "none", "list_length": 8})
    epochs = [source.examples([epoch])[0] for epoch in range(20)]
    score_of = dict(zip(LIST["passages"], LIST["scores"], strict=True))
    for example in epochs:
        scores = [score_of[text] for text in example.candidates]
        assert len(set(example.candidates)) == 8
        assert {29, 28, 27, 26, 0, 1} <= set(scores)
        # standardised over the whole list, of which the numbers from 0 to 29 have these
        deviation = ((30**2 - 1) / 12) ** 0.5
        assert example.list_scores == pytest.approx([(score - 14.5) / deviation for score in scores])
        assert score_of[example.positive] == 29
        assert example.positive == example.candidates[0]
        # half a deviation below the best is a little more than four
        assert set(example.negatives) == {text for text in example.candidates if score_of[text] < 24.7}
    assert len(set(chain.from_iterable(example.candidates for example in epochs))) > 20
    assert source.examples([7]) == [epochs[7]]


def test_a_short_list_is_read_whole_and_the_first_of_the_best_is_its_positive(tmp_path: Path) -> None:
    rows = [{"query": "q", "passages": ["low", "best", "equal"], "scores": [0, 2, 2]}]
    (example,) = opened(tmp_path, "list", rows).examples([0])
    assert example.positive == "title: none | text: best"
    assert set(example.candidates) == {f"title: none | text: {text}" for text in ("low", "best", "equal")}
    assert example.negatives == ("title: none | text: low",)
    assert example.positive_id == passage_id("", "best")


def test_without_a_listwise_loss_a_list_is_a_positive_with_negatives(tmp_path: Path) -> None:
    (example,) = opened(tmp_path, "list", [LIST], {"loss": "contrastive", "prompts": "none"}).examples([0])
    assert (example.candidates, example.list_scores) == ((), ())
    assert len(example.negatives) == 4
