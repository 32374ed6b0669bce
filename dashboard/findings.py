"""All 14 findings: a chart that is read at a glance, and the same as a table."""

import math
from typing import Any

import streamlit as st

from modules.odds import log_odds
from modules.pathologies import NAMES
from modules.records import Finding

STATUS_WORDS = {"present": "present", "absent": "absent", "uncertain": "uncertain", "not_mentioned": "not mentioned"}
STATUS_SIGNS = {"present": "R+", "absent": "R−", "uncertain": "R?"}
CHART_CAPTION = (
    "Bar: CNN probability, on a scale of log-odds. White mark: its operating threshold. Ring: fused. Figures: CNN / "
    "threshold. R+, R−, R?: the second reader says present, absent, uncertain."
)
# Odds of certainty are infinite: probabilities are kept this far from 0 and 1 before they are drawn.
SMALLEST_PROBABILITY = 1e-4
TICKS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99)
ROW_HEIGHT = 25  # pixels
DETECTED, UNCOUNTED, QUIET, TEXT, GRID = "#e8944a", "#9a7350", "#4d7ea8", "#e6ebef", "#2b363f"
PICK = "pick"
HIDDEN_CHART = "hidden_chart"  # the page's style names it too
BETWEEN = "  ·  "
NARROW = 250  # pixels; below, words and figures would cover the bars, and the figures are left to the tooltip


def ranked(findings: tuple[Finding, ...]) -> list[Finding]:
    """Return the findings as the server ranks them: sufficient data first, then the highest above its threshold."""
    return sorted(findings, key=lambda f: (f.sufficient_data, margin(f)), reverse=True)


def margin(finding: Finding) -> float:
    """Return how far the CNN's probability lies above the operating threshold, in log-odds."""
    return drawn_log_odds(finding.cnn_probability) - drawn_log_odds(finding.operating_threshold)


def drawn_log_odds(probability: float) -> float:
    """Return log-odds that can be drawn: those of 0 and 1 are infinite."""
    return log_odds(min(max(probability, SMALLEST_PROBABILITY), 1.0 - SMALLEST_PROBABILITY))


def show_chart(findings: tuple[Finding, ...], key: str) -> str | None:
    """Draw the findings; return the one that was clicked, if any."""
    event: Any = st.vega_lite_chart(
        [chart_row(f) for f in ranked(findings)],
        chart_spec(findings),
        width="stretch",
        height="content",
        key=key,
        on_select="rerun",
        selection_mode=PICK,
    )
    st.caption(CHART_CAPTION)
    picked = [row.get("pathology") for row in event.get("selection", {}).get(PICK, [])]
    return picked[0] if picked and picked[0] in NAMES else None


def load_chart() -> None:
    """Have the browser load its code for charts, a second's work, while the user looks at the film; show nothing."""
    with st.container(key=HIDDEN_CHART):
        st.vega_lite_chart([{"x": 0}], {"mark": "point", "width": 1, "height": 1}, width="content", height="content")


def chart_row(finding: Finding) -> dict[str, str | float]:
    """Return what the chart knows of one finding; model text is data of a tooltip, never markup."""
    counted = finding.detected and finding.sufficient_data
    return {
        "pathology": finding.pathology,
        "cnn": drawn_log_odds(finding.cnn_probability),
        "threshold": drawn_log_odds(finding.operating_threshold),
        "fused": drawn_log_odds(finding.fused_probability),
        "colour": DETECTED if counted else UNCOUNTED if finding.detected else QUIET,
        "label": f"{finding.cnn_probability:.3f} / {finding.operating_threshold:.3f}{row_note(finding)}",
        "short label": row_note(finding).removeprefix(BETWEEN),
        "CNN probability": f"{finding.cnn_probability:.4f}",
        "Operating threshold": f"{finding.operating_threshold:.4f}",
        "Fused probability": f"{finding.fused_probability:.4f}",
        "Second reader": STATUS_WORDS[finding.reader.status],
        "In its words": finding.reader.quote or "–",
        "Why fusion moved it": " ".join(a.reason for a in finding.adjustments) or "it did not",
        "Data": "sufficient" if finding.sufficient_data else "too few validation patients: never drives the risk",
    }


def row_note(finding: Finding) -> str:
    """Say in a word what stands out in a row."""
    words = []
    if finding.detected:
        words.append("DETECTED" if finding.sufficient_data else "detected")
    if not finding.sufficient_data:
        words.append("few data")
    if finding.reader.status != "not_mentioned":
        words.append(STATUS_SIGNS[finding.reader.status])
    return "".join(f"{BETWEEN}{word}" for word in words)


def chart_spec(findings: tuple[Finding, ...]) -> dict[str, Any]:
    """Return the chart: a bar to the CNN's probability, a mark at the threshold, a ring at the fused probability."""
    drawn = [(f.cnn_probability, f.operating_threshold, f.fused_probability) for f in findings]
    values = [drawn_log_odds(probability) for three in drawn for probability in three]
    low, high = math.floor(min(values, default=-5.0) - 0.3), max(values, default=0.0)
    reach = high + (high - low)  # room for the words at the right
    y = {
        "field": "pathology",
        "type": "nominal",
        "sort": None,
        "axis": {
            "title": None,
            "labelColor": TEXT,
            "labelFontSize": 13,
            "labelLimit": 160,
            "ticks": False,
            "domain": False,
        },
    }
    axis = {
        "title": None,
        "labelColor": TEXT,
        "gridColor": GRID,
        "values": [log_odds(p) for p in TICKS if low <= log_odds(p) <= high],
        "labelExpr": "format(1 / (1 + exp(-datum.value)), '.1~%')",
    }
    x = {"type": "quantitative", "scale": {"domain": [low, reach], "nice": False, "zero": False}}
    tooltip = [
        {"field": name, "type": "nominal"}
        for name in (
            "pathology",
            "CNN probability",
            "Operating threshold",
            "Fused probability",
            "Second reader",
            "In its words",
            "Why fusion moved it",
            "Data",
        )
    ]
    return {
        "height": {"step": ROW_HEIGHT},
        "encoding": {"y": y, "tooltip": tooltip},
        "layer": [
            {
                "params": [{"name": PICK, "select": {"type": "point", "fields": ["pathology"], "clear": "dblclick"}}],
                "mark": {"type": "bar", "height": 13, "cornerRadiusEnd": 2, "cursor": "pointer"},
                "encoding": {
                    "x": {**x, "field": "cnn", "axis": axis},
                    "x2": {"datum": low},
                    "color": {"field": "colour", "type": "nominal", "scale": None},
                },
            },
            {
                "mark": {"type": "tick", "thickness": 2, "size": 19, "color": "#ffffff"},
                "encoding": {"x": {**x, "field": "threshold"}},
            },
            {
                "mark": {"type": "point", "size": 55, "filled": False, "color": "#ffffff", "strokeWidth": 1.4},
                "encoding": {"x": {**x, "field": "fused"}},
            },
            {
                "mark": {
                    "type": "text",
                    "align": "right",
                    "color": TEXT,
                    "fontSize": {"expr": "width < 330 ? 11 : 12"},
                    "text": {"expr": f"width < {NARROW} ? datum['short label'] : datum.label"},
                },
                "encoding": {"x": {"value": "width"}},
            },
        ],
        "config": {"view": {"stroke": None}, "background": "transparent"},
    }


def show_table(findings: tuple[Finding, ...]) -> None:
    """Show the same as a table, which a screen reader and the clipboard understand."""
    st.dataframe(
        [table_row(finding) for finding in ranked(findings)],
        column_config=number_columns(),
        hide_index=True,
        height="content",
        alt="All findings of this film",
    )
    st.caption(
        "Sorted by the distance from the threshold, insufficient data last. Rare findings have low probabilities and "
        "low thresholds: compare a probability with its own threshold, not with other findings."
    )


def number_columns() -> dict[str, Any]:
    """Return how the table's numbers are written: with two decimals, those of rare findings would look alike."""
    return {name: st.column_config.NumberColumn(format="%.3f") for name in ("CNN", "Threshold", "Fused")}


def table_row(finding: Finding) -> dict[str, str | float]:
    """Return one line of the table."""
    return {
        "Finding": finding.pathology,
        "Detected": "detected" if finding.detected else "–",
        "CNN": finding.cnn_probability,
        "Threshold": finding.operating_threshold,
        "Fused": finding.fused_probability,
        "Second reader": STATUS_WORDS[finding.reader.status],
        "Its words": finding.reader.quote,
        "Data": "" if finding.sufficient_data else "insufficient data",
    }
