"""The course of the learning rate."""

from __future__ import annotations


def learning_rate_share(step: int, total_steps: int, warmup_ratio: float) -> float:
    """The share of the full learning rate at a step, counted from 0: up to 1 in the warm-up, then down towards 0."""
    warmup_steps = round(warmup_ratio * total_steps)
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return max(total_steps - step, 1) / max(total_steps - warmup_steps, 1)
