"""Checkpoints of a training: folders `checkpoint-{step}`, each there whole or not at all. Knows nothing of training.

A checkpoint is written beside its place, forced to the disk and renamed into place, so whatever moment the process or
the machine dies at, a folder of that name is complete.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from shared.durably import replace_durably

KEPT = 2
FULL_BYTES = 2**26  # a disk with less is full: a write that fails leaves what did not fit a block


def save_checkpoint(work_dir: Path, step: int, state: dict[str, Any]) -> None:
    """Writes `work_dir/checkpoint-{step}` and removes all but the last KEPT."""
    unfinished = work_dir / f"unfinished-{step}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        torch.save(state, unfinished / "state.pt")
    except RuntimeError as error:  # torch does not say why it could not write
        if shutil.disk_usage(work_dir).free < FULL_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(work_dir)) from error
        raise
    target = work_dir / f"checkpoint-{step}"
    replace_durably(unfinished, target)
    for _, old in _checkpoints(work_dir)[:-KEPT]:
        shutil.rmtree(old)


def newest_checkpoint(folders: Iterable[Path]) -> Path | None:
    """The complete checkpoint of the highest step in any of `folders`; of equals the one in the first folder."""
    found = [checkpoint for folder in folders for checkpoint in _checkpoints(folder)]
    return max(found, key=lambda checkpoint: checkpoint[0])[1] if found else None


def load_checkpoint(checkpoint: Path, device: torch.device) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(checkpoint / "state.pt", map_location=device, weights_only=True)
    return state


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, folder) in the order of steps."""
    if not folder.is_dir():
        return []
    named = ((re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in folder.iterdir())
    return sorted((int(name[1]), path) for name, path in named if name)
