"""Writes the encoder once more as ONNX, to `onnx/model.onnx`: where the libraries look that run a folder without torch.

The graph is the transformer, from token ids to token vectors; pooling is its reader's business, as in theirs. The
projection (`projection.py`) is in it: it may come before a mean as well as after.
"""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense
from torch import Tensor, nn

from services.trainer.projection import projection_of
from shared.errors import SettingError

ONNX_FILE = Path("onnx", "model.onnx")
NEEDED = ("onnx", "onnxscript")


def check_can_write_onnx() -> None:
    """Raises SettingError where the packages are not there, so that no training ends with it."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise SettingError(
            f"--onnx needs {' and '.join(missing)}, which the trainer does not have: install the extra `onnx` there "
            "(pip install 'fretwork[onnx]'), or train without it"
        )


def write_onnx(model: SentenceTransformer, folder: Path) -> None:
    """Writes `folder/onnx/model.onnx`: the tokenizer's arrays, each `(B, L)` int64, to `last_hidden_state` `(B, L, D)`.

    B and L are free, the weights float32, the vectors those of the model.
    """
    file = folder / ONNX_FILE
    file.parent.mkdir(parents=True)
    transformer = model.transformers_model
    assert transformer is not None  # noqa: S101 - encoder.load_model refuses a model without one
    inputs = dict(model.tokenizer(["two texts", "of unlike length"], padding=True, return_tensors="pt"))
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of its exporter's inside
        torch.onnx.export(
            _TokenVectors(transformer, projection_of(model)).cpu().eval(),
            args=(),
            f=str(file),
            kwargs={"inputs": inputs},
            input_names=list(inputs),
            output_names=["last_hidden_state"],
            dynamic_shapes={"inputs": dict.fromkeys(inputs, free)},
            dynamo=True,
            external_data=False,
            verbose=False,
        )


class _TokenVectors(nn.Module):
    def __init__(self, transformer: nn.Module, projection: Dense | None) -> None:
        super().__init__()
        self.transformer = transformer
        self.projection = projection.linear if projection is not None else nn.Identity()

    def forward(self, inputs: dict[str, Tensor]) -> Any:
        return self.projection(self.transformer(**inputs).last_hidden_state)
