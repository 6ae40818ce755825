"""Records in batches, in an order fixed by seed and epoch, with what each reads of their judged lists. No torch here.

The order: a query's id is a hash, so the order of ids, which Postgres pages through by its index, is already one of
chance; each window of it is shuffled again, per seed and epoch, and for a listwise loss queries of a window that share
candidates come together. Memory holds one window, whatever the number of records, and a `Position` is enough to go on
in the middle of an epoch.

A passage has one text in a batch, whichever lists it is in, and is encoded once: copies of the queries that list it are
cut out of it, as a record's own are from its positive.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from uuid import UUID

from services.trainer.config import TrainingConfig
from services.trainer.fret_records import (
    Example,
    Position,
    Record,
    RecordSource,
    format_passage_text,
    is_masked,
    make_example,
)
from services.trainer.lists import passages_read, together
from shared.list_scores import decided, list_scores
from shared.masking import copied_span, mask
from shared.records import Passage

WINDOW = 4096  # records in memory; at the usual 5 to 8 KB each some 30 MB

Drawn = tuple[Record, int]  # with the epoch that it is drawn in


def batches(source: RecordSource, config: TrainingConfig, start: Position) -> Iterator[tuple[list[Example], Position]]:
    """The batches from `start` to the end of the last epoch, each with the position behind it."""
    size = config.per_device_train_batch_size
    window = max(1, WINDOW // size) * size
    while start.epoch < config.num_train_epochs:
        records = source.page(start.after, window)
        if not records:
            start = Position(start.epoch + 1)
            continue
        last = records[-1].query_id
        rng = random.Random(f"{config.seed}:{start.epoch}:{start.after}")  # noqa: S311
        rng.shuffle(records)
        groups = grouped([(record, start.epoch) for record in records], config, size, rng)
        for batch in range(start.batch, len(groups)):
            following = (
                Position(start.epoch, start.after, batch + 1)
                if batch + 1 < len(groups)
                else Position(start.epoch, last)
            )
            yield make_batch(groups[batch], config, source), following
        start = Position(start.epoch, last)


def steps_per_epoch(record_count: int, batch_size: int) -> int:
    """The last batch of an epoch may be smaller than the others."""
    return -(-record_count // batch_size)


def grouped(drawn: Sequence[Drawn], config: TrainingConfig, size: int, rng: random.Random) -> list[list[Drawn]]:
    """Records in an order of chance as batches of `size`: as they come, or for a listwise loss by what they share."""
    if not config.reads_lists:
        return [list(drawn[first : first + size]) for first in range(0, len(drawn), size)]
    groups = together(
        [record.query_id for record, _ in drawn], [record.judged.passage_ids for record, _ in drawn], size
    )
    rng.shuffle(groups)
    return [[drawn[number] for number in group] for group in groups]


def make_batch(chosen: Sequence[Drawn], config: TrainingConfig, source: RecordSource) -> list[Example]:
    """The examples of these records.

    For a listwise loss each has the candidates that the batch reads, its positive among them, and as negatives those of
    them that the teacher scores clearly below its positive.
    """
    examples = [make_example(record, config, epoch) for record, epoch in chosen]
    if not config.reads_lists:
        return examples
    records = [record for record, _ in chosen]
    scores = [teacher_scores(record, config) for record in records]
    lists = [record.judged.passage_ids for record in records]
    positives = [record.positive.passage_id for record in records]
    first, epoch = chosen[0]
    rng = random.Random(f"{config.seed}:{epoch}:{first.query_id}:list")  # noqa: S311
    read = passages_read(lists, scores, positives, config.list_length, rng)
    masking = [record for record, epoch in chosen if is_masked(record, config, epoch)]
    texts = _texts(source.passages(read), positives, masking, config)
    return [
        _listed(example, record, of_record, texts, config)
        for example, record, of_record in zip(examples, records, scores, strict=True)
    ]


def teacher_scores(record: Record, config: TrainingConfig) -> list[float]:
    """The teacher's score of each of the record's candidates; a person's positive is ahead of all others."""
    judged = record.judged
    scores = list_scores(
        judged.cosines,
        judged.ql_scores,
        judged.rc_scores,
        judged_by=config.judged_by,
        retriever_weight=config.retriever_weight,
    )
    positive = judged.passage_ids.index(record.positive.passage_id)
    if judged.decided:
        scores = decided(scores, positive)
    scores[positive] += config.positive_bonus
    return scores


def _listed(
    example: Example, record: Record, scores: Sequence[float], texts: dict[UUID, str], config: TrainingConfig
) -> Example:
    of_passage = {
        passage_id: score
        for passage_id, score in zip(record.judged.passage_ids, scores, strict=True)
        if passage_id in texts
    }
    positive_id = record.positive.passage_id
    clearly_below = of_passage[positive_id] - config.near_positive
    below = [texts[each] for each, score in of_passage.items() if each != positive_id and score < clearly_below]
    return replace(
        example,
        positive=texts[positive_id],
        negatives=tuple(below) if config.hard_negatives else (),
        candidates=tuple(texts[each] for each in of_passage),
        list_scores=tuple(of_passage.values()),
    )


def _texts(
    passages: dict[UUID, Passage], positives: Collection[UUID], masking: Sequence[Record], config: TrainingConfig
) -> dict[UUID, str]:
    """Each passage as the encoder sees it, without copies of the queries of `masking` that list it.

    One of which nothing is left is not read, but a positive then stays whole.
    """
    listing: dict[UUID, list[str]] = {passage_id: [] for passage_id in passages}
    for record in masking:
        for passage_id in record.judged.passage_ids:
            if passage_id in passages:
                listing[passage_id].append(record.query_text)
    texts = {}
    for passage_id, passage in passages.items():
        title, text = passage.title, passage.text
        for query in listing[passage_id]:
            title, text = mask(title, copied_span(query, title)), mask(text, copied_span(query, text))
        if not (title or text) and passage_id in positives:
            title, text = passage.title, passage.text
        if title or text:
            texts[passage_id] = format_passage_text(config.prompts, title, text)
    return texts
