"""ROC curve and reliability diagram of one pathology; the charts hold numbers and constant words only."""

from typing import Any

import altair as alt

from modules.curves import PathologyCurves

BLUE, ORANGE, GREY = "#6aaeea", "#f2a33a", "#7c8994"
Chart = alt.LayerChart | alt.FacetChart
HEIGHT = 420  # pixels
TICKS = 6
HEADROOM = 1.08  # of a diagram's axes beyond its largest value


def roc_chart(found: PathologyCurves) -> Chart:
    """Draw sensitivity against 1 − specificity, with the diagonal of chance and the operating point."""
    films = {
        "positive films": found.positive_films,
        "negative films": found.films - found.positive_films,
    }
    rows = [{"x": x, "y": y, **films} for x, y in found.roc]
    x, y = _axes("1 − specificity", "Sensitivity", 1.0)
    tooltip = [
        alt.Tooltip("x:Q", title="1 − specificity", format=".3f"),
        alt.Tooltip("y:Q", title="sensitivity", format=".3f"),
        *(alt.Tooltip(f"{name}:Q", format=",") for name in films),
    ]
    layers: list[alt.Chart] = [
        _diagonal(1.0, x, y),
        _chart(rows).mark_line(color=BLUE, strokeWidth=2).encode(x=x, y=y, order=alt.Order("x:Q"), tooltip=tooltip),
    ]
    point = found.operating_point
    if point is not None:
        marked = [{"x": point.false_positive_rate, "y": point.sensitivity, "threshold": point.threshold, **films}]
        layers.append(
            _chart(marked)
            .mark_point(color=ORANGE, filled=True, size=110, opacity=1)
            .encode(x=x, y=y, tooltip=[alt.Tooltip("threshold:Q", format=".4f"), *tooltip])
        )
    return _layered(layers)


def reliability_chart(found: PathologyCurves) -> Chart:
    """Draw how often it was true against what was said, a point a bin, with the diagonal of perfect calibration."""
    rows = [{"x": part.mean_probability, "y": part.observed, "films": part.films} for part in found.reliability]
    largest = max((value for row in rows for value in (row["x"], row["y"])), default=1.0)
    top = min(1.0, HEADROOM * largest) or 1.0
    x, y = _axes("Mean predicted probability", "Observed share of films with it", top)
    tooltip = [
        alt.Tooltip("x:Q", title="predicted", format=".4f"),
        alt.Tooltip("y:Q", title="observed", format=".4f"),
        alt.Tooltip("films:Q", title="films in this bin", format=","),
    ]
    drawn = _chart(rows).encode(x=x, y=y, order=alt.Order("x:Q"), tooltip=tooltip)
    return _layered(
        [
            _diagonal(top, x, y),
            drawn.mark_line(color=BLUE, strokeWidth=1.5),
            drawn.mark_point(color=BLUE, filled=True, size=70, opacity=1),
        ]
    )


def _axes(x: str, y: str, top: float) -> tuple[alt.X, alt.Y]:
    scale = alt.Scale(domain=[0.0, top], nice=False)
    axis = alt.Axis(tickCount=TICKS)
    return alt.X("x:Q", title=x, scale=scale, axis=axis), alt.Y("y:Q", title=y, scale=scale, axis=axis)


def _chart(rows: list[dict[str, Any]]) -> alt.Chart:
    return alt.Chart(alt.InlineData(values=rows))


def _diagonal(top: float, x: alt.X, y: alt.Y) -> alt.Chart:
    ends = [{"x": 0.0, "y": 0.0}, {"x": top, "y": top}]
    line: alt.Chart = (
        _chart(ends).mark_line(color=GREY, strokeDash=[5, 4], strokeWidth=1.2, tooltip=None).encode(x=x, y=y)
    )
    return line


def _layered(layers: list[alt.Chart]) -> Chart:
    # without the menu of the library, which offers to open the chart on another host
    embed = {"embedOptions": {"actions": False}}
    drawn: Chart = alt.layer(*layers).properties(height=HEIGHT, usermeta=embed)
    return drawn
