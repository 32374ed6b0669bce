"""What half precision costs: `python -m evaluation.precision --images FILMS --labels CSV --split val --dtype bf16`.

Every film is run in float32 and in half precision on the same device, and the AUROC of each pathology is compared on
the same films. On CUDA and MPS the result is written into the card of the weights: only with a passing test there does
`CNN_PRECISION` take that type. A test passes when all 14 pathologies could be measured on 500 films at least, and no
AUROC moves by 0.002 or more. On the CPU, where half precision is not served, there is a report alone.

Exit status: 0 measured, passed or not; 1 it could not be measured or written; 2 wrong usage.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from evaluation.bootstrap import bootstrap_samples, percentile_intervals
from evaluation.films import LabelledFilm, LabelsError, check_sources, decode, find_table, image_files, read_labels
from evaluation.metrics import RankedScores
from evaluation.output import OutputError, check_file, write_text
from evaluation.scoring import EvaluationError, wanted_films
from evaluation.splits import check_unseen
from modules.cnn_model import preprocess
from modules.engines.base import Engine
from modules.engines.densenet import served_tensors
from modules.engines.pytorch import PytorchEngine
from modules.errors import ConfigurationError
from modules.odds import probabilities
from modules.pathologies import NAMES
from modules.records import FloatArray
from modules.weights import (
    CARD_FILE,
    EMBEDDED_WEIGHTS,
    PrecisionTest,
    WeightsCard,
    card_text,
    load_weights,
    precision_passes,
)

Half = Literal["bf16", "fp16"]
FILMS_A_PASS = 16
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Pairs:
    """The same films in both precisions: rows of the table, and logits (N, 14) of each."""

    rows: tuple[LabelledFilm, ...]
    full: FloatArray
    half: FloatArray


def main(argv: list[str] | None = None) -> None:
    """Measure, write the report, and the card where the device is one that serves half precision."""
    args = _arguments(argv)
    try:
        report = _run(args)
    except (LabelsError, EvaluationError, OutputError, ConfigurationError) as exc:
        raise SystemExit(f"python -m evaluation.precision: {exc}") from exc
    except OSError as exc:
        place = f"{exc.filename}: " if exc.filename else ""
        raise SystemExit(f"python -m evaluation.precision: {place}{exc.strerror or exc}.") from exc
    sys.stdout.write(json.dumps(report, indent=1) + "\n")


def _run(args: argparse.Namespace) -> dict[str, Any]:
    check_sources(args.images)
    if args.out is not None:
        check_file(args.out)
    first: Path = args.images[0]
    labels = args.labels or find_table(first if first.is_dir() else first.parent)
    table = read_labels(labels)
    wanted = wanted_films(table, args.split, args.limit)
    weights = load_weights(args.weights, args.weights_sha256)
    check_unseen(weights.card.sha256, labels, args.split)
    tensors = served_tensors(weights)
    full = PytorchEngine(tensors, args.device)
    folder = card_folder(args.weights) if full.device != "cpu" else None
    if folder is not None:
        check_file(folder / CARD_FILE)
    half = PytorchEngine(tensors, args.device, precision=args.dtype)
    rows = {name: table[name] for name in wanted}
    pairs = run_both(full, half, weights.card, rows, args.images)
    report = {
        "weights": weights.card.name,
        "weights_sha256": weights.card.sha256,
        **_conditions(full.device, args.dtype, args.split),
        **compare(pairs, weights.card, args.replicates, args.seed),
    }
    if folder is not None:
        write_text(folder / CARD_FILE, card_text(with_test(weights.card, as_test(report))))
    report["written into"] = None if folder is None else str(folder / CARD_FILE)
    if args.out is not None:
        write_text(args.out, json.dumps(report, indent=1) + "\n")
    return report


def run_both(
    full: Engine, half: Engine, card: WeightsCard, rows: dict[str, LabelledFilm], sources: Sequence[Path]
) -> Pairs:
    """Run every film that can be read through both engines; raises EvaluationError for logits that are not finite."""
    found: list[LabelledFilm] = []
    logits: tuple[list[FloatArray], list[FloatArray]] = ([], [])
    for names, batch in _batches(card, rows, sources):
        found += [rows[name] for name in names]
        for engine, kept in zip((full, half), logits, strict=True):
            kept.append(engine.run(batch)[0])
    if not found:
        raise EvaluationError(
            f"None of the {len(rows)} films could be read. Does --images name the films of that split?"
        )
    in_full, in_half = (np.concatenate(kept) for kept in logits)
    for engine, values in ((full, in_full), (half, in_half)):
        if lost := int((~np.isfinite(values).all(axis=1)).sum()):
            raise EvaluationError(f"{engine.precision} gives logits that are not finite on {lost} films: no test.")
    return Pairs(tuple(found), in_full, in_half)


def _batches(
    card: WeightsCard, rows: dict[str, LabelledFilm], sources: Sequence[Path]
) -> Iterator[tuple[list[str], FloatArray]]:
    names: list[str] = []
    films: list[FloatArray] = []
    for name, data in tqdm(image_files(sources, rows), total=len(rows), desc="films", unit="film"):
        film = decode(data) if name in rows else f"{data!s}"
        if isinstance(film, str):
            sys.stderr.write(f"left out: {''.join(c if c.isprintable() else '?' for c in name)}: {film}\n")
            continue
        names.append(name)
        films.append(preprocess(film, card.preprocessing))
        if len(films) == FILMS_A_PASS:
            yield names, np.stack(films)
            names, films = [], []
    if films:
        yield names, np.stack(films)


def compare(pairs: Pairs, card: WeightsCard, replicates: int, seed: int) -> dict[str, Any]:
    """Return how far half precision moves the AUROC of each pathology, with intervals over patients, and what passes.

    Raises EvaluationError where no AUROC is defined.
    """
    labels = np.array([row.labels for row in pairs.rows])
    ranked = [
        [RankedScores(labels[:, k], logits[:, k].astype(np.float64)) for k in range(len(NAMES))]
        for logits in (pairs.full, pairs.half)
    ]

    def moved(weights: npt.NDArray[np.int64]) -> Floats:
        full, half = (np.array([one.auroc(weights) for one in scores]) for scores in ranked)
        return np.append(half - full, np.nanmean(half - full)) if not np.isnan(full).all() else np.full(15, np.nan)

    estimate = moved(np.ones(len(pairs.rows), np.int64))
    differences = estimate[:-1]
    measured = ~np.isnan(differences)
    if not measured.any():
        raise EvaluationError("No pathology has films of both labels here: no AUROC can be compared.")
    patients = [row.patient for row in pairs.rows]
    intervals = percentile_intervals(bootstrap_samples(patients, moved, replicates, seed))
    furthest = int(np.nanargmax(np.abs(differences)))
    at_full, at_half = (_detected(logits, card) for logits in (pairs.full, pairs.half))
    films, count, largest = len(pairs.rows), int(measured.sum()), float(differences[furthest])
    return {
        "films": films,
        "patients": len(set(patients)),
        "pathologies": count,
        "auroc_difference": largest,
        "moved_furthest": NAMES[furthest],
        "mean_auroc_difference": float(estimate[-1]),
        "mean_auroc_difference_interval": _ends(intervals[-1]),
        "auroc_fp32": {name: ranked[0][k].auroc() for k, name in enumerate(NAMES) if measured[k]},
        "auroc_differences": {name: float(differences[k]) for k, name in enumerate(NAMES) if measured[k]},
        "largest_logit_difference": float(np.abs(pairs.half - pairs.full).max()),
        "detections_changed": int((at_full != at_half).sum()),
        "detections": int(at_full.sum()),
        "passes": precision_passes(films, count, largest),
    }


def _ends(interval: Any) -> list[float] | None:
    return None if np.isnan(interval.low) else [interval.low, interval.high]


def _detected(logits: FloatArray, card: WeightsCard) -> npt.NDArray[np.bool_]:
    outputs = [output for _, output in card.served]
    slope, intercept = (np.array([getattr(o, name) for o in outputs], np.float32) for name in ("slope", "intercept"))
    thresholds = np.array([1.0 if o.threshold is None else o.threshold for o in outputs], np.float32)
    return np.asarray(probabilities(slope * logits + intercept) >= thresholds)


def as_test(report: dict[str, Any]) -> PrecisionTest:
    """Return what the card keeps of a report."""
    return PrecisionTest(**{name: report[name] for name in PrecisionTest.model_fields})


def with_test(card: WeightsCard, test: PrecisionTest) -> WeightsCard:
    """Return the card with a test in the place of an earlier one of the same type and kind of device."""
    others = [one for one in card.precision if (one.dtype, one.device) != (test.dtype, test.device)]
    return card.model_copy(update={"precision": (*others, test)})


def card_folder(choice: str) -> Path | None:
    """Return the folder whose card describes these weights; None for a set that comes without one."""
    if choice == "embedded":
        return EMBEDDED_WEIGHTS
    return Path(choice) if Path(choice).is_dir() else None


def _conditions(device: str, dtype: Half, split: str | None) -> dict[str, Any]:
    import torch

    names = {"cuda": torch.cuda.get_device_name, "mps": lambda: "Apple GPU", "cpu": _cpu_name}
    return {
        "dtype": dtype,
        "device": device,
        "device_name": names[device](),
        "torch": torch.__version__,
        "cohort": f"split {split}" if split else "all films",
    }


def _cpu_name() -> str:
    import platform

    return f"{platform.system()} {platform.machine()}"


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.precision",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--images", type=Path, nargs="+", required=True, help="folders or zip archives of PNG, JPEG or DICOM files")
    add("--labels", type=Path, help="labels.csv or Data_Entry_2017.csv (default: the one beside the images)")
    add("--split", default="val", help="films of this split (default: val)")
    add("--dtype", choices=("bf16", "fp16"), default="bf16", help="(default: bf16)")
    add("--weights", default="embedded", help="what CXR_WEIGHTS takes (default: embedded)")
    add(
        "--weights-sha256",
        type=str.lower,
        metavar="HASH",
        help="as CXR_WEIGHTS_SHA256; TorchXRayVision's need it",
    )
    add("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="(default: auto)")
    add("--limit", type=_at_least_one, help="at most so many films, spread over all of them: for a trial")
    add("--replicates", type=_at_least_one, default=500, help="of the bootstrap (default: 500)")
    add("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    add("--out", type=Path, help="also write the report as JSON")
    return parser.parse_args(argv)


def _at_least_one(value: str) -> int:
    number = int(value)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1 is needed")
    return number


if __name__ == "__main__":
    main()
