"""What is taken out of a passage where the query stands in it."""

from __future__ import annotations

from typing import Literal
from uuid import UUID

import pytest

from cli.export.rows import with_masked
from services.trainer.config import TrainingConfig
from services.trainer.fret_records import Record, format_passage_text, make_example
from shared.masking import mask_titles
from shared.records import Passage

TITLE = "Loss of p53 in murine fibroblasts"


@pytest.mark.parametrize(
    ("query", "title", "left"),
    [
        (TITLE, TITLE, ""),
        (TITLE.upper(), f"{TITLE}, revisited", ", revisited"),
        ("p53", TITLE, TITLE),  # a mention
        (TITLE, "Another", "Another"),
    ],
)
def test_a_title_that_is_the_query(query: str, title: str, left: str) -> None:
    assert mask_titles(query, ["", title]) == ["", left]


@pytest.mark.parametrize(("probability", "positive"), [(1.0, "Cells divide."), (0.0, f"{TITLE} Cells divide.")])
def test_training_leaves_it_out_as_often_as_a_span(probability: float, positive: str) -> None:
    seed = Passage(UUID(int=1), TITLE, "Cells divide.")
    record = Record(UUID(int=2), "search result", TITLE, seed)
    config = TrainingConfig(mask_probability=probability, prompts="none")
    assert make_example(record, config, 0).positive == positive


@pytest.mark.parametrize("prompts", ["none", "gecko"])
def test_no_training_reads_an_empty_text(prompts: Literal["none", "gecko"]) -> None:
    """Of two passages that are the query and nothing else the positive stays as it is; the negative goes."""
    copy, span, other = "Loss of p53 slows down division", (0, 31), Passage(UUID(int=3), "", "Cells divide.")
    same = [Passage(UUID(int=n), "", copy) for n in (1, 2)]
    record = Record(UUID(int=9), "search result", copy, same[0], (same[1], other), span, (span, None))
    example = make_example(record, TrainingConfig(mask_probability=1.0, prompts=prompts), 0)
    read = [format_passage_text(prompts, "", text) for text in (copy, "Cells divide.")]
    assert [example.positive, *example.negatives] == read


@pytest.mark.parametrize(
    ("positive", "others"),
    [
        (TITLE, ["", ""]),  # none of them is told by a title
        (f"{TITLE}?", ["", ""]),
        (f"{TITLE}, revisited", ["Another", ""]),
        ("", ["Another", ""]),  # the corpus gave it none
        ("A third", ["Another", ""]),
    ],
)
def test_negatives_have_no_titles_where_the_positives_was_the_query(positive: str, others: list[str]) -> None:
    """In training and in every export that has taken copies out."""
    titles = [positive, "Another", TITLE]
    left = mask_titles(TITLE, titles)
    assert left[1:] == others
    passages = [Passage(UUID(int=n), title, f"Text {n}.") for n, title in enumerate(titles)]
    read = [f"{title} Text {n}.".strip() for n, title in enumerate(left)]
    record = Record(UUID(int=9), "search result", TITLE, passages[0], tuple(passages[1:]), None, (None, None))
    example = make_example(record, TrainingConfig(mask_probability=1.0, prompts="none"), 0)
    assert [example.positive, *example.negatives] == read
    row = {
        "query_text": TITLE,
        "positive_title": positive,
        "positive_text": "Text 0.",
        "positive_span": None,
        "negative_titles": titles[1:],
        "negative_texts": ["Text 1.", "Text 2."],
        "negative_spans": [None, None],
    }
    [[exported]] = with_masked([[row]])
    assert exported["masked"] == read
