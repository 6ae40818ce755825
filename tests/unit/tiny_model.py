"""A real, tiny BERT with random weights and its own WordPiece tokenizer, in a folder: a base without any network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

TEXT = """
task search result query title none text the a of file read write open close list sort map key value number string
byte line path folder thread lock queue time date zone split join find replace count sum
"""
WORDS = tuple(TEXT.split())
DIM = 32


def with_prompts(base: str, folder: Path, prompts: Mapping[str, str]) -> str:
    """Writes the model in the folder `base` with these prompts to `folder`, and returns its path."""
    model = SentenceTransformer(base)
    model.prompts = dict(prompts)
    model.save_pretrained(str(folder), create_model_card=False)
    return str(folder)


def with_max_seq_length(base: str, folder: Path, tokens: int) -> str:
    """Writes the model in the folder `base`, which then reads so many tokens, to `folder`, and returns its path."""
    model = SentenceTransformer(base)
    model.max_seq_length = tokens
    model.save_pretrained(str(folder), create_model_card=False)
    return str(folder)


def make_tiny_model(folder: Path) -> str:
    """Writes the model to `folder` and returns its path; equal on every call."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ":", "|", "."]
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    every = dict.fromkeys([*pieces, *letters, *(f"##{letter}" for letter in letters), *WORDS])
    vocabulary = {piece: number for number, piece in enumerate(every)}
    tokenizer = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))  # noqa: S106 - no password
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",  # noqa: S106
        pad_token="[PAD]",  # noqa: S106
        cls_token="[CLS]",  # noqa: S106
        sep_token="[SEP]",  # noqa: S106
        mask_token="[MASK]",  # noqa: S106
        model_max_length=64,
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=DIM,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    return str(folder)
