"""A model folder's files in the form that all versions of sentence-transformers read, and programs beside it.

sentence-transformers 6 saves the pooling under new names: version 5 cannot load that, and what reads the file by itself
pools wrongly without saying so, as vLLM 0.23 did (vllm #45995). Version 6 reads the classic form as well.
"""

from __future__ import annotations

from pathlib import Path

import orjson
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling

CLASSIC = {Transformer: "Transformer", Pooling: "Pooling", Dense: "Dense", Normalize: "Normalize"}
POOLING_KEYS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
DENSE_KEYS = ("in_features", "out_features", "bias", "activation_function")


def write_classic_form(model: SentenceTransformer, folder: Path) -> bool:
    """Rewrites what `model.save_pretrained` wrote to `folder`; returns whether the form has words for such a model."""
    if not all(_is_classic(module) for module in model):
        return False
    modules = orjson.loads((folder / "modules.json").read_bytes())
    for module, entry in zip(model, modules, strict=True):
        entry["type"] = f"sentence_transformers.models.{CLASSIC[type(module)]}"
        if isinstance(module, Pooling):
            _write(folder / entry["path"] / "config.json", _pooling(module))
        elif isinstance(module, Dense):
            said = orjson.loads((folder / entry["path"] / "config.json").read_bytes())
            _write(folder / entry["path"] / "config.json", {name: said[name] for name in DENSE_KEYS})
        elif isinstance(module, Transformer):
            lengths = {"max_seq_length": model.max_seq_length, "do_lower_case": False}
            _write(folder / entry["path"] / "sentence_bert_config.json", lengths)
    _write(folder / "modules.json", modules)
    return True


def _is_classic(module: torch.nn.Module) -> bool:
    if isinstance(module, Pooling):
        return isinstance(module.pooling_mode, str)  # of several the order would be lost
    if isinstance(module, Dense):
        return module.module_input_name == module.module_output_name == "sentence_embedding" and not module.use_residual
    if not isinstance(module, Transformer):
        return type(module) in CLASSIC
    said = module.get_config_dict()
    usual = said["transformer_task"] == "feature-extraction" and said["module_output_name"] == "token_embeddings"
    return usual and set(said) == {"transformer_task", "module_output_name", "modality_config"}


def _pooling(module: Pooling) -> dict[str, object]:
    return {
        "word_embedding_dimension": module.embedding_dimension,
        **{key: mode == module.pooling_mode for mode, key in POOLING_KEYS.items()},
        "include_prompt": module.include_prompt,
    }


def _write(file: Path, value: object) -> None:
    file.write_bytes(orjson.dumps(value, option=orjson.OPT_INDENT_2) + b"\n")
