"""The encoder as ONNX gives the same vectors, by the model card's own lines and for batches of any shape."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer

from services.trainer.train import train
from shared.errors import SettingError
from tests.unit.exported_model import PASSAGES, QUERIES, export, lines_to_copy, run_lines
from tests.unit.test_train import config, records
from tests.unit.tiny_model import make_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = make_tiny_model(tmp_path_factory.mktemp("base"))
    return export(base, tmp_path_factory.mktemp("onnx") / "model", onnx=True)


def test_the_cards_lines_agree_with_the_librarys(folder: Path) -> None:
    by_library = run_lines(lines_to_copy(folder, "SentenceTransformer", dim=16))
    vectors = run_lines(lines_to_copy(folder, "onnxruntime", dim=16))["vectors"]
    expected = np.vstack([by_library["queries"], by_library["passages"]])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert vectors == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("texts", [QUERIES, PASSAGES, QUERIES[:1]])
def test_batches_of_any_shape(folder: Path, texts: list[str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    session = onnxruntime.InferenceSession(str(folder / "onnx" / "model.onnx"))
    inputs = dict(tokenizer(texts, padding=True, truncation=True, return_tensors="np"))
    (tokens,) = session.run(None, inputs)
    mask = inputs["attention_mask"][..., np.newaxis]
    vectors = (tokens * mask).sum(1) / mask.sum(1)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = SentenceTransformer(str(folder)).encode(texts, prompt="")
    assert vectors == pytest.approx(expected, abs=1e-5)


def test_without_the_packages_nothing_is_trained(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SettingError, match=r"fretwork\[onnx\]"):
        train(config(str(folder), onnx=True), records(), tmp_path)
    assert list(tmp_path.iterdir()) == []
