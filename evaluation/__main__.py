"""The command: `python -m evaluation --images FILMS --labels CSV --out FOLDER`."""

import argparse
import sys
from pathlib import Path
from typing import Any

from evaluation.films import LabelsError
from evaluation.likelihood import ReadingsError
from evaluation.localisation import BoxesError
from evaluation.output import OutputError
from evaluation.run import REPORT_FILE, Options, evaluate
from evaluation.scoring import EvaluationError
from modules.errors import ConfigurationError
from modules.weights import MAX_SIDE

SMALLEST_SIDE = 16  # pixels


def main(argv: list[str] | None = None) -> None:
    """Score, measure, and write figures, curves and the report; leaves with a sentence when that cannot be."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        done = evaluate(Options(**{**vars(args), "images": tuple(args.images)}))
    except (LabelsError, BoxesError, ReadingsError, EvaluationError, OutputError, ConfigurationError) as exc:
        raise SystemExit(f"python -m evaluation: {exc}") from exc
    except OSError as exc:
        place = f"{exc.filename}: " if exc.filename else ""
        raise SystemExit(f"python -m evaluation: {place}{exc.strerror or exc}.") from exc
    films = len(done.cohort.films)
    sys.stdout.write(f"{films} films, {done.unreadable} unreadable. {args.out / REPORT_FILE}\n")


def _whole(least: int, most: int | None = None) -> Any:
    def number(value: str) -> int:
        found = int(value)
        if found < least or (most is not None and found > most):
            bound = "" if most is None else f" and at most {most}"
            raise argparse.ArgumentTypeError(f"at least {least}{bound} is needed")
        return found

    return number


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
    add(
        "--weights-sha256",
        type=str.lower,
        metavar="HASH",
        help="as CXR_WEIGHTS_SHA256; TorchXRayVision's need it",
    )
    add("--labels", type=Path, help="labels.csv or Data_Entry_2017.csv (default: the one beside the images)")
    add("--cohort", help="what these films are, in words for curves.json (default: their split)")
    add("--split", help="only films of this split, such as val or test (default: all)")
    add("--limit", type=_whole(1), help="at most so many films, spread over all of them: for a trial")
    add("--reduce-to", type=_whole(SMALLEST_SIDE, MAX_SIDE), metavar="PX", help="degrade every film to this side first")
    add("--boxes", type=Path, help="CSV with image, finding, x, y, width, height in pixels")
    add(
        "--boxes-size",
        type=_whole(1),
        metavar="PX",
        help="side of the films that boxes were drawn on (default: the file's)",
    )
    add("--others", type=Path, help="folder of images that are no chest films, named CATEGORY__NAME, for the gate")
    add("--readings", type=Path, help="JSON Lines: image, and statements of a second reader by pathology")
    add("--robustness", type=_whole(0), default=0, metavar="N", help="try harmless changes on N films")
    add("--replicates", type=_whole(1), default=2000, help="of the bootstrap (default: 2000)")
    add("--seed", type=_whole(0), default=0, help="of the bootstrap (default: 0)")
    add("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="(default: auto)")
    return parser


if __name__ == "__main__":
    main()
