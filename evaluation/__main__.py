"""The command: `python -m evaluation --images FILMS --labels CSV --out FOLDER`."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from evaluation import curves
from evaluation.cohort import Cohort
from evaluation.films import LabelsError, find_table, read_labels
from evaluation.likelihood import ReadingsError, read_readings
from evaluation.localisation import BoxesError, FindingBox, read_boxes
from evaluation.measure import Material, measure
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
from modules.cnn_model import CnnModel
from modules.curves import CURVES_FILE
from modules.errors import ConfigurationError
from modules.quality import InputGate
from modules.weights import load_weights

METRICS_FILE, REPORT_FILE = "metrics.json", "report.html"
SMALLEST_SIDE = 16  # pixels


def main(argv: list[str] | None = None) -> None:
    """Score, measure, and write figures, curves and the report; leaves with a sentence when that cannot be."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        _run(args)
    except (LabelsError, BoxesError, ReadingsError, EvaluationError, ConfigurationError, OSError) as exc:
        raise SystemExit(f"python -m evaluation: {exc}") from exc


def _run(args: argparse.Namespace) -> None:
    table = read_labels(args.labels or find_table(_folder_of(args.images)))
    wanted = wanted_films(table, args.split, args.limit)
    boxes = () if args.boxes is None else read_boxes(args.boxes)
    readings = None if args.readings is None else read_readings(args.readings)
    work = Work(
        sources=tuple(args.images),
        wanted=wanted,
        reduce_to=args.reduce_to,
        findings_with_boxes=_findings(boxes, wanted),
    )
    cnn, gate = CnnModel(load_weights(args.weights), args.device), InputGate.load()
    log = ScoreLog(args.out, conditions(cnn, gate, work, args.split))
    score(cnn, gate, work, log)
    if args.others is not None:
        score_others(gate, args.others, log)
    changed = score_changes(cnn, work, log, args.robustness) if args.robustness else ()
    films = tuple(log.films[name] for name in wanted if name in log.films)
    if not films:
        raise EvaluationError(
            f"None of the {len(wanted)} films could be scored. {_first_reason(log)} Does --images name the films of "
            "that split?"
        )
    cohort = Cohort(tuple(table[film.image] for film in films), films, tuple(output for _, output in cnn.card.served))
    others = log.others if args.others is not None else {}
    sys.stderr.write(f"Measuring {len(films)} films with {args.replicates} bootstrap replicates …\n")
    metrics = measure(
        Material(
            cohort=cohort,
            model=cnn.info,
            options=_options(args),
            unreadable=tuple(log.unreadable[name] for name in sorted(log.unreadable)),
            others=others,
            gate_threshold=gate.card.threshold,
            changed=changed,
            boxes=boxes,
            boxes_size=args.boxes_size,
            readings=readings,
            replicates=args.replicates,
            seed=args.seed,
        )
    )
    written = json.dumps(metrics, indent=1, ensure_ascii=False, allow_nan=False)
    # a file name on Linux may hold bytes that are no UTF-8
    (args.out / METRICS_FILE).write_text(written + "\n", "utf-8", errors="backslashreplace")
    drawn = curves.build(metrics, cohort, cnn.card).model_dump_json()
    (args.out / CURVES_FILE).write_text(drawn + "\n", "utf-8")
    (args.out / REPORT_FILE).write_text(build(metrics, cohort, others), "utf-8", errors="backslashreplace")
    sys.stdout.write(f"{len(films)} films, {len(log.unreadable)} unreadable. {args.out / REPORT_FILE}\n")


def _folder_of(images: list[Path]) -> Path:
    return images[0] if images[0].is_dir() else images[0].parent


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


def _options(args: argparse.Namespace) -> dict[str, Any]:
    values = {name: value for name, value in vars(args).items() if name != "out"}
    return {
        name: [str(path) for path in value]
        if isinstance(value, list)
        else str(value)
        if isinstance(value, Path)
        else value
        for name, value in sorted(values.items())
    }


def _at_least(least: int) -> Any:
    def parse(value: str) -> int:
        number = int(value)
        if number < least:
            raise argparse.ArgumentTypeError(f"at least {least} is needed")
        return number

    return parse


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation",
        description="Measure any weights on any labelled chest films. A stopped run goes on when started again.",
    )
    add = parser.add_argument
    add("--images", type=Path, nargs="+", required=True, help="folders or zip archives of PNG, JPEG or DICOM files")
    add("--out", type=Path, required=True, help="folder for metrics, curves, the report and the log of scored films")
    add(
        "--weights",
        default="embedded",
        help="embedded, a TorchXRayVision DenseNet by name, or a folder (default: embedded)",
    )
    add("--labels", type=Path, help="labels.csv or Data_Entry_2017.csv (default: the one beside the images)")
    add("--cohort", help="what these films are, in words for curves.json (default: their split)")
    add("--split", help="only films of this split, such as val or test (default: all)")
    add("--limit", type=_at_least(1), help="at most so many films, spread over all of them: for a trial")
    add("--reduce-to", type=_at_least(SMALLEST_SIDE), metavar="PX", help="degrade every film to this side first")
    add("--boxes", type=Path, help="CSV with image, finding, x, y, width, height in pixels")
    add(
        "--boxes-size",
        type=_at_least(1),
        metavar="PX",
        help="side of the films that boxes were drawn on (default: the file's)",
    )
    add("--others", type=Path, help="folder of images that are no chest films, named CATEGORY__NAME, for the gate")
    add("--readings", type=Path, help="JSON Lines: image, and statements of a second reader by pathology")
    add("--robustness", type=_at_least(0), default=0, metavar="N", help="try harmless changes on N films")
    add("--replicates", type=_at_least(1), default=2000, help="of the bootstrap (default: 2000)")
    add("--seed", type=_at_least(0), default=0, help="of the bootstrap (default: 0)")
    add("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="(default: auto)")
    return parser


if __name__ == "__main__":
    main()
