"""The curves that `curves.json` holds: ROC and reliability of each pathology, thinned so that their shape stays."""

import hashlib
import heapq
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluation.cohort import Cohort, Floats
from evaluation.metrics import roc_curve
from modules.curves import MAX_ROC_POINTS, CurveBin, CurvePoint, Curves, PathologyCurves, served_digest
from modules.pathologies import NAMES
from modules.weights import WeightsCard

STRAIGHT = 1e-9  # a point that is nearer to a line than this lies on it
DIGITS = 5  # after the point; a film of 10,000 moves a rate by more


def build(metrics: Mapping[str, Any], cohort: Cohort, card: WeightsCard) -> Curves:
    """Return the curves of a cohort, with the figures that metrics.json gives of it."""
    options, boot, counts = metrics["options"], metrics["bootstrap"], metrics["counts"]
    split, names = options["split"], sorted(row.image for row in cohort.rows)
    measured = metrics["discrimination"]["pathologies_measured"]
    words = options["cohort"] or ("all films of a table of labels" if split is None else f"films of split {split}")
    degraded = "" if options["reduce_to"] is None else f"; every film degraded to {options['reduce_to']} px first"
    return Curves(
        weights=metrics["weights"],
        weights_sha256=metrics["weights_sha256"],
        served_sha256=served_digest(card),
        calibrated=metrics["calibrated"],
        cohort=words.encode("utf-8", "backslashreplace").decode(),  # an argument may hold bytes that are no UTF-8
        split=split,
        films=counts["films"],
        patients=counts["patients"],
        films_sha256=hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest(),
        made_by=f"python -m evaluation; intervals: {boot['interval']}, bootstrap by {boot['unit']} "
        f"({boot['replicates']} replicates, seed {boot['seed']}){degraded}",
        pathologies={name: _of_pathology(metrics, cohort, k) for k, name in enumerate(NAMES) if name in measured},
    )


def _of_pathology(metrics: Mapping[str, Any], cohort: Cohort, k: int) -> PathologyCurves:
    found = metrics["discrimination"]["pathologies"][NAMES[k]]
    point = metrics["operating_points"][NAMES[k]]
    curve = roc_curve(cohort.labels[:, k], cohort.log_odds[:, k])
    kept = thinned(curve.x, curve.y, MAX_ROC_POINTS)
    return PathologyCurves(
        **{key: found[key] for key in ("films", "positive_films", "positive_patients")},
        auroc=round(found["auroc"], DIGITS),
        auroc_interval=None
        if found["auroc_interval"] is None
        else (round(found["auroc_interval"][0], DIGITS), round(found["auroc_interval"][1], DIGITS)),
        roc=tuple((round(float(curve.x[i]), DIGITS), round(float(curve.y[i]), DIGITS)) for i in kept),
        operating_point=None
        if point is None
        else CurvePoint(
            threshold=point["threshold"],
            false_positive_rate=round(1.0 - point["specificity"], DIGITS),
            sensitivity=round(point["sensitivity"], DIGITS),
        ),
        reliability=tuple(
            CurveBin(
                mean_probability=round(part["mean_probability"], DIGITS),
                observed=round(part["observed"], DIGITS),
                films=part["count"],
            )
            for part in metrics["calibration"]["pathologies"][NAMES[k]]["as_served"]["reliability"]
        ),
    )


def thinned(x: Floats, y: Floats, most: int) -> npt.NDArray[np.int64]:
    """Return which points (P,) to keep, at most `most`: both ends, then whichever is farthest from what is drawn.

    That is the polyline of Douglas and Peucker (1973), its points taken in the order of how much they matter.
    """
    kept = {0, x.size - 1}
    waiting = [_farthest(x, y, 0, x.size - 1)]
    while waiting and len(kept) < most:
        negative_distance, at, start, stop = heapq.heappop(waiting)
        if -negative_distance <= STRAIGHT:
            break
        kept.add(at)
        for part in ((start, at), (at, stop)):
            heapq.heappush(waiting, _farthest(x, y, *part))
    return np.array(sorted(kept), np.int64)


def _farthest(x: Floats, y: Floats, start: int, stop: int) -> tuple[float, int, int, int]:
    """Return (−distance, index, start, stop) of the point between two others that lies farthest from their chord."""
    if stop - start < 2:
        return 0.0, start, start, stop
    along, across = x[stop] - x[start], y[stop] - y[start]
    inside = slice(start + 1, stop)
    cross = np.abs(along * (y[inside] - y[start]) - across * (x[inside] - x[start]))
    best = int(cross.argmax())
    return -float(cross[best]) / (math.hypot(along, across) or 1.0), start + 1 + best, start, stop
