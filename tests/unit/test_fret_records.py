"""The order in which training sees the records, and what it sees of each."""

from __future__ import annotations

from itertools import chain
from uuid import UUID

import pytest

from services.trainer import batching
from services.trainer.batching import batches, steps_per_epoch
from services.trainer.config import Prompts, TrainingConfig
from services.trainer.fret_records import Position, Record, make_example
from shared.records import Passage
from tests.records_in_memory import Records, make_records


@pytest.fixture
def _small_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "WINDOW", 13)  # three batches of four to a window


CONFIG = TrainingConfig(per_device_train_batch_size=4, num_train_epochs=2, prompts="none")


@pytest.mark.usefixtures("_small_window")
def test_every_record_comes_once_an_epoch_in_another_order() -> None:
    seen = [[example.query for example in batch] for batch, _ in batches(make_records(30), CONFIG, Position())]
    assert len(seen) == 2 * steps_per_epoch(30, 4)
    first, second = (list(chain.from_iterable(epoch)) for epoch in (seen[:8], seen[8:]))
    everything = {f"query {n}" for n in range(30)}
    assert len(first) == len(second) == 30
    assert set(first) == set(second) == everything
    assert first != second


@pytest.mark.usefixtures("_small_window")
def test_goes_on_from_every_position() -> None:
    whole = list(batches(make_records(30), CONFIG, Position()))
    for number, (_, position) in enumerate(whole, start=1):
        assert list(batches(make_records(30), CONFIG, position)) == whole[number:]


def test_another_seed_is_another_order() -> None:
    def order(seed: int) -> list[str]:
        config = CONFIG.model_copy(update={"seed": seed})
        return [example.query for batch, _ in batches(make_records(30), config, Position()) for example in batch]

    assert order(1) == order(1)
    assert order(1) != order(2)


def masked_share(probability: float, epoch: int = 0) -> float:
    config = TrainingConfig(prompts="none", mask_probability=probability)
    passage = Passage(UUID(int=1), "T", "before the query after")
    texts = [
        make_example(Record(UUID(int=n), "", "the query", passage, (passage,), (7, 16), ((7, 16),)), config, epoch)
        for n in range(500)
    ]
    assert {text.positive for text in texts} <= {"T before after", "T before the query after"}
    assert all(text.negatives == (text.positive,) for text in texts)
    return sum(text.positive == "T before after" for text in texts) / len(texts)


def test_verbatim_spans_are_masked_with_the_given_probability() -> None:
    assert masked_share(0.0) == 0.0
    assert masked_share(1.0) == 1.0
    assert masked_share(0.9) == pytest.approx(0.9, abs=0.05)
    assert masked_share(0.5) != masked_share(0.5, epoch=1)


def test_each_record_brings_as_many_negatives_as_it_has() -> None:
    def passage(n: int) -> Passage:
        return Passage(UUID(int=n), "", f"the query {n}")

    counts = (3, 1, 2)
    records = [
        Record(
            UUID(int=n),
            "search result",
            "the query",
            passage(n),
            tuple(passage(10 * n + k) for k in range(count)),
            None,
            ((0, 9), *[None] * (count - 1)),
        )
        for n, count in enumerate(counts)
    ]
    values = {"per_device_train_batch_size": 3, "prompts": "none", "mask_probability": 1.0, "loss": "contrastive"}
    config = TrainingConfig.model_validate(values)
    ((batch, _),) = batches(Records(records), config, Position())
    assert {example.positive_id.int: example.negatives for example in batch} == {
        n: tuple(str(10 * n) if k == 0 else f"the query {10 * n + k}" for k in range(count))
        for n, count in enumerate(counts)
    }


def test_texts_are_written_as_the_prompts_say() -> None:
    record = Record(
        UUID(int=1),
        "search result",
        "q",
        Passage(UUID(int=2), "T", "x"),
        (Passage(UUID(int=3), "", "y"),),
        None,
        (None,),
    )
    gecko = make_example(record, TrainingConfig(prompts=Prompts.GECKO), 0)
    assert (gecko.query, gecko.positive) == ("task: search result | query: q", "title: T | text: x")
    assert gecko.negatives == ("title: none | text: y",)
    plain = make_example(record, TrainingConfig(prompts=Prompts.NONE), 0)
    assert (plain.query, plain.positive, plain.negatives) == ("q", "T x", ("y",))
    assert make_example(record, TrainingConfig(hard_negatives=False), 0).negatives == ()
