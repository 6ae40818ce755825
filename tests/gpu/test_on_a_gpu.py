"""Training and encoding on a real GPU, in bfloat16, against the same on the CPU in float32: `make test-gpu`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import BertConfig

from benchmarks.train import measured
from benchmarks.triplets import write_triplets
from services.trainer import encoder
from services.trainer.embed import embed
from services.trainer.encoder import autocast_dtype, encode, load_model, ready_for_training, tokenize
from services.trainer.step import add_gradient, add_gradient_that_fits
from tests.unit import test_grad_cache, test_train
from tests.unit.test_grad_cache import WEIGHTS, examples
from tests.unit.tiny_model import make_tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that this build of torch can use"),
]

NEAR = 0.01  # of losses of 5 to 9; bfloat16 moves the tiny model's by 1e-4


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_tiny_model(tmp_path_factory.mktemp("base"))


@pytest.fixture
def exact_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU may have bfloat16 too."""
    monkeypatch.setattr(encoder, "autocast_dtype", lambda device: None if device.type == "cpu" else torch.bfloat16)


def loaded(base: str, device: str) -> SentenceTransformer:
    return ready_for_training(load_model(base).to(device))


@pytest.mark.usefixtures("exact_cpu")
def test_a_steps_loss_and_gradient_are_the_cpus(base: str) -> None:
    assert autocast_dtype(torch.device("cuda")) == torch.bfloat16
    losses, gradients = [], []
    for device in ("cpu", "cuda"):
        model = loaded(base, device)
        losses.append(add_gradient(model, examples(), test_grad_cache.config(base), WEIGHTS))
        gradients.append(torch.cat([of.grad.flatten().cpu() for of in model.parameters() if of.grad is not None]))
    assert losses[1] == pytest.approx(losses[0], abs=NEAR)
    assert torch.cosine_similarity(gradients[0], gradients[1], dim=0) > 0.999


@pytest.mark.usefixtures("exact_cpu")
def test_vectors_are_the_cpus(base: str) -> None:
    texts = [example.positive for example in examples()]
    on_cpu, on_gpu = loaded(base, "cpu"), loaded(base, "cuda")
    expected = embed(on_cpu, on_cpu.encode, None, texts, lambda _: None)
    assert torch.allclose(embed(on_gpu, on_gpu.encode, None, texts, lambda _: None), expected, atol=1e-5)  # in float32
    with torch.no_grad():
        trained_with = encode(on_gpu, tokenize(on_gpu, texts, 64))
    assert (trained_with.cpu() - expected).abs().max() < 2**-8  # of bfloat16


def test_a_training_goes_on_from_a_checkpoint(base: str, tmp_path: Path) -> None:
    config = test_train.config(base)
    whole = test_train.run(config, tmp_path / "whole")
    test_train.run(config, tmp_path / "1", stop_after=5)
    after = test_train.run(config, tmp_path / "2", resume_from=tmp_path / "1")
    assert after[0].step == 5
    # a GPU adds up in any order, so near and not equal
    assert [p.loss for p in after] == pytest.approx([p.loss for p in whole[4:]], abs=NEAR)


@pytest.fixture
def limited() -> Iterator[Any]:
    """Lets torch have so many bytes of the GPU's memory, until the test ends."""
    total = torch.cuda.get_device_properties().total_memory
    yield lambda size: torch.cuda.set_per_process_memory_fraction(size / total)
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_where_memory_runs_out_half_is_kept(base: str, limited: Any) -> None:
    batch, everything = examples() * 40, 2**20
    peaks = {}
    for kept in (0, everything):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        model, config = loaded(base, "cuda"), test_grad_cache.config(base, kept_tokens=kept)
        loss, fitting = add_gradient_that_fits(model, batch, config, WEIGHTS)
        assert fitting == config
        peaks[kept] = torch.cuda.max_memory_reserved()
        del model
    torch.cuda.empty_cache()
    limited((peaks[0] + peaks[everything]) // 2)
    tight, fitting = add_gradient_that_fits(loaded(base, "cuda"), batch, config, WEIGHTS)
    assert fitting.kept_tokens is not None
    assert 0 < fitting.kept_tokens < everything
    assert tight == pytest.approx(loss, abs=NEAR)


@pytest.mark.parametrize("what", ["ours", "st:fast"])
def test_the_benchmark_runs_from_a_config(what: str, tmp_path: Path) -> None:
    write_triplets(tmp_path, 320, 200)
    form = tmp_path / "config.json"
    BertConfig(hidden_size=256, num_hidden_layers=2, num_attention_heads=4, intermediate_size=512).to_json_file(form)
    account = measured(what, tmp_path, Namespace(batch=16, max_len=64, model=form))
    assert account["device"] == torch.cuda.get_device_name()
    assert account["mfu"] is None or 0 <= account["mfu"] < 1
    assert 0 < account["peak_mb"] < torch.cuda.get_device_properties().total_memory / 2**20
