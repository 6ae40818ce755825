"""Fits a linear layer to the run's records: on the base's vectors, made once, by the training's own loss.

That takes seconds beside the encoder's minutes or hours, and moves nothing that the encoder knows (Search-Adaptor, Yoon
et al., arXiv 2310.08750). The temperature is fitted beside it: bases differ in how far apart their cosines are, and at
one that does not suit them the layer would learn to spread those before anything else.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from services.trainer.batch_loss import batch_loss, numbered_texts
from services.trainer.batching import batches
from services.trainer.config import TrainingConfig
from services.trainer.encoder import encode, tokenize
from services.trainer.fixed_passages import FixedPassages
from services.trainer.fret_records import Example, Position, RecordSource
from services.trainer.learning_rate import learning_rate_share
from services.trainer.lengths import measured_length
from services.trainer.prompts import put_before

QUERIES = 256  # a step's
MOST_QUERIES, MOST_PASSAGES = 16_384, 20_000  # read: what minutes are enough to encode
EPOCHS = 5  # more fit the queries and not the corpus
LEARNING_RATE, RATE_OF_TEMPERATURE, WARMUP = 2e-4, 1e-2, 0.1
TEXTS_AT_ONCE = 512  # encoded between two reports

OnTexts = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Texts:
    """All queries that were read, and all passages, each text once."""

    queries: Sequence[str]
    passages: Sequence[str]


def read_batches(source: RecordSource, config: TrainingConfig) -> tuple[list[list[Example]], Texts]:
    """The first batches of the records, as a training reads them but with whole passages, and all of their texts."""
    whole = {"per_device_train_batch_size": QUERIES, "mask_probability": 0.0, "num_train_epochs": 1}
    read: list[list[Example]] = []
    queries, passages = dict[str, None](), dict[str, None]()
    for batch, _ in batches(source, config.model_copy(update=whole), Position()):
        read.append(batch)
        queries |= dict.fromkeys(example.query for example in batch)
        passages |= dict.fromkeys(numbered_texts(batch))
        if len(queries) >= MOST_QUERIES or len(passages) >= MOST_PASSAGES:
            break
    return read, Texts(list(queries), list(passages))


@torch.no_grad()
def encoded(
    model: SentenceTransformer, texts: Texts, config: TrainingConfig, fixed: FixedPassages | None, on_texts: OnTexts
) -> tuple[Tensor, Tensor]:
    """The vectors of the queries (Q, D) and of the passages (P, D), on the model's device.

    Passages are read as far as the exported model reads them, within reason: that costs no gradients here.
    """
    before, total, done = put_before(model, config), len(texts.queries) + len(texts.passages), 0

    def vectors(written: Sequence[str], encode_some: Callable[[Sequence[str]], Tensor]) -> Tensor:
        nonlocal done
        parts = []
        for first in range(0, len(written), TEXTS_AT_ONCE):
            some = written[first : first + TEXTS_AT_ONCE]
            parts.append(encode_some(some))
            on_texts(done := done + len(some), total)
        return torch.cat(parts)

    def by_model(max_len: int) -> Callable[[Sequence[str]], Tensor]:
        return lambda some: encode(model, tokenize(model, some, max_len))

    queries = vectors([before.query + text for text in texts.queries], by_model(config.query_max_len))
    by = fixed.vectors if fixed else by_model(measured_length(model, config))
    return queries, vectors([before.document + text for text in texts.passages], by)


def fit(
    start: Tensor,
    queries: Tensor,
    passages: Tensor,
    read: Sequence[Sequence[Example]],
    texts: Texts,
    config: TrainingConfig,
    weight_by_dim: Mapping[int, float],
    *,
    queries_alone: bool,
) -> tuple[Tensor, Tensor]:
    """The weight W (D, D) that begins as `start`, v ↦ W v, and the temperature (1,), given or fitted.

    Args:
        queries: (Q, D), the vectors of `texts.queries`.
        passages: (P, D), those of `texts.passages`.
        queries_alone: passages are compared as they are.
    """
    row_of_query = {text: row for row, text in enumerate(texts.queries)}
    row_of_passage = {text: row for row, text in enumerate(texts.passages)}
    weight = start.clone().requires_grad_()
    log_temperature = torch.tensor([math.log(config.usual_temperature)], device=start.device)
    log_temperature.requires_grad_(config.temperature is None)
    rates = [(weight, LEARNING_RATE), (log_temperature, RATE_OF_TEMPERATURE)]
    optimizer = torch.optim.Adam([{"params": [each], "lr": rate} for each, rate in rates])
    total = EPOCHS * len(read)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_share(step, total, WARMUP))
    rng = random.Random(config.seed)  # noqa: S311
    for batch in (batch for _ in range(EPOCHS) for batch in rng.sample(read, len(read))):
        place = numbered_texts(batch)
        asked = queries[[row_of_query[example.query] for example in batch]] @ weight.T
        found = passages[[row_of_passage[text] for text in place]]
        embeddings = torch.cat([asked, found if queries_alone else found @ weight.T])
        of_rows = batch_loss(batch, place, config, weight_by_dim, start.device, log_temperature.exp())
        optimizer.zero_grad()
        of_rows(embeddings, slice(None)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return weight.detach(), log_temperature.detach().exp()
