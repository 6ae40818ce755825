"""Contrastive fine-tuning of one encoder for queries and passages: Gecko's second stage (arXiv 2403.20327).

Each step reads a batch of ⟨task, query, positive, negatives⟩, encodes all of its texts in one pass, and moves the
weights by AdamW down the gradient of `loss.gecko_loss`; the learning rate rises linearly, then falls linearly to 0.
The encoder stays in evaluation mode, so there is no dropout: on a CPU it costs a quarter of the speed, and without it
a step is a function of weights and batch alone. So a training that resumes from a checkpoint comes to the same losses
and weights, bit for bit on a CPU with as many threads.

A plain loop and not SentenceTransformerTrainer: the loss needs the records' ids, the mixture is streamed and has a
position of its own, and the resumed trainer's losses differ (sentence-transformers #3756).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import UUID

import torch
from sentence_transformers import SentenceTransformer
from torch.optim.swa_utils import AveragedModel

from services.trainer.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from services.trainer.config import TrainingConfig
from services.trainer.data import OnRows, open_data
from services.trainer.development import choose_share, copied, hold_out, mix
from services.trainer.encoder import encode, load_model, ready_for_training, tokenize
from services.trainer.export import export_model
from services.trainer.fixed_passages import FixedPassages
from services.trainer.fret_records import Position, Record, RecordSource
from services.trainer.learning_rate import learning_rate_share
from services.trainer.lengths import check_lengths, longest_input, shares_cut
from services.trainer.onnx_file import check_can_write_onnx
from services.trainer.peers import ALONE, Peers
from services.trainer.projection import Projection, add_projection
from services.trainer.projection_fit import OnTexts
from services.trainer.prompts import resolved
from services.trainer.step import add_gradient_that_fits
from shared.errors import SettingError

MAX_GRAD_NORM = 1.0
CHECKPOINT_SHARE = 0.05  # of a training's time at most: a large model's takes longer to write


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a training is after a step; the loss is that batch's, the rate that of this process."""

    step: int
    total_steps: int
    loss: float
    examples_per_s: float
    eta_s: float


@dataclass(frozen=True, slots=True)
class _State:
    """What a checkpoint holds beside the weights and the optimizer's moments."""

    step: int = 0
    position: Position = field(default_factory=Position)
    examples: int = 0
    seconds: float = 0.0
    first_loss: float = math.nan
    last_loss: float = math.nan


def train(
    config: TrainingConfig,
    source: RecordSource,
    work_dir: Path,
    *,
    resume_from: Sequence[Path] = (),
    about: Mapping[str, str | int | float] | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_rows: OnRows = lambda *_: None,
    on_texts: OnTexts = lambda *_: None,
    peers: Peers = ALONE,
) -> dict[str, Any]:
    """Trains, writes checkpoints and `work_dir/model`, and returns what there is to say about it, JSON-able.

    Of several peers, each of which calls it alike, the first one writes.

    Args:
        resume_from: folders of earlier attempts; the newest complete checkpoint in them or in `work_dir` goes on.
        on_rows: is told, before the first step, of which source of a mixture how many rows are read.
        on_texts: is told, before the first step, how many texts of how many are encoded for the projection.
        about: what the caller knows of the data for the model card, such as the run's name and the teacher.

    Raises SettingError for a base model, length or dimension that cannot work, NotFoundError without any record and
    InvalidInputError for a dataset that breaks a rule, all of them before the first step, and SettingError when the
    loss or its gradient is not finite: no weights are moved by it, and the last checkpoint would come to the same.
    """
    if config.onnx:
        check_can_write_onnx()
    torch.manual_seed(config.seed)  # a base may lack weights that its class has, as BERT's pooler: these are drawn
    model = ready_for_training(load_model(config.model_name_or_path))
    config = resolved(model, config)
    passages = None
    if config.train == "queries":
        base = ready_for_training(load_model(config.model_name_or_path))
        # as far as whoever made the index read them
        config = config.model_copy(update={"passage_max_len": base.max_seq_length or config.passage_max_len})
        passages = FixedPassages(base, config.passage_max_len)
    weight_by_dim = _checked_dims(config, model)
    check_lengths(model, config)
    # the data sees the whole batch, of which each process encodes its share
    batch_size = config.per_device_train_batch_size * peers.size
    # what a checkpoint is good for: with other records the ones held out may be ones that it was trained on
    pinned = {"config": config.model_dump_json(), "processes": peers.size, "records": source.count()}
    held_out, source = hold_out(source) if config.interpolation is None else ([], source)
    with peers.first_alone():
        whole = config.model_copy(update={"per_device_train_batch_size": batch_size})
        data = open_data(whole, source, work_dir, resume_from, on_rows)
    projection = Projection(config.usual_temperature, {})
    if config.projects:
        projection = add_projection(model, source, config, weight_by_dim, peers, passages, on_texts)
    total_steps, whole_batch = data.total_steps, min(batch_size, source.count() or batch_size)
    # without weight decay, as in sentence-transformers' defaults: it would pull a tuned base towards 0
    tuned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(tuned, lr=config.learning_rate, weight_decay=0.0, fused=True)
    averaged = AveragedModel(model) if config.averaging else None
    state = _resume(newest_checkpoint([*resume_from, work_dir]), pinned, model, optimizer, averaged)

    started = saved = time.monotonic()
    save_after_s = config.checkpoint_every_s
    before, fitting = state, config.model_copy(update={"temperature": projection.temperature})
    for batch, following in data.batches(state.position):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * learning_rate_share(state.step, total_steps, config.warmup_ratio)
        optimizer.zero_grad()
        value, fitting = add_gradient_that_fits(model, batch, fitting, weight_by_dim, peers, passages)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        if not (math.isfinite(value) and norm.isfinite()):
            raise SettingError(
                f"the training diverged in step {state.step + 1}: its loss is {value:g}, its gradient's norm {norm:g}; "
                f"lower --learning-rate, which is {config.learning_rate:g}, or raise --temperature, which is "
                f"{projection.temperature:g}"
            )
        optimizer.step()
        # the last step at least: a share of few steps may be less than one
        if averaged is not None and state.step >= min(total_steps * (1 - config.averaging), total_steps - 1):
            averaged.update_parameters(model)

        now = time.monotonic()
        state = _State(
            step=state.step + 1,
            position=following,
            examples=state.examples + len(batch),
            seconds=before.seconds + now - started,
            first_loss=value if state.step == 0 else state.first_loss,
            # the last batch of all may be of few: their loss is none to compare
            last_loss=value if len(batch) >= whole_batch or state.step == 0 else state.last_loss,
        )
        s_per_step = (now - started) / (state.step - before.step)
        on_progress(
            Progress(
                state.step,
                total_steps,
                value,
                examples_per_s=(state.examples - before.examples) / (now - started),
                eta_s=s_per_step * max(total_steps - state.step, 0),
            )
        )
        if peers.rank == 0 and now - saved >= save_after_s:
            save_checkpoint(work_dir, state.step, _checkpoint(state, pinned, model, optimizer, averaged))
            saved = time.monotonic()
            if save_after_s:
                save_after_s = max(config.checkpoint_every_s, (saved - now) / CHECKPOINT_SHARE)

    facts = {
        **data.facts(state.step),
        "steps": state.step,
        "examples": state.examples,
        "first_loss": state.first_loss,
        "last_loss": state.last_loss,
        "seconds": round(state.seconds, 1),
        "temperature": round(projection.temperature, 4),
        **({"projection": bool(projection.without)} if config.projects else {}),
        **(about or {}),
    }
    if averaged is not None:
        model.load_state_dict(averaged.module.state_dict())
    optimizer.zero_grad()
    del optimizer, averaged  # their memory is needed now
    model_dir = work_dir / "model"
    if peers.rank == 0:  # alone: the host's memory has to hold the weights twice more for it
        facts |= {"longest_input": longest_input(model), **shares_cut(model, source, config)}
        facts |= _interpolated(model, fitting, held_out, passages, projection)
        dims = tuple(weight_by_dim)
        written = config.model_copy(update={"matryoshka_dims": dims[1:], **facts.pop("written", {})})
        export_model(model, written, facts, dims=dims, target=model_dir, passages=passages.model if passages else None)
    return {**facts, "model_dir": str(model_dir)}


def _interpolated(
    model: SentenceTransformer,
    config: TrainingConfig,
    held_out: Sequence[Record],
    passages: FixedPassages | None,
    projection: Projection,
) -> dict[str, Any]:
    """Moves the weights towards the base's as configured, or as far as the held-out records say; what was done."""
    share = 1.0 if config.interpolation is None else config.interpolation
    if share == 1 and not held_out:
        return {}
    base = copied(passages.model if passages else load_model(config.model_name_or_path))
    # what was not trained, the projection, is the same on both sides
    base |= {name: weight.cpu() for name, weight in model.named_parameters() if not weight.requires_grad}
    if held_out:
        return choose_share(model, base, held_out, config, passages, projection.without)
    mix(model, copied(model), base, share)
    return {"interpolation": share}


def _checked_dims(config: TrainingConfig, model: SentenceTransformer) -> dict[int, float]:
    """The weight per dimension. Raises SettingError for a dimension that the model does not have."""
    full_dim = model.get_embedding_dimension()
    if full_dim is None:
        raise SettingError(f"the model {config.model_name_or_path!r} does not say its embedding dimension")
    with torch.no_grad():
        width = encode(model, tokenize(model, ["a"], config.query_max_len)).shape[1]
    if width != full_dim:
        raise SettingError(
            f"the model {config.model_name_or_path!r} says that its vectors have {full_dim} dimensions, and they have "
            f"{width}: mend the configuration of its last module that names one (1_Pooling/config.json, for example)"
        )
    weight_by_dim = config.weight_by_dim(full_dim)
    if too_large := [dim for dim in weight_by_dim if dim > full_dim]:
        raise SettingError(
            f"--matryoshka-dims names {too_large}, and {config.model_name_or_path!r} has {full_dim} dimensions: name "
            f"some below {full_dim}"
        )
    return weight_by_dim


def _checkpoint(
    state: _State,
    pinned: Mapping[str, Any],
    model: SentenceTransformer,
    optimizer: torch.optim.Optimizer,
    averaged: AveragedModel | None,
) -> dict[str, Any]:
    position = state.position
    return {
        **pinned,
        "state": {**asdict(state), "position": [position.epoch, str(position.after or ""), position.batch]},
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "averaged": averaged.state_dict() if averaged is not None else None,
    }


def _resume(
    checkpoint: Path | None,
    pinned: Mapping[str, Any],
    model: SentenceTransformer,
    optimizer: torch.optim.Optimizer,
    averaged: AveragedModel | None,
) -> _State:
    """Puts the checkpoint's weights and moments into place; without one, the state before the first step."""
    if checkpoint is None:
        return _State()
    stored = load_checkpoint(checkpoint, model.device)
    if stored["config"] != pinned["config"]:
        raise SettingError(
            f"{checkpoint} is of another configuration: a training resumes from its own checkpoints only"
        )
    wrote = stored.get("processes", 1)  # before 0.1.0 nobody wrote it down
    if wrote != pinned["processes"]:
        raise SettingError(
            f"{checkpoint} was written on {wrote} GPUs or processes, and this machine has {pinned['processes']}: "
            "its batches would be others. Go on with as many (CUDA_VISIBLE_DEVICES hides some), or train anew"
        )
    records = stored.get("records", pinned["records"])  # nor this
    if records != pinned["records"]:
        raise SettingError(
            f"{checkpoint} is of a training on {records:,} records, and the run has {pinned['records']:,} by now: "
            "train anew"
        )
    model.load_state_dict(stored["model"])
    optimizer.load_state_dict(stored["optimizer"])
    if averaged is not None:
        averaged.load_state_dict(stored["averaged"])
    state = _State(**stored["state"])
    epoch, after, batch = stored["state"]["position"]
    return replace(state, position=Position(epoch, UUID(after) if after else None, batch))
