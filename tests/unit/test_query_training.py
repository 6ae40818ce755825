"""Training of the queries' encoder alone: passages stay the base's, in the gradient and in the folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sentence_transformers import SentenceTransformer

from services.trainer.config import BeirFolder, EvaluationConfig, TrainingConfig
from services.trainer.encoder import encode, load_model, ready_for_training, tokenize
from services.trainer.evaluate import evaluate
from services.trainer.fixed_passages import FixedPassages
from services.trainer.listwise import listwise_loss
from services.trainer.step import add_gradient
from services.trainer.train import train
from shared.errors import SettingError
from tests.unit.exported_model import lines_to_copy, run_lines
from tests.unit.test_grad_cache import WEIGHTS, assert_equal, examples
from tests.unit.test_train import config, records, run
from tests.unit.tiny_model import DIM

TEXTS = ["read file", "the path of a file", "open"]


def of_queries(base: str, **changes: Any) -> TrainingConfig:
    return config(base, **{"prompts": "own", "train": "queries", **changes})


@pytest.mark.parametrize("kept_tokens", [0, 10**6])
def test_the_gradient_is_that_of_the_queries(base: str, kept_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.trainer.encoder.autocast_dtype", lambda _: None)
    asked = of_queries(base, loss="listwise", kept_tokens=kept_tokens, query_max_len=16, temperature=0.05)
    model, batch = ready_for_training(load_model(base)), examples()
    loss = add_gradient(model, batch, asked, WEIGHTS, passages=FixedPassages(ready_for_training(load_model(base)), 48))
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}

    plain = ready_for_training(load_model(base))
    texts = list(dict.fromkeys(text for e in batch for text in (e.positive, *e.negatives, *e.candidates)))
    with torch.no_grad():
        passages = encode(ready_for_training(load_model(base)), tokenize(plain, texts, 48))
    width = max(len(example.candidates) for example in batch)
    members = torch.full((len(batch), width), -1)
    scores = torch.zeros(len(batch), width)
    for row, example in enumerate(batch):
        members[row, : len(example.candidates)] = torch.tensor([texts.index(text) for text in example.candidates])
        scores[row, : len(example.candidates)] = torch.tensor(example.list_scores)
    expected = listwise_loss(
        encode(plain, tokenize(plain, [example.query for example in batch], 16)),
        passages,
        members,
        scores,
        form="kl",
        temperature=0.05,
        teacher_temperature=0.2,
        weight_by_dim=WEIGHTS,
    )
    expected.backward()  # type: ignore[no-untyped-call]
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    assert_equal(found, {name: weight.grad for name, weight in plain.named_parameters() if weight.grad is not None})


def test_the_folder_has_the_tuned_encoder_for_queries_and_the_base_for_passages(base: str, tmp_path: Path) -> None:
    facts = train(of_queries(base, interpolation=1.0), records(), tmp_path)
    assert facts["last_loss"] < facts["first_loss"]
    both, of_base = SentenceTransformer(str(tmp_path / "model")), SentenceTransformer(base)
    as_it_is = of_base.encode(TEXTS, normalize_embeddings=True)
    assert both.encode_document(TEXTS) == pytest.approx(as_it_is, abs=1e-6)
    assert np.abs(both.encode_query(TEXTS) - as_it_is).max() > 1e-3
    alone = SentenceTransformer(str(tmp_path / "model" / "query"))
    assert alone.encode(TEXTS) == pytest.approx(both.encode_query(TEXTS), abs=1e-6)
    modules = json.loads((tmp_path / "model" / "query" / "modules.json").read_text())
    assert [module["type"].rsplit(".")[-1] for module in modules] == ["Transformer", "Pooling", "Dense", "Normalize"]
    found = run_lines(lines_to_copy(tmp_path / "model", "SentenceTransformer", dim=16))
    assert found["queries"].shape == (1, 16)
    assert f"**It is for an index of\n`{base}`'s vectors**" in (tmp_path / "model" / "README.md").read_text()


def test_it_is_measured_as_any_other(base: str, tmp_path: Path) -> None:
    train(of_queries(base), records(), tmp_path)
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": f"p{n}", "text": t}) + "\n" for n, t in enumerate(TEXTS))
    )
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "file path"}) + "\n")
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\tp1\t1\n")
    report = evaluate(EvaluationConfig(model=str(tmp_path / "model"), data=BeirFolder(path=str(folder)), baseline=base))
    assert set(report["dims"]) == {str(DIM), "16", "8"}


def test_resumes_to_the_same_weights(base: str, tmp_path: Path) -> None:
    whole = run(of_queries(base), tmp_path / "whole")
    before = run(of_queries(base), tmp_path / "1", stop_after=5)
    after = run(of_queries(base), tmp_path / "2", resume_from=tmp_path / "1")
    assert [p.loss for p in before[:4]] + [p.loss for p in after] == [p.loss for p in whole]
    resumed, undisturbed = (
        load_model(str(tmp_path / name / "model" / "query")).state_dict() for name in ("2", "whole")
    )
    assert all(torch.equal(resumed[name], weight) for name, weight in undisturbed.items())


def test_vectors_are_kept_within_their_bounds(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.trainer.fixed_passages.KEPT_BYTES", 4 * DIM * 3)
    encoded: list[str] = []

    def noting(model: Any, texts: list[str], most: int) -> Any:
        encoded.extend(texts)
        return tokenize(model, texts, most)

    monkeypatch.setattr("services.trainer.fixed_passages.tokenize", noting)
    passages = FixedPassages(ready_for_training(load_model(base)), 48)
    first = passages.vectors(["a", "file", "a"])
    assert torch.equal(first[0], first[2])
    assert torch.equal(passages.vectors(["file", "path"])[0], first[1])
    passages.vectors(["open", "file"])  # a fourth: the one that was not asked for longest goes
    passages.vectors(["path", "a"])
    assert encoded == ["a", "file", "path", "open", "a"]
    assert passages.vectors(["a", "file", "path", "open", "the"]).shape == (5, DIM)  # a batch may be larger


def test_what_cannot_work_is_refused(base: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="leave --prompts at own"):
        of_queries(base, prompts="gecko")
    train(of_queries(base), records(), tmp_path)
    with pytest.raises(SettingError, match="or the folder `query` in it"):
        ready_for_training(load_model(str(tmp_path / "model")))
