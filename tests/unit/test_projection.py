"""The linear layer over a base's vectors: where it begins, what fitting it gains, and that training leaves it alone."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid5

import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch.nn.functional import normalize

from services.trainer.config import TrainingConfig
from services.trainer.encoder import encode, load_model, ready_for_training, tokenize
from services.trainer.fret_records import Example, Record
from services.trainer.peers import ALONE
from services.trainer.projection import (
    LEAST_MOMENT,
    SHRINKAGE,
    Projection,
    add_projection,
    principal_axes,
    projection_of,
    whitened,
)
from services.trainer.projection_fit import Texts, fit
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


def added(model: SentenceTransformer, source: Records, base: str, **changes: object) -> Projection:
    return add_projection(model, source, config(base, prompts="none", **changes), {DIM: 1.0}, ALONE)


def test_the_largest_axes_are_shrunk_and_an_empty_one_is_not_blown_up() -> None:
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([4.0, 2.0, 1.0, 1e-9])
    vectors = torch.randn(20_000, 4, generator=generator) * spread
    scales = whitened(vectors, torch.eye(4)).diagonal()
    assert scales.square().mean().item() == pytest.approx(1, abs=1e-5)
    assert (scales[1] / scales[0]).item() == pytest.approx(4**SHRINKAGE, rel=0.01)
    assert (scales[2] / scales[0]).item() == pytest.approx(16**SHRINKAGE, rel=0.01)
    least = LEAST_MOMENT * (16 + 4 + 1) / 4
    assert (scales[3] / scales[2]).item() == pytest.approx(least**-SHRINKAGE, rel=0.01)


@pytest.mark.parametrize("given", [None, 0.3])
def test_fitting_finds_what_the_base_has_turned_away(given: float | None) -> None:
    """The queries lie where their passages do, but for a turn that the layer of the queries has to undo."""
    generator = torch.Generator().manual_seed(0)
    passages = normalize(torch.randn(512, 8, generator=generator))
    turn = torch.linalg.qr(torch.randn(8, 8, generator=generator))[0]
    noise = 0.05 * torch.randn(512, 8, generator=generator)
    queries = normalize(passages @ turn + noise)
    texts = Texts([f"query {n}" for n in range(512)], [f"passage {n}" for n in range(512)])
    ids = [uuid5(NAMESPACE, text) for text in texts.passages]
    made = [
        Example(query, passage, id_, (), same_tower_negatives=False)
        for query, passage, id_ in zip(texts.queries, texts.passages, ids, strict=True)
    ]
    read = [made[first : first + 16] for first in range(0, 512, 16)] * 4  # a batch may come again
    asked = TrainingConfig(loss="contrastive", temperature=given)
    start = torch.eye(8)
    weight, temperature = fit(start, queries, passages, read, texts, asked, {8: 1.0}, queries_alone=True)

    def lost(weight: torch.Tensor) -> float:
        return (1 - (normalize(queries @ weight.T) * passages).sum(1)).mean().item()

    assert lost(weight) < lost(start) - 0.02
    assert torch.equal(start, torch.eye(8))
    assert (temperature.item() == pytest.approx(0.3)) == (given is not None)


def test_the_base_without_it_has_the_cosines_that_it_had_and_short_vectors_gain(
    base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.trainer.encoder.autocast_dtype", lambda _: None)
    source = records(60)
    model = ready_for_training(load_model(base))
    before = embedded(model, source)
    ((name, without),) = added(model, source, base).without.items()
    fitted = embedded(model, source)
    assert not torch.allclose(fitted @ fitted.T, before @ before.T, atol=1e-2)

    model.load_state_dict({**model.state_dict(), name: without})
    after = embedded(model, source)
    assert torch.allclose(after @ after.T, before @ before.T, atol=1e-5)

    def lost(vectors: torch.Tensor, dim: int) -> float:
        short = normalize(vectors[:, :dim])
        return (short @ short.T - before @ before.T).square().mean().item()

    assert lost(after, DIM // 4) < 0.75 * lost(before, DIM // 4)
    # a base that was trained here has the layer: another is put into the same module
    added(model, source, base)
    assert len(model) == 4
    assert torch.allclose(embedded(model, source).abs(), fitted.abs(), atol=5e-3)


def test_fewer_passages_than_dimensions_leave_the_model_as_it_is(base: str) -> None:
    model = ready_for_training(load_model(base))
    assert added(model, records((DIM - 1) // 2), base) == Projection(0.05, {})
    assert projection_of(model) is None


def test_one_passage_many_times_is_one(base: str) -> None:
    (first,) = records().page(None, 1)
    repeated = [Record(uuid5(NAMESPACE, f"again {n}"), "t", "q", first.positive) for n in range(2 * DIM)]
    assert not added(ready_for_training(load_model(base)), Records(repeated), base).without


def test_it_tells_how_many_texts_are_encoded(base: str) -> None:
    told: list[tuple[int, int]] = []
    asked, model = config(base, prompts="none"), ready_for_training(load_model(base))
    add_projection(model, records(60), asked, {DIM: 1.0}, ALONE, on_texts=lambda *texts: told.append(texts))
    assert told == [(60, 180), (180, 180)]  # the queries, then positives and negatives


def test_training_leaves_it_as_it_is_and_mixing_with_the_base_too(base: str, tmp_path: Path) -> None:
    facts = train(config(base, interpolation=1.0), records(), tmp_path / "whole")
    mixed = train(config(base, interpolation=0.5), records(), tmp_path / "half")
    one, other = (projection_of(SentenceTransformer(each["model_dir"])) for each in (facts, mixed))
    assert one is not None
    assert other is not None
    assert torch.equal(one.linear.weight, other.linear.weight)
    assert facts["projection"] is True
    assert facts["temperature"] == mixed["temperature"] != 0.05
    plain = train(config(base, projection=False, interpolation=0.5), records(), tmp_path / "plain")
    assert projection_of(SentenceTransformer(plain["model_dir"])) is None
    assert plain["temperature"] == 0.05
    assert "projection" not in plain
