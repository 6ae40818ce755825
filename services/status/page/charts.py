"""Lines over time or steps, as points for an SVG of WIDTH by HEIGHT; the template draws them, and labels in HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from services.status.page.figures import clock, short
from shared.stages import RUN_STAGES
from shared.throughput import Throughput

WIDTH, HEIGHT = 600, 160


@dataclass(frozen=True, slots=True)
class Line:
    """`points`: as SVG's polyline takes them; `last`: its newest value, for the legend."""

    name: str
    points: str
    last: str


@dataclass(frozen=True, slots=True)
class Chart:
    """`x` and `y` label the axes from the lowest to the highest; `rows` are the same figures as a table."""

    lines: list[Line]
    x: list[str]
    y: list[str]
    columns: list[str]
    rows: list[list[str]]


def throughput_chart(found: Throughput) -> Chart | None:
    """Items/s of each stage that got something done; None before the first step."""
    if not found.points:
        return None
    step = timedelta(seconds=found.step_s)
    first = min(point.at for point in found.points)
    steps = max(1, -(-(found.until - first) // step))
    by_stage = {
        stage: {(point.at - first) // step: point.items_per_s for point in found.points if point.stage == stage}
        for stage in RUN_STAGES
    }
    series = {
        str(stage): [(float(index), values.get(index, 0.0)) for index in range(steps)]
        for stage, values in by_stage.items()
        if values
    }
    times = [first + index * step for index in range(steps)]
    marked = (times[0], times[steps // 2], times[-1]) if steps > 2 else times
    x = [clock(at)[11:] for at in marked]
    rows = [
        [clock(at)[11:], *(short(points[index][1]) for points in series.values())]
        for index, at in enumerate(times)
        if any(points[index][1] for points in series.values())
    ]
    return _chart(series, x, ["UTC", *series], rows)


def loss_chart(curve: Sequence[tuple[int, float]]) -> Chart | None:
    """The loss by step; None before there are two."""
    if len(curve) < 2:
        return None
    steps = [step for step, _ in curve]
    x = [f"{step:,}" for step in (steps[0], (steps[0] + steps[-1]) // 2, steps[-1])]
    every = max(1, len(curve) // 50)
    rows = [[f"{step:,}", f"{loss:.4f}"] for step, loss in curve[::every]]
    return _chart({"loss": [(float(step), loss) for step, loss in curve]}, x, ["step", "loss"], rows)


def _chart(
    series: Mapping[str, Sequence[tuple[float, float]]], x: list[str], columns: list[str], rows: list[list[str]]
) -> Chart:
    left = min(points[0][0] for points in series.values())
    width = max(points[-1][0] for points in series.values()) - left
    if not width:  # a lone step is a level line: SVG draws nothing for a point
        series = {name: [points[0], (left + 1, points[0][1])] for name, points in series.items()}
        width = 1.0
    top = _round_up(max(value for points in series.values() for _, value in points))
    lines = [
        Line(
            name,
            " ".join(f"{(at - left) / width * WIDTH:.1f},{HEIGHT * (1 - value / top):.1f}" for at, value in points),
            short(points[-1][1]),
        )
        for name, points in series.items()
    ]
    return Chart(lines, x, [short(0.0), short(top / 2), short(top)], columns, rows)


def _round_up(value: float) -> float:
    """The least of 1, 2, 3, 4, 5, 6, 8, 10 × a power of ten that is not below it."""
    power = 1.0
    while power < value:
        power *= 10
    while power / 10 >= value > 0:
        power /= 10
    return next(step * power / 10 for step in (1, 2, 3, 4, 5, 6, 8, 10) if step * power / 10 >= value) if value else 1.0
