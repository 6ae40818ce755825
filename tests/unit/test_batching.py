"""Which records come together, which of their candidates a step reads, and what is read of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from uuid import UUID, uuid5

import pytest

from services.trainer.batching import batches, make_batch, teacher_scores
from services.trainer.config import TrainingConfig
from services.trainer.fret_records import Example, JudgedList, Position, Record
from services.trainer.lists import passages_read, together
from shared.records import NAMESPACE, Passage
from tests.records_in_memory import Records


def id_of(name: object) -> UUID:
    return uuid5(NAMESPACE, str(name))


def test_lists_that_share_members_come_together() -> None:
    """Forty lists about ten topics, each of five of its topic's eight passages."""
    rng = random.Random(0)  # noqa: S311
    topics = [n % 10 for n in range(40)]
    lists = [[id_of((topic, member)) for member in rng.sample(range(8), 5)] for topic in topics]
    groups = together([id_of(n) for n in range(40)], lists, 4)
    assert sorted(chain.from_iterable(groups)) == list(range(40))
    assert [len(group) for group in groups] == [4] * 10
    assert all(len({topics[number] for number in group}) == 1 for group in groups)


def test_a_query_that_was_drawn_twice_is_not_looked_for_together() -> None:
    keys = [id_of(n // 2) for n in range(8)]
    groups = together(keys, [[id_of("shared")]] * 8, 4)
    assert [len(group) for group in groups] == [4, 4]
    assert all(len({keys[number] for number in group}) == 4 for group in groups)


def test_lists_without_anything_in_common_stay_in_their_order() -> None:
    lists = [[id_of((n, member)) for member in range(3)] for n in range(7)]
    assert together([id_of(n) for n in range(7)], lists, 3) == [[0, 1, 2], [3, 4, 5], [6]]


def read(lists: Sequence[Sequence[UUID]], length: int) -> list[UUID]:
    scores = [[float(-place) for place in range(len(members))] for members in lists]
    return list(passages_read(lists, scores, [members[1] for members in lists], length, random.Random(0)))  # noqa: S311


def test_no_more_is_read_than_two_fifths_of_what_the_lists_ask_for() -> None:
    lists = [[id_of((n, member)) for member in range(20)] for n in range(6)]
    found = read(lists, 8)
    assert len(set(found)) == len(found) == 19
    assert found[:6] == [members[1] for members in lists]  # every positive
    for members in lists:
        places = {members.index(each) for each in found if each in members}
        assert 3 <= len(places) <= 4
        assert {0, 1, 19} <= places  # the best, the positive, the last


def test_what_is_shared_is_read_for_all() -> None:
    members = [id_of(member) for member in range(20)]
    found = read([members] * 6, 8)
    assert 8 <= len(found) <= 20  # six lists draw differently from between
    assert set(members[:4]) | set(members[-2:]) <= set(found)


def test_short_lists_are_read_whole() -> None:
    lists = [[id_of((n, member)) for member in range(3)] for n in range(4)]
    assert set(read(lists, 8)) == set(chain.from_iterable(lists))


def passage(n: int, text: str | None = None) -> Passage:
    return Passage(UUID(int=n), "", text if text is not None else f"text {n}")


def record(n: int, candidates: Sequence[int], chosen: int, **changes: object) -> Record:
    falling = tuple(1.0 - 0.1 * place for place in range(len(candidates)))
    judged = JudgedList(tuple(UUID(int=each) for each in candidates), falling, falling, falling)
    values = {"query_id": UUID(int=1000 + n), "task_description": "t", "query_text": f"the query of number {n}"}
    return Record(**{**values, "positive": passage(chosen), "judged": judged, **changes})  # type: ignore[arg-type]


CONFIG = TrainingConfig(prompts="none", mask_probability=1.0, per_device_train_batch_size=2, positive_bonus=0.0)


def listed(records: Sequence[Record], others: Sequence[Passage], config: TrainingConfig = CONFIG) -> list[Example]:
    return make_batch([(each, 0) for each in records], config, Records(records, others))


def test_candidates_that_another_query_reads_are_in_every_list_that_has_them() -> None:
    records = [record(0, [1, 2, 3, 4], 1), record(1, [4, 3, 2, 5], 4)]
    first, second = listed(records, [passage(n) for n in range(1, 6)])
    assert set(first.candidates) == {"text 1", "text 2", "text 3", "text 4"}
    assert set(second.candidates) == {"text 2", "text 3", "text 4", "text 5"}
    assert list(first.list_scores) == sorted(first.list_scores, reverse=True)
    assert first.positive == "text 1"


def test_a_passage_near_the_positive_by_the_teacher_is_no_contrastive_negative() -> None:
    one = record(0, [1, 2, 3, 4], 2)
    (example,) = listed([one], [passage(n) for n in range(1, 5)])
    scores = dict(zip(example.candidates, example.list_scores, strict=True))
    assert set(example.negatives) == {text for text, score in scores.items() if score < scores["text 2"] - 0.5}
    assert "text 1" not in example.negatives
    (bare,) = listed([one], [passage(n) for n in range(1, 5)], CONFIG.model_copy(update={"hard_negatives": False}))
    assert bare.negatives == ()
    assert bare.candidates == example.candidates


def test_copies_of_the_queries_are_cut_out_of_what_they_list() -> None:
    query = "how the second query is worded here"
    copied = Passage(UUID(int=2), f"{query}", f"before {query} after")
    records = [
        record(0, [1, 2], 1, query_text="what the first one asks of all"),
        record(1, [2, 1], 2, query_text=query, positive=copied),
    ]
    first, second = listed(records, [passage(1), copied])
    assert "before after" in first.candidates
    assert second.positive == "before after"
    never = CONFIG.model_copy(update={"mask_probability": 0.0})
    assert listed(records, [passage(1), copied], never)[1].positive == f"{query} before {query} after"


def test_what_is_nothing_but_the_query_is_not_read_unless_it_is_the_positive() -> None:
    query = "how the second query is worded here"
    of_other = record(0, [1, 2, 3], 1, query_text=query)
    (example,) = listed([of_other], [passage(1), passage(2, query), passage(3)])
    assert query not in example.candidates
    own = record(0, [2, 1, 3], 2, query_text=query, positive=passage(2, query))
    (example,) = listed([own], [passage(1), passage(2, query), passage(3)])
    assert example.positive == query


def test_a_persons_decision_outweighs_the_teacher() -> None:
    of_teacher = record(0, [1, 2, 3, 4], 4)
    scores = teacher_scores(of_teacher, CONFIG)
    assert scores.index(max(scores)) == 0
    of_person = record(0, [1, 2, 3, 4], 4, judged=replace(of_teacher.judged, decided=True))
    scores = teacher_scores(of_person, CONFIG)
    assert scores.index(max(scores)) == 3


def test_the_positive_is_raised_by_its_bonus() -> None:
    one = record(0, [1, 2, 3, 4], 2)
    plain, raised = (teacher_scores(one, CONFIG.model_copy(update={"positive_bonus": bonus})) for bonus in (0.0, 0.75))
    assert raised == pytest.approx([plain[0], plain[1] + 0.75, *plain[2:]])


@pytest.mark.parametrize("loss", ["contrastive", "listwise", "both"])
def test_goes_on_from_every_position_whatever_the_loss(loss: str) -> None:
    records = [record(n, [n % 7, n % 5 + 10, n % 3 + 20, 30], n % 7) for n in range(29)]
    source = Records(records, [passage(n) for n in range(31)])
    config = TrainingConfig.model_validate(
        {"per_device_train_batch_size": 4, "num_train_epochs": 2, "prompts": "none", "loss": loss}
    )
    whole = list(batches(source, config, Position()))
    assert sorted(example.query for batch, _ in whole for example in batch) == sorted(
        2 * [each.query_text for each in records]
    )
    for number, (_, position) in enumerate(whole, start=1):
        assert list(batches(source, config, position)) == whole[number:]
