"""The processes that train one model together, one for each GPU of a machine; a training on one device has none.

Each encodes its share of every batch. What one needs of the others is a sum over all of them, whole batches of
embeddings included: each fills in its own rows, and the others' are 0, so the sum is exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Peers:
    """This process among `size`; rank 0 writes checkpoints, progress and the model."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls, rank: int, size: int, address: str, backend: str) -> Peers:
        """Meets the others: returns once all are there. `address`: as torch.distributed's init_method has it.

        None waits in vain: whoever starts them ends them all where one fails. So there is as good as no time limit, and
        the first may read datasets for hours while the others wait.
        """
        dist.init_process_group(backend, init_method=address, rank=rank, world_size=size, timeout=timedelta(days=30))
        return cls(rank, size)

    def add_up(self, values: Tensor) -> None:
        """Puts the sum over all processes in the place of `values`, on each of them."""
        if self.size > 1:
            dist.all_reduce(values)

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """The block is the first process's, and then the others', who find what it has made."""
        if self.rank:
            dist.barrier()
        yield
        if self.size > 1 and self.rank == 0:
            dist.barrier()

    def share_of(self, rows: int) -> range:
        """This process's part of so many rows; the parts differ by one at most."""
        return range(self.rank * rows // self.size, (self.rank + 1) * rows // self.size)


ALONE = Peers()
