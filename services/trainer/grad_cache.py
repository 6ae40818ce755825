"""One step's gradient, for a batch of any size: GradCache (Gao et al. 2021, arXiv 2101.06983), as far as needed.

A contrastive loss needs all embeddings of the batch at once, their activations only one chunk at a time: the batch is
encoded without a graph, the loss gives the gradient of each embedding, and then each chunk is encoded again, with a
graph, to carry its embeddings' gradients on to the weights. That costs a second forward pass. Here the first chunks
keep their graphs, up to `kept_tokens` of padded tokens, and only the rest is encoded twice; so a batch that fits costs
what it would without. The encoder has no dropout, so both passes give the same embeddings.

Several processes (`peers.Peers`) encode a share of the batch each and see the embeddings of all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from services.trainer.encoder import chunks_of, encode_chunk, padded
from services.trainer.peers import Peers

LOSS_ROWS = 1024  # queries whose scores are held at a time


def backward(
    model: SentenceTransformer,
    token_ids: Mapping[int, Sequence[int]],
    loss_of: Callable[[Tensor, slice], Tensor],
    texts: int,
    rows: int,
    *,
    kept_tokens: int,
    peers: Peers,
) -> float:
    """Adds the gradient of the batch's loss to the weights' `.grad`, and returns the loss. Call it on every process.

    Args:
        token_ids: the texts that this process encodes, by their places among the whole batch's; each of those is one
            process's.
        loss_of: from the embeddings (N, D) of the whole batch's texts and some of the loss's rows, those rows' share of
            the loss: a scalar.
        texts: N.
        rows: how many rows the loss has.
        kept_tokens: padded tokens whose activations may be held.
    """
    ours = list(token_ids)
    # a chunk that is encoded again has its graph then: it may be no larger than what may be held
    chunks = [[ours[index] for index in chunk] for chunk in chunks_of(model, list(token_ids.values()), kept_tokens)]
    kept: list[Tensor | None] = []
    embeddings = torch.zeros(texts, model.get_embedding_dimension() or 0, device=model.device)
    left = kept_tokens
    for chunk in chunks:
        left -= len(chunk) * padded(max(len(token_ids[index]) for index in chunk))
        with torch.set_grad_enabled(left >= 0):
            part = encode_chunk(model, [token_ids[index] for index in chunk])
        embeddings[chunk] = part.detach()
        kept.append(part if left >= 0 else None)
    peers.add_up(embeddings)
    gradient, loss = _gradient(embeddings, loss_of, peers.share_of(rows))
    peers.add_up(gradient)
    for chunk, with_graph in zip(chunks, kept, strict=True):
        if with_graph is None:
            with_graph = encode_chunk(model, [token_ids[index] for index in chunk])
        torch.autograd.backward(with_graph, gradient[chunk])
    if peers.size > 1:
        for parameter in model.parameters():
            if not parameter.requires_grad:
                continue
            if parameter.grad is None:  # it had no text in this batch, and the others wait for its share
                parameter.grad = torch.zeros_like(parameter)
            peers.add_up(parameter.grad)
    peers.add_up(loss)
    return float(loss)


def _gradient(embeddings: Tensor, loss_of: Callable[[Tensor, slice], Tensor], rows: range) -> tuple[Tensor, Tensor]:
    """The gradient (N, D) of some rows' share of the loss, and that share, a scalar."""
    leaf = embeddings.requires_grad_()
    loss = embeddings.new_zeros(())
    for start in range(rows.start, rows.stop, LOSS_ROWS):
        share = loss_of(leaf, slice(start, min(start + LOSS_ROWS, rows.stop)))
        share.backward()  # type: ignore[no-untyped-call]
        loss += share.detach()
    return (torch.zeros_like(embeddings) if leaf.grad is None else leaf.grad), loss
