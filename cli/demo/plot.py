"""Before and after per Matryoshka dimension, as an SVG that needs nothing beside itself."""

from __future__ import annotations

from collections.abc import Mapping

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 36, 44


def before_after_svg(
    before: Mapping[int, float], after: Mapping[int, float], delta_ci95: Mapping[int, tuple[float, float]]
) -> str:
    """nDCG@10 over the dimension; the whisker on `after` is the paired difference's 95% interval, laid at `before`."""
    dims = sorted(before)
    values = [
        *before.values(),
        *after.values(),
        *(before[dim] + bound for dim, bounds in delta_ci95.items() for bound in bounds),
    ]
    low, high = max(0.0, _down(min(values))), _down(max(values)) + 0.05

    def x(dim: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (dims.index(dim) + 0.5) / len(dims)

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="nDCG@10 before and after training, by dimension">'
    ]
    for step in range(round((high - low) / 0.05) + 1):
        value = low + 0.05 * step
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
            f'<text class="tick" x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.2f}</text>'
        )
    for name, series in (("before", before), ("after", after)):
        points = " ".join(f"{x(dim):.1f},{y(series[dim]):.1f}" for dim in dims)
        parts.append(f'<polyline class="{name}" points="{points}"/>')
        parts += [
            f'<circle class="{name}" cx="{x(dim):.1f}" cy="{y(series[dim]):.1f}" r="4">'
            f"<title>{name}, {dim} dimensions: {series[dim]:.4f}</title></circle>"
            for dim in dims
        ]
    for dim in dims:
        bottom, top = (before[dim] + bound for bound in delta_ci95[dim])
        parts.append(
            f'<line class="whisker" x1="{x(dim):.1f}" x2="{x(dim):.1f}" y1="{y(bottom):.1f}" y2="{y(top):.1f}"/>'
            f'<text class="tick" x="{x(dim):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{dim}</text>'
        )
    parts.append(
        f'<text class="tick" x="{WIDTH / 2}" y="{HEIGHT - 6}" text-anchor="middle">dimensions kept</text>'
        f'<text class="label" x="{LEFT}" y="18">nDCG@10: <tspan class="before">before</tspan> · '
        f'<tspan class="after">after</tspan> (bar: 95% interval of the difference)</text></svg>'
    )
    return "".join(parts)


def _down(value: float) -> float:
    return int(value / 0.05) * 0.05
