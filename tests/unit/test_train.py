"""Training a tiny real encoder: it learns, resumes to the same losses, refuses what cannot work, and exports."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from uuid import uuid5

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from torch.nn.functional import normalize
from transformers import AutoTokenizer, RobertaConfig, RobertaModel

from services.trainer.checkpoint import newest_checkpoint
from services.trainer.config import TrainingConfig
from services.trainer.encoder import chunk_by_length, encode, load_model, ready_for_training, tokenize
from services.trainer.fret_records import Record
from services.trainer.learning_rate import learning_rate_share
from services.trainer.lengths import longest_input, shares_cut
from services.trainer.mixture_config import FretSource, Mixture
from services.trainer.train import Progress, train
from shared.errors import NotFoundError, SettingError
from shared.records import NAMESPACE, Passage
from tests.records_in_memory import Records
from tests.unit.datasets_in_files import dataset_source, jsonl
from tests.unit.tiny_model import DIM, WORDS, make_tiny_model, with_max_seq_length


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def config(base: str, **changes: object) -> TrainingConfig:
    values = {
        "model_name_or_path": base,
        "per_device_train_batch_size": 8,
        "num_train_epochs": 2,
        "learning_rate": 2e-3,
        "prompts": "gecko",
        "same_tower_negatives": True,
        "matryoshka_dims": (16, 8),
        "query_max_len": 24,
        "passage_max_len": 32,
        "checkpoint_every_s": 0,
    }
    return TrainingConfig.model_validate({**values, **changes})


def records(count: int = 44) -> Records:
    """Each query is three words of its passage."""
    rng = random.Random(0)  # noqa: S311

    def passage() -> Passage:
        text = " ".join(rng.sample(WORDS, rng.randint(6, 20)))
        return Passage(uuid5(NAMESPACE, text), "", text)

    made = []
    for n in range(count):
        positive = passage()
        query = " ".join(rng.sample(positive.text.split(), 3))
        made.append(Record(uuid5(NAMESPACE, str(n)), "search result", query, positive, (passage(),), None, (None,)))
    return Records(made)


class StoppedError(Exception):
    """The process is gone."""


def run(
    config: TrainingConfig, work_dir: Path, stop_after: int | None = None, resume_from: Path | None = None
) -> list[Progress]:
    """The progress of each step; with `stop_after` the training ends there as if killed."""
    seen: list[Progress] = []

    def on_progress(progress: Progress) -> None:
        seen.append(progress)
        if progress.step == stop_after:
            raise StoppedError

    try:
        train(config, records(), work_dir, resume_from=[resume_from] if resume_from else [], on_progress=on_progress)
    except StoppedError:
        assert stop_after is not None
    return seen


def test_learns(base: str, tmp_path: Path) -> None:
    seen = run(config(base, num_train_epochs=8), tmp_path)
    assert [progress.step for progress in seen] == list(range(1, 49))
    assert {progress.total_steps for progress in seen} == {48}
    assert seen[-1].eta_s == 0
    first, last = (sum(progress.loss for progress in part) / 6 for part in (seen[:6], seen[-6:]))
    assert last < 0.8 * first


def test_resumes_to_the_same_losses_and_weights(base: str, tmp_path: Path) -> None:
    whole = run(config(base), tmp_path / "whole")
    before = run(config(base), tmp_path / "1", stop_after=5)
    (tmp_path / "1" / "unfinished-6").mkdir()  # what a kill in the middle of a checkpoint leaves
    after = run(config(base), tmp_path / "2", resume_from=tmp_path / "1")
    assert after[0].step == 5  # the 5th step's checkpoint was not written yet
    assert [p.loss for p in before[:4]] + [p.loss for p in after] == [p.loss for p in whole]
    resumed, undisturbed = (load_model(str(tmp_path / name / "model")).state_dict() for name in ("2", "whole"))
    assert all(torch.equal(resumed[name], weight) for name, weight in undisturbed.items())


def test_a_mixture_resumes_to_the_same_losses_and_weights(base: str, tmp_path: Path) -> None:
    labelled = [{"text": f"{word} {other}", "label": word} for word in WORDS[:5] for other in WORDS[5:9]]
    source = dataset_source("classification", jsonl(tmp_path / "labelled.jsonl", labelled), same_tower_negatives=False)
    mixed = config(base, mixture=Mixture(sources=(FretSource(kind="fret"), source)))
    whole = run(mixed, tmp_path / "whole")
    assert len(whole) == 2 * (6 + 6)  # FRet's and as many of the other
    before = run(mixed, tmp_path / "1", stop_after=8)
    (tmp_path / "labelled.jsonl").unlink()  # what the first attempt has read is kept
    after = run(mixed, tmp_path / "2", resume_from=tmp_path / "1")
    assert [p.loss for p in before[:7]] + [p.loss for p in after] == [p.loss for p in whole]
    resumed, undisturbed = (load_model(str(tmp_path / name / "model")).state_dict() for name in ("2", "whole"))
    assert all(torch.equal(resumed[name], weight) for name, weight in undisturbed.items())
    card = (tmp_path / "2" / "model" / "README.md").read_text()
    (row,) = (line for line in card.splitlines() if line.startswith("| classification |"))
    facts = json.loads((tmp_path / "2" / "model" / "training.json").read_text())
    batches = facts["sources"]["classification"]["batches"]
    assert row.endswith(f"| task of classification | 1.0 | {batches} | 20 | none |")
    assert batches + facts["sources"]["fret"]["batches"] == 24


def test_keeps_the_last_two_checkpoints(base: str, tmp_path: Path) -> None:
    run(config(base), tmp_path, stop_after=5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-3", "checkpoint-4"]
    assert newest_checkpoint([tmp_path, tmp_path / "missing"]) == tmp_path / "checkpoint-4"


def test_export_loads_in_sentence_transformers(base: str, tmp_path: Path) -> None:
    train(config(base), records(), tmp_path, about={"run": "demo-1"})
    folder = tmp_path / "model"
    model = SentenceTransformer(str(folder))
    assert model.prompts == {"query": "task: search result | query: ", "document": "title: none | text: "}
    assert model.similarity_fn_name == "cosine"
    query, passage = "read file", "the path of a file"
    by_hand = model.encode([f"task: search result | query: {query}", f"title: none | text: {passage}"])
    assert model.encode_query(query) == pytest.approx(by_hand[0], abs=1e-6)
    assert model.encode_document(passage) == pytest.approx(by_hand[1], abs=1e-6)
    assert (by_hand**2).sum(1) == pytest.approx(1, abs=1e-5)
    assert SentenceTransformer(str(folder), truncate_dim=8).encode(query).shape == (8,)
    stored = json.loads((folder / "config.json").read_text())
    assert (stored["is_matryoshka"], stored["matryoshka_dimensions"]) == (True, [DIM, 16, 8])
    assert {"modules.json", "1_Pooling", "2_Dense", "3_Normalize"} <= {path.name for path in folder.iterdir()}
    card = (folder / "README.md").read_text()
    assert "| run | demo-1 |" in card
    assert "| records | 44 |" in card
    assert "| learning_rate | 0.002 |" in card


def test_averages_the_weights_of_the_last_steps_also_when_it_resumes(base: str, tmp_path: Path) -> None:
    averaging = config(base, averaging=0.25, interpolation=1.0)
    run(averaging, tmp_path / "1", stop_after=11)  # of 12; the last three are averaged
    run(averaging, tmp_path / "2", resume_from=tmp_path / "1")
    found = load_model(str(tmp_path / "2" / "model")).state_dict()
    plain = config(base, interpolation=1.0)
    run(plain, tmp_path / "plain", stop_after=12)
    states = [  # a checkpoint holds the weights of its step
        torch.load(tmp_path / "plain" / f"checkpoint-{step}" / "state.pt", weights_only=True)["model"]
        for step in (10, 11)
    ]
    run(plain, tmp_path / "whole")
    states.append(load_model(str(tmp_path / "whole" / "model")).state_dict())
    for name, weight in found.items():
        if weight.is_floating_point():
            assert torch.allclose(weight, sum(state[name] for state in states) / 3, atol=1e-6), name


def test_an_average_of_less_than_a_step_is_the_last_steps_weights(base: str, tmp_path: Path) -> None:
    for name, averaging in (("averaged", 0.01), ("plain", 0.0)):
        train(config(base, averaging=averaging, interpolation=1.0), records(), tmp_path / name)
    averaged, plain = (load_model(str(tmp_path / name / "model")).state_dict() for name in ("averaged", "plain"))
    assert all(torch.equal(averaged[name], weight) for name, weight in plain.items())


def test_a_checkpoint_of_more_processes_is_refused(base: str, tmp_path: Path) -> None:
    run(config(base), tmp_path / "1", stop_after=3)
    stored = torch.load(tmp_path / "1" / "checkpoint-2" / "state.pt", weights_only=True)
    torch.save({**stored, "processes": 2}, tmp_path / "1" / "checkpoint-2" / "state.pt")
    with pytest.raises(SettingError, match="was written on 2 GPUs or processes, and this machine has 1"):
        run(config(base), tmp_path / "2", resume_from=tmp_path / "1")


def test_a_checkpoint_of_other_records_is_refused(base: str, tmp_path: Path) -> None:
    run(config(base), tmp_path / "1", stop_after=3)
    with pytest.raises(SettingError, match="is of a training on 44 records, and the run has 45 by now"):
        train(config(base), records(45), tmp_path / "2", resume_from=[tmp_path / "1"])


def test_a_base_of_half_precision_is_measured_and_trained_in_float32(base: str, tmp_path: Path) -> None:
    SentenceTransformer(base).to(torch.bfloat16).save_pretrained(str(tmp_path / "half"))
    assert {weight.dtype for weight in load_model(str(tmp_path / "half")).parameters()} == {torch.float32}


def test_a_bases_default_prompt_does_not_outlive_its_prompts(base: str, tmp_path: Path) -> None:
    prompted = SentenceTransformer(base, prompts={"retrieval": "find: "}, default_prompt_name="retrieval")
    prompted.save_pretrained(str(tmp_path / "base"))
    train(config(str(tmp_path / "base"), num_train_epochs=1), records(), tmp_path / "work")
    assert load_model(str(tmp_path / "work" / "model")).default_prompt_name is None


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_interpolates_with_the_base(base: str, tmp_path: Path, share: float) -> None:
    train(config(base), records(), tmp_path / "tuned")
    train(config(base, interpolation=share), records(), tmp_path / "between")
    start, tuned, between = (
        load_model(path).state_dict() for path in (base, str(tmp_path / "tuned/model"), str(tmp_path / "between/model"))
    )
    start["2.linear.weight"] = tuned["2.linear.weight"]  # the projection
    for name, weight in between.items():
        assert torch.allclose(weight, share * tuned[name] + (1 - share) * start[name], atol=1e-6)
    assert any(not torch.allclose(tuned[name], start[name], atol=1e-4) for name in start)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"matryoshka_dims": (64, 16)}, r"names \[64\], and .* has 32 dimensions"),
        ({"passage_max_len": 65}, "reads 64 tokens at most"),
    ],
)
def test_refuses_before_the_first_step_what_the_model_lacks(
    base: str, tmp_path: Path, changes: dict[str, object], says: str
) -> None:
    with pytest.raises(SettingError, match=says):
        run(config(base, **changes), tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_a_model_reads_as_far_as_it_was_trained_to(base: str, tmp_path: Path) -> None:
    """A folder's `max_seq_length` is where its authors cut; the positions behind it can be trained."""
    cut = with_max_seq_length(base, tmp_path / "cut", 16)
    facts = train(config(cut, passage_max_len=64), records(), tmp_path / "work")
    assert (facts["share_cut"], facts["longest_input"]) == (0, 64)
    trained = SentenceTransformer(str(tmp_path / "work/model"))
    assert trained.max_seq_length == 64
    near, far = trained.encode(["open " * 40 + "the file", "open " * 40 + "a lock"])
    assert abs(near - far).max() > 1e-3


def test_counts_the_passages_that_it_cuts(base: str, tmp_path: Path) -> None:
    texts = [record.positive.text for record in records().page(None, 100)]
    lengths = [len(ids) for ids in tokenize(load_model(base), texts, 64)]
    most = sorted(lengths)[len(lengths) // 2]  # as long as this one is not longer
    facts = train(config(base, prompts="none", passage_max_len=most), records(), tmp_path / "work")
    assert 0 < facts["share_cut"] < 0.6
    assert facts["share_cut"] == sum(length > most for length in lengths) / len(lengths)
    card = (tmp_path / "work/model/README.md").read_text()
    assert f"up to {most} tokens in training (about {facts['share_cut']:.0%} of the run's positives are longer)" in card


def test_counts_the_queries_that_it_cuts(base: str, tmp_path: Path) -> None:
    """A task description counts too: behind a long one nothing of the query may be left."""
    facts = train(config(base, query_max_len=6, passage_max_len=64), records(), tmp_path / "work")
    assert facts["share_of_queries_cut"] == 1
    card = (tmp_path / "work/model/README.md").read_text()
    assert "queries up to 6 (about 100% of the run's queries are longer)" in card
    assert train(config(base, prompts="none"), records(), tmp_path / "bare")["share_of_queries_cut"] == 0


def test_the_last_loss_is_of_a_whole_batch(base: str, tmp_path: Path) -> None:
    """One query alone, as the last batch here, has a loss of 0: nothing is left to tell it from."""
    wanted = config(base, num_train_epochs=1, hard_negatives=False, per_device_train_batch_size=8)
    assert train(wanted, records(17), tmp_path / "one")["last_loss"] > 0.1
    few = train(wanted.model_copy(update={"num_train_epochs": 3}), records(5), tmp_path / "few")
    assert few["last_loss"] != few["first_loss"]


def test_counts_nothing_where_the_records_are_not_trained_on(base: str, tmp_path: Path) -> None:
    pairs = dataset_source("pair", jsonl(tmp_path / "pairs.jsonl", [{"query": "open", "positive": "a file"}] * 8))
    wanted = config(base, passage_max_len=4)
    assert shares_cut(load_model(base), records(), wanted)["share_cut"] == 1
    without = wanted.model_copy(update={"mixture": Mixture(sources=(pairs,))})
    assert shares_cut(load_model(base), records(), without) == {}


def test_counts_positions_as_the_architecture_does(base: str, tmp_path: Path) -> None:
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path)
    sizes = {"vocab_size": 200, "hidden_size": DIM, "num_hidden_layers": 1, "num_attention_heads": 4}
    RobertaModel(RobertaConfig(**sizes, max_position_embeddings=42, pad_token_id=1)).save_pretrained(tmp_path)
    roberta = load_model(str(tmp_path))
    assert longest_input(roberta) == 40
    assert encode(roberta, [[5] * 40]).isfinite().all()
    with pytest.raises(RuntimeError, match="out of bounds"):
        encode(roberta, [[5] * 41])


def test_refuses_a_base_that_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"cannot be loaded.*name a SentenceTransformer folder"):
        run(config(str(tmp_path)), tmp_path / "work")


def test_refuses_a_base_without_a_pad_token_before_it_encodes_anything(tmp_path: Path) -> None:
    padless = make_tiny_model(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(padless)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(padless)
    with pytest.raises(SettingError, match=r"has no pad token.*name one in its tokenizer_config\.json"):
        load_model(padless)


def test_a_base_that_cuts_its_vectors_is_trained_whole(base: str, tmp_path: Path) -> None:
    SentenceTransformer(base, truncate_dim=20).save_pretrained(str(tmp_path / "base"))
    cut = config(str(tmp_path / "base"), num_train_epochs=1)
    assert train(cut, records(8), tmp_path / "work")["steps"] == 1
    assert SentenceTransformer(str(tmp_path / "work" / "model")).encode("sort").shape == (DIM,)


def test_refuses_before_the_first_step_a_base_whose_vectors_are_of_another_width(base: str, tmp_path: Path) -> None:
    wrong = SentenceTransformer(modules=[Transformer(base), Pooling(DIM // 2)])
    wrong.save_pretrained(str(tmp_path / "base"))
    with pytest.raises(SettingError, match=r"says that its vectors have 16 dimensions, and they have 32.*mend"):
        run(config(str(tmp_path / "base")), tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_refuses_to_train_on_nothing(base: str, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no records"):
        train(config(base), Records([]), tmp_path)


def test_refuses_the_checkpoint_of_another_configuration(base: str, tmp_path: Path) -> None:
    run(config(base), tmp_path, stop_after=3)
    with pytest.raises(SettingError, match="another configuration"):
        run(config(base, seed=1), tmp_path)


@pytest.mark.parametrize(
    ("changes", "step"),
    # the loss of the first is finite, its gradient is not; the second's first update is finite and too large
    [({"temperature": 1e-38}, 1), ({"learning_rate": 1e30}, 2)],
)
def test_a_training_that_diverges_ends_before_it_is_stored(
    base: str, tmp_path: Path, changes: dict[str, object], step: int
) -> None:
    with pytest.raises(SettingError, match=rf"diverged in step {step}: .*lower --learning-rate.*--temperature"):
        run(config(base, **changes), tmp_path)
    assert len(list(tmp_path.glob("checkpoint-*"))) == step - 1
    for checkpoint in tmp_path.glob("checkpoint-*"):
        stored = torch.load(checkpoint / "state.pt", weights_only=True)["model"]
        assert all(weight.isfinite().all() for weight in stored.values())


def test_learning_rate_rises_then_falls() -> None:
    shares = [learning_rate_share(step, 20, 0.2) for step in range(20)]
    assert shares[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert shares[4:] == sorted(shares[4:], reverse=True)
    assert 0 < shares[-1] < 0.1
    assert learning_rate_share(0, 1, 0.0) == 1.0


def test_encodes_what_sentence_transformers_does(base: str) -> None:
    model = load_model(base)
    texts = ["sort", "the sum of a list", "open", "read a line of the file then close the file", "lock"]
    with torch.no_grad():
        ours = encode(model, tokenize(model, texts, 64))
    theirs = model.encode(texts, convert_to_tensor=True)
    # bfloat16 where the CPU has it, so near and not equal
    assert torch.cosine_similarity(ours, theirs).min() > 0.999


def test_a_chat_template_is_left_out_of_training_evaluation_and_export(base: str, tmp_path: Path) -> None:
    chatty, saved = make_tiny_model(tmp_path / "chatty"), str(tmp_path / "saved")
    tokenizer = AutoTokenizer.from_pretrained(chatty)
    tokenizer.chat_template = "{% for message in messages %}task {{ message['content'] }} none{% endfor %}"
    tokenizer.save_pretrained(chatty)
    SentenceTransformer(chatty).save_pretrained(saved)  # now it says itself that texts stand in the template
    texts = ["sort", "the sum of a list", "read a line of the file then close the file"]
    written, bare = (torch.tensor(SentenceTransformer(name).encode(texts)) for name in (chatty, base))
    assert not torch.allclose(written, bare, atol=0.1)
    for name, measured in ((chatty, bare), (saved, written)):
        model = load_model(name)
        assert torch.allclose(torch.tensor(model.encode(texts)), measured, atol=1e-6)
        ready = ready_for_training(model)
        assert torch.allclose(torch.tensor(ready.encode(texts)), normalize(bare), atol=1e-6)
    train(config(chatty, num_train_epochs=1), records(8), tmp_path / "work")
    tuned = load_model(str(tmp_path / "work" / "model"))
    with torch.no_grad():
        ours = encode(tuned, tokenize(tuned, texts, 64))
    theirs = torch.tensor(SentenceTransformer(str(tmp_path / "work" / "model")).encode(texts, prompt=""))
    assert torch.cosine_similarity(ours, theirs).min() > 0.999


def test_chunks_hold_every_text_once_within_the_budget() -> None:
    rng = random.Random(0)  # noqa: S311
    lengths = [rng.randint(1, 60) for _ in range(100)]
    chunks = chunk_by_length(lengths, 128)
    assert sorted(chain.from_iterable(chunks)) == list(range(100))
    assert all(len(chunk) * max(lengths[index] for index in chunk) <= 128 for chunk in chunks)
    assert chunk_by_length([500, 3], 128) == [[0], [1]]
