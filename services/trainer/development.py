"""Development queries: a run's own records, held out, that choose how much of the tuned weights the model keeps.

The exported weights are share · tuned + (1 − share) · base (WiSE-FT, arXiv 2109.01903), the share the one that finds
the held-out records' positives best. A share of 0 is the base itself: the training did not help, and the card says so.
The base is also measured as it is, with its own prompts and read as far as its folder says, where the training has
others: it is what its users have now. The queries are synthetic, as those trained on are: they tell when a training
forgets, not whether its queries are like people's.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any
from uuid import UUID

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from services.trainer.config import Prompts, TrainingConfig
from services.trainer.encoder import encode, tokenize
from services.trainer.fret_records import Record, RecordSource, make_example
from services.trainer.prompts import leaves_prompts_out, of, put_before
from services.trainer.step import kept_tokens

MOST_QUERIES = 200
FEWEST_QUERIES = 20  # with fewer a share is chosen by chance: none are held out
MOST_PASSAGES = 1000
SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)


class Rest:
    """The records of a source without the first of them."""

    def __init__(self, source: RecordSource, held_out: Sequence[Record]) -> None:
        self._source, self._last = source, held_out[-1].query_id
        self._held_out = Counter(record.task_description for record in held_out)

    def count(self) -> int:
        return self._source.count() - self._held_out.total()

    def task_description(self) -> str:
        return self._source.task_description()

    def page(self, after: UUID | None, limit: int) -> list[Record]:
        return self._source.page(after or self._last, limit)

    def count_by_task(self, at_least: int) -> dict[str, int]:
        left = {task: count - self._held_out[task] for task, count in self._source.count_by_task(at_least).items()}
        return {task: count for task, count in left.items() if count >= at_least}

    def tasks(self, after: UUID | None, limit: int) -> list[tuple[UUID, str]]:
        return self._source.tasks(after or self._last, limit)

    def find(self, query_ids: Collection[UUID]) -> dict[UUID, Record]:
        return self._source.find(query_ids)


def hold_out(source: RecordSource) -> tuple[list[Record], RecordSource]:
    """A tenth of the records, at most MOST_QUERIES, and the rest of them; none where those would be too few.

    They are the first by query id. An id is a hash, so they are a sample of chance, and the same in every attempt.
    """
    size = min(MOST_QUERIES, source.count() // 10)
    if size < FEWEST_QUERIES:
        return [], source
    held_out = source.page(None, size)
    return held_out, Rest(source, held_out)


def choose_share(
    model: SentenceTransformer, base: Mapping[str, Tensor], held_out: Sequence[Record], config: TrainingConfig
) -> dict[str, Any]:
    """Leaves `model` with the best share of its tuned weights, and returns that share and each one's nDCG@10.

    Of equal ones the largest: what was learnt is not given away for nothing. Where none is better than the base as it
    is, `model` is that base, and "written" among what is returned holds what differs from `config`.

    Args:
        model: the tuned one.
        base: its weights before, by name, on the CPU.
    """
    tuned = copied(model)
    texts = _texts(held_out, config)
    found = {}
    for share in SHARES:
        mix(model, tuned, base, share)
        found[share] = _ndcg_at_10(model, *texts, config)
    best = max(SHARES, key=lambda share: (found[share], share))
    facts: dict[str, Any] = {
        "development_queries": len(held_out),
        "development_ndcg@10": {f"{share:g}": round(value, 4) for share, value in found.items()},
    }
    as_it_is = _of_the_base(model, config)
    if as_it_is:
        mix(model, tuned, base, 0.0)
        asked = config.model_copy(update=as_it_is)
        of_base = _ndcg_at_10(model, *_texts(held_out, asked), asked)
        facts["development_ndcg@10"]["base_as_it_is"] = round(of_base, 4)
        if (of_base, 0.0) >= (found[best], best):
            return {"interpolation": 0.0, "written": as_it_is, **facts}
    mix(model, tuned, base, best)
    return {"interpolation": best, **facts}


def _of_the_base(model: SentenceTransformer, config: TrainingConfig) -> dict[str, Any]:
    """What of `config` is not as the base has it: the prompts, the length that its folder reads passages to."""
    own = of(model)
    differs: dict[str, Any] = {}
    same = config.prompts == Prompts.OWN or (config.prompts == Prompts.GECKO and own.is_gecko)
    if not same and not leaves_prompts_out(model):
        differs["prompts"] = Prompts.OWN
    if config.passage_max_len > (model.max_seq_length or config.passage_max_len):
        differs["passage_max_len"] = model.max_seq_length
    return differs


def copied(model: SentenceTransformer) -> dict[str, Tensor]:
    """A copy of the weights by name, on the CPU: a GPU that trains has no room to spare."""
    return {name: weight.to("cpu", copy=True) for name, weight in model.state_dict().items()}


def mix(model: SentenceTransformer, tuned: Mapping[str, Tensor], base: Mapping[str, Tensor], share: float) -> None:
    """Gives `model` the weights share · tuned + (1 − share) · base, both of which lie on the CPU."""
    for name, weight in model.state_dict().items():
        if weight.is_floating_point():
            weight.copy_(base[name].lerp(tuned[name], share))


def _texts(held_out: Sequence[Record], config: TrainingConfig) -> tuple[list[str], list[str], list[int]]:
    """The queries, the passages to find among, each once, and which of them each query's positive is.

    Verbatim copies of a query are taken out of its own record's passages, as in training.
    """
    masked = config.model_copy(update={"mask_probability": 1.0, "hard_negatives": True})
    examples = [make_example(record, masked, epoch=0) for record in held_out]
    passages: dict[UUID, str] = {}
    for record, example in zip(held_out, examples, strict=True):
        passages.setdefault(record.positive.passage_id, example.positive)
    for record, example in zip(held_out, examples, strict=True):
        for negative, text in zip(record.negatives, example.negatives, strict=True):
            if len(passages) < MOST_PASSAGES:
                passages.setdefault(negative.passage_id, text)
    number = {passage_id: row for row, passage_id in enumerate(passages)}
    rows = [number[record.positive.passage_id] for record in held_out]
    return [example.query for example in examples], list(passages.values()), rows


@torch.inference_mode()
def _ndcg_at_10(
    model: SentenceTransformer,
    queries: Sequence[str],
    passages: Sequence[str],
    rows: Sequence[int],
    config: TrainingConfig,
) -> float:
    before = put_before(model, config)
    held = kept_tokens(model, config)
    asked = encode(model, tokenize(model, [before.query + text for text in queries], config.query_max_len), held)
    found = encode(model, tokenize(model, [before.document + text for text in passages], config.passage_max_len), held)
    scores = asked @ found.T  # (Q, N)
    own = scores.gather(1, torch.tensor(rows, device=scores.device)[:, None])
    # of equal scores the positive's comes last: a model to which all texts are alike finds nothing
    ranks = (scores >= own).sum(dim=1).tolist()
    return sum(1 / math.log2(rank + 1) for rank in ranks if rank <= 10) / len(queries)
