"""What the demo sets differently from the defaults, and why. Chosen on development queries, never on the test ones."""

from __future__ import annotations

from services.trainer.config import TrainingConfig
from shared.records import LabelPolicy, RunConfig


def run_config(seed: int, base: str) -> RunConfig:
    """Two queries a passage, for the corpus is small; the judge's labels, to be compared with the seed's."""
    return RunConfig(seed=seed, embedder=base, queries_per_passage=2, labels=LabelPolicy(positive="p_1"))


def training_config(seed: int, base: str) -> TrainingConfig:
    """As `fretwork train` without options."""
    return TrainingConfig(seed=seed, model_name_or_path=base)
