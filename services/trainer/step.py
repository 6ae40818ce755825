"""One step: from a batch of examples to the gradient of its loss, in the memory that there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from uuid import UUID

import structlog
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from services.trainer.config import TrainingConfig
from services.trainer.encoder import CPU_CHUNK_TOKENS, tokenize
from services.trainer.fret_records import Example
from services.trainer.grad_cache import backward
from services.trainer.loss import gecko_loss
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
) -> tuple[float, TrainingConfig]:
    """The same as `add_gradient`; where the GPU's memory runs out, once more with half as many tokens kept.

    Returns the configuration that did it, for the next step. How many are kept changes no result beyond rounding. Among
    several processes none can go back alone, for the others are in the middle of a sum.

    Raises SettingError where the least does not fit either, or where there are peers.
    """
    while True:
        kept = kept_tokens(model, config)
        try:
            return add_gradient(model, batch, config, weight_by_dim, peers), config
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
) -> float:
    """Adds the gradient of a batch's loss to the weights' and returns that loss; all peers call it with one batch."""
    size = len(batch)
    owners = [row for row, example in enumerate(batch) for _ in example.negatives]
    before = put_before(model, config)
    symmetric = batch[0].symmetric  # both sides are written and cut alike
    before_targets = before.query if symmetric else before.document
    query_max_len = config.passage_max_len if symmetric else config.query_max_len
    targets = [*(example.positive for example in batch), *(text for example in batch for text in example.negatives)]
    # a row's texts are one process's: its query, its positive and its negatives, in this order over the whole batch
    share = peers.share_of(size)
    mine = [text for text, row in enumerate([*range(size), *range(size), *owners]) if row in share]
    my_queries = [before.query + batch[row].query for row in share]
    my_targets = [before_targets + targets[text - size] for text in mine[len(share) :]]
    token_ids = [*tokenize(model, my_queries, query_max_len), *tokenize(model, my_targets, config.passage_max_len)]
    of_mine = dict(zip(mine, token_ids, strict=True))
    negative_owners = torch.tensor(owners, dtype=torch.long, device=model.device)
    towers = [*(example.query for example in batch), *(example.positive for example in batch)]
    query_ids, positive_texts = _numbered(towers, model.device).tensor_split(2)
    positive_ids = _numbered([example.positive_id for example in batch], model.device)

    def loss_of(embeddings: Tensor, rows: slice) -> Tensor:
        queries, positives, negatives = embeddings.tensor_split((size, 2 * size))
        return gecko_loss(
            queries,
            positives,
            negatives,
            negative_owners,
            query_ids,
            positive_ids,
            positive_texts,
            temperature=config.temperature,
            weight_by_dim=weight_by_dim,
            in_batch_negatives=batch[0].in_batch_negatives,
            same_tower_negatives=batch[0].same_tower_negatives,
            soft_mask_margin=config.soft_mask_margin,
            hardness=config.hardness,
            spread_out=config.spread_out,
            rows=rows,
        )

    kept = kept_tokens(model, config)
    return backward(model, of_mine, loss_of, size + len(targets), size, kept_tokens=kept, peers=peers)


def _numbered(values: Sequence[str | UUID], device: torch.device) -> Tensor:
    """One integer per value, (B,); equal values have equal ones."""
    number = {value: index for index, value in enumerate(dict.fromkeys(values))}
    return torch.tensor([number[value] for value in values], device=device)
