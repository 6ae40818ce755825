"""How long an export's lists are, and which of a record's passages are shown."""

from __future__ import annotations

from typing import Any

import pytest

from cli.export.lists import common_length, shown_lists


@pytest.mark.parametrize(
    ("records", "length"),
    [
        ({20: 100}, 20),
        ({20: 100, 19: 3}, 20),  # a few short ones are left out
        ({20: 3, 19: 100}, 19),  # a few long ones are cut
        ({20: 50, 10: 49}, 20),
        ({20: 50, 10: 51}, 10),
        ({1: 1000, 4: 1}, 4),  # no list is of one passage
        ({1: 1000}, 2),
        ({}, 2),
    ],
)
def test_the_length_keeps_the_most_scores(records: dict[int, int], length: int) -> None:
    assert common_length(records) == length


def row(masked: list[str]) -> dict[str, Any]:
    numbers = range(1, len(masked))
    return {
        "masked": masked,
        "scores": [float(-number) for number in range(len(masked))],
        "negative_spans": [[number] for number in numbers],
        "negative_title_spans": [None for _ in numbers],
    }


@pytest.mark.parametrize(
    ("masked", "longest", "shown"),
    [
        (["p", "a", "b"], None, [0, 1, 2]),
        (["p", "a", "b"], 2, [0, 1]),
        (["p", "", "b", "c"], 3, [0, 2, 3]),
        (["", "a", ""], None, [0, 1]),  # the positive is looked at by whoever leaves the record out
    ],
)
def test_empty_passages_are_left_out_and_the_others_cut(
    masked: list[str], longest: int | None, shown: list[int]
) -> None:
    (((listed,)),) = shown_lists([[row(masked)]], longest)
    assert listed["masked"] == [masked[number] for number in shown]
    assert listed["scores"] == [-number for number in shown]
    assert listed["negative_spans"] == [[number] for number in shown[1:]]
    assert len(listed["negative_title_spans"]) == len(shown) - 1
