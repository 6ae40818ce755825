"""Whole lists: of each record every candidate, as `read_rows` has them with `whole_lists`. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from cli.export.rows import ExportRow

SHORTEST = 2  # of one passage alone a loss over a list learns nothing


def common_length(records: Mapping[int, int]) -> int:
    """How many passages every row has where all have as many: the number that keeps the most scores.

    Of a longer list the last ones are cut, a record with a shorter one is left out. `records` counts them by the length
    of their lists.
    """

    def kept(length: int) -> int:
        return length * sum(number for other, number in records.items() if other >= length)

    return max((length for length in sorted(records) if length >= SHORTEST), key=kept, default=SHORTEST)


def shown_lists(batches: Iterable[list[ExportRow]], longest: int | None) -> Iterator[list[ExportRow]]:
    """The rows of `with_masked` with at most `longest` passages each, if that is a number.

    A passage of which the masking left nothing is none of the list, unless it is the positive.
    """
    for rows in batches:
        yield [_shown(row, longest) for row in rows]


def _shown(row: ExportRow, longest: int | None) -> ExportRow:
    kept = [number for number, text in enumerate(row["masked"]) if number == 0 or text][:longest]
    with_positive = {name: [row[name][number] for number in kept] for name in ("masked", "scores")}
    names = ("negative_spans", "negative_title_spans")
    return row | with_positive | {name: [row[name][number - 1] for number in kept[1:]] for name in names}
