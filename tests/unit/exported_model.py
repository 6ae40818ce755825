"""A folder as the trainer exports it, and the lines that its model card gives to use it.

`python -m tests.unit.exported_model FOLDER` writes one for `vllm serve FOLDER --runner pooling`, made from
all-MiniLM-L6-v2: the tiny model's attention heads are smaller than vLLM's kernels take.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from services.trainer.lines_to_copy import FOLDER
from services.trainer.train import train
from shared.models import WHEEL_MODEL
from tests.unit.test_train import config, records

QUERIES = ["how to open a file", "sort", "lock a thread", "", "naïve zip? 'quoted' \"twice\""]
PASSAGES = ["open(path) returns a file object.", "Sort a list by key. " * 40, "a", "The lock of a thread."]


def export(base: str, folder: Path, prompts: str = "gecko", *, onnx: bool = False) -> Path:
    """Trains `base` for a few steps and returns `folder`, the exported model."""
    with tempfile.TemporaryDirectory() as work:
        train(config(base, prompts=prompts, onnx=onnx), records(), Path(work))
        shutil.move(Path(work) / "model", folder)
    return folder


def lines_to_copy(folder: Path, loader: str, *, dim: int | None = None) -> str:
    """The card's block of code that mentions `loader`, for this folder; with `dim` cut to so many dimensions.

    Raises ValueError where there is not one block alone.
    """
    card = (folder / "README.md").read_text()
    blocks: list[str] = re.findall(r"```\w+\n(.*?)```", card, re.DOTALL)
    (block,) = (block.replace(FOLDER, str(folder)) for block in blocks if loader in block)
    if dim is not None:
        full = max(json.loads((folder / "training.json").read_text())["dims"])
        block, cuts = re.subn(rf'(truncate_dim=|\[:, :|"dimensions": ){full}\b', rf"\g<1>{dim}", block)
        if cuts != 1:
            raise ValueError(f"the card's lines for {loader} do not say in one place how to cut vectors:\n{block}")
    return block


def run_lines(lines: str) -> dict[str, Any]:
    """What the lines leave behind, by name."""
    names: dict[str, Any] = {}
    exec(lines, names)  # noqa: S102 - the card's lines are what is tested
    return names


if __name__ == "__main__":
    export(WHEEL_MODEL, Path(sys.argv[1]))
