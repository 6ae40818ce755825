"""Puts a model's vectors on the principal axes of the corpus's, so that their first dimensions hold most of them.

A rotation changes no cosine of whole vectors, but what is left of them when they are cut short: the first d dimensions
of a base that was never trained to be cut are any d dimensions, and those on the principal axes are the best d there
are (Eckart and Young 1936). So Matryoshka training begins where it would otherwise have to arrive. The axes are those
of the uncentred second moment: a mean that is taken off would change the cosines. Training leaves the rotation as it
is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize
from torch import Tensor, nn

from services.trainer.config import TrainingConfig
from services.trainer.encoder import encode, tokenize
from services.trainer.fret_records import RecordSource, make_example
from services.trainer.peers import Peers
from services.trainer.prompts import put_before

PASSAGES = 2000  # positives that the axes are found from; the first by query id, which is a hash


@torch.no_grad()
def put_on_axes(model: SentenceTransformer, source: RecordSource, config: TrainingConfig, peers: Peers) -> bool:
    """Adds the rotation to `model`, before its normalisation, for good; whether it did.

    It does nothing where the records have fewer positives than the vectors have dimensions: those axes would be of the
    sample, and not of the corpus. Call it on every process: all have the first one's rotation.
    """
    before = put_before(model, config).document
    records = source.page(None, PASSAGES)
    texts = list(dict.fromkeys(before + make_example(record, config, epoch=0).positive for record in records))
    dim = model.get_embedding_dimension() or 0
    if len(texts) < dim:
        return False
    rotation = torch.zeros(dim, dim, device=model.device)
    if peers.rank == 0:
        rotation += principal_axes(_embedded(model, texts, config)).to(rotation)
    peers.add_up(rotation)
    dense = rotation_of(model)  # of a base that was trained here: one rotation does for both
    if dense is None:
        dense = Dense(dim, dim, bias=False, activation_function=nn.Identity(), init_weight=torch.eye(dim))
        model.insert(len(model) - 1, dense.to(model.device).eval())
    dense.linear.weight.copy_(rotation @ dense.linear.weight)
    dense.requires_grad_(False)
    return True


def principal_axes(vectors: Tensor) -> Tensor:
    """The eigenvectors of vectorsᵀ · vectors, a row each, (D, D) orthonormal, the one of the largest eigenvalue first.

    Of the two signs that an axis may have it has the one that makes its largest component positive.
    """
    exact = vectors.double()
    axes: Tensor = torch.linalg.eigh(exact.T @ exact)[1].T.flip(0)
    largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
    return axes * largest.sign()


def rotation_of(model: SentenceTransformer) -> Dense | None:
    """The rotation that `put_on_axes` added, or an earlier training did; None where there is none."""
    *_, before_last, last = model
    if isinstance(last, Normalize) and isinstance(before_last, Dense) and _is_rotation(before_last):
        return before_last
    return None


def _is_rotation(dense: Dense) -> bool:
    plain = isinstance(dense.activation_function, nn.Identity) and not (dense.bias or dense.use_residual)
    weight = dense.linear.weight
    if not plain or weight.shape[0] != weight.shape[1]:
        return False
    return torch.allclose(weight @ weight.T, torch.eye(len(weight), device=weight.device), atol=1e-4)


def _embedded(model: SentenceTransformer, texts: Sequence[str], config: TrainingConfig) -> Tensor:
    return encode(model, tokenize(model, texts, config.passage_max_len)).cpu()
