"""Measures a model, and a baseline beside it, per Matryoshka dimension: retrieval, similarity, classification, or MTEB.

Texts are encoded once, at full dimension and in float32, by the model's own prompts; each smaller dimension is the
first coordinates of the same vectors. What is measured, and how, stands in the module of its kind.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import orjson
import torch
from sentence_transformers import SentenceTransformer

from services.trainer.beir import read_beir
from services.trainer.classification import read_classification
from services.trainer.compare import Measured
from services.trainer.config import BeirFolder, ClassificationFolder, EvaluationConfig, MtebTasks, StsFile
from services.trainer.embed import OnProgress
from services.trainer.encoder import load_model
from services.trainer.mteb_tasks import find_tasks
from services.trainer.retrieval import Retrieval
from services.trainer.sts import read_sts
from shared.errors import InvalidInputError, SettingError


class Judged(Protocol):
    """What people judged, and how a model is measured by it."""

    @property
    def main_metric(self) -> str: ...

    @property
    def sizes(self) -> dict[str, int]: ...

    @property
    def item_names(self) -> list[dict[str, Any]]:
        """What tells one query, pair or test text from the others, in the order of Measured.items."""

    @property
    def text_count(self) -> int:
        """How many texts `measure` encodes."""

    def measure(
        self, model: SentenceTransformer, dims: Sequence[int], on_progress: OnProgress
    ) -> dict[int, Measured]: ...

    def differences(self, before: Measured, after: Measured, seed: int) -> dict[str, dict[str, Any]]: ...


def evaluate(
    config: EvaluationConfig, *, on_progress: Callable[[int, int], None] = lambda _done, _total: None
) -> dict[str, Any]:
    """The report, JSON-able: `dims`, and with a baseline `baseline` and, but for mteb's tasks, `delta`.

        {"model": …, "kind": "beir", "path": …, "split": …, "main_metric": "ndcg@10", "queries": Q, "passages": N,
         "dims": {"384": {"ndcg@10": …, "recall@1": …, …}},
         "baseline": {"model": …, "dims": {…}},
         "delta": {"384": {"ndcg@10": {"mean": after − before, "ci95": [low, high]}, …}}}

    `config.per_query_file` gets one JSON line per query, pair or test text and dimension, with the figures of model and
    baseline.

    Args:
        on_progress: called with the texts encoded so far and in all.

    Raises InvalidInputError for data that breaks its format, SettingError for a model, dimension or task that is not
    there, both before anything is encoded; and SettingError where the GPU's memory runs out.
    """
    if config.per_query_file:
        _check_can_be_written(Path(config.per_query_file))
    judged = _read(config.data)
    names = [config.model, *([config.baseline] if config.baseline else [])]
    models = [load_model(name) for name in names]
    dims = _checked_dims(config, dict(zip(names, models, strict=True)))
    measured: list[dict[int, Measured]] = []
    for number, model in enumerate(models):

        def report_progress(done: int, before: int = number * judged.text_count) -> None:
            on_progress(before + done, len(models) * judged.text_count)

        try:
            measured.append(judged.measure(model, dims, report_progress))
        except torch.OutOfMemoryError as error:
            without = "leave the baseline out, " if config.baseline else ""
            raise SettingError(
                f"the GPU's memory ran out: end what else holds it (nvidia-smi names that), {without}lower "
                "max_seq_length in the model's sentence_bert_config.json, or hide the GPU from the trainer "
                "(CUDA_VISIBLE_DEVICES=)"
            ) from error
    report = {
        "model": config.model,
        **config.data.model_dump(mode="json"),
        "main_metric": judged.main_metric,
        **judged.sizes,
        "dims": _figures(measured[0]),
    }
    if config.baseline:
        after, before = measured
        report["baseline"] = {"model": config.baseline, "dims": _figures(before)}
        delta = {str(dim): judged.differences(before[dim], after[dim], config.seed) for dim in dims}
        if any(delta.values()):
            report["delta"] = delta
    if config.per_query_file:
        _write(Path(config.per_query_file), _per_query_lines(judged.item_names, measured))
    return report


def _read(data: BeirFolder | StsFile | ClassificationFolder | MtebTasks) -> Judged:
    match data:
        case BeirFolder():
            return Retrieval(read_beir(Path(data.path), data.split), data.ignore_identical_ids)
        case StsFile():
            return read_sts(Path(data.path))
        case ClassificationFolder():
            return read_classification(Path(data.path), data.samples_per_label)
        case MtebTasks():
            return find_tasks(data.names)


def _checked_dims(config: EvaluationConfig, models: Mapping[str, SentenceTransformer]) -> tuple[int, ...]:
    full_dims = {name: model.get_embedding_dimension() or 0 for name, model in models.items()}
    full = full_dims[config.model]
    named = () if config.data.kind == "mteb" else _matryoshka_dims(models[config.model])
    dims = config.dims or (full, *(dim for dim in named if dim < full))
    for name, full_dim in full_dims.items():
        if max(dims) > full_dim:
            raise SettingError(
                f"cannot measure at {max(dims)} dimensions: {name!r} has {full_dim}; name lower ones by --dims"
            )
    return tuple(sorted(set(dims), reverse=True))


def _matryoshka_dims(model: SentenceTransformer) -> Sequence[int]:
    """Those that its config.json names, as vLLM reads them there too."""
    transformer = model.transformers_model
    return (transformer and getattr(transformer.config, "matryoshka_dimensions", None)) or ()


def _figures(measured: Mapping[int, Measured]) -> dict[str, dict[str, float]]:
    return {str(dim): dict(of.figures) for dim, of in measured.items()}


def _per_query_lines(
    item_names: Sequence[dict[str, Any]], measured: Sequence[Mapping[int, Measured]]
) -> Iterator[bytes]:
    for dim in measured[0]:
        for row, name in enumerate(item_names):
            of = dict(zip(("model", "baseline"), (by_dim[dim].items[row] for by_dim in measured), strict=False))
            yield orjson.dumps({**name, "dim": dim, **of}) + b"\n"


def _check_can_be_written(path: Path) -> None:
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise InvalidInputError(path, None, "the file cannot be written: its folder has to be there and writable")


def _write(path: Path, lines: Iterator[bytes]) -> None:
    """All of the lines or none."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(b"".join(lines))
    os.replace(partial, path)
