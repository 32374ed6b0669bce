"""The report's figures, as SVG in data URIs: no file beside the report, nothing that could run in it."""

import base64
import functools
import io
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np

from evaluation.cohort import Cohort, Floats
from evaluation.metrics import precision_recall_curve, roc_curve
from modules.pathologies import NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")

COLUMNS = 5
BLUE, GREY, RED = "#1f5fa8", "#9a9a9a", "#b3261e"
MOST_POINTS = 400  # of one curve; more cannot be seen
STYLE = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "evaluation",  # the same numbers give the same file
}


def _styled(plot: Callable[P, str]) -> Callable[P, str]:
    """Draw in the report's style, and leave that of the process alone."""

    @functools.wraps(plot)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> str:
        import matplotlib as mpl

        with mpl.rc_context(STYLE):  # type: ignore[arg-type]
            return plot(*args, **kwargs)

    return drawn


@_styled
def roc_grid(cohort: Cohort, metrics: Mapping[str, Any]) -> str:
    """Draw the ROC curve of each pathology, its operating point marked."""

    def draw(axes: "Axes", k: int) -> None:
        curve = roc_curve(cohort.labels[:, k], cohort.log_odds[:, k])
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.9, linestyle="--")
        axes.plot(*_thinned(curve.x, curve.y), color=BLUE)
        point = metrics["operating_points"][NAMES[k]]
        if point is not None:
            axes.plot(1 - point["specificity"], point["sensitivity"], "o", color=RED, markersize=4)
        area = metrics["discrimination"]["pathologies"][NAMES[k]]["auroc"]
        axes.text(0.97, 0.05, f"{area:.3f}", ha="right", transform=axes.transAxes)

    return _grid(draw, "1 − specificity", "sensitivity", _measured(metrics))


@_styled
def confusion_grid(metrics: Mapping[str, Any]) -> str:
    """Draw the confusion matrix of each pathology at its operating point: counts, shaded by the share of the row."""

    def draw(axes: "Axes", k: int) -> None:
        counts = metrics["operating_points"][NAMES[k]]["confusion"]
        rows = np.array(
            [
                [counts["true_positive"], counts["false_negative"]],
                [counts["false_positive"], counts["true_negative"]],
            ]
        )
        shares = rows / np.maximum(rows.sum(axis=1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (i, j), count in np.ndenumerate(rows):
            axes.text(j, i, str(count), ha="center", va="center", color="white" if shares[i, j] > 0.5 else "black")
        axes.set_xticks([0, 1], ["detected", "not"])
        axes.set_yticks([0, 1], ["present", "absent"])

    chosen = [k for k in _measured(metrics) if metrics["operating_points"][NAMES[k]] is not None]
    return _grid(draw, "", "", chosen, unit=False)


@_styled
def precision_recall_grid(cohort: Cohort, metrics: Mapping[str, Any]) -> str:
    """Draw the precision-recall curve of each pathology, the prevalence as a line."""

    def draw(axes: "Axes", k: int) -> None:
        curve = precision_recall_curve(cohort.labels[:, k], cohort.log_odds[:, k])
        entry = metrics["discrimination"]["pathologies"][NAMES[k]]
        axes.axhline(entry["prevalence"], color=GREY, linewidth=0.9, linestyle="--")
        axes.plot(*_thinned(curve.x, curve.y), color=BLUE)
        axes.text(0.97, 0.88, f"{entry['auprc']:.3f}", ha="right", transform=axes.transAxes)

    return _grid(draw, "recall", "precision", _measured(metrics))


@_styled
def reliability_grid(metrics: Mapping[str, Any]) -> str:
    """Draw said against observed probability of each pathology, as served and after prior correction."""

    def draw(axes: "Axes", k: int) -> None:
        entry = metrics["calibration"]["pathologies"][NAMES[k]]
        top = 0.0
        for kind, colour, mark in (("as_served", BLUE, "o-"), ("prior_corrected", RED, "s--")):
            if entry[kind] is None:
                continue
            x = [part["mean_probability"] for part in entry[kind]["reliability"]]
            y = [part["observed"] for part in entry[kind]["reliability"]]
            axes.plot(x, y, mark, color=colour, markersize=2.5, linewidth=0.9)
            top = max(top, *x, *y)
        top = min(1.0, top * 1.08) or 1.0
        axes.plot([0, top], [0, top], color=GREY, linewidth=0.9, linestyle="--")
        axes.set_xlim(0, top)
        axes.set_ylim(0, top)

    return _grid(draw, "said", "observed", _measured(metrics), unit=False)


@_styled
def forest(metrics: Mapping[str, Any]) -> str:
    """Draw the AUROC of each pathology with its interval."""
    entries = [(name, metrics["discrimination"]["pathologies"][name]) for name in NAMES]
    shown = [(name, e) for name, e in entries if e["auroc"] is not None]
    figure = _figure(7, 0.6 + 0.24 * max(1, len(shown)))
    axes = figure.subplots()
    axes.axvline(0.5, color=GREY, linewidth=0.9, linestyle="--")
    for y, (_, entry) in enumerate(shown):
        if entry["auroc_interval"] is not None:
            axes.plot(entry["auroc_interval"], [y, y], color=BLUE, linewidth=1.4)
        axes.plot(entry["auroc"], y, "o", color=BLUE, markersize=4)
    axes.set_yticks(range(len(shown)), [name for name, _ in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlabel("AUROC, 95 % interval over patients")
    return _data_uri(figure)


@_styled
def risk_coverage_plot(confidence: Mapping[str, Any]) -> str:
    """Draw the risk-coverage curve of each kind of error, beside the risk of random order."""
    kinds = [(name, entry) for name, entry in confidence["errors"].items() if entry is not None]
    figure = _figure(7, 2.4)
    for axes, (name, entry) in zip(figure.subplots(1, max(1, len(kinds)), squeeze=False)[0], kinds, strict=False):
        x, y = np.array(entry["curve"]).T
        axes.plot(x, y, color=BLUE)
        axes.axhline(entry["aurc_random_order"], color=GREY, linewidth=0.9, linestyle="--")
        axes.set_ylim(bottom=0)
        axes.set_title(name.replace("_", " "), fontsize=8)
        axes.set_xlabel("coverage, most confident first")
        axes.set_ylabel("mean error")
    return _data_uri(figure)


@_styled
def gate_roc(films: Iterable[float], others: Iterable[float]) -> str:
    """Draw the gate's ROC from the scores of chest films and of other images."""
    good, bad = list(films), list(others)
    curve = roc_curve(np.array([1.0] * len(good) + [0.0] * len(bad)), np.array(good + bad))
    figure = _figure(3, 3)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.9, linestyle="--")
    axes.plot(*_thinned(curve.x, curve.y), color=BLUE)
    axes.set_xlabel("share of other images above the score")
    axes.set_ylabel("share of films above the score")
    return _data_uri(figure)


def _measured(metrics: Mapping[str, Any]) -> list[int]:
    return [k for k, name in enumerate(NAMES) if metrics["discrimination"]["pathologies"][name]["auroc"] is not None]


def _grid(draw: "Callable[[Axes, int], None]", x: str, y: str, chosen: list[int], *, unit: bool = True) -> str:
    rows = max(1, -(-len(chosen) // COLUMNS))
    figure = _figure(9.5, 1.95 * rows)
    panels = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes, k in zip(panels, chosen, strict=False):
        draw(axes, k)
        axes.set_title(NAMES[k], fontsize=8)
        if unit:
            axes.set_xlim(-0.02, 1.02)
            axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
    for axes in panels[len(chosen) :]:
        axes.set_axis_off()
    return _data_uri(figure)


def _thinned(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    if x.size <= MOST_POINTS:
        return x, y
    chosen = np.unique(np.linspace(0, x.size - 1, MOST_POINTS).round().astype(int))
    return x[chosen], y[chosen]


def _figure(width: float, height: float) -> "Figure":
    """Return a figure without any global state; sizes in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _data_uri(figure: "Figure") -> str:
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(out.getvalue()).decode("ascii")
