"""Bespoke Curator's LLM over the prompts of a JSON file, against an OpenAI-compatible server.

Runs in an environment of its own: python curator_generate.py BASE_URL PROMPTS.json [tuned]
Its limits per minute are set out of the way. Tuned, it may have as many requests in flight as the server takes.
"""

import importlib.util
import json
import os
import sys
import tempfile
from pathlib import Path

# the vocabulary that it counts with is otherwise downloaded; litellm, which it installs, brings it along
LITELLM = Path(importlib.util.find_spec("litellm").origin).parent
os.environ.update(
    TIKTOKEN_CACHE_DIR=str(LITELLM / "litellm_core_utils" / "tokenizers"),
    OPENAI_API_KEY="none",
    CURATOR_DISABLE_CACHE="1",
    CURATOR_CACHE_DIR=tempfile.mkdtemp(),
    TELEMETRY_ENABLED="0",
    HF_HUB_OFFLINE="1",
)

from bespokelabs import curator  # noqa: E402 - it reads its settings when it is imported


class Writer(curator.LLM):
    def prompt(self, row: dict) -> str:
        return row["prompt"]

    def parse(self, row: dict, response: str) -> dict:
        return {"text": response}


def main() -> None:
    base_url, prompts_file, *tuned = sys.argv[1:]
    with open(prompts_file) as file:
        data = [{"prompt": prompt} for prompt in json.load(file)]
    writer = Writer(
        model_name="stub",
        backend="openai",
        generation_params={"max_tokens": 160},
        backend_params={
            "base_url": base_url,
            "max_requests_per_minute": 1_000_000,
            "max_tokens_per_minute": 1_000_000_000,
            **({"max_concurrent_requests": 64} if tuned else {}),
            "max_retries": 1,
        },
    )
    made = writer(data)
    texts = [row["text"] for row in made.dataset if row["text"]]
    assert len(texts) == len(data), f"{len(texts)} of {len(data)} were generated"


if __name__ == "__main__":
    main()
