"""Loads a model that embeds texts. The retriever, the trainer and an evaluation read texts alike, or none fits another.

It imports torch: whoever must start without it keeps away from here.
"""

from __future__ import annotations

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Transformer

from shared.errors import SettingError
from shared.models import resolve_model


def load_sentence_model(name_or_path: str) -> SentenceTransformer:
    """The model. Raises SettingError where it cannot be loaded, or cannot encode texts of unlike length together.

    A folder without modules.json does not say to write texts into its tokenizer's chat template: they are read bare.
    """
    try:
        model = SentenceTransformer(resolve_model(name_or_path))
        if model.transformers_model is not None and model.tokenizer.pad_token_id is None:
            raise SettingError(
                f"the tokenizer of {name_or_path!r} has no pad token, and texts of unlike length are encoded together: "
                'name one in its tokenizer_config.json ("pad_token"; the token that ends a text will do)'
            )
    except SettingError:
        raise
    except Exception as error:  # whatever the libraries raise for a folder that is none, or a hub out of reach
        raise SettingError(
            f"the model {name_or_path!r} cannot be loaded ({type(error).__name__}: {error}); name a "
            "SentenceTransformer folder, a hub name that this machine can reach, or all-MiniLM-L6-v2"
        ) from error
    if not model.module_kwargs:  # as of a folder without modules.json
        read_bare_texts(model)
    return model


def read_bare_texts(model: SentenceTransformer) -> None:
    """Takes away the chat template that `model.encode` would write every text into, and that a saved folder keeps."""
    for module in model.modules():
        if isinstance(module, Transformer):
            module.modality_config = {name: how for name, how in module.modality_config.items() if name != "message"}
