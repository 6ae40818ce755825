"""Development queries: a run's own records, held out, that choose how much of the tuned weights the model keeps.

The exported weights are share · tuned + (1 − share) · base (WiSE-FT, arXiv 2109.01903), the share the one of those up
to MOST_KEPT that finds the held-out records' positives best. At a share of 0 the encoder is the base's, behind the
projection: tuning it did not help, and the card says so. The base is also measured as it is, without the projection and
with its own prompts and length: it is what its users have now. Texts are read as far as the exported model reads them,
within reason. The queries are synthetic, as those trained on are: they tell when a training forgets, not whether its
queries are like people's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any
from uuid import UUID

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from services.trainer.config import Prompts, TrainingConfig
from services.trainer.encoder import encode, tokenize
from services.trainer.fixed_passages import FixedPassages
from services.trainer.fret_records import Record, RecordSource, format_passage_text, format_query_text
from services.trainer.lengths import exported_length, measured_length
from services.trainer.prompts import leaves_prompts_out, of, put_before
from services.trainer.step import kept_tokens
from shared.masking import copied_span, mask, mask_titles

MOST_QUERIES = 200
FEWEST_QUERIES = 20  # with fewer a share is chosen by chance: none are held out
MOST_PASSAGES = 1000
SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)
# Held-out queries are the teacher's, and speak for more of the training than people's queries do (docs/decisions.md):
# half of it is kept at most, as in WiSE-FT where no other data can tell
MOST_KEPT = 0.5


def hold_out(source: RecordSource) -> tuple[list[Record], RecordSource]:
    """A tenth of the records, at most MOST_QUERIES, and the rest of them; none where those would be too few.

    Records that share a positive go together, or a held-out query's positive would be trained on with another query.
    They are those with the positives of the first records by query id. An id is a hash, so they are a sample of chance,
    and the same in every attempt.
    """
    size = min(MOST_QUERIES, source.count() // 10)
    if size < FEWEST_QUERIES:
        return [], source
    of_the_first = list(dict.fromkeys(record.positive.passage_id for record in source.page(None, size)))
    counts = source.count_by_positive(of_the_first)
    positives, left = list[UUID](), size
    for passage_id in of_the_first:
        if counts[passage_id] <= left:
            positives.append(passage_id)
            left -= counts[passage_id]
    if size - left < FEWEST_QUERIES:
        return [], source
    return source.of_positives(positives), source.without_positives(positives)


def choose_share(
    model: SentenceTransformer,
    base: Mapping[str, Tensor],
    held_out: Sequence[Record],
    config: TrainingConfig,
    fixed: FixedPassages | None = None,
    without_projection: Mapping[str, Tensor] = MappingProxyType({}),
) -> dict[str, Any]:
    """Leaves `model` with the best share of its tuned weights, and returns that share and each one's nDCG@10.

    No share above MOST_KEPT is chosen; of equal ones the largest is: what was learnt is not given away for nothing.
    Where none is better than the base as it is, `model` is that base; "base_as_it_is" among what is returned says so,
    and "written" holds what differs from `config`.

    Args:
        model: the tuned one.
        base: its weights before, by name, on the CPU; the projection's are the same.
        fixed: what encodes the passages, where the queries' encoder alone is tuned.
        without_projection: what stands in its place in the base as it is.
    """
    tuned = copied(model)
    texts = search_task(held_out, config)
    found = {}
    for share in SHARES:
        mix(model, tuned, base, share)
        found[share] = _ndcg_at_10(model, *texts, config, fixed)
    best = max((share for share in SHARES if share <= MOST_KEPT), key=lambda share: (found[share], share))
    facts: dict[str, Any] = {
        "development_queries": len(held_out),
        "development_ndcg@10": {f"{share:g}": round(value, 4) for share, value in found.items()},
    }
    as_it_is = _of_the_base(model, config)
    if as_it_is or (as_it_is is not None and without_projection):
        mix(model, tuned, {**base, **without_projection}, 0.0)
        asked = config.model_copy(update=as_it_is)
        of_base = _ndcg_at_10(model, *search_task(held_out, asked), asked, fixed)
        facts["development_ndcg@10"]["base_as_it_is"] = round(of_base, 4)
        if (of_base, 0.0) >= (found[best], best):
            return {"interpolation": 0.0, "base_as_it_is": True, "written": as_it_is, **facts}
    mix(model, tuned, base, best)
    return {"interpolation": best, **facts}


def _of_the_base(model: SentenceTransformer, config: TrainingConfig) -> dict[str, Any] | None:
    """What of `config` is not as the base has it: the prompts, the length that its folder reads passages to.

    None where it cannot be measured as it is.
    """
    own = of(model)
    differs: dict[str, Any] = {}
    same = config.prompts == Prompts.OWN or (config.prompts == Prompts.GECKO and own.is_gecko)
    if not same:
        if leaves_prompts_out(model):
            return None
        differs["prompts"] = Prompts.OWN
    read = model.max_seq_length
    if read and exported_length(model, config) > read:
        differs |= {"passage_max_len": read, "query_max_len": min(config.query_max_len, read)}
    return differs


def copied(model: SentenceTransformer) -> dict[str, Tensor]:
    """A copy of the weights by name, on the CPU: a GPU that trains has no room to spare."""
    return {name: weight.to("cpu", copy=True) for name, weight in model.state_dict().items()}


def mix(model: SentenceTransformer, tuned: Mapping[str, Tensor], base: Mapping[str, Tensor], share: float) -> None:
    """Gives `model` the weights share · tuned + (1 − share) · base, both of which lie on the CPU."""
    for name, weight in model.state_dict().items():
        if weight.is_floating_point():
            weight.copy_(base[name].lerp(tuned[name], share))


def search_task(held_out: Sequence[Record], config: TrainingConfig) -> tuple[list[str], list[str], list[int]]:
    """The queries, the passages to find among, each once, and which of them each query's positive is.

    Verbatim copies of a query are taken out of its own record's passages, as in training.
    """
    positives = {record.positive.passage_id: record.positive for record in held_out}
    passages = dict(positives)
    for negative in (negative for record in held_out for negative in record.negatives):
        if len(passages) < MOST_PASSAGES:
            passages.setdefault(negative.passage_id, negative)
    for record in held_out:
        own = [
            passages[each.passage_id] for each in (record.positive, *record.negatives) if each.passage_id in passages
        ]
        titles = mask_titles(record.query_text, [passage.title for passage in own])
        for passage, title in zip(own, titles, strict=True):
            text = mask(passage.text, copied_span(record.query_text, passage.text))
            if title or text:
                passages[passage.passage_id] = replace(passage, title=title, text=text)
            elif passage.passage_id not in positives:
                del passages[passage.passage_id]
    number = {passage_id: row for row, passage_id in enumerate(passages)}
    queries = [format_query_text(config.prompts, each.task_description, each.query_text) for each in held_out]
    texts = [format_passage_text(config.prompts, passage.title, passage.text) for passage in passages.values()]
    return queries, texts, [number[record.positive.passage_id] for record in held_out]


@torch.inference_mode()
def _ndcg_at_10(
    model: SentenceTransformer,
    queries: Sequence[str],
    passages: Sequence[str],
    rows: Sequence[int],
    config: TrainingConfig,
    fixed: FixedPassages | None,
) -> float:
    before = put_before(model, config)
    held, length = kept_tokens(model, config), measured_length(model, config)
    asked = encode(model, tokenize(model, [before.query + text for text in queries], length), held)
    written = [before.document + text for text in passages]
    found = fixed.vectors(written) if fixed else encode(model, tokenize(model, written, length), held)
    scores = asked @ found.T  # (Q, N)
    own = scores.gather(1, torch.tensor(rows, device=scores.device)[:, None])
    # of equal scores the positive's comes last: a model to which all texts are alike finds nothing
    ranks = (scores >= own).sum(dim=1).tolist()
    return sum(1 / math.log2(rank + 1) for rank in ranks if rank <= 10) / len(queries)
