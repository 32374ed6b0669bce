"""Markdown of tables and figures, with their intervals."""

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

NOT_MEASURED = "–"


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    """Yield the lines of a table, and an empty one."""
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |"
    yield ""


def number(value: float | None) -> str:
    """Return three decimals."""
    return NOT_MEASURED if value is None else f"{value:.3f}"


def percent(value: float | None) -> str:
    """Return a share in per cent."""
    return NOT_MEASURED if value is None else f"{value:.1%}"


def with_interval(value: float | None, interval: Sequence[float | None] | None) -> str:
    """Return a figure with its 95 % interval, where it has one."""
    if value is None or interval is None or None in interval:
        return number(value)
    return f"{value:.3f} ({interval[0]:.3f}–{interval[1]:.3f})"


def share(values: Mapping[str, Any]) -> str:
    """Return a share in per cent with its 95 % interval, where it has one."""
    interval = values["interval"]
    inside = f" ({interval[0]:.1%}–{interval[1]:.1%})" if interval else ""
    return f"{values['share']:.1%}{inside}"


def wrapped(lines: Iterable[str], width: int = 120) -> Iterator[str]:
    """Yield lines with prose filled to the width; headings, tables, code and comments stay as they are."""
    prose: list[str] = []
    in_code = False
    for line in [*lines, ""]:
        in_code ^= line.startswith("```")
        plain = bool(line) and not in_code and not line.startswith(("#", "|", "```", "<!--"))
        if prose and (not plain or line.startswith("- ")):
            indent = "  " if prose[0].startswith("- ") else ""
            yield from textwrap.wrap(
                " ".join(part.strip() for part in prose),
                width,
                subsequent_indent=indent,
                break_long_words=False,
                break_on_hyphens=False,
            )
            prose = []
        if plain:
            prose.append(line)
        else:
            yield line
