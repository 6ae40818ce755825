"""The report's smaller pictures, each an SVG that needs nothing beside itself: a curve, bars, two distributions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 260
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 34, 44
BINS = 40


@dataclass(frozen=True, slots=True)
class _Frame:
    """Where values lie in the picture, and the picture around what is drawn."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - self.x_low) / (self.x_high - self.x_low)

    def y(self, value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (self.y_high - value) / (self.y_high - self.y_low)

    def points(self, values: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in values)

    def svg(self, what: str, label: str, x_title: str, marks: Sequence[str], *, percent: bool = False) -> str:
        """`what` is said to who cannot see it; `label`, which may hold tspans, stands above."""
        right, middle = WIDTH - RIGHT, (LEFT + WIDTH - RIGHT) / 2
        parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(what)}">']
        for value in ticks(self.y_low, self.y_high):
            y, shown = self.y(value), f"{value:.0%}" if percent else f"{value:g}"
            parts.append(
                f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
                f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{shown}</text>'
            )
        for value in ticks(self.x_low, self.x_high, 6):
            x, y = self.x(value), HEIGHT - BOTTOM + 18
            parts.append(f'<text class="tick" x="{x:.1f}" y="{y}" text-anchor="middle">{value:g}</text>')
        parts += marks
        parts.append(
            f'<text class="tick" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_title)}</text>'
            f'<text class="label" x="{LEFT}" y="18">{label}</text></svg>'
        )
        return "".join(parts)


def loss_svg(curve: Sequence[tuple[int, float]]) -> str:
    """The loss of a training's batches over its steps; nothing where there are fewer than two points."""
    if len(curve) < 2:
        return ""
    losses = [loss for _, loss in curve]
    frame = _Frame(curve[0][0], curve[-1][0], 0.0, max(losses) * 1.05)
    what = f"loss of a batch, from {losses[0]:.3f} at step {curve[0][0]} to {losses[-1]:.3f} at step {curve[-1][0]}"
    return frame.svg(what, "the loss of a batch", "step", [f'<polyline class="after" points="{frame.points(curve)}"/>'])


def seed_rank_svg(counts: Sequence[int]) -> str:
    """The share of queries whose seed passage stands at each fused rank; nothing where there are none."""
    total = sum(counts)
    if not total:
        return ""
    shares = [count / total for count in counts]
    frame = _Frame(0.5, len(counts) + 0.5, 0.0, max(shares) * 1.12)
    marks = []
    for rank, (share, count) in enumerate(zip(shares, counts, strict=True), start=1):
        left, right = frame.x(rank - 0.4), frame.x(rank + 0.4)
        marks.append(
            f'<rect class="{"before" if rank == 1 else "after"}" x="{left:.1f}" width="{right - left:.1f}" '
            f'y="{frame.y(share):.1f}" height="{frame.y(0) - frame.y(share):.1f}">'
            f"<title>rank {rank}: {count:,} of {total:,}</title></rect>"
        )
    label = (
        f'the seed passage is <tspan class="before">the judge’s best: {shares[0]:.0%}</tspan> · '
        f'<tspan class="after">further down: {1 - shares[0]:.0%}</tspan>'
    )
    what = f"the seed passage's fused rank: first in {shares[0]:.0%} of {total:,} queries"
    return frame.svg(what, label, "fused rank of the seed passage", marks, percent=True)


def scores_svg(name: str, unit: str, positives: Sequence[float], negatives: Sequence[float]) -> str:
    """The distributions of a score over positives and negatives, as shares per bin; nothing where there are none."""
    both = [*positives, *negatives]
    if not both:
        return ""
    low, high = min(both), max(both)
    low, high = (low - 0.5, high + 0.5) if low == high else (low, high)
    shares = {"before": histogram(negatives, low, high), "after": histogram(positives, low, high)}
    frame = _Frame(low, high, 0.0, max(map(max, shares.values())) * 1.05)
    edges = [low + (high - low) * n / BINS for n in range(BINS + 1)]
    marks = []
    for kind, heights in shares.items():
        outline = [
            (edges[0], 0.0),
            *((edges[n + side], height) for n, height in enumerate(heights) for side in (0, 1)),
            (edges[-1], 0.0),
        ]
        marks.append(f'<polygon class="{kind}" points="{frame.points(outline)}"/>')
    label = f'{escape(name)} of the <tspan class="after">positive</tspan> · the <tspan class="before">negative</tspan>'
    middles = [sorted(values)[len(values) // 2] for values in (positives, negatives)]
    what = f"{name}: the median is {middles[0]:.2f} for positives, {middles[1]:.2f} for negatives"
    return frame.svg(what, label, unit, marks, percent=True)


def histogram(values: Sequence[float], low: float, high: float) -> list[float]:
    """The share of the values in each of BINS equal parts of [low, high], which holds them all."""
    counts = [0] * BINS
    for value in values:
        counts[min(BINS - 1, int((value - low) / (high - low) * BINS))] += 1
    return [count / len(values) for count in counts]


def ticks(low: float, high: float, about: int = 5) -> Iterator[float]:
    """Round numbers from low to high, about so many, 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / about
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    for number in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1):
        yield round(number * step, 10)
