"""Writes a trained encoder as a SentenceTransformer folder that others can load. Nothing is trained here.

The folder loads in sentence-transformers (with `encode_query`, `encode_document` and `truncate_dim`), in plain
transformers, and in vLLM, which reads `is_matryoshka` and `matryoshka_dimensions` from config.json.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling

from services.trainer.classic_form import write_classic_form
from services.trainer.config import Prompts, TrainingConfig
from services.trainer.lengths import exported_length
from services.trainer.lines_to_copy import QUERY_FOLDER
from services.trainer.model_card import FACTS_FILE, write_model_card
from services.trainer.onnx_file import write_onnx
from services.trainer.projection import projection_of
from services.trainer.prompts import exported_prompts
from shared.durably import replace_durably


def export_model(
    model: SentenceTransformer,
    config: TrainingConfig,
    facts: Mapping[str, Any],
    *,
    dims: Sequence[int],
    target: Path,
    passages: SentenceTransformer | None = None,
) -> None:
    """Writes the folder beside `target` and renames it into place, so `target` is never half there.

    With a model of its own for `passages` the folder holds both, `encode_query` being the tuned one's, and the tuned
    one once more as a plain model in the folder QUERY_FOLDER.

    Args:
        facts: what the model card says of the training; `task_description` is also the query prompt's.
        dims: the Matryoshka dimensions, the full one included.
    """
    model.prompts = exported_prompts(model, config, facts["task_description"])
    if config.prompts != Prompts.OWN:
        model.default_prompt_name = None  # the base's: no prompt any more, or one that would stand before every text
        model.set_pooling_include_prompt(True)  # as in the training, whatever the base does
    model.similarity_fn_name = "cosine"
    model.max_seq_length = exported_length(model, config)
    for each in (model, *([passages] if passages else [])):
        transformer = each.transformers_model
        assert transformer is not None  # noqa: S101 - encoder.ready_for_training refuses a model without one
        transformer.config.is_matryoshka = True
        transformer.config.matryoshka_dimensions = sorted(dims, reverse=True)

    unfinished = target.with_name(f"unfinished-{target.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    folder = unfinished / QUERY_FOLDER if passages else unfinished
    model.save_pretrained(str(folder), create_model_card=False)
    classic_form = write_classic_form(model, folder)
    if config.onnx:
        write_onnx(model, folder)
    if passages:
        _both(model, passages).save_pretrained(str(unfinished), create_model_card=False)
    stored = {
        **facts,
        "prompts": {name: model.prompts[name] for name in ("query", "document")},
        "config": config.model_dump(mode="json"),
        "dims": sorted(dims, reverse=True),
        "plain_mean": _is_plain_mean(model),
        "projection_file": _projection_file(model),
        "classic_form": classic_form and not passages,
    }
    (unfinished / FACTS_FILE).write_bytes(orjson.dumps(stored, option=orjson.OPT_INDENT_2))
    write_model_card(unfinished)
    replace_durably(unfinished, target)


def _both(queries: SentenceTransformer, passages: SentenceTransformer) -> SentenceTransformer:
    """One model whose `encode_query` is the first's, and everything else the second's."""
    router = Router.for_query_document(list(queries.children()), list(passages.children()))  # type: ignore[arg-type]
    return SentenceTransformer(
        modules=[router],
        prompts={name: prompt or "" for name, prompt in queries.prompts.items()},
        similarity_fn_name="cosine",
        device=str(queries.device),
    )


def _is_plain_mean(model: SentenceTransformer) -> bool:
    """Whether its vectors are the mean of the transformer's tokens, perhaps projected, normalised, and nothing else."""
    kinds = [type(module) for module in model]
    projected = [Dense] if projection_of(model) is not None else []
    return kinds[1:] == [Pooling, *projected, Normalize] and model[1].pooling_mode == "mean"


def _projection_file(model: SentenceTransformer) -> str | None:
    """Where the folder has the projection's weight, for whoever loads the transformer alone."""
    return f"{len(model) - 2}_Dense/model.safetensors" if projection_of(model) is not None else None
