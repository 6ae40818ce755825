"""A folder that is in its place whole, or not at all, also when the machine loses its power."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def rename_durably(source: Path, target: Path) -> None:
    """Moves a folder into its place once all that is in it is on the disk; what stood there goes."""
    for path in [*source.rglob("*"), source]:
        _fsync(path)
    if target.exists():
        shutil.rmtree(target)
    source.rename(target)
    _fsync(target.parent)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
