"""What of an evaluation belongs on a weights card: every figure, no file names, no curves."""

from collections.abc import Mapping
from typing import Any

DIGITS = 5  # significant
# Keys that are left out wherever they stand: lists of files, curves, and the paths of one machine.
LEFT_OUT = frozenset(
    {
        "curve",
        "films_refused",
        "largest_on",
        "let_in",
        "options",
        "reliability",
        "schema_version",
        "threshold_tables",
        "unreadable",
        "worst_errors",
    }
)


def summary(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a metrics.json that a card keeps, rounded to five significant digits."""
    kept: dict[str, Any] = _kept(metrics)
    refused = metrics["gate"]["films_refused"]
    kept["gate"]["films_refused"] = len(refused)
    kept["counts"]["unreadable"] = len(metrics["unreadable"])
    if kept.get("localisation"):
        kept["localisation"].pop("boxes", None)  # one by one, with file names
    for groups in kept["subgroups"].values():
        for group in groups.values():
            group["pathologies"] = {
                name: {"positive_films": values["positive_films"], "auroc": values["auroc"]}
                for name, values in group["pathologies"].items()
            }
    return kept


def _kept(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _kept(item) for key, item in value.items() if key not in LEFT_OUT}
    if isinstance(value, list | tuple):
        return [_kept(item) for item in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
