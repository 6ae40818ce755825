"""A real, tiny Llama with random weights and a byte-level BPE tokenizer of its own, in a folder.

The tokenizer is of the kind that GPT-2 and Qwen use: bytes, a pattern that splits words, NFC, offsets trimmed of blanks
and no special token in front. It is the other kind than SentencePiece with byte fallback, which stories260K has.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CONTEXT_TOKENS = 512
TEXT = (
    "Once upon a time there was a little girl who lived in a house near the sea.",
    "Given a query, find a passage that has the answer to the query. Query: what is a passage?",
    "Title: none\nText: the cat sat on the mat, and the dog that chased it sat there too.\n\nRelevance: yes no high",
    "السلام عليكم ورحمة الله، مرحبا بالعالم",
    "Le café crème déjà vu, naïve façade, Ångström; 中文测试句子",
    "😀 😃 😄 hi there 👧 and 👦",
)


def make_tiny_llm(folder: Path) -> str:
    """Writes the model to `folder` and returns its path; equal on every call. Heads of 32, as vLLM on a CPU wants."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=480,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",  # noqa: S106 - no password
        model_max_length=CONTEXT_TOKENS,
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT_TOKENS,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


if __name__ == "__main__":
    make_tiny_llm(Path(sys.argv[1]))
