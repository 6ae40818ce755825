"""A folder that is in its place whole, or not at all, also when the machine loses its power."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def rename_durably(source: Path, target: Path) -> None:
    """Moves a folder into its place once all that is in it is on the disk; OSError where a full one stands there."""
    for path in [*source.rglob("*"), source]:
        _fsync(path)
    source.rename(target)
    _fsync(target.parent)


def replace_durably(source: Path, target: Path) -> None:
    """The same where an earlier attempt may have left something at `target`, which goes."""
    shutil.rmtree(target, ignore_errors=True)
    rename_durably(source, target)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
