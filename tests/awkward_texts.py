"""Texts on which token boundaries go wrong most easily; the recordings in tests/recordings are of these."""

from __future__ import annotations

# prompt, continuation
PAIRS = (
    ("Once upon a time", " there was a girl"),
    ("Once upon a ti", "me there was"),  # the query starts in mid-word
    ("Title: \nPassage: the cat sat.\n\nQuery:", " what is it"),  # an empty title
    ("The passage:\n", "what is it"),
    ("The quick", "ly found answer"),
    ("the c", "at sat"),
    ("ab ", "c"),
    ("ab", " "),
    ("the x", " \n y"),
    ("line\n", "\n\nnew"),
    ("tab\t", "\tq"),
    ("hi 😀", "😀 bye"),
    ("and 👨‍👩‍", "👧 family"),
    ("السلام", "عليكم وحرب"),
    ("و مرحبا", " بالعالم"),
    ("title: \ntext: e", "\u0301te"),  # NFC joins the prompt's last character with the continuation's first
    ("a e\u0301", "e\u0301\u0302"),
    ("in the Z\u0337", "\u0338a"),
    ("नमस्", "ते दुनिया"),
    ("中文", "测试句"),
    ("an a\ufffd", "\ufffdb"),
    ("the end </s> of", "</s> x"),
)
PROMPTS = (
    "Once upon a time",
    "there lived a big cat and",
    "a passage",
    "Tom said 😀",
    "و مرحبا",
    "two\nlines",
    "two\nlines ",
)
LABELS = (" yes", " no", "y", " somewhat relevant", "\n")
CUTS = tuple(
    (text, max_tokens)
    for text in (
        "Once upon a time there was 😀😀😀 and",
        "hello",
        "سلام عليكم يا عالم" * 3,
        "e\u0301" * 30,
        "  two  blanks" * 5,
    )
    for max_tokens in (1, 2, 3, 7, 11, 50)
)
