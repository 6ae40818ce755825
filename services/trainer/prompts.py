"""What stands before a query and a passage: in training, and in the exported model's `prompts`.

With `gecko` an example's texts come with it already, for it has the record's task description and the passage's title.
"""

from __future__ import annotations

from dataclasses import dataclass

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling

from services.trainer.config import Prompts, TrainingConfig
from services.trainer.mixture_config import ClassificationSource, FretSource
from shared.errors import SettingError
from shared.text_format import format_passage, query_prompt

# `encode_document` puts this before a text without a title; one with a title is written by text_format.format_passage
DOCUMENT_PROMPT = format_passage("", "")
_OF_DOCUMENTS = ("document", "passage", "corpus")  # the names that encode_document looks for, in its order


@dataclass(frozen=True, slots=True)
class PutBefore:
    """What is put before each query and each passage; a target of symmetric data is written as a query."""

    query: str = ""
    document: str = ""


def own_prompts(model: SentenceTransformer) -> PutBefore:
    """What `encode_query` and `encode_document` put before a text."""
    by_default = model.prompts.get(model.default_prompt_name or "") or ""
    named = [model.prompts[name] for name in _OF_DOCUMENTS if name in model.prompts]
    return PutBefore(model.prompts.get("query", by_default) or "", (named[0] if named else by_default) or "")


def put_before(model: SentenceTransformer, config: TrainingConfig) -> PutBefore:
    """What the training puts before the texts of its examples.

    Raises SettingError for a base whose vectors leave its prompts out: it would be trained without that.
    """
    if config.prompts != Prompts.OWN:
        return PutBefore()
    own = own_prompts(model)
    if own != PutBefore() and any(isinstance(module, Pooling) and not module.include_prompt for module in model):
        raise SettingError(
            f"{config.model_name_or_path!r} leaves its prompts out of its vectors, which this trainer does not: set "
            "--prompts none or gecko"
        )
    return own


def exported_prompts(
    model: SentenceTransformer, config: TrainingConfig, task_description: str
) -> dict[str, str | None]:
    """The exported model's prompts, `query` and `document` among them.

    A model with gecko's has `STS` and `Classification` too, which are mteb's names, where such data were trained on.
    """
    if config.prompts == Prompts.OWN:
        own = own_prompts(model)
        return {**model.prompts, "query": own.query, "document": own.document}
    if config.prompts == Prompts.NONE:
        return {"query": "", "document": ""}
    prompts: dict[str, str | None] = {"query": query_prompt(task_description), "document": DOCUMENT_PROMPT}
    for source in config.mixture.sources if config.mixture else ():
        if not isinstance(source, FretSource) and source.symmetric:
            name = "Classification" if isinstance(source, ClassificationSource) else "STS"
            prompts.setdefault(name, query_prompt(source.task_description))
    return prompts
