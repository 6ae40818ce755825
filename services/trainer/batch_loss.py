"""A batch's loss as a function of its texts' embeddings: contrastive, listwise or both. No encoder here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from uuid import UUID

import torch
from torch import Tensor

from services.trainer.config import TrainingConfig
from services.trainer.fret_records import Example
from services.trainer.listwise import listwise_loss
from services.trainer.loss import gecko_loss

LossOfRows = Callable[[Tensor, slice], Tensor]
_Part = Callable[[Tensor, Tensor, slice], Tensor]  # from the queries' embeddings (B, D) and the texts' (N, D)


def batch_loss(
    batch: Sequence[Example],
    place: Mapping[str, int],
    config: TrainingConfig,
    weight_by_dim: Mapping[int, float],
    device: torch.device,
    temperature: float | Tensor | None = None,
) -> LossOfRows:
    """The loss of some of the batch's rows, from the embeddings (B + N, D): its queries', then its N other texts'.

    A batch without lists, as of a dataset that has none, is trained on contrastively whatever the configuration says.

    Args:
        place: of `numbered_texts`.
        temperature: in place of the configuration's.
    """
    temperature = config.usual_temperature if temperature is None else temperature
    lists = config.reads_lists and any(example.candidates for example in batch)
    weight = {"contrastive": 1.0, "listwise": 0.0, "both": config.contrastive_weight}[config.loss] if lists else 1.0
    contrastive = _contrastive(batch, place, config, weight_by_dim, temperature, device) if weight else None
    listwise = _listwise(batch, place, config, weight_by_dim, temperature, device) if lists else None

    def loss_of(embeddings: Tensor, rows: slice) -> Tensor:
        queries, texts = embeddings.tensor_split((len(batch),))
        loss = embeddings.new_zeros(())
        if listwise is not None:
            loss = loss + listwise(queries, texts, rows)
        if contrastive is not None:
            loss = loss + weight * contrastive(queries, texts, rows)
        return loss

    return loss_of


def _contrastive(
    batch: Sequence[Example],
    place: Mapping[str, int],
    config: TrainingConfig,
    weight_by_dim: Mapping[int, float],
    temperature: float | Tensor,
    device: torch.device,
) -> _Part:
    def tensor(numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=device)

    positives = tensor([place[example.positive] for example in batch])
    negatives = tensor([place[text] for example in batch for text in example.negatives])
    owners = tensor([row for row, example in enumerate(batch) for _ in example.negatives])
    towers = [*(example.query for example in batch), *(example.positive for example in batch)]
    query_ids, positive_texts = tensor(_numbered(towers)).tensor_split(2)
    positive_ids = tensor(_numbered([example.positive_id for example in batch]))
    left_out = _near_positives(batch, config).to(device)

    def loss_of(queries: Tensor, texts: Tensor, rows: slice) -> Tensor:
        return gecko_loss(
            queries,
            texts[positives],
            texts[negatives],
            owners,
            query_ids,
            positive_ids,
            positive_texts,
            temperature=temperature,
            weight_by_dim=weight_by_dim,
            in_batch_negatives=batch[0].in_batch_negatives,
            same_tower_negatives=batch[0].same_tower_negatives,
            soft_mask_margin=config.soft_mask_margin,
            hardness=config.hardness,
            spread_out=config.spread_out,
            left_out=left_out,
            rows=rows,
        )

    return loss_of


def _near_positives(batch: Sequence[Example], config: TrainingConfig) -> Tensor:
    """(B, B) booleans: whether the teacher scores the positive of query j near that of query i, for query i."""
    near = torch.zeros(len(batch), len(batch), dtype=torch.bool)
    for row, example in enumerate(batch):
        scores = dict(zip(example.candidates, example.list_scores, strict=True))
        if example.positive in scores:
            least = scores[example.positive] - config.near_positive
            near[row] = torch.tensor([scores.get(other.positive, -torch.inf) >= least for other in batch])
    return near


def _listwise(
    batch: Sequence[Example],
    place: Mapping[str, int],
    config: TrainingConfig,
    weight_by_dim: Mapping[int, float],
    temperature: float | Tensor,
    device: torch.device,
) -> _Part:
    size, width = len(batch), max(len(example.candidates) for example in batch)
    members = torch.full((size, width), -1)
    scores = torch.zeros(size, width)
    for row, example in enumerate(batch):
        members[row, : len(example.candidates)] = torch.tensor([place[text] for text in example.candidates])
        scores[row, : len(example.list_scores)] = torch.tensor(example.list_scores)
    members, scores = members.to(device), scores.to(device)

    def loss_of(queries: Tensor, texts: Tensor, rows: slice) -> Tensor:
        return listwise_loss(
            queries,
            texts,
            members,
            scores,
            form=config.list_loss,
            temperature=temperature,
            teacher_temperature=config.teacher_temperature,
            weight_by_dim=weight_by_dim,
            rows=rows,
        )

    return loss_of


def numbered_texts(batch: Sequence[Example]) -> dict[str, int]:
    """Each text that is a positive, a negative or a candidate, once, with its number from 0 on."""
    texts = (text for example in batch for text in (example.positive, *example.negatives, *example.candidates))
    return {text: number for number, text in enumerate(dict.fromkeys(texts))}


def _numbered(values: Sequence[str | UUID]) -> list[int]:
    """One integer per value; equal values have equal ones."""
    number = {value: index for index, value in enumerate(dict.fromkeys(values))}
    return [number[value] for value in values]
