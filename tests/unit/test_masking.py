"""What is taken out of a passage where the query stands in it."""

from __future__ import annotations

from uuid import UUID

import pytest

from cli.export.rows import masked
from services.trainer.config import TrainingConfig
from services.trainer.fret_records import Record, make_example
from shared.masking import mask_title
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
    assert mask_title(query, title) == left
    assert masked(query, title, "Cells divide.", None) == f"{left} Cells divide.".strip()


@pytest.mark.parametrize(("probability", "positive"), [(1.0, "Cells divide."), (0.0, f"{TITLE} Cells divide.")])
def test_training_leaves_it_out_as_often_as_a_span(probability: float, positive: str) -> None:
    seed = Passage(UUID(int=1), TITLE, "Cells divide.")
    record = Record(UUID(int=2), "search result", TITLE, seed)
    config = TrainingConfig(mask_probability=probability, prompts="none")
    assert make_example(record, config, 0).positive == positive
