"""One training, or one encoding, for `benchmarks.train`: a process of its own, which prints its account as JSON.

python -m benchmarks.trainers ours|st:SETTINGS|encode FOLDER

A `--model` that ends with .json is a transformers config: a model of its form, with random weights and
all-MiniLM-L6-v2's tokenizer, for speed and memory where no weights can be had.

On a GPU `peak_mb` is its memory and `mfu` the share of its peak dense bfloat16 FLOP/s: 6 · the weights that are no
embeddings · the tokens that are no padding a second. GradCache's second forward pass is no useful work and not counted,
nor is attention's product of all tokens with all.

Settings of sentence-transformers' trainer: `default`; `fast`, in bfloat16 where the processor has it, as Fretwork's
trainer is; and then `uncached`, without GradCache, `eager`, with the attention that is fastest to train with on a CPU,
and `nodropout`, which takes a quarter less time, and which Fretwork's trainer does without.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.losses import (
    CachedMultipleNegativesRankingLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)
from transformers import AutoConfig, AutoModel, AutoTokenizer

from benchmarks.triplets import Triplet, read_triplets, records_of
from services.trainer import prompts
from services.trainer.beir import read_beir
from services.trainer.config import TrainingConfig
from services.trainer.embed import embed
from services.trainer.encoder import autocast_dtype, load_model, tokenize
from services.trainer.retrieval import Retrieval
from services.trainer.train import train
from shared.models import WHEEL_MODEL, resolve_model
from tests.records_in_memory import Records

DIMS = (256, 128, 64)  # beside the model's full one
# FLOP/s, dense, in bfloat16, by the name that CUDA has for the device
PEAK_FLOPS = {
    "NVIDIA H100 80GB HBM3": 989e12,  # SXM
    "NVIDIA H200": 989e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
}
HELD_OUT = 256
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--max-len", type=int, required=True)
    given = parser.parse_args()
    given.model = base(given.model, given.folder / "base")
    triplets = read_triplets(given.folder / "triplets.jsonl")
    used, held_out = triplets[:-HELD_OUT], triplets[-HELD_OUT:]
    if given.what == "encode":
        account: dict[str, Any] = encoding(given.model, given.folder)
    else:
        with tempfile.TemporaryDirectory(prefix="fretwork-bench-") as work:
            if given.what == "ours":
                model, seconds = ours(used, given, Path(work))
            else:
                model, seconds = theirs(used, given, Path(work), given.what.removeprefix("st:"))
        account = {"triplets_per_s": len(used) / seconds, "seconds": seconds, "peak_mb": peak_mb(model.device)}
        if model.device.type == "cuda":
            device = torch.cuda.get_device_name()
            account |= {"device": device, "mfu": mfu(model, used, seconds, given.max_len, device)}
        account |= {"heldout_loss": loss(model, held_out), "ndcg@10": ndcg(model, given.folder)}
    rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in account.items()}
    sys.stdout.write(json.dumps(rounded) + "\n")


def base(model: str, folder: Path) -> str:
    """The model to start from; of a config, what is made in `folder`, once for all processes that are given it."""
    if not model.endswith(".json"):
        return model
    if not folder.exists():
        torch.manual_seed(SEED)
        form = AutoConfig.from_pretrained(model)
        AutoModel.from_config(form, dtype=torch.float32).save_pretrained(folder)
        AutoTokenizer.from_pretrained(resolve_model(WHEEL_MODEL)).save_pretrained(folder)
    return str(folder)


def peak_mb(device: torch.device) -> float:
    """The most memory so far, in MiB: on a GPU what was allocated there, else what the process had resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def mfu(
    model: SentenceTransformer, triplets: Sequence[Triplet], seconds: float, max_len: int, device: str
) -> float | None:
    """The share of the device's peak FLOP/s that one pass over the triplets reached; None where that is not known."""
    if device not in PEAK_FLOPS:
        return None
    embeddings = sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Embedding))
    weights = sum(weight.numel() for weight in model.parameters()) - embeddings
    tokens = sum(map(len, tokenize(model, list(chain.from_iterable(triplets)), max_len)))
    return 6 * weights * tokens / seconds / PEAK_FLOPS[device]


def ours(triplets: Sequence[Triplet], given: argparse.Namespace, work: Path) -> tuple[SentenceTransformer, float]:
    config = TrainingConfig(
        model_name_or_path=given.model,
        per_device_train_batch_size=given.batch,
        query_max_len=given.max_len,
        passage_max_len=given.max_len,
        matryoshka_dims=DIMS,
        interpolation=1.0,
        seed=SEED,
    )
    rates: list[float] = []  # a training's own account has tenths of seconds, too coarse for a GPU
    facts = train(config, Records(records_of(triplets)), work, on_progress=lambda at: rates.append(at.examples_per_s))
    return load_model(facts["model_dir"]), len(triplets) / rates[-1]


def theirs(
    triplets: Sequence[Triplet], given: argparse.Namespace, work: Path, settings: str
) -> tuple[SentenceTransformer, float]:
    asked = TrainingConfig()
    kinds: dict[str, Any] = {"model_kwargs": {"attn_implementation": "eager"}} if "eager" in settings else {}
    if "nodropout" in settings:
        kinds["config_kwargs"] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = SentenceTransformer(resolve_model(given.model), **kinds)
    model.max_seq_length = given.max_len
    dims = sorted({model.get_embedding_dimension(), *DIMS}, reverse=True)
    kind = MultipleNegativesRankingLoss if "uncached" in settings else CachedMultipleNegativesRankingLoss
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=str(work),
            per_device_train_batch_size=given.batch,
            learning_rate=asked.learning_rate,
            warmup_steps=round(asked.warmup_ratio * -(-len(triplets) // given.batch)),
            num_train_epochs=1,
            bf16=settings.startswith("fast") and autocast_dtype(model.device) is not None,
            use_cpu=model.device.type == "cpu",  # without it bf16 is refused there
            seed=SEED,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict(
            dict(zip(("anchor", "positive", "negative"), map(list, zip(*triplets, strict=True)), strict=True))
        ),
        loss=MatryoshkaLoss(model, kind(model, scale=1 / asked.usual_temperature), matryoshka_dims=dims),
    )
    seconds: float = trainer.train().metrics["train_runtime"]
    return model.eval(), seconds


@torch.inference_mode()
def loss(model: SentenceTransformer, triplets: Sequence[Triplet]) -> float:
    """MultipleNegativesRankingLoss in nats, one batch of all triplets, at the full dimension."""
    anchors, positives, negatives = (
        model.encode(list(column), convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False)
        for column in zip(*triplets, strict=True)
    )
    scores = anchors @ torch.cat([positives, negatives]).T / TrainingConfig().usual_temperature
    return float(torch.nn.functional.cross_entropy(scores, torch.arange(len(anchors), device=scores.device)))


def ndcg(model: SentenceTransformer, folder: Path) -> float:
    judged = Retrieval(read_beir(folder / "heldout", "dev"))
    dim = model.get_embedding_dimension()
    return judged.measure(model, [dim], lambda _: None)[dim].figures["ndcg@10"]


def encoding(name: str, folder: Path) -> dict[str, float]:
    """Passages/s of `embed` and of SentenceTransformer.encode as it comes, in turns; the vectors are equal."""
    model = load_model(name)
    texts = [passage.text for passage in read_beir(folder / "heldout", "dev").passages]
    model.encode(texts[:64])

    def seconds(encode: Any) -> float:
        started = time.perf_counter()
        encode()
        return time.perf_counter() - started

    st = partial(model.encode, texts, show_progress_bar=False)
    own = partial(embed, model, model.encode_document, prompts.of(model).document, texts, lambda _: None)
    took = {"st": 0.0, "ours": 0.0}
    for _ in range(2):
        took["st"] += seconds(st)
        took["ours"] += seconds(own)
    return {who: 2 * len(texts) / spent for who, spent in took.items()}


if __name__ == "__main__":
    main()
