"""One step: from a batch of examples to the gradient of its loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from uuid import UUID

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from services.trainer.config import TrainingConfig
from services.trainer.encoder import tokenize
from services.trainer.grad_cache import backward
from services.trainer.loss import gecko_loss
from services.trainer.mixture import Example
from services.trainer.peers import ALONE, Peers
from services.trainer.prompts import put_before

# Tokens whose activations are held at once: on a CPU about what a batch of 32 pairs has; a GPU has room for more.
CPU_KEPT_TOKENS, GPU_KEPT_TOKENS = 4096, 65536


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
    before_targets = before.query if batch[0].symmetric else before.document
    targets = [*(example.positive for example in batch), *(text for example in batch for text in example.negatives)]
    token_ids = [
        *tokenize(model, [before.query + example.query for example in batch], config.query_max_len),
        *tokenize(model, [before_targets + text for text in targets], config.passage_max_len),
    ]
    share = peers.share_of(size)
    mine = [text for text, row in enumerate([*range(size), *range(size), *owners]) if row in share]
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

    kept = config.kept_tokens
    if kept is None:
        kept = CPU_KEPT_TOKENS if model.device.type == "cpu" else GPU_KEPT_TOKENS
    return backward(model, token_ids, loss_of, size, mine=mine, kept_tokens=kept, peers=peers)


def _numbered(values: Sequence[str | UUID], device: torch.device) -> Tensor:
    """One integer per value, (B,); equal values have equal ones."""
    number = {value: index for index, value in enumerate(dict.fromkeys(values))}
    return torch.tensor([number[value] for value in values], device=device)
