"""FRet records as training reads them, and each as an example. No torch here, and no tokenizer."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, Protocol, Self
from uuid import UUID

from services.trainer.config import TrainingConfig
from shared.masking import Span, mask, mask_titles
from shared.records import Passage
from shared.text_format import format_passage, format_query, plain_passage


@dataclass(frozen=True, slots=True)
class JudgedList:
    """All candidates of a query with what the ledger has of each, parallel; `decided`: a person chose the positive."""

    passage_ids: tuple[UUID, ...] = ()
    cosines: tuple[float, ...] = ()
    ql_scores: tuple[float, ...] = ()
    rc_scores: tuple[float, ...] = ()
    decided: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """An FRet record with its texts; a span is where the query stands verbatim in that passage's text."""

    query_id: UUID
    task_description: str
    query_text: str
    positive: Passage
    negatives: tuple[Passage, ...] = ()
    positive_span: Span | None = None
    negative_spans: tuple[Span | None, ...] = ()
    judged: JudgedList = JudgedList()


@dataclass(frozen=True, slots=True)
class Example:
    """A record as the encoder sees it. Equal queries have equal text, equal positives equal ids.

    What else of the batch is a negative is the same for all of a batch, which is of one source.
    """

    query: str
    positive: str
    positive_id: UUID
    negatives: tuple[str, ...]
    same_tower_negatives: bool
    in_batch_negatives: bool = True
    symmetric: bool = False  # targets stand behind the queries' prompt
    # its judged list, as far as it is read in this batch: texts, and the teacher's scores (shared/list_scores.py)
    candidates: tuple[str, ...] = ()
    list_scores: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Position:
    """Where in the mixture the next batch begins: so many batches into the window after this query id."""

    epoch: int = 0
    after: UUID | None = None
    batch: int = 0


Group = Literal["task", "kind"]  # what records are drawn uniformly over: task descriptions, kinds of queries


class RecordSource(Protocol):
    """Where the records come from."""

    def count(self) -> int:
        """How many there are."""

    def task_description(self) -> str:
        """The most frequent task description (of several the first in the alphabet): the exported query prompt's."""

    def page(self, after: UUID | None, limit: int) -> list[Record]:
        """The next `limit` records in the order of their query ids, those after `after`."""

    def count_by(self, group: Group, at_least: int) -> dict[str, int]:
        """How many records each task description, or kind of query, has that so many have, in the alphabet's order."""

    def groups(self, group: Group, after: UUID | None, limit: int) -> list[tuple[UUID, str]]:
        """Query ids and what group each is of, of the next `limit` records, as `page` would give them."""

    def find(self, query_ids: Collection[UUID]) -> dict[UUID, Record]:
        """The records of these queries; they are all there."""

    def count_by_positive(self, passage_ids: Collection[UUID]) -> dict[UUID, int]:
        """How many records have each of these passages as their positive."""

    def of_positives(self, passage_ids: Collection[UUID]) -> list[Record]:
        """Those records, in the order of their query ids."""

    def without_positives(self, passage_ids: Collection[UUID]) -> Self:
        """The same source without those records."""

    def of_kinds(self, kinds: Collection[str]) -> Self:
        """The same source with the records of these kinds of queries alone."""

    def passages(self, passage_ids: Collection[UUID]) -> dict[UUID, Passage]:
        """The passages by id; all of them are there."""


def format_query_text(prompts: str, task_description: str, query_text: str) -> str:
    """A query as a model with these prompts reads it; `own` ones are put before it later."""
    return format_query(task_description, query_text) if prompts == "gecko" else query_text


def format_passage_text(prompts: str, title: str, text: str) -> str:
    """A passage as a model with these prompts reads it; `own` ones are put before it later."""
    return format_passage(title, text) if prompts == "gecko" else plain_passage(title, text)


def is_masked(record: Record, config: TrainingConfig, epoch: int) -> bool:
    """Whether copies of its query are taken out: with `mask_probability`, seeded by seed, epoch and query.

    Where the passages' vectors are those of an index, they are of whole passages.
    """
    if config.train == "queries":
        return False
    drawn: float = random.Random(f"{config.seed}:{epoch}:{record.query_id}").random()  # noqa: S311
    return drawn < config.mask_probability


def make_example(record: Record, config: TrainingConfig, epoch: int) -> Example:
    """Formats a record with its labels, with or without the copies of its query (`is_masked`)."""
    passages, spans = [record.positive, *record.negatives], [record.positive_span, *record.negative_spans]
    shown = [(passage.title, passage.text) for passage in passages]
    if is_masked(record, config, epoch):
        titles = mask_titles(record.query_text, [passage.title for passage in passages])
        texts = [mask(passage.text, span) for passage, span in zip(passages, spans, strict=True)]
        left = list(zip(titles, texts, strict=True))
        # of a passage that is nothing but the query nothing is left: the positive then stays whole, a negative goes
        shown = [left[0] if any(left[0]) else shown[0], *filter(any, left[1:])]
    positive, *negatives = (format_passage_text(config.prompts, *pair) for pair in shown)

    return Example(
        query=format_query_text(config.prompts, record.task_description, record.query_text),
        positive=positive,
        positive_id=record.positive.passage_id,
        negatives=tuple(negatives) if config.hard_negatives else (),
        same_tower_negatives=config.same_tower_negatives,
    )
