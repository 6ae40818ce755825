"""The settings of a training that more than one command takes, as options, with their defaults."""

from __future__ import annotations

from typing import Annotated

import typer

from services.trainer.config import Prompts, TrainingConfig

DEFAULTS = TrainingConfig()


def described(name: str) -> str:
    return TrainingConfig.model_fields[name].description or ""


ModelNameOrPath = Annotated[str, typer.Option(help=described("model_name_or_path"))]
LearningRate = Annotated[float, typer.Option(help=described("learning_rate"))]
NumTrainEpochs = Annotated[int, typer.Option(help=described("num_train_epochs"))]
BatchSize = Annotated[int, typer.Option(help=described("per_device_train_batch_size"))]
Temperature = Annotated[float | None, typer.Option(help=described("temperature"))]
MatryoshkaDims = Annotated[str | None, typer.Option(help=described("matryoshka_dims"))]
QueryMaxLen = Annotated[int, typer.Option(help=described("query_max_len"))]
PassageMaxLen = Annotated[int, typer.Option(help=described("passage_max_len"))]
PromptsOption = Annotated[Prompts, typer.Option(help=described("prompts"))]
Seed = Annotated[int, typer.Option(help=described("seed"))]
