"""The loss against eq. 3 written out as loops, in float64: values and gradients."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from services.trainer.loss import gecko_loss

TEMPERATURE = 0.07
WEIGHTS = {8: 1.0, 5: 0.5, 2: 2.0}
B, D = 6, 8


def eq_3(
    queries: Tensor,
    positives: Tensor,
    negatives: Tensor,
    owners: list[int],
    query_ids: list[int],
    positive_ids: list[int],
    positive_texts: list[int],
    *,
    same_tower: bool,
    in_batch: bool = True,
    margin: float = math.inf,
    hardness: float = 0.0,
    spread_out: float = 0.0,
    left_out: frozenset[tuple[int, int]] = frozenset(),
) -> Tensor:
    """The batch's mean of L_i, one exponential at a time, summed over the dimensions."""

    def cosine(a: Tensor, b: Tensor, dim: int) -> Tensor:
        a, b = a[:dim], b[:dim]
        value: Tensor = torch.dot(a, b) / (a.norm() * b.norm())
        return value

    def e(a: Tensor, b: Tensor, dim: int) -> Tensor:
        return torch.exp(cosine(a, b, dim) / TEMPERATURE)

    total = torch.zeros((), dtype=torch.float64)
    for dim, weight in WEIGHTS.items():
        for i in range(B):
            own = e(queries[i], positives[i], dim)
            denominator = own
            nearest = cosine(queries[i], positives[i], dim).item() + margin
            for j in range(B):
                if j == i or query_ids[j] == query_ids[i] or positive_ids[j] == positive_ids[i]:
                    continue
                if query_ids[j] == positive_texts[i] or query_ids[i] == positive_texts[j]:
                    continue
                if in_batch and (i, j) not in left_out and cosine(queries[i], positives[j], dim) <= nearest:
                    denominator = denominator + e(queries[i], positives[j], dim)
                if same_tower and cosine(queries[i], queries[j], dim) <= nearest:
                    denominator = denominator + e(queries[i], queries[j], dim)
                for tower in (queries, positives):
                    total = total + weight * spread_out * cosine(tower[i], tower[j], dim) ** 2 / (B * (B - 1))
            for k, owner in enumerate(owners):
                if owner == i and cosine(queries[i], negatives[k], dim) <= nearest:
                    harder = math.exp(hardness * cosine(queries[i], negatives[k], dim).item())
                    denominator = denominator + harder * e(queries[i], negatives[k], dim)
            total = total - weight * torch.log(own / denominator) / B
    return total


DISTINCT = list(range(B))
OTHER_TEXTS = [B + n for n in DISTINCT]
CASES = {
    "pairs": ([], DISTINCT, DISTINCT, OTHER_TEXTS),
    "one negative each": (DISTINCT, DISTINCT, DISTINCT, OTHER_TEXTS),
    "none, one or two negatives": ([5, 0, 2, 0], DISTINCT, DISTINCT, OTHER_TEXTS),
    "equal positives": (DISTINCT, DISTINCT, [0, 1, 0, 3, 4, 0], OTHER_TEXTS),
    "equal queries": (DISTINCT, [0, 1, 1, 3, 4, 5], DISTINCT, OTHER_TEXTS),
    "both": (DISTINCT, [0, 1, 1, 3, 4, 5], [0, 1, 2, 3, 3, 0], OTHER_TEXTS),
    "a query is another's positive": (DISTINCT, DISTINCT, DISTINCT, [6, 0, 7, 5, 8, 9]),
    "a query is its own positive": (DISTINCT, DISTINCT, DISTINCT, [0, 7, 8, 9, 10, 11]),
}


ADDED: dict[str, dict[str, Any]] = {
    "as in the paper": {},
    "soft mask": {"margin": 0.1},
    "hardness": {"hardness": 5.0},
    "spread-out": {"spread_out": 0.7},
    "own negatives alone": {"in_batch": False},
    "left out": {"left_out": frozenset({(0, 2), (2, 0), (3, 3), (4, 1)})},  # its own positive always counts
    "all": {"margin": -0.1, "hardness": 2.0, "spread_out": 0.3},
}


@pytest.mark.parametrize(("case", "same_tower", "added"), list(product(CASES, (True, False), ADDED)))
def test_value_and_gradients_are_those_of_eq_3(case: str, same_tower: bool, added: str) -> None:
    owners, query_ids, positive_ids, positive_texts = CASES[case]
    generator = torch.Generator().manual_seed(1)
    queries, positives, negatives = (
        torch.randn(rows, D, dtype=torch.float64, generator=generator, requires_grad=True)
        for rows in (B, B, len(owners))
    )
    options = ADDED[added]
    parts = [
        gecko_loss(
            queries,
            positives,
            negatives,
            torch.tensor(owners, dtype=torch.long),
            torch.tensor(query_ids),
            torch.tensor(positive_ids),
            torch.tensor(positive_texts),
            temperature=TEMPERATURE,
            weight_by_dim=WEIGHTS,
            in_batch_negatives=options.get("in_batch", True),
            same_tower_negatives=same_tower,
            soft_mask_margin=options.get("margin"),
            hardness=options.get("hardness", 0.0),
            spread_out=options.get("spread_out", 0.0),
            left_out=torch.tensor([[(i, j) in options.get("left_out", ()) for j in DISTINCT] for i in DISTINCT]),
            rows=rows,
        )
        for rows in (slice(0, 1), slice(1, B))
    ]
    ours = parts[0] + parts[1]
    ids = (owners, query_ids, positive_ids, positive_texts)
    looped = eq_3(queries, positives, negatives, *ids, same_tower=same_tower, **options)
    assert ours.item() == pytest.approx(looped.item(), abs=1e-6)
    if not looped.requires_grad or (not owners and not same_tower and not options.get("in_batch", True)):
        return  # without any negative there is nothing to learn
    wanted = [of for of in (queries, positives, negatives) if len(of)]
    for got, expected in zip(
        torch.autograd.grad(ours, wanted, retain_graph=True), torch.autograd.grad(looped, wanted), strict=True
    ):
        assert torch.allclose(got, expected, rtol=0, atol=1e-6)
        assert got.abs().max() > 1e-3  # there is a gradient to compare


def test_another_querys_hard_negative_does_not_count() -> None:
    queries, positives = torch.eye(2), torch.eye(2)
    ids = torch.arange(2)

    def loss(owner: int) -> float:
        given = (queries, positives, queries[:1], torch.tensor([owner]), ids, ids, ids + 2)
        return gecko_loss(*given, temperature=1.0, weight_by_dim={2: 1.0}).item()

    # the negative is query 0 itself: as its own it weighs e^1, as query 1's only e^0
    own = (math.log((math.e + 2 + math.e) / math.e) + math.log((math.e + 2) / math.e)) / 2
    others = (math.log((math.e + 2) / math.e) + math.log((math.e + 3) / math.e)) / 2
    assert loss(0) == pytest.approx(own, abs=1e-6)
    assert loss(1) == pytest.approx(others, abs=1e-6)


def test_a_low_temperature_stays_finite() -> None:
    queries = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    ids = torch.arange(4)
    loss = gecko_loss(queries, -queries, queries, ids, ids, ids, ids + 4, temperature=1e-3, weight_by_dim={8: 1.0})
    (gradient,) = torch.autograd.grad(loss, queries)
    assert math.isfinite(loss.item())
    assert bool(torch.isfinite(gradient).all())


def test_a_batch_of_duplicates_has_nothing_to_tell_apart() -> None:
    embeddings, ids = torch.randn(3, 4), torch.zeros(3, dtype=torch.long)
    loss = gecko_loss(
        embeddings, embeddings, embeddings[:0], ids[:0], ids, ids, ids + 1, temperature=0.1, weight_by_dim={4: 1.0}
    )
    assert loss.item() == 0.0
