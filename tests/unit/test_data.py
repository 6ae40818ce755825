"""What a training reads of a mixture: whose batches, in which order, from any position."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from services.trainer.config import TrainingConfig
from services.trainer.data import TrainingData, open_data
from services.trainer.fret_records import Position
from services.trainer.mixture_config import FretSource, Mixture
from shared.errors import InvalidInputError, NotFoundError
from tests.records_in_memory import Records, make_records
from tests.unit.datasets_in_files import LABELLED, dataset_source, jsonl

PAIRS = [{"query": f"pair {n}", "positive": f"p {n}"} for n in range(10)]


def config(folder: Path, fret: dict[str, Any] | None = None, **changes: Any) -> TrainingConfig:
    """FRet with weight 2, ten pairs and fifteen labelled texts with weight 1."""
    pairs = dataset_source("pair", jsonl(folder / "pairs.jsonl", PAIRS), same_tower_negatives=True)
    labelled = dataset_source("classification", jsonl(folder / "labelled.jsonl", LABELLED))
    sources = (FretSource(kind="fret", **{"weight": 2, **(fret or {})}), pairs, labelled)
    values = {"per_device_train_batch_size": 4, "prompts": "none", "mixture": Mixture(sources=sources)}
    return TrainingConfig.model_validate({**values, **changes})


def source_of(query: str) -> str:
    return {"query": "fret", "pair": "pair"}.get(query.split()[0], "classification")


def queries(data: TrainingData, start: Position | None = None) -> list[list[str]]:
    return [[example.query for example in batch] for batch, _ in data.batches(start or Position())]


def test_every_batch_is_full_and_of_one_source(tmp_path: Path) -> None:
    data = open_data(config(tmp_path), make_records(30), tmp_path)
    assert data.total_steps == 16  # FRet's 8 are half of them
    batches = [batch for batch, _ in data.batches(Position())]
    assert len(batches) == 16
    for batch in batches:
        (source,) = {source_of(example.query) for example in batch}
        assert len(batch) == 4
        assert {example.same_tower_negatives for example in batch} == {source == "pair"}


def test_sources_come_by_weight_and_each_has_its_own_epochs(tmp_path: Path) -> None:
    data = open_data(config(tmp_path, num_train_epochs=40), make_records(30), tmp_path)
    batches = queries(data)
    count = Counter(source_of(batch[0]) for batch in batches)
    assert count["fret"] / len(batches) == pytest.approx(0.5, abs=0.08)
    of_pairs = list(chain.from_iterable(batch for batch in batches if source_of(batch[0]) == "pair"))
    for start in range(0, len(of_pairs) - 9, 10):
        assert len(set(of_pairs[start : start + 10])) == 10
    facts = data.facts(len(batches))
    assert {name: of["batches"] for name, of in facts["sources"].items()} == count
    assert {name: of["examples"] for name, of in facts["sources"].items()} == {
        "fret": 30,
        "pair": 10,
        "classification": 15,
    }
    assert (facts["records"], facts["task_description"]) == (30, "search result")


def test_goes_on_from_every_position(tmp_path: Path) -> None:
    data = open_data(config(tmp_path), make_records(30), tmp_path)
    whole = list(data.batches(Position()))
    for number, (_, position) in enumerate(whole, start=1):
        assert list(data.batches(position)) == whole[number:]


def test_another_seed_is_another_order(tmp_path: Path) -> None:
    orders = [queries(open_data(config(tmp_path, seed=seed), make_records(30), tmp_path)) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


def test_a_resumed_training_reads_what_the_first_attempt_read(tmp_path: Path) -> None:
    made = config(tmp_path)
    first = queries(open_data(made, make_records(30), tmp_path / "1"))
    (tmp_path / "pairs.jsonl").unlink()
    assert queries(open_data(made, make_records(30), tmp_path / "2", [tmp_path / "1"])) == first
    with pytest.raises(InvalidInputError, match=r"pairs\.jsonl: there is no such file"):
        open_data(made, make_records(30), tmp_path / "3")
    jsonl(tmp_path / "pairs.jsonl", PAIRS)
    # what the attempt that failed has left is in nobody's way
    assert queries(open_data(made, make_records(30), tmp_path / "3")) == first


def test_a_dataset_that_an_earlier_attempt_has_read_is_not_read_again(tmp_path: Path) -> None:
    """That attempt ended before its first step: here at the third source, of which there was no file yet."""
    made = config(tmp_path)
    first = queries(open_data(made, make_records(30), tmp_path / "whole"))
    (tmp_path / "labelled.jsonl").unlink()
    with pytest.raises(InvalidInputError, match=r"labelled\.jsonl: there is no such file"):
        open_data(made, make_records(30), tmp_path / "1")
    jsonl(tmp_path / "labelled.jsonl", LABELLED)
    (tmp_path / "pairs.jsonl").unlink()
    (tmp_path / "1/unfinished-mixture/classification").mkdir()  # half of one, as a process leaves it that is killed
    assert queries(open_data(made, make_records(30), tmp_path / "2", [tmp_path / "1"])) == first


def test_a_later_attempt_reads_the_records_that_the_run_has_by_then(tmp_path: Path) -> None:
    open_data(config(tmp_path), make_records(30), tmp_path / "1")
    data = open_data(config(tmp_path), make_records(50), tmp_path / "2", [tmp_path / "1"])
    assert data.facts(1)["records"] == 50


def rare_and_frequent() -> Records:
    """Forty records, two of them of another task description than the rest."""
    records = make_records(40).page(None, 40)
    return Records(
        [replace(record, task_description="rare" if n < 2 else "frequent") for n, record in enumerate(records)]
    )


@pytest.mark.parametrize(("uniform", "share"), [(False, 2 / 40), (True, 1 / 2)])
def test_fret_can_be_drawn_uniformly_over_its_task_descriptions(tmp_path: Path, uniform: bool, share: float) -> None:
    records = rare_and_frequent()
    mixture = Mixture(sources=(FretSource(kind="fret", uniform_tasks=uniform),), max_steps=100)
    data = open_data(TrainingConfig(mixture=mixture, per_device_train_batch_size=4), records, tmp_path)
    assert data.total_steps == 100
    task_of = {record.query_text: record.task_description for record in records.page(None, 40)}
    drawn = list(chain.from_iterable(queries(data)))
    assert len(drawn) == 400
    assert sum(task_of[query] == "rare" for query in drawn) / 400 == pytest.approx(share, abs=0.06)
    if not uniform:
        assert Counter(drawn) == dict.fromkeys(task_of, 10)


def test_task_descriptions_that_stand_once_are_drawn_as_one(tmp_path: Path) -> None:
    """Drawn all alike, ten of 210 records would be ten in twelve of what is read."""
    records = make_records(210).page(None, 210)
    named = [f"once {n}" if n < 10 else "often" if n < 110 else "as often" for n in range(210)]
    source = Records([replace(record, task_description=task) for record, task in zip(records, named, strict=True)])
    mixture = Mixture(sources=(FretSource(kind="fret", uniform_tasks=True),), max_steps=100)
    data = open_data(TrainingConfig(mixture=mixture, per_device_train_batch_size=6), source, tmp_path)
    assert data.facts(100)["sources"]["fret"]["groups"] == 3
    task_of = {record.query_text: record.task_description for record in source.page(None, 210)}
    drawn = Counter(task_of[query].split()[0] for query in chain.from_iterable(queries(data)))
    assert {task: number / 600 for task, number in drawn.items()} == pytest.approx(
        {"once": 1 / 3, "often": 1 / 3, "as": 1 / 3}, abs=0.06
    )


def test_a_few_strays_are_no_group_of_their_own(tmp_path: Path) -> None:
    """Two of 300 records would be one in three of what is read."""
    records = make_records(300).page(None, 300)
    named = ["once" if n < 1 else "and once" if n < 2 else "often" if n < 100 else "most" for n in range(300)]
    source = Records([replace(record, task_description=task) for record, task in zip(records, named, strict=True)])
    mixture = Mixture(sources=(FretSource(kind="fret", uniform_tasks=True),), max_steps=100)
    data = open_data(TrainingConfig(mixture=mixture, per_device_train_batch_size=6), source, tmp_path)
    assert data.facts(100)["sources"]["fret"]["groups"] == 2
    task_of = {record.query_text: record.task_description for record in source.page(None, 300)}
    drawn = Counter(task_of[query] for query in chain.from_iterable(queries(data)))
    assert drawn["often"] / 600 == pytest.approx(1 / 2, abs=0.06)
    assert drawn["once"] + drawn["and once"] < 12


def test_fret_can_be_drawn_uniformly_over_kinds_of_queries_or_from_some_alone(tmp_path: Path) -> None:
    records = make_records(40).page(None, 40)
    named = [replace(each, query_text=f"{'title' if n < 4 else 'sentence'} {n}") for n, each in enumerate(records)]

    def shares(**changes: object) -> dict[str, float]:
        source = FretSource.model_validate({"kind": "fret", **changes})
        mixture = Mixture(sources=(source,), max_steps=100)
        made = TrainingConfig(mixture=mixture, per_device_train_batch_size=4)
        folder = tmp_path / "-".join(sorted(changes)) / "x"
        drawn = Counter(
            query.split()[0] for query in chain.from_iterable(queries(open_data(made, Records(named), folder)))
        )
        return {kind: count / 400 for kind, count in drawn.items()}

    assert shares() == pytest.approx({"title": 0.1, "sentence": 0.9}, abs=0.05)
    assert shares(uniform_kinds=True) == pytest.approx({"title": 0.5, "sentence": 0.5}, abs=0.06)
    assert shares(kinds=["title"]) == {"title": 1.0}
    with pytest.raises(ValidationError, match="one of `uniform_tasks` and `uniform_kinds`"):
        FretSource(kind="fret", uniform_tasks=True, uniform_kinds=True)


def test_a_record_is_the_same_example_as_without_a_mixture(tmp_path: Path) -> None:
    alone = TrainingConfig(per_device_train_batch_size=5, prompts="gecko")
    mixed = alone.model_copy(update={"mixture": Mixture(sources=(FretSource(kind="fret"),))})
    read = [
        [example for batch, _ in open_data(each, make_records(30), tmp_path).batches(Position()) for example in batch]
        for each in (alone, mixed)
    ]
    assert len(read[0]) == len(read[1]) == 30
    assert sorted(read[0], key=lambda example: example.query) == sorted(read[1], key=lambda example: example.query)


def test_says_how_far_it_has_read_before_the_first_step(tmp_path: Path) -> None:
    """Or a dataset that streams for hours could not be told from one that hangs, and nobody would hear of a cancel."""
    made = config(tmp_path)
    jsonl(tmp_path / "pairs.jsonl", PAIRS * (2500 // len(PAIRS)))
    told: list[tuple[str, int]] = []
    open_data(made, make_records(30), tmp_path, on_rows=lambda name, rows: told.append((name, rows)))
    assert told == [("fret", 30), ("pair", 1000), ("pair", 2000)]


def test_without_fret_the_records_are_not_asked_for(tmp_path: Path) -> None:
    made = config(tmp_path)
    assert made.mixture is not None
    mixture = Mixture(sources=made.mixture.sources[1:])
    facts = open_data(made.model_copy(update={"mixture": mixture}), Records([]), tmp_path).facts(0)
    assert (facts["records"], facts["task_description"]) == (0, "task of pair")


def test_fret_without_records_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no records"):
        open_data(config(tmp_path), Records([]), tmp_path)
