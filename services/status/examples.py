"""An example of every answer, for OpenAPI. The figures in examples.json are made up; a test keeps its form right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

EXAMPLES: dict[str, Any] = json.loads((Path(__file__).parent / "examples.json").read_text())


def example(name: str, status: int = 200) -> dict[int | str, dict[str, Any]]:
    return {status: {"content": {"application/json": {"example": EXAMPLES[name]}}}}
