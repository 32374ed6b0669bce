"""The parts that the report's page is made of; whatever is put into them is escaped."""

import html
from collections.abc import Iterable, Sequence

NONE = "–"
CSS = """
body{font:15px/1.45 system-ui,sans-serif;max-width:1080px;margin:2rem auto;padding:0 1rem;color:#1b1b1b;background:#fff}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.4rem;border-bottom:1px solid #ccc}
table{border-collapse:collapse;margin:.6rem 0;font-variant-numeric:tabular-nums;font-size:13px}
th,td{padding:.2rem .55rem;border-bottom:1px solid #e4e4e4;text-align:right}
th:first-child,td:first-child{text-align:left}th{vertical-align:bottom;background:#f5f5f5}
td.text,th.text{text-align:left;overflow-wrap:anywhere}.wide{overflow-x:auto}.note{color:#555;font-size:13px}
img{max-width:100%;height:auto}code{overflow-wrap:anywhere}
"""


class Html(str):
    """Text that is HTML already; everything else is escaped."""

    __slots__ = ()


def page(title: str, body: str) -> str:
    """Return a whole page, which forbids the browser to run or to load anything."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f"<title>{text(title)}</title><style>{CSS}</style></head><body>\n{body}\n</body></html>\n"
    )


def text(value: object) -> Html:
    """Escape anything for HTML, unless it is HTML already; absent values show a dash."""
    if isinstance(value, Html):
        return value
    return Html(html.escape(NONE if value is None or value == "" else str(value), quote=True))


def table(columns: Sequence[object], rows: Iterable[Sequence[object]], text_columns: Sequence[int] = ()) -> Html:
    """Return a table; cells are escaped here."""

    def cells(values: Sequence[object], tag: str) -> str:
        marks = (' class="text"' if i in text_columns else "" for i in range(len(values)))
        return "".join(f"<{tag}{mark}>{text(v)}</{tag}>" for v, mark in zip(values, marks, strict=True))

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return Html(
        f'<div class="wide"><table><thead><tr>{cells(columns, "th")}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def number(value: float | None, digits: int = 3) -> str:
    """Return a number, or a dash for one that was not measured."""
    return NONE if value is None else f"{value:.{digits}f}"


def interval(value: float | None, bounds: Sequence[float] | None, digits: int = 3) -> str:
    """Return a number with its interval, where there is one."""
    if value is None or bounds is None:
        return number(value, digits)
    return f"{value:.{digits}f} ({bounds[0]:.{digits}f}\u00a0to\u00a0{bounds[1]:.{digits}f})"


def figure(source: str, description: str) -> str:
    """Return a figure from a data URI."""
    return f'<p><img src="{html.escape(source, quote=True)}" alt="{html.escape(description, quote=True)}"></p>'


def note(words: str) -> str:
    """Return a remark in small print."""
    return f'<p class="note">{html.escape(words)}</p>'
