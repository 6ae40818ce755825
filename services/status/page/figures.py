"""How figures are written on the page."""

from __future__ import annotations

from datetime import UTC, datetime

BLANK = "–"


def count(value: int | None) -> str:
    return BLANK if value is None else f"{value:,}"


def short(value: float | None) -> str:
    """Three digits that mean something: 0.0123, 4.57, 812, 1.2M."""
    if value is None:
        return BLANK
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e4)):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.3g}{unit}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def score(value: float | None) -> str:
    return BLANK if value is None else f"{value:.2f}"


def duration(seconds: float | None) -> str:
    """12 s, 3 min 20 s, 2 h 05 min, 3 d 4 h."""
    if seconds is None:
        return BLANK
    whole = max(0, round(seconds))
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60:02d} min"
    return f"{minutes} min {whole % 60:02d} s" if minutes else f"{whole} s"


def clock(at: datetime | None) -> str:
    return BLANK if at is None else at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def age(at: datetime | None) -> str:
    return BLANK if at is None else f"{duration((datetime.now(UTC) - at).total_seconds())} ago"
