"""An exported model in a real vLLM server against sentence-transformers in this process, by the model card's lines.

FRETWORK_TEST_VLLM_EMBED_URL    the server, http://127.0.0.1:8012/v1 for one
FRETWORK_TEST_VLLM_EMBED_MODEL  the exported folder that it serves

    python -m tests.unit.exported_model FOLDER
    vllm serve FOLDER --runner pooling --port 8012 --dtype float32
"""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from sentence_transformers import SentenceTransformer

from shared.text_format import format_passage
from tests.unit.exported_model import PASSAGES, QUERIES, lines_to_copy, run_lines
from tests.unit.test_loaders import SAME, cosines

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def url() -> str:
    named = os.environ.get("FRETWORK_TEST_VLLM_EMBED_URL")
    if named is None:
        pytest.skip("FRETWORK_TEST_VLLM_EMBED_URL names no vLLM server with an exported model")
    return named


@pytest.fixture(scope="module")
def folder() -> Path:
    named = os.environ.get("FRETWORK_TEST_VLLM_EMBED_MODEL")
    if named is None:
        pytest.skip("FRETWORK_TEST_VLLM_EMBED_MODEL does not say which folder the server holds")
    return Path(named)


@pytest.fixture(scope="module")
def dims(folder: Path) -> list[int]:
    found: list[int] = json.loads((folder / "config.json").read_text())["matryoshka_dimensions"]
    return found


def asked_by_the_card(folder: Path, dim: int) -> dict[str, Any]:
    """The request's body as the card's curl sends it."""
    words = shlex.split(lines_to_copy(folder, "curl", dim=dim))
    body: dict[str, Any] = json.loads(words[words.index("--data") + 1])
    return body


def embed(url: str, body: dict[str, Any]) -> list[list[float]]:
    with urlopen(f"{url}/models") as answer:
        served = json.load(answer)["data"][0]["id"]  # the folder, or whatever --served-model-name says
    request = Request(
        f"{url}/embeddings", json.dumps({**body, "model": served}).encode(), {"content-type": "application/json"}
    )
    with urlopen(request) as answer:
        return [each["embedding"] for each in json.load(answer)["data"]]


def test_the_cards_request_agrees_with_its_other_lines(url: str, folder: Path, dims: list[int]) -> None:
    for dim in dims:
        vectors = embed(url, asked_by_the_card(folder, dim))
        by_library = run_lines(lines_to_copy(folder, "SentenceTransformer", dim=dim))
        assert {len(vector) for vector in vectors} == {dim}
        assert cosines([*by_library["queries"], *by_library["passages"]], vectors).min() >= SAME


def test_awkward_texts_agree(url: str, folder: Path, dims: list[int]) -> None:
    model = SentenceTransformer(str(folder))
    prompt = model.prompts["query"] or ""
    passages = [format_passage("", passage) for passage in PASSAGES] if prompt else PASSAGES
    texts = [text for text in [*(prompt + query for query in QUERIES), *passages] if text]  # vLLM refuses an empty one
    for dim in (None, *dims):
        body = {**asked_by_the_card(folder, dims[0]), "input": texts, "dimensions": dim}
        vectors = embed(url, body)
        expected = model.encode(texts, prompt="", truncate_dim=dim)
        assert cosines(expected, vectors).min() >= SAME
        assert cosines(expected[1:], vectors[:-1]).max() < SAME


def test_another_dimension_is_refused(url: str, folder: Path, dims: list[int]) -> None:
    """That is what `matryoshka_dimensions` is in config.json for."""
    with pytest.raises(HTTPError) as refused:
        embed(url, {**asked_by_the_card(folder, dims[0]), "dimensions": dims[-1] + 1})
    with refused.value as answer:
        assert answer.code == 400
        assert str(dims[-1] + 1) in answer.read().decode()
