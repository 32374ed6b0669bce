"""One evaluation, as the command and the notebook run it."""

import json
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from evaluation import curves
from evaluation.cohort import Cohort
from evaluation.films import check_sources, find_table, read_labels
from evaluation.likelihood import read_readings
from evaluation.localisation import FindingBox, read_boxes
from evaluation.measure import Material, measure
from evaluation.output import check_folder, write_text
from evaluation.report import build
from evaluation.scoring import (
    EvaluationError,
    ScoreLog,
    Work,
    conditions,
    score,
    score_changes,
    score_others,
    wanted_films,
)
from evaluation.splits import check_unseen
from modules.cnn_model import CnnModel
from modules.curves import CURVES_FILE
from modules.quality import GATE_CARD, InputGate
from modules.weights import load_weights, sha256_of

METRICS_FILE, REPORT_FILE = "metrics.json", "report.html"


@dataclass(frozen=True)
class Options:
    """What to measure, and on what; `python -m evaluation --help` says what each one is."""

    images: tuple[Path, ...]
    out: Path
    weights: str = "embedded"
    weights_sha256: str | None = None
    labels: Path | None = None
    cohort: str | None = None
    split: str | None = None
    limit: int | None = None
    reduce_to: int | None = None
    boxes: Path | None = None
    boxes_size: int | None = None
    others: Path | None = None
    readings: Path | None = None
    robustness: int = 0
    replicates: int = 2000
    seed: int = 0
    device: str = "auto"

    def as_json(self) -> dict[str, Any]:
        """Return what decides the figures, as metrics.json holds it."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "out"}
        return {name: _plain(value) for name, value in sorted(values.items())}


@dataclass(frozen=True, eq=False)
class Evaluated:
    """The films with their scores and labels, and what metrics.json says of them."""

    cohort: Cohort
    metrics: dict[str, Any]
    unreadable: int


def evaluate(options: Options) -> Evaluated:
    """Score, measure, and write figures, curves and the report; a stopped run goes on where it was.

    Raises LabelsError, BoxesError, ReadingsError, EvaluationError, OutputError or ConfigurationError with a sentence.
    """
    check_sources([*options.images, *([] if options.others is None else [options.others])])
    check_folder(options.out)
    first = options.images[0]
    labels = options.labels or find_table(first if first.is_dir() else first.parent)
    table = read_labels(labels)
    wanted = wanted_films(table, options.split, options.limit)
    boxes = () if options.boxes is None else read_boxes(options.boxes)
    readings = None if options.readings is None else read_readings(options.readings)
    work = Work(
        sources=options.images,
        wanted=wanted,
        reduce_to=options.reduce_to,
        findings_with_boxes=_findings(boxes, wanted),
    )
    weights = load_weights(options.weights, options.weights_sha256)
    check_unseen(weights.card.sha256, labels, options.split)
    cnn, gate = CnnModel(weights, options.device), InputGate.load()
    log = ScoreLog(options.out, conditions(cnn, gate, work, options.split))
    score(cnn, gate, work, log)
    if options.others is not None:
        score_others(gate, options.others, log)
    changed = score_changes(cnn, work, log, options.robustness) if options.robustness else ()
    films = tuple(log.films[name] for name in wanted if name in log.films)
    if not films:
        raise EvaluationError(
            f"None of the {len(wanted)} films could be scored. {_first_reason(log)} Does --images name the films of "
            "that split?"
        )
    cohort = Cohort(tuple(table[film.image] for film in films), films, tuple(output for _, output in cnn.card.served))
    others = log.others if options.others is not None else {}
    sys.stderr.write(f"Measuring {len(films)} films with {options.replicates} bootstrap replicates …\n")
    metrics = measure(
        Material(
            cohort=cohort,
            model=cnn.info,
            options=options.as_json(),
            unreadable=tuple(log.unreadable[name] for name in sorted(log.unreadable)),
            others=others,
            gate_threshold=gate.card.threshold,
            changed=changed,
            boxes=boxes,
            boxes_size=options.boxes_size,
            readings=readings,
            replicates=options.replicates,
            seed=options.seed,
        )
    )
    drawn = curves.build(metrics, cohort, cnn.card)
    # what the figures are of: training.model_card puts them on no card with other numbers, and beside no other gate
    metrics |= {"cohort": drawn.cohort, "served_sha256": drawn.served_sha256, "gate_sha256": sha256_of(GATE_CARD)}
    written = json.dumps(metrics, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(options.out / METRICS_FILE, written + "\n")
    write_text(options.out / CURVES_FILE, drawn.model_dump_json() + "\n")
    write_text(options.out / REPORT_FILE, build(metrics, cohort, others))
    return Evaluated(cohort, metrics, len(log.unreadable))


def _findings(boxes: tuple[FindingBox, ...], wanted: tuple[str, ...]) -> dict[str, frozenset[str]]:
    chosen = set(wanted)
    found: dict[str, set[str]] = {}
    for box in boxes:
        if box.image in chosen:
            found.setdefault(box.image, set()).add(box.finding)
    return {image: frozenset(names) for image, names in found.items()}


def _first_reason(log: ScoreLog) -> str:
    for entry in log.unreadable.values():
        return f"The first: {entry.image}: {entry.reason}."
    return ""


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [str(path) for path in value]
    return str(value) if isinstance(value, Path) else value
