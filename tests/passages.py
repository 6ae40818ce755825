"""Passages of real prose for tests: the beginnings of Python's own help topics, which every installation has."""

from __future__ import annotations

import json
from pathlib import Path
from pydoc_data.topics import topics

CHARACTERS = 500


def write_corpus(path: Path, count: int, *, start: int = 0, mark: str = "") -> Path:
    """A .jsonl corpus of `count` topics from the `start`-th on, each text with `mark` as its first word."""
    chosen = sorted(topics)[start : start + count]
    assert len(chosen) == count
    lines = [
        {"_id": name, "title": name, "text": f"{mark} {' '.join(topics[name].split())[:CHARACTERS]}".strip()}
        for name in chosen
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
