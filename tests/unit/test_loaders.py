"""One exported folder gives the same vectors by each of the loaders that its model card names, by the card's own lines.

vLLM's stand in tests/vllm/test_embeddings.py.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from sentence_transformers.sentence_transformer.modules.pooling import PoolingMode

from services.trainer.encoder import load_model, ready_for_training
from services.trainer.export import export_model
from shared.text_format import format_passage, format_query
from tests.unit.exported_model import PASSAGES, QUERIES, export, lines_to_copy, run_lines
from tests.unit.test_train import config
from tests.unit.tiny_model import DIM

SAME = 0.9999  # cosine
DIMS = [None, DIM, 16, 8]
FILES = ["modules.json", "1_Pooling/config.json", "sentence_bert_config.json"]
NAMED: dict[PoolingMode, str] = {"mean": "mean_tokens", "cls": "cls_token", "lasttoken": "lasttoken"}


@pytest.fixture(scope="module", params=["gecko", "none"])
def folder(request: pytest.FixtureRequest, base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(base, tmp_path_factory.mktemp(request.param) / "model", request.param)


def cosines(left: object, right: object) -> NDArray[np.float64]:
    """Row by row."""
    a, b = (np.asarray(each, dtype=np.float64) for each in (left, right))
    found: NDArray[np.float64] = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return found


@pytest.mark.parametrize("dim", DIMS)
def test_the_cards_lines_agree(folder: Path, dim: int | None, capsys: pytest.CaptureFixture[str]) -> None:
    by_library = run_lines(lines_to_copy(folder, "SentenceTransformer", dim=dim))
    by_hand = run_lines(lines_to_copy(folder, "AutoModel", dim=dim))
    vectors = by_hand["vectors"]
    assert vectors.shape == (2, dim or DIM)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(2), atol=1e-6)
    assert cosines([*by_library["queries"], *by_library["passages"]], vectors).min() >= SAME
    similarity, by_hand_similarity = (
        float(re.findall(r"-?\d\.\d+", line)[0]) for line in capsys.readouterr().out.splitlines()
    )
    assert similarity == pytest.approx(by_hand_similarity, abs=2e-4)  # printed with four digits


@pytest.mark.parametrize("dim", DIMS)
def test_awkward_texts_agree(folder: Path, dim: int | None, capsys: pytest.CaptureFixture[str]) -> None:
    """Empty, long beyond what the model reads, and with quotes: all in one padded batch."""
    gecko = bool(SentenceTransformer(str(folder)).prompts["query"])
    queries = [format_query("search result", query) for query in QUERIES] if gecko else QUERIES
    passages = [format_passage("", passage) for passage in PASSAGES] if gecko else PASSAGES
    lines, replaced = re.subn(
        r"texts = .*", lambda _: f"texts = {queries + passages!r}", lines_to_copy(folder, "AutoModel", dim=dim)
    )
    assert replaced == 1
    by_hand = run_lines(lines)
    assert by_hand["inputs"]["input_ids"].shape[1] == 64  # the long one is cut
    model = SentenceTransformer(str(folder), truncate_dim=dim)
    by_library = [*model.encode_query(QUERIES), *model.encode_document(PASSAGES)]
    assert cosines(by_library, by_hand["vectors"]).min() >= SAME
    assert cosines(by_library[1:], by_hand["vectors"][:-1]).max() < SAME  # which tells different texts apart


def test_a_task_with_quotes_in_it_breaks_no_line(base: str, tmp_path: Path) -> None:
    task = 'what\'s "the" file'
    model = ready_for_training(load_model(base))
    export_model(model, config(base), {"task_description": task}, dims=[DIM, 8], target=tmp_path / "model")
    texts = [f"task: {task} | query: how to open a file", "title: none | text: open(path) returns a file object."]
    assert run_lines(lines_to_copy(tmp_path / "model", "AutoModel"))["texts"] == texts
    body = lines_to_copy(tmp_path / "model", "curl").partition("--data '")[2]
    assert json.loads(body.rpartition("'")[0])["input"] == texts
    assert body.count("'") == 1


def test_the_card_gives_no_mean_for_a_base_that_takes_another(base: str, tmp_path: Path) -> None:
    modules = [Transformer(base), Pooling(DIM, pooling_mode="cls"), Normalize()]
    export_model(
        SentenceTransformer(modules=modules),
        config(base),
        {"task_description": "t"},
        dims=[DIM, 8],
        target=tmp_path / "model",
    )
    assert "AutoModel" not in (tmp_path / "model" / "README.md").read_text()
    run_lines(lines_to_copy(tmp_path / "model", "SentenceTransformer"))


@pytest.mark.parametrize("mode", ["mean", "cls", "lasttoken"])
def test_the_files_are_in_the_form_that_all_versions_read(base: str, tmp_path: Path, mode: PoolingMode) -> None:
    """docs/measurements.md says which other versions were tried by hand; the newest reads both forms."""
    model = SentenceTransformer(modules=[Transformer(base), Pooling(DIM, pooling_mode=mode), Normalize()])
    export_model(model, config(base), {"task_description": "t"}, dims=[DIM, 8], target=tmp_path / "model")
    files = {name: json.loads((tmp_path / "model" / name).read_text()) for name in FILES}
    kinds = [module["type"] for module in files["modules.json"]]
    assert kinds == [f"sentence_transformers.models.{kind}" for kind in ("Transformer", "Pooling", "Normalize")]
    pooling = files["1_Pooling/config.json"]
    assert pooling["word_embedding_dimension"] == DIM
    assert [key for key, value in pooling.items() if value is True] == [f"pooling_mode_{NAMED[mode]}", "include_prompt"]
    assert files["sentence_bert_config.json"] == {"max_seq_length": 64, "do_lower_case": False}
    read = SentenceTransformer(str(tmp_path / "model"))
    assert read.max_seq_length == 64
    assert cosines(read.encode(PASSAGES), model.encode(PASSAGES)).min() >= SAME


def test_what_the_older_form_has_no_words_for_stays_as_it_is(base: str, tmp_path: Path) -> None:
    modules = [Transformer(base), Pooling(DIM), Dense(DIM, DIM), Normalize()]
    model = SentenceTransformer(modules=modules)
    export_model(model, config(base), {"task_description": "t"}, dims=[DIM, 8], target=tmp_path / "model")
    assert cosines(SentenceTransformer(str(tmp_path / "model")).encode(PASSAGES), model.encode(PASSAGES)).min() >= SAME
