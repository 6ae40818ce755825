"""Vectors on their principal axes: whole ones have the cosines that they had, and short ones keep the most there is."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid5

import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch.nn.functional import normalize

from services.trainer.axes import principal_axes, put_on_axes, rotation_of
from services.trainer.encoder import encode, load_model, ready_for_training, tokenize
from services.trainer.fret_records import Record
from services.trainer.peers import ALONE
from services.trainer.train import train
from shared.records import NAMESPACE
from tests.records_in_memory import Records
from tests.unit.test_train import config, records
from tests.unit.tiny_model import DIM


def embedded(model: SentenceTransformer, source: Records) -> torch.Tensor:
    texts = [record.positive.text for record in source.page(None, 100)]
    with torch.no_grad():
        return encode(model, tokenize(model, texts, 32))


def test_the_axes_are_orthonormal_and_the_first_hold_the_most() -> None:
    generator = torch.Generator().manual_seed(0)
    spread = torch.diag(torch.tensor([1.0, 5.0, 2.0, 0.1]))
    turn = torch.linalg.qr(torch.randn(4, 4, generator=generator))[0]
    vectors = torch.randn(500, 4, generator=generator) @ spread @ turn
    axes = principal_axes(vectors).float()
    assert torch.allclose(axes @ axes.T, torch.eye(4), atol=1e-6)
    held = (vectors @ axes.T).square().mean(0)
    assert held.tolist() == sorted(held.tolist(), reverse=True)
    assert abs(axes[0] @ turn[1]) > 0.99  # the direction with a spread of 5
    assert torch.equal(principal_axes(vectors), principal_axes(vectors.clone()))


def test_whole_vectors_keep_their_cosines_and_short_ones_gain(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.trainer.encoder.autocast_dtype", lambda _: None)
    source, asked = records(60), config(base, prompts="none")
    model = ready_for_training(load_model(base))
    before = embedded(model, source)
    assert put_on_axes(model, source, asked, ALONE)
    after = embedded(model, source)
    assert torch.allclose(after @ after.T, before @ before.T, atol=1e-5)
    assert not torch.allclose(after, before, atol=1e-2)

    def lost(vectors: torch.Tensor, dim: int) -> float:
        short = normalize(vectors[:, :dim])
        return (short @ short.T - before @ before.T).square().mean().item()

    assert lost(after, DIM // 4) < 0.5 * lost(before, DIM // 4)
    # a base that was trained here has a rotation: another is put into the same module
    assert put_on_axes(model, source, asked, ALONE)
    assert len(model) == 4
    assert torch.allclose(embedded(model, source).abs(), after.abs(), atol=1e-3)


def test_fewer_passages_than_dimensions_leave_the_model_as_it_is(base: str) -> None:
    model = ready_for_training(load_model(base))
    assert not put_on_axes(model, records(DIM - 1), config(base), ALONE)
    assert rotation_of(model) is None


def test_one_passage_many_times_is_one(base: str) -> None:
    (first,) = records().page(None, 1)
    repeated = [Record(uuid5(NAMESPACE, f"again {n}"), "t", "q", first.positive) for n in range(2 * DIM)]
    assert not put_on_axes(ready_for_training(load_model(base)), Records(repeated), config(base), ALONE)


def test_training_leaves_the_rotation_as_it_is_and_mixing_with_the_base_too(base: str, tmp_path: Path) -> None:
    model = ready_for_training(load_model(base))
    asked = config(base, interpolation=0.5)
    put_on_axes(model, records(), asked, ALONE)
    expected = rotation_of(model)
    train(asked, records(), tmp_path)
    trained = SentenceTransformer(str(tmp_path / "model"))
    found = rotation_of(trained)
    assert expected is not None
    assert found is not None
    assert torch.allclose(found.linear.weight, expected.linear.weight, atol=1e-6)
    train(config(base, principal_axes=False, interpolation=0.5), records(), tmp_path / "plain")
    assert rotation_of(SentenceTransformer(str(tmp_path / "plain" / "model"))) is None
