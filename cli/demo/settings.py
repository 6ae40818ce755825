"""The demo's settings: those of every command without options."""

from __future__ import annotations

from services.trainer.config import TrainingConfig
from shared.records import RunConfig


def run_config(seed: int, base: str) -> RunConfig:
    """As `fretwork run start` without options, the teacher `offline`."""
    return RunConfig(seed=seed, embedder=base)


def training_config(seed: int, base: str) -> TrainingConfig:
    """As `fretwork train` without options."""
    return TrainingConfig(seed=seed, model_name_or_path=base)
