"""The model card's lines to copy: how each library loads the folder. Text alone; tests run the lines as they stand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from shared.text_format import DOCUMENT_PROMPT

FOLDER = "path/to/this/folder"
QUERY_FOLDER = "query"  # in a folder of two encoders, the queries' alone


def use_of_both(prompts: Mapping[str, str], dims: Sequence[int]) -> str:
    """Lines to copy for a folder of two encoders; tests run them as they stand."""
    query, passage = "how to open a file", "open(path) returns a file object."
    return f"""```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{FOLDER}", truncate_dim={dims[0]})  # {listed(dims)} dimensions
queries = model.encode_query([{query!r}])  # the tuned encoder
passages = model.encode_document([{passage!r}])  # the base, as in your index
print(model.similarity(queries, passages))
```

{_format_note(prompts)}
It takes sentence-transformers 6 or later.

The queries' encoder alone is a plain model in the folder `{QUERY_FOLDER}`, for a service that embeds queries and
nothing else: `SentenceTransformer("{FOLDER}/{QUERY_FOLDER}")`, or
`vllm serve {FOLDER}/{QUERY_FOLDER} --runner pooling`."""


def use_of_one(
    prompts: Mapping[str, str], dims: Sequence[int], plain_mean: bool, projection: str | None, onnx: bool, versions: str
) -> str:
    """Lines to copy, one loader after the other; tests run them as they stand."""
    projected = load_file = ""
    if projection is not None:
        load_file = "from safetensors.torch import load_file\n"
        projected = f'means = means @ load_file("{FOLDER}/{projection}")["linear.weight"].T\n'
    query, passage = "how to open a file", "open(path) returns a file object."
    texts = [prompts["query"] + query, prompts["document"] + passage]
    # a quote would end the shell's string, and JSON has another way to write one
    asked = {"model": FOLDER, "input": texts, "dimensions": dims[0], "truncate_prompt_tokens": -1}
    body = json.dumps(asked).replace("'", "\\u0027")
    in_transformers = f"""
In plain transformers, the mean over all tokens, prompt included{", projected" if projection else ""}:

```python
import torch
{load_file}from transformers import AutoModel, AutoTokenizer

tokenizer, model = AutoTokenizer.from_pretrained("{FOLDER}"), AutoModel.from_pretrained("{FOLDER}")
texts = {texts!r}
inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
with torch.no_grad():
    tokens, mask = model(**inputs).last_hidden_state, inputs["attention_mask"].unsqueeze(2)
means = (tokens * mask).sum(1) / mask.sum(1)
{projected}vectors = torch.nn.functional.normalize(means[:, :{dims[0]}], dim=1)  # {listed(dims)} dimensions
print(vectors[0] @ vectors[1])
```
"""
    in_onnxruntime = f"""
With onnxruntime, without torch; the graph ends at the token vectors:

```python
import numpy as np
import onnxruntime
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{FOLDER}")
session = onnxruntime.InferenceSession("{FOLDER}/onnx/model.onnx")
inputs = dict(tokenizer({texts!r}, padding=True, truncation=True, return_tensors="np"))
(tokens,), mask = session.run(None, inputs), inputs["attention_mask"][..., np.newaxis]
vectors = ((tokens * mask).sum(1) / mask.sum(1))[:, :{dims[0]}]  # {listed(dims)} dimensions
vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
print(vectors[0] @ vectors[1])
```
"""
    return f"""```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{FOLDER}", truncate_dim={dims[0]})  # {listed(dims)} dimensions
queries = model.encode_query([{query!r}])
passages = model.encode_document([{passage!r}])
print(model.similarity(queries, passages))
```

{_format_note(prompts)}
{versions}
{in_transformers if plain_mean else ""}{in_onnxruntime if plain_mean and onnx else ""}
With vLLM (tried: 0.32), `vllm serve {FOLDER} --runner pooling`. It puts no prompt before a text, and
refuses one that is too long unless told to cut it:

```sh
curl http://127.0.0.1:8000/v1/embeddings --header 'content-type: application/json' \\
  --data '{body}'
```"""


def _format_note(prompts: Mapping[str, str]) -> str:
    if prompts["document"] == DOCUMENT_PROMPT:
        return (
            "`encode_query` writes `task: {task description} | query: {query}`, `encode_document` writes\n"
            '`title: none | text: {text}`. A passage with a title is `title: {title} | text: {text}`, with `prompt=""`.'
        )
    if prompts["query"] or prompts["document"]:
        return (
            f"`encode_query` puts `{prompts['query']}` before a query, and `encode_document`\n"
            f"`{prompts['document']}` before a passage. A passage with a title is `title text`."
        )
    return "Texts are given as they are; a passage with a title is `title text`."


def listed(values: Sequence[Any]) -> str:
    """The values with commas between, or `none`."""
    return ", ".join(map(str, values)) or "none"
