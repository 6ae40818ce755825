"""A mixture's sources as examples by their place in an order of chance. No torch here, and no tokenizer."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, Protocol
from uuid import uuid5

from datasets import Dataset

from services.trainer.config import Prompts, TrainingConfig
from services.trainer.draw import permuted
from services.trainer.fret_records import Example, format_passage_text
from services.trainer.kinds import TextExample
from services.trainer.lists import members_wanted
from services.trainer.mixture_config import ClassificationSource, DatasetSource, ListSource
from services.trainer.prepare import Prepared
from shared.records import NAMESPACE, passage_id
from shared.text_format import format_query

MOST_NEGATIVES = 3  # hard negatives of one query in a step; a dataset may list a hundred


class ExampleSource(Protocol):
    """Examples, each of which comes once an epoch; epochs follow one another without end."""

    count: int

    def examples(self, places: Sequence[int]) -> list[Example]:
        """Those at these places, counted from the first epoch's first."""


class DatasetExamples:
    """The examples of a prepared dataset."""

    def __init__(self, source: DatasetSource, config: TrainingConfig, prepared: Prepared, dataset: Dataset) -> None:
        self.count = prepared.examples
        self._source, self._config, self._dataset = source, config, dataset
        self._labels = list(prepared.texts_by_label)
        self._starts = [0, *accumulate(prepared.texts_by_label.values())]

    def examples(self, places: Sequence[int]) -> list[Example]:
        numbers = []
        for place in places:
            epoch, position = divmod(place, self.count)
            key = f"{self._config.seed}:{self._source.name}:{epoch}"
            numbers.append((epoch, permuted(position, self.count, key)))
        if isinstance(self._source, ClassificationSource):
            return self._of_labels(numbers)
        rows = self._read([number for _, number in numbers])
        if isinstance(self._source, ListSource):
            return [self._of_list(row, *at) for row, at in zip(rows, numbers, strict=True)]
        return [
            write_example(self._source, self._config, self._some_negatives(row, *at))
            for row, at in zip(rows, numbers, strict=True)
        ]

    def _some_negatives(self, row: dict[str, Any], epoch: int, number: int) -> TextExample:
        """The row's example; of more negatives than a step has room for others are drawn in every epoch."""
        negatives = row["negatives"]
        if len(negatives) > MOST_NEGATIVES:
            negatives = self._rng(epoch, number).sample(negatives, MOST_NEGATIVES)
        return TextExample(**{**row, "negatives": tuple(negatives)})

    def _of_list(self, row: dict[str, Any], epoch: int, number: int) -> Example:
        """As of one of FRet's lists (`batching`): the best is the positive, what is clearly below it a negative."""
        source, config = self._source, self._config
        rng = self._rng(epoch, number)
        places = members_wanted(range(len(row["scores"])), row["scores"], config.list_length, rng)
        texts, scores = [row["passages"][place] for place in places], [row["scores"][place] for place in places]
        clearly_below = scores[0] - config.near_positive
        negatives = tuple(text for text, score in zip(texts, scores, strict=True) if score < clearly_below)
        example = write_example(source, config, TextExample(row["query"], texts[0], negatives=negatives))
        if not config.reads_lists:
            return example
        candidates = tuple(write_target(source, config, text) for text in texts)
        return replace(example, candidates=candidates, list_scores=tuple(scores))

    def _of_labels(self, numbers: Sequence[tuple[int, int]]) -> list[Example]:
        """A text, another of its label and one of another label; drawn anew in every epoch."""
        drawn, labels = [], []
        for epoch, number in numbers:
            rng = self._rng(epoch, number)
            label = bisect_right(self._starts, number) - 1
            start, size = self._starts[label], self._starts[label + 1] - self._starts[label]
            positive = start + (number - start + rng.randrange(1, size)) % size
            negative = rng.randrange(self.count - size)
            drawn += [number, positive, negative if negative < start else negative + size]
            labels.append(self._labels[label])
        texts = [row["text"] for row in self._read(drawn)]
        return [
            write_example(self._source, self._config, TextExample(text, positive, negatives=(negative,)), label)
            for text, positive, negative, label in zip(texts[::3], texts[1::3], texts[2::3], labels, strict=True)
        ]

    def _rng(self, epoch: int, number: int) -> random.Random:
        """For the choices of one example in one epoch."""
        return random.Random(f"{self._config.seed}:{self._source.name}:{epoch}:{number}")  # noqa: S311

    def _read(self, numbers: list[int]) -> list[dict[str, Any]]:
        columns = self._dataset[numbers]
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def write_target(source: DatasetSource, config: TrainingConfig, text: str, title: str = "") -> str:
    if source.symmetric and config.prompts == Prompts.GECKO:
        return format_query(source.task_description, text)
    return format_passage_text(config.prompts, title, text)


def write_example(
    source: DatasetSource, config: TrainingConfig, example: TextExample, label: str | None = None
) -> Example:
    """The example as the encoder sees it.

    The id of a labelled text's positive is its label's: what has that label too is no negative in the batch.
    """
    return Example(
        query=format_query(source.task_description, example.query)
        if config.prompts == Prompts.GECKO
        else example.query,
        positive=write_target(source, config, example.positive, example.title),
        positive_id=passage_id(example.title, example.positive)
        if label is None
        else uuid5(NAMESPACE, f"{source.name}\x1f{label}"),
        negatives=tuple(write_target(source, config, text) for text in example.negatives)
        if config.hard_negatives
        else (),
        same_tower_negatives=config.same_tower_negatives
        if source.same_tower_negatives is None
        else source.same_tower_negatives,
        in_batch_negatives=source.in_batch_negatives,
        symmetric=source.symmetric,
    )
