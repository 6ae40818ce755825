"""Passages as the base encodes them, for a training of the queries' encoder alone (arXiv 2601.04646).

Their vectors change in no step, so each is made once and kept, the newest ones, in bounded memory.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from services.trainer.encoder import encode, tokenize

KEPT_BYTES = 256 * 2**20  # of vectors: 170,000 of 384 dimensions


class FixedPassages:
    """The base, which is read and never trained."""

    def __init__(self, base: SentenceTransformer, max_len: int) -> None:
        """`max_len`: tokens of a passage that are read, as whoever made the index read them."""
        self.model = base.requires_grad_(False)
        self._max_len = max_len
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._most = KEPT_BYTES // (4 * (base.get_embedding_dimension() or 1))

    def vectors(self, texts: Sequence[str]) -> Tensor:
        """(N, D) float32 in the order of `texts`, on the model's device."""
        new = [text for text in dict.fromkeys(texts) if text not in self._kept]
        if new:
            with torch.no_grad():
                found = encode(self.model, tokenize(self.model, new, self._max_len)).cpu()
            self._kept.update(zip(new, found, strict=True))
        vectors = torch.stack([self._kept[text] for text in texts]) if texts else torch.zeros(0)
        for text in texts:
            self._kept.move_to_end(text)
        while len(self._kept) > max(self._most, len(texts)):
            self._kept.popitem(last=False)
        return vectors.to(self.model.device)
