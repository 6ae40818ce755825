"""What stands before a query and a passage: in training, and in the exported model's `prompts`.

With `gecko` an example's texts come with it already, for it has the record's task description and the passage's title.
"""

from __future__ import annotations

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling

from services.trainer.config import Prompts, TrainingConfig
from services.trainer.mixture_config import ClassificationSource, FretSource
from shared.errors import SettingError
from shared.text_format import DOCUMENT_PROMPT, PutBefore, own_prompts, query_prompt

TASK_OF_MANY = {"STS": "sentence similarity", "Classification": "classification"}


def of(model: SentenceTransformer) -> PutBefore:
    """What `encode_query` and `encode_document` put before a text."""
    return own_prompts(model.prompts, model.default_prompt_name)


def leaves_prompts_out(model: SentenceTransformer) -> bool:
    """Whether the model has prompts and its vectors are the mean of what stands behind them; no training here is."""
    pooling = [module for module in model if isinstance(module, Pooling)]
    return of(model) != PutBefore() and not all(module.include_prompt for module in pooling)


def resolved(model: SentenceTransformer, config: TrainingConfig) -> TrainingConfig:
    """The same, and where the base's own prompts are Gecko's, `gecko`: they are more than something put before a text.

    Raises SettingError for a base whose vectors leave its prompts out, if it is to be trained with them.
    """
    if config.prompts != Prompts.OWN:
        return config
    if leaves_prompts_out(model):
        raise SettingError(
            f"{config.model_name_or_path!r} leaves its prompts out of its vectors, which this trainer does not: set "
            "--prompts none or gecko"
        )
    return config.model_copy(update={"prompts": Prompts.GECKO}) if of(model).is_gecko else config


def put_before(model: SentenceTransformer, config: TrainingConfig) -> PutBefore:
    """What the training puts before the texts of its examples."""
    return of(model) if config.prompts == Prompts.OWN else PutBefore()


def exported_prompts(
    model: SentenceTransformer, config: TrainingConfig, task_description: str
) -> dict[str, str | None]:
    """The exported model's prompts, `query` and `document` among them.

    Where symmetric data were trained on behind a prompt, it has mteb's names too, `STS` and `Classification`: what
    stood before those data, or before datasets of several tasks what EmbeddingGemma (arXiv 2509.20354) has there.
    """
    own = of(model)
    prompts: dict[str, str | None] = {"query": "", "document": ""}
    if config.prompts == Prompts.OWN:
        prompts = {**model.prompts, "query": own.query, "document": own.document}
    elif config.prompts == Prompts.GECKO:
        prompts = {"query": query_prompt(task_description), "document": DOCUMENT_PROMPT}
    if not prompts["query"]:
        return prompts
    tasks: dict[str, set[str]] = {}
    for source in config.mixture.sources if config.mixture else ():
        if not isinstance(source, FretSource) and source.symmetric:
            name = "Classification" if isinstance(source, ClassificationSource) else "STS"
            tasks.setdefault(name, set()).add(source.task_description)
    for name, of_name in tasks.items():
        task = of_name.pop() if len(of_name) == 1 else TASK_OF_MANY[name]
        prompts.setdefault(name, own.query if config.prompts == Prompts.OWN else query_prompt(task))
    return prompts
