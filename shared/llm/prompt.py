"""How a passage stands in a few-shot prompt, be it of the generator or of the relabeler. Knows no LLM and no file."""

from __future__ import annotations

SEAM_TOKENS = 8  # texts may have a few tokens more when joined than apart: a seam can undo a merge


def passage_block(title: str, text: str) -> str:
    """A passage as it stands in a prompt: without blank lines, since these part the examples."""
    block = f"Passage: {text.strip()}"
    if title.strip():
        block = f"Title: {title.strip()}\n{block}"
    return "\n".join(line.rstrip() for line in block.splitlines() if line.strip())
