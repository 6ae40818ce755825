"""One step's gradient: the same whether activations are kept or computed again, and on two processes as on one."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid5

import pytest
import torch
from sentence_transformers import SentenceTransformer

from services.trainer import encoder, step
from services.trainer.config import TrainingConfig
from services.trainer.encoder import encode, load_model, ready_for_training, tokenize
from services.trainer.fret_records import Example
from services.trainer.grad_cache import backward
from services.trainer.listwise import listwise_loss
from services.trainer.loss import gecko_loss
from services.trainer.mixture_config import FretSource, Mixture
from services.trainer.peers import ALONE, Peers
from services.trainer.step import add_gradient
from services.trainer.train import train
from shared.errors import SettingError
from shared.records import NAMESPACE
from tests.unit.datasets_in_files import LABELLED, dataset_source, jsonl
from tests.unit.test_train import records
from tests.unit.tiny_model import DIM, WORDS

WEIGHTS = {DIM: 1.0, 8: 0.5}
EXAMPLES = 21  # no multiple of two processes


def config(base: str, **changes: object) -> TrainingConfig:
    values = {"model_name_or_path": base, "same_tower_negatives": True, "query_max_len": 16, "passage_max_len": 48}
    return TrainingConfig.model_validate({**values, **changes})


def examples() -> list[Example]:
    """Some with no negative, one or two; one positive twice."""
    rng = random.Random(0)  # noqa: S311

    def words(most: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(2, most)))

    made = [
        Example(
            words(8), positive := words(40), uuid5(NAMESPACE, positive), tuple(words(40) for _ in range(n % 3)), True
        )
        for n in range(EXAMPLES - 1)
    ]
    made.append(Example(words(8), made[0].positive, made[0].positive_id, (), True))
    return [_with_list(example, made, rng) for example in made]


def _with_list(example: Example, others: Sequence[Example], rng: random.Random) -> Example:
    """The example with its own passages and those of up to three others as its list; some have one passage alone."""
    shared = [other.positive for other in rng.sample(others, rng.randint(0, 3))]
    candidates = tuple(dict.fromkeys([example.positive, *example.negatives, *shared]))
    return replace(example, candidates=candidates, list_scores=tuple(rng.gauss(0, 1) for _ in candidates))


def gradient(base: str, peers: Peers = ALONE, **changes: object) -> tuple[float, dict[str, torch.Tensor]]:
    model = ready_for_training(load_model(base))
    loss = add_gradient(model, examples(), config(base, **changes), WEIGHTS, peers)
    return loss, {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def test_where_memory_runs_out_less_is_kept_from_then_on(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []

    def tight(*args: Any, kept_tokens: int, **rest: Any) -> float:
        kept.append(kept_tokens)
        if kept_tokens > 2500:
            raise torch.OutOfMemoryError
        return backward(*args, kept_tokens=kept_tokens, **rest)

    monkeypatch.setattr(step, "backward", tight)
    model = ready_for_training(load_model(base))
    loss, fitting = step.add_gradient_that_fits(model, examples(), config(base, kept_tokens=10_000), WEIGHTS)
    assert kept == [10_000, 5_000, 2_500]
    assert fitting == config(base, kept_tokens=2_500)
    monkeypatch.undo()
    assert loss == pytest.approx(gradient(base)[0], abs=1e-6)

    def full(*_: Any, **__: Any) -> float:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(step, "backward", full)
    with pytest.raises(SettingError, match=r"memory ran out: lower --passage-max-len, which is 48"):
        step.add_gradient_that_fits(model, examples(), config(base), WEIGHTS)
    with pytest.raises(SettingError, match=r"lower --kept-tokens, which is 8192 .*, then --passage-max-len"):
        step.add_gradient_that_fits(model, examples(), config(base), WEIGHTS, Peers(0, 2))


def test_both_sides_of_symmetric_data_are_cut_alike(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cut: list[int] = []

    def noting(*args: Any) -> list[list[int]]:
        cut.append(args[2])
        return tokenize(*args)

    monkeypatch.setattr(step, "tokenize", noting)
    model, batch = ready_for_training(load_model(base)), examples()
    step.add_gradient(model, batch, config(base), WEIGHTS)
    step.add_gradient(model, [replace(example, symmetric=True) for example in batch], config(base), WEIGHTS)
    assert cut == [16, 48, 48, 48]


def test_a_process_tokenizes_its_own_share_alone(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []

    def noting(model: Any, texts: Sequence[str], max_len: int) -> list[list[int]]:
        counts.append(len(texts))
        return tokenize(model, texts, max_len)

    monkeypatch.setattr(step, "tokenize", noting)
    monkeypatch.setattr(step, "backward", lambda *_, **__: 0.0)  # the other process is not there
    model, batch = ready_for_training(load_model(base)), examples()
    for rank in (0, 1):
        step.add_gradient(model, batch, config(base), WEIGHTS, Peers(rank, 2))
    texts = len({text for each in batch for text in (each.positive, *each.negatives, *each.candidates)})
    assert counts == [10, texts // 2, 11, texts - texts // 2]


def plain_gradient(base: str, loss: str = "both") -> tuple[float, dict[str, torch.Tensor]]:
    """All at once, and for the contrastive part each text as often as it stands there, by autograd alone."""
    model, batch, chosen = ready_for_training(load_model(base)), examples(), config(base, loss=loss)
    texts = [e.positive for e in batch] + [text for e in batch for text in e.negatives]
    listed = list(dict.fromkeys(text for e in batch for text in (e.positive, *e.negatives, *e.candidates)))
    queries = encode(model, tokenize(model, [e.query for e in batch], 16))
    positives, negatives = encode(model, tokenize(model, texts, 48)).tensor_split((EXAMPLES,))
    ids = [e.positive_id for e in batch]
    near = [[False] * EXAMPLES for _ in batch]
    for row, e in enumerate(batch):
        of_text = dict(zip(e.candidates, e.list_scores, strict=True))
        for column, other in enumerate(batch):
            score = of_text.get(other.positive)
            near[row][column] = score is not None and score >= of_text[e.positive] - chosen.near_positive
    contrastive = gecko_loss(
        queries,
        positives,
        negatives,
        torch.tensor([row for row, e in enumerate(batch) for _ in e.negatives]),
        torch.arange(EXAMPLES),
        torch.tensor([ids.index(id_) for id_ in ids]),
        torch.arange(EXAMPLES) + EXAMPLES,  # no positive is a query
        temperature=0.05,
        weight_by_dim=WEIGHTS,
        left_out=torch.tensor(near),
    )
    width = max(len(e.candidates) for e in batch)
    listwise = listwise_loss(
        queries,
        encode(model, tokenize(model, listed, 48)),
        torch.tensor([[*map(listed.index, e.candidates), *[-1] * (width - len(e.candidates))] for e in batch]),
        torch.tensor([[*e.list_scores, *[0.0] * (width - len(e.list_scores))] for e in batch]),
        form="kl",
        temperature=0.05,
        teacher_temperature=0.2,
        weight_by_dim=WEIGHTS,
    )
    total = {"contrastive": contrastive, "listwise": listwise, "both": listwise + 0.1 * contrastive}[loss]
    total.backward()  # type: ignore[no-untyped-call]
    return total.item(), {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    largest = max(weight.abs().max().item() for weight in other.values())
    assert set(one) >= set(other)
    for name, expected in other.items():
        assert (one[name] - expected).abs().max().item() <= 1e-5 * largest, name


@pytest.mark.parametrize("kept_tokens", [0, 300, 10**6])
@pytest.mark.parametrize("loss_rows", [4, 1024])
@pytest.mark.parametrize("chosen", ["contrastive", "listwise", "both"])
def test_it_is_autograds_however_much_is_kept(
    base: str, kept_tokens: int, loss_rows: int, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.trainer.grad_cache.LOSS_ROWS", loss_rows)
    monkeypatch.setattr("services.trainer.encoder.CPU_CHUNK_TOKENS", 128)  # many chunks
    monkeypatch.setattr("services.trainer.encoder.autocast_dtype", lambda _: None)  # exact, whatever the CPU has
    loss, found = gradient(base, kept_tokens=kept_tokens, loss=chosen)
    plain_loss, plain = plain_gradient(base, chosen)
    assert loss == pytest.approx(plain_loss, abs=1e-5)
    assert_equal(found, plain)


def trained(base: str, folder: Path, batch_size: int, peers: Peers = ALONE) -> list[float]:
    """The losses of a training on records with a hard negative each, and on texts with labels."""
    losses: list[float] = []
    labelled = dataset_source("classification", folder.parent / "labelled.jsonl")
    chosen = config(
        base,
        per_device_train_batch_size=batch_size,
        matryoshka_dims=(8,),
        interpolation=0.5,
        mixture=Mixture(sources=(FretSource(kind="fret"), labelled), max_steps=12),
    )
    train(chosen, records(), folder, peers=peers, on_progress=lambda progress: losses.append(progress.loss))
    return losses


def _one_of_two(rank: int, base: str, folder: Path) -> None:
    torch.set_num_threads(1)
    encoder.autocast_dtype = lambda device: None  # exact, whatever the CPU has
    loaded: list[str] = []

    def noting(name: str) -> SentenceTransformer:
        loaded.append(name)
        return load_model(name)

    pytest.MonkeyPatch().setattr("services.trainer.train.load_model", noting)  # this process ends with it
    peers = Peers.join(rank, 2, f"file://{folder}/meeting", "gloo")
    loss, found = gradient(base, peers, kept_tokens=200)
    losses = trained(base, folder / "together", 4, peers)
    torch.save((loss, found, losses, len(loaded)), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_have_the_gradients_and_the_model_of_one(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.trainer.encoder.autocast_dtype", lambda _: None)
    jsonl(tmp_path / "labelled.jsonl", LABELLED)
    spawn = multiprocessing.get_context("spawn")
    both = [spawn.Process(target=_one_of_two, args=(rank, base, tmp_path)) for rank in (0, 1)]
    for process in both:
        process.start()
    for process in both:
        process.join(300)
        assert process.exitcode == 0
    loss, alone = gradient(base)
    losses = trained(base, tmp_path / "alone", 8)
    weights = load_model(str(tmp_path / "alone" / "model")).state_dict()
    for rank in (0, 1):
        loss_of_rank, found, losses_of_rank, loaded = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert loss_of_rank == pytest.approx(loss, abs=1e-5)
        assert_equal(found, alone)
        assert losses_of_rank == pytest.approx(losses, abs=1e-5)
        assert loaded == 2 - rank  # the base, and for the one that interpolates with it once more
    assert_equal(load_model(str(tmp_path / "together" / "model")).state_dict(), weights)


@pytest.mark.parametrize(("rows", "size"), [(7, 2), (8, 3), (1, 2), (0, 1)])
def test_each_row_is_one_processs(rows: int, size: int) -> None:
    shares = [list(Peers(rank, size).share_of(rows)) for rank in range(size)]
    assert [row for share in shares for row in share] == list(range(rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(("kept_tokens", "largest"), [(0, 2048), (4096, 4096), (10**6, 65536)])
def test_on_a_gpu_no_chunk_is_larger_than_what_may_be_held(kept_tokens: int, largest: int) -> None:
    on_gpu: Any = SimpleNamespace(device=torch.device("cuda"))
    chunks = encoder.chunks_of(on_gpu, [[0] * 32] * 4096, kept_tokens)
    assert max(len(chunk) * 32 for chunk in chunks) == largest
    assert sum(map(len, chunks)) == 4096
