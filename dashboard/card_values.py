"""Figures out of a card's metrics, which for weights of a user's own may have any shape: no number, not measured."""

import math
from collections.abc import Mapping
from typing import Any

DASH = "–"  # in place of a figure
LARGEST = 1e9  # a figure beyond is none that an evaluation writes
Interval = tuple[float, float]


def at(source: Any, *path: str) -> Any:
    """Return what lies at a path of nested mappings, or None."""
    for key in path:
        source = source.get(key) if isinstance(source, Mapping) else None
    return source


def number_at(source: Any, *path: str) -> float | None:
    """Return the number at a path, or None when there is none."""
    value = at(source, *path)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and abs(value) <= LARGEST else None


def interval_at(source: Any, *path: str) -> Interval | None:
    """Return the two numbers at a path, or None when these are not two."""
    value = at(source, *path)
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    low, high = (number_at({"end": end}, "end") for end in value)
    return None if low is None or high is None else (low, high)


def text_at(source: Any, *path: str) -> str:
    """Return the text at a path, or nothing."""
    value = at(source, *path)
    return value if isinstance(value, str) else ""


def shown(value: float | None, interval: Interval | None = None, digits: int = 3) -> str:
    """Return a figure with its interval where it has one; a dash for what was not measured."""
    if value is None:
        return DASH
    inside = "" if interval is None else f" ({interval[0]:.{digits}f}–{interval[1]:.{digits}f})"
    return f"{value:.{digits}f}{inside}"


def counted(value: float | None) -> str:
    """Return a count; a dash for what was not counted."""
    return DASH if value is None else f"{value:,.0f}"


def percent(value: float | None, interval: Interval | None = None) -> str:
    """Return a share in per cent with its interval where it has one."""
    if value is None:
        return DASH
    inside = "" if interval is None else f" ({interval[0]:.0%}–{interval[1]:.0%})"
    return f"{value:.0%}{inside}"
