"""How far texts are read: what a base has positions for, and how many texts end later than a training reads them."""

from __future__ import annotations

from sentence_transformers import SentenceTransformer

from services.trainer.config import TrainingConfig
from services.trainer.encoder import tokenize
from services.trainer.fret_records import RecordSource, make_example
from services.trainer.prompts import put_before
from shared.errors import SettingError

MEASURED = 512  # tokens
SAMPLE = 200  # records; they are the first by query id, which is a hash


def check_lengths(model: SentenceTransformer, config: TrainingConfig) -> None:
    """Raises SettingError for a length beyond the model's positions."""
    longest, limit = max(config.query_max_len, config.passage_max_len), longest_input(model)
    if longest > limit:
        raise SettingError(
            f"query_max_len or passage_max_len is {longest}, and {config.model_name_or_path!r} reads {limit} tokens at "
            "most: lower it"
        )


def longest_input(model: SentenceTransformer) -> int:
    """How many tokens the transformer has positions for; the folder's own `max_seq_length` may be less.

    RoBERTa and its kin count positions from behind their padding's. Where the configuration names no limit, as T5's
    does not, it is what the folder reads.
    """
    transformer = model.transformers_model
    positions = getattr(transformer.config, "max_position_embeddings", None) if transformer else None
    if positions is None or positions < 1:
        return int(model.tokenizer.model_max_length)
    table = getattr(getattr(transformer, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return int(positions) - (0 if padding is None else padding + 1)


def exported_length(model: SentenceTransformer, config: TrainingConfig) -> int:
    """How many tokens the exported model reads of any text: as far as trained, or as its base where that is further."""
    return max(model.max_seq_length or 0, config.query_max_len, config.passage_max_len)


def measured_length(model: SentenceTransformer, config: TrainingConfig) -> int:
    """How far texts are read that are not trained on: as the exported model reads, within MEASURED or what was trained.

    A base may read whole books, and that many passages so long would take hours on a processor.
    """
    trained = max(config.query_max_len, config.passage_max_len)
    return min(exported_length(model, config), max(trained, MEASURED), longest_input(model))


def shares_cut(model: SentenceTransformer, source: RecordSource, config: TrainingConfig) -> dict[str, float]:
    """By a sample the `share_cut` of the positives, longer than `passage_max_len`, and the `share_of_queries_cut`.

    `source` is what was trained on; nothing where no record is.
    """
    records = source.page(None, SAMPLE) if config.reads_records else []
    if not records:
        return {}
    before = put_before(model, config)
    examples = [make_example(record, config, epoch=0) for record in records]

    def share(texts: list[str], most: int) -> float:
        return sum(len(ids) > most for ids in tokenize(model, texts, most + 1)) / len(texts)

    return {
        "share_cut": share([before.document + example.positive for example in examples], config.passage_max_len),
        "share_of_queries_cut": share([before.query + example.query for example in examples], config.query_max_len),
    }
