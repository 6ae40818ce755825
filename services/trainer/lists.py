"""Which records come into a batch together, and which passages of their judged lists a step reads. Pure.

A list of 20 passages for each query would be ten times what a contrastive batch encodes. So queries that share
candidates come together, a passage is encoded once for all of them, and no more than two fifths as many passages are
read as the lists' lengths add up to. A query's list is all of its candidates that are read, whoever asked for them.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TypeVar
from uuid import UUID

T = TypeVar("T")

SHARE_READ = 0.4  # passages a step encodes, as a share of queries × list length


def together(keys: Sequence[UUID], lists: Sequence[Sequence[UUID]], size: int) -> list[list[int]]:
    """The numbers of `lists` in groups of `size`, the last one of what is left; those of a group share members.

    Each group begins with the first list that is in none yet, and takes the one that shares most with the group's, time
    after time; of equal ones the first. So the order given, which is one of chance, decides what it can. Lists of one
    key, as of a query that was drawn twice, are not looked for together.
    """
    of_member: dict[UUID, list[int]] = defaultdict(list)
    for number, members in enumerate(lists):
        for member in members:
            of_member[member].append(number)
    left = dict.fromkeys(range(len(lists)))
    groups: list[list[int]] = []
    while left:
        group, taken, seen = list[int](), set[UUID](), set[UUID]()
        shared: Counter[int] = Counter()
        while left and len(group) < size:
            # max takes the first of equals, and a Counter keeps the order in which its keys came
            number = max(shared, key=shared.__getitem__) if shared else next(iter(left))
            del shared[number]
            if keys[number] in taken and shared:
                continue
            group.append(number)
            taken.add(keys[number])
            del left[number]
            for member in lists[number]:
                if member not in seen:
                    seen.add(member)
                    shared.update(other for other in of_member[member] if other in left and keys[other] not in taken)
        groups.append(group)
    return groups


def passages_read(
    lists: Sequence[Sequence[UUID]],
    scores: Sequence[Sequence[float]],
    positives: Sequence[UUID],
    length: int,
    rng: random.Random,
) -> dict[UUID, None]:
    """The passages that a step over these lists reads: every positive, then in turns what each list wants most.

    A list wants `length` of its members: half of them the best by score, a quarter the last ones, for a student has to
    know the bottom too, and the rest drawn from between.

    Args:
        lists: the candidates of each query of the batch.
        scores: the teacher's, parallel.
        positives: of each query, one of its candidates.
    """
    most = max(len(set(positives)), round(SHARE_READ * length * len(lists)))
    read = dict.fromkeys(positives)
    wanted = [
        members_wanted(members, of_members, length, rng) for members, of_members in zip(lists, scores, strict=True)
    ]
    for turn in range(length):
        for members in wanted:
            if len(read) >= most:
                return read
            if turn < len(members):
                read.setdefault(members[turn])
    return read


def members_wanted(members: Sequence[T], scores: Sequence[float], length: int, rng: random.Random) -> list[T]:
    """What one list wants, the best first: half of `length` its best, a quarter its last, the rest drawn from between.

    Of equal scores the first counts as the better.
    """
    best_first = [member for _, member in sorted(zip(scores, members, strict=True), key=lambda pair: -pair[0])]
    length = min(length, len(best_first))
    top, bottom = best_first[: length - length // 2], best_first[::-1][: length // 4]
    between = best_first[len(top) : len(best_first) - len(bottom)]
    drawn = rng.sample(between, length - len(top) - len(bottom))
    # in turns: a batch that may not read all of it lacks a little of each
    parts = [top, bottom, drawn]
    return [part[turn] for turn in range(length) for part in parts if turn < len(part)]
