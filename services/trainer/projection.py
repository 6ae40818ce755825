"""A linear layer over a base's vectors, fitted to the corpus before the encoder is tuned: v ↦ W v, then normalised.

W begins as `whitened`: on the principal axes of the passages, so that vectors that are cut short keep the most (Eckart
and Young 1936), the largest axes shrunk a little. The axes are those of the uncentred second moment: a mean that is
taken off costs whole vectors more than it brings. It is then fitted to the records (`projection_fit.py`), and stays as
it is while the encoder behind it is tuned. Where the passages' vectors are those of an index, W is for queries alone
and begins as the identity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize
from torch import Tensor, nn

from services.trainer.config import TrainingConfig
from services.trainer.fixed_passages import FixedPassages
from services.trainer.fret_records import RecordSource
from services.trainer.peers import Peers
from services.trainer.projection_fit import OnTexts, encoded, fit, read_batches

SHRINKAGE = 0.1  # an axis whose second moment is m is scaled by m to the power of minus this
LEAST_MOMENT = 0.005  # of the mean one: an axis that holds nothing is not blown up


@dataclass(frozen=True, slots=True)
class Projection:
    """What `add_projection` did.

    `temperature`: the one that suits the base, or the given one. `without`: the layer's weight, by its name in the
    model and on the CPU, with which the base has the cosines that it has without the layer; empty where none was added.
    """

    temperature: float
    without: Mapping[str, Tensor]


def add_projection(
    model: SentenceTransformer,
    source: RecordSource,
    config: TrainingConfig,
    weight_by_dim: Mapping[int, float],
    peers: Peers,
    fixed: FixedPassages | None = None,
    on_texts: OnTexts = lambda *_: None,
) -> Projection:
    """Adds the layer to `model`, before its normalisation, fitted and frozen.

    None is added where the records have fewer passages than the vectors have dimensions. Call it on every process: the
    first one fits, and all have the same.

    Args:
        fixed: what encodes the passages, where the queries' encoder alone is tuned; the layer is then the queries'.
        on_texts: is told how many texts of how many are encoded so far.
    """
    dim = model.get_embedding_dimension() or 0
    found = torch.zeros(2 * dim * dim + 1, device=model.device)
    if peers.rank == 0:
        found += _found(model, source, config, weight_by_dim, dim, fixed, on_texts)
    peers.add_up(found)
    axes, weight = found[:-1].view(2, dim, dim)
    if not weight.any():
        return Projection(config.usual_temperature, {})
    dense = projection_of(model)  # of a base that was trained here: one layer does for both
    if dense is None:
        dense = Dense(dim, dim, bias=False, activation_function=nn.Identity(), init_weight=torch.eye(dim))
        model.insert(len(model) - 1, dense.to(model.device).eval())
    dense.requires_grad_(False)
    before = dense.linear.weight.clone()
    dense.linear.weight.copy_(weight @ before)
    temperature = found[-1].item() if config.temperature is None else config.temperature
    return Projection(temperature, {f"{len(model) - 2}.linear.weight": (axes @ before).cpu()})


def _found(
    model: SentenceTransformer,
    source: RecordSource,
    config: TrainingConfig,
    weight_by_dim: Mapping[int, float],
    dim: int,
    fixed: FixedPassages | None,
    on_texts: OnTexts,
) -> Tensor:
    """The axes, the fitted weight and the temperature, one after the other: (2 D² + 1,); zeros where none is fitted."""
    batches, texts = read_batches(source, config)
    if len(texts.passages) < dim:
        return torch.zeros(2 * dim * dim + 1, device=model.device)
    queries, passages = encoded(model, texts, config, fixed, on_texts)
    axes = torch.eye(dim, device=model.device) if fixed else principal_axes(passages)
    start = axes if fixed else whitened(passages, axes)
    weight, temperature = fit(
        start, queries, passages, batches, texts, config, weight_by_dim, queries_alone=fixed is not None
    )
    return torch.cat([axes.flatten(), weight.flatten(), temperature])


def principal_axes(vectors: Tensor) -> Tensor:
    """The eigenvectors of vectorsᵀ · vectors, a row each, (D, D) orthonormal, the one of the largest eigenvalue first.

    Of the two signs that an axis may have it has the one that makes its largest component positive.
    """
    exact = vectors.double()
    axes: Tensor = torch.linalg.eigh(exact.T @ exact)[1].T.flip(0)
    largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
    return (axes * largest.sign()).to(vectors)


def whitened(vectors: Tensor, axes: Tensor) -> Tensor:
    """`axes` (D, D), each scaled by m^-SHRINKAGE, m the mean square of `vectors` (N, D) on it, 1 in the mean.

    A power of -0.5 would be whitening (Su et al., arXiv 2103.15316), after which every axis counts alike, noise too.
    """
    moments = (vectors @ axes.T).square().mean(dim=0)  # (D,)
    scales = moments.clamp(min=LEAST_MOMENT * moments.mean()).pow(-SHRINKAGE)
    return axes * (scales / scales.square().mean().sqrt())[:, None]


def projection_of(model: SentenceTransformer) -> Dense | None:
    """The layer that `add_projection` added, or an earlier training did; None where there is none."""
    *_, before_last, last = model
    if isinstance(last, Normalize) and isinstance(before_last, Dense) and _is_square_and_plain(before_last):
        return before_last
    return None


def _is_square_and_plain(dense: Dense) -> bool:
    plain = isinstance(dense.activation_function, nn.Identity) and not (dense.bias or dense.use_residual)
    return plain and dense.linear.weight.shape[0] == dense.linear.weight.shape[1]
