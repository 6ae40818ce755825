"""One step: from a batch of examples to the gradient of its loss, in the memory that there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import structlog
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from services.trainer.batch_loss import batch_loss, numbered_texts
from services.trainer.config import TrainingConfig
from services.trainer.encoder import CPU_CHUNK_TOKENS, tokenize
from services.trainer.fixed_passages import FixedPassages
from services.trainer.fret_records import Example
from services.trainer.grad_cache import backward
from services.trainer.peers import ALONE, Peers
from services.trainer.prompts import put_before
from shared.errors import SettingError

# Tokens whose activations are held at once: on a CPU two thirds of 32 triplets of 128 tokens; a GPU has room for more.
CPU_KEPT_TOKENS, GPU_KEPT_TOKENS = 8192, 65536

log = structlog.get_logger()


def kept_tokens(model: SentenceTransformer, config: TrainingConfig) -> int:
    """Tokens whose activations are held at once: as configured, else what the model's device likes."""
    if config.kept_tokens is not None:
        return config.kept_tokens
    return CPU_KEPT_TOKENS if model.device.type == "cpu" else GPU_KEPT_TOKENS


def add_gradient_that_fits(
    model: SentenceTransformer,
    batch: Sequence[Example],
    config: TrainingConfig,
    weight_by_dim: Mapping[int, float],
    peers: Peers = ALONE,
    passages: FixedPassages | None = None,
) -> tuple[float, TrainingConfig]:
    """The same as `add_gradient`; where the GPU's memory runs out, once more with half as many tokens kept.

    Returns the configuration that did it, for the next step. How many are kept changes no result beyond rounding. Among
    several processes none can go back alone, for the others are in the middle of a sum.

    Raises SettingError where the least does not fit either, or where there are peers.
    """
    while True:
        kept = kept_tokens(model, config)
        try:
            return add_gradient(model, batch, config, weight_by_dim, peers, passages), config
        except torch.OutOfMemoryError as error:
            if peers.size > 1 or kept < CPU_CHUNK_TOKENS:
                raise out_of_memory(kept, config) from error
        # outside of the handler, whose traceback holds what did not fit
        model.zero_grad()
        torch.cuda.empty_cache()
        config = config.model_copy(update={"kept_tokens": kept // 2})
        log.warning("the GPU's memory ran out: fewer tokens are kept from now on", kept_tokens=config.kept_tokens)


def out_of_memory(kept: int, config: TrainingConfig) -> SettingError:
    """Says what to lower."""
    first = f"--kept-tokens, which is {kept} (0 holds least), then " if kept >= CPU_CHUNK_TOKENS else ""
    return SettingError(
        f"the GPU's memory ran out: lower {first}--passage-max-len, which is {config.passage_max_len}; the batch "
        f"size, {config.per_device_train_batch_size}, matters only above some ten thousand queries"
    )


def add_gradient(
    model: SentenceTransformer,
    batch: Sequence[Example],
    config: TrainingConfig,
    weight_by_dim: Mapping[int, float],
    peers: Peers = ALONE,
    passages: FixedPassages | None = None,
) -> float:
    """Adds the gradient of a batch's loss to the weights' and returns that loss; all peers call it with one batch.

    With `passages` they are encoded by those, and the gradient is that of the queries alone.
    """
    size = len(batch)
    before = put_before(model, config)
    symmetric = batch[0].symmetric  # both sides are written and cut alike
    before_targets = before.query if symmetric else before.document
    query_max_len = config.passage_max_len if symmetric else config.query_max_len
    place = numbered_texts(batch)  # each once: a passage may be a candidate of many queries
    targets = list(place)
    share, share_of_targets = peers.share_of(size), peers.share_of(len(targets))
    my_queries = [before.query + batch[row].query for row in share]
    my_targets = [before_targets + targets[index] for index in share_of_targets]
    token_ids = dict(zip(share, tokenize(model, my_queries, query_max_len), strict=True))
    of_texts = batch_loss(batch, place, config, weight_by_dim, model.device)
    kept = kept_tokens(model, config)
    if passages is None:
        of_targets = tokenize(model, my_targets, config.passage_max_len)
        token_ids |= {size + index: ids for index, ids in zip(share_of_targets, of_targets, strict=True)}
        return backward(model, token_ids, of_texts, size + len(targets), size, kept_tokens=kept, peers=peers)
    fixed = torch.zeros(len(targets), model.get_embedding_dimension() or 0, device=model.device)
    if my_targets:
        fixed[list(share_of_targets)] = passages.vectors(my_targets)
    peers.add_up(fixed)

    def of_queries(queries: Tensor, rows: slice) -> Tensor:
        return of_texts(torch.cat([queries, fixed]), rows)

    return backward(model, token_ids, of_queries, size, size, kept_tokens=kept, peers=peers)
