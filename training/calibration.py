"""Calibrates weights on labelled films and chooses their operating points.

`python -m training.calibration --images FILMS --labels TABLE.csv --out FOLDER` copies the weights and writes a new card
beside them; serve it with CXR_WEIGHTS=FOLDER. What the card then says of calibration and points was measured across
folds: each patient's films are judged by a calibration and by thresholds that the other patients set.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from evaluation.films import LabelledFilm, LabelsError, check_sources, decode, image_files, is_archive, read_labels
from evaluation.output import OutputError, check_folder, write, write_text
from evaluation.splits import check_unseen
from modules.cnn_model import CnnModel, preprocess
from modules.errors import ConfigurationError
from modules.pathologies import NAMES, canonical_name
from modules.records import FloatArray
from modules.weights import (
    CARD_FILE,
    EMBEDDED_WEIGHTS,
    MIN_POSITIVE_PATIENTS,
    WeightsCard,
    card_text,
    load_weights,
)
from training import operating_points, platt
from training.validation import Measured, meaning, measure

BATCH = 16  # films that run through the network together, each with its mirror image
ALARMS = 0.25  # of films without a finding; chosen on the validation films along the dial, see the card
DIAL = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
METHOD = (
    "Platt scaling per pathology on the validation patients, pulled towards one slope and intercept for all; measured "
    "across five folds of patients"
)


@dataclass(frozen=True, eq=False)
class Scored:
    """Raw logits (N, 14) of labelled films and of their mirror images."""

    logits: FloatArray
    mirrored: FloatArray
    rows: tuple[LabelledFilm, ...]

    @property
    def labels(self) -> FloatArray:
        """Labels (N, 14): 1, 0 or NaN."""
        return np.array([row.labels for row in self.rows], np.float32)

    @property
    def patients(self) -> tuple[str, ...]:
        """The patient of each film."""
        return tuple(row.patient for row in self.rows)

    @property
    def normal(self) -> npt.NDArray[np.bool_]:
        """Which films are known to show none of the 14 pathologies."""
        return np.array([row.no_finding for row in self.rows])


def main(argv: list[str] | None = None) -> None:
    """Score the films, calibrate, choose the points, write the card."""
    args = _arguments(argv)
    try:
        check_folder(args.out)
        check_sources(args.images)
        folder = EMBEDDED_WEIGHTS if args.weights == "embedded" else Path(args.weights)
        if not folder.is_dir():
            raise SystemExit(f"Only weights in a folder can be calibrated; {args.weights} is no folder.")
        weights = load_weights(str(folder.resolve()))
        source = folder / weights.card.file
        table = read_labels(args.labels)
        check_unseen(weights.card.sha256, args.labels, args.split)
        check_labels(table, args.split)
        scored = score(CnnModel(weights, args.device), args.images, table, args.split)
        named = weights.card.model_copy(update={"name": args.name or weights.card.name})
        card = calibrate(named, scored, args.alarms, args.cohort)
        if args.out.resolve() != source.parent.resolve():
            write(args.out / card.file, lambda unfinished: shutil.copyfile(source, unfinished))
        write_text(args.out / CARD_FILE, card_text(card))
    except (LabelsError, OutputError, ConfigurationError, ValueError) as exc:
        raise SystemExit(str(exc)) from exc
    sys.stdout.write(json.dumps(card.metrics["validation"]["at_the_served_points"], indent=1) + "\n")
    sys.stdout.write(f"Wrote {args.out}: serve it with CXR_WEIGHTS={args.out}\n")


def check_labels(table: Mapping[str, LabelledFilm], split: str | None) -> None:
    """Raise LabelsError, before any film is scored, for labels that nothing can be calibrated on or chosen with."""
    rows = [row for row in table.values() if split in (None, row.split)]
    which = "The table" if split is None else f"The split {split!r} of the table"
    if not rows:
        raise LabelsError(f"No film of the split {split!r} is in the table; --split names another one, or 'all'.")
    labels = np.array([row.labels for row in rows])
    unlabelled = [name for k, name in enumerate(NAMES) if np.isnan(labels[:, k]).all()]
    if unlabelled:
        raise LabelsError(
            f"{which} has no label of {', '.join(unlabelled)}: whether a film shows none of the {len(NAMES)} "
            "pathologies, on which operating points are chosen, is then known of no film."
        )
    fold = platt.folds([row.patient for row in rows])
    for kind, chosen in (
        ("is known to show none of the pathologies", np.array([row.no_finding for row in rows])),
        ("shows any pathology", (labels == 1).any(axis=1)),
    ):
        if len(set(fold[chosen])) < 2:
            count = len({row.patient for row, is_chosen in zip(rows, chosen, strict=True) if is_chosen})
            raise LabelsError(
                f"{which} is too small to calibrate on: {count} of its patients have a film that {kind}. Each patient "
                "is judged by what others set, in five folds, and two of them need such a film."
            )


def score(cnn: CnnModel, sources: Sequence[Path], table: Mapping[str, LabelledFilm], split: str | None) -> Scored:
    """Run the network over every film of a split (None: every film of the table), and over its mirror image.

    Unreadable films are named on standard error and left out. Raises LabelsError when none is left.
    """
    wanted = {name for name, row in table.items() if split in (None, row.split)}
    logits, rows = [], []
    for films in _batches(_films(cnn, sources, wanted)):
        images = np.stack([image for _, image in films])
        found, _ = cnn.forward(np.concatenate([images, images[..., ::-1]]))
        logits.append(found.reshape(2, len(films), -1))
        rows += [table[name] for name, _ in films]
    if not rows:
        raise LabelsError(f"No film of the split {split!r} was found; --split names one, or 'all'.")
    both = np.concatenate(logits, axis=1)
    return Scored(both[0], both[1], tuple(rows))


def calibrate(card: WeightsCard, scored: Scored, alarms: float, cohort: str = "labelled films") -> WeightsCard:
    """Return the card with a new calibration, new thresholds, and what both were measured to be worth.

    `cohort` says in words which films these are; they need not be of the data that the weights were trained on.
    """
    positive_patients = _positive_patients(scored)
    sufficient = tuple(count >= MIN_POSITIVE_PATIENTS for count in positive_patients)
    final = platt.fit(scored.logits, scored.labels)
    points = operating_points.choose(final.apply(scored.logits), scored.normal, sufficient, alarms)
    folded = cross_fit(scored, sufficient, (alarms, *DIAL))
    served = measure(scored.rows, folded.log_odds, folded.outcomes[0], sufficient)
    outputs = tuple(
        output
        if (name := canonical_name(output.label)) is None
        else output.model_copy(update=_fitted(NAMES.index(name), final, points, served, scored, positive_patients))
        for output in card.outputs
    )
    validation = {
        "cohort": cohort,
        "films": len(scored.rows),
        "patients": len(set(scored.patients)),
        "films_without_a_finding": int(scored.normal.sum()),
        "how": "each patient judged by a calibration and thresholds that the other patients of five folds set",
        "common_slope_and_intercept": [float(v) for v in platt.common_fit(scored.logits, scored.labels)],
        "calibration": served.calibration,
        "at_the_served_points": meaning(scored.rows, folded.outcomes[0], sufficient),
        "pathologies": served.pathologies,
        "dial": [
            {"alarms": dialled, **meaning(scored.rows, outcome, sufficient)}
            for dialled, outcome in zip(DIAL, folded.outcomes[1:], strict=True)
        ],
    }
    return card.model_copy(
        update={
            "outputs": outputs,
            "calibration": METHOD,
            "operating_points": (
                f"One specificity for all pathologies ({points.specificity:.1%} on films without a finding), "
                f"the least at which at most {alarms:.0%} of them show any detection that counts"
            ),
            "metrics": {"validation": validation},  # whatever else was measured is of the old points
        }
    )


@dataclass(frozen=True, eq=False)
class Folded:
    """Held-out log-odds (N, 14), and the held-out outcome at each setting of the dial."""

    log_odds: FloatArray
    outcomes: tuple[operating_points.Outcome, ...]


def cross_fit(scored: Scored, sufficient: Sequence[bool], dial: Sequence[float]) -> Folded:
    """Judge every patient's films by what the patients of the other folds set."""
    fold = platt.folds(scored.patients)
    log_odds, mirrored = np.empty_like(scored.logits), np.empty_like(scored.logits)
    points: list[list[operating_points.Points]] = []  # of each fold, at each setting of the dial
    for held_out in range(platt.FOLDS):
        inside, others = np.flatnonzero(fold == held_out), np.flatnonzero(fold != held_out)
        fitted = platt.fit(scored.logits[others], scored.labels[others])
        log_odds[inside] = fitted.apply(scored.logits[inside])
        mirrored[inside] = fitted.apply(scored.mirrored[inside])
        calibrated, normal = fitted.apply(scored.logits[others]), scored.normal[others]
        points.append([operating_points.choose(calibrated, normal, sufficient, alarms) for alarms in dial])
    outcomes = (
        operating_points.outcome(log_odds, mirrored, [points[f][setting] for f in fold]) for setting in range(len(dial))
    )
    return Folded(log_odds, tuple(outcomes))


def _positive_patients(scored: Scored) -> tuple[int, ...]:
    patients, labels = np.array(scored.patients), scored.labels
    return tuple(len(set(patients[labels[:, k] == 1])) for k in range(len(NAMES)))


def _fitted(
    k: int,
    final: platt.Calibration,
    points: operating_points.Points,
    served: Measured,
    scored: Scored,
    positive_patients: tuple[int, ...],
) -> dict[str, Any]:
    labels = scored.labels[:, k]
    prevalence = float(np.nanmean(labels)) if (labels == 1).any() and (labels == 0).any() else None
    values = served.pathologies[NAMES[k]]
    return {
        "slope": float(final.slope[k]),
        "intercept": float(final.intercept[k]),
        "threshold": float(points.thresholds[k]),
        "validation_positive_patients": positive_patients[k],
        "validation_prevalence": prevalence,
        "sensitivity": values["sensitivity"],
        "specificity": values["specificity"],
    }


def _films(cnn: CnnModel, sources: Sequence[Path], wanted: set[str]) -> Iterator[tuple[str, FloatArray]]:
    for name, data in tqdm(image_files(sources, wanted), total=len(wanted), desc="films", unit="film", mininterval=2.0):
        film = decode(data)
        if isinstance(film, str):
            sys.stderr.write(f"left out: {film if is_archive(name) else f'{name}: {film}'}\n")
        else:
            yield name, preprocess(film, cnn.card.preprocessing)


def _batches(films: Iterator[tuple[str, FloatArray]]) -> Iterator[list[tuple[str, FloatArray]]]:
    batch = []
    for film in films:
        batch.append(film)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training.calibration", description=__doc__)
    parser.add_argument("--weights", default="embedded", help="weights folder (default: the embedded weights)")
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="folders or zips of labelled films")
    parser.add_argument("--labels", type=Path, required=True, help="table with image, patient and the labels")
    parser.add_argument("--split", default="val", help="rows of the table to use, or 'all' (default: val)")
    parser.add_argument("--name", help="of the calibrated weights, in card and answers (default: as before)")
    parser.add_argument("--cohort", help="what these films are, in words for the card (default: their split)")
    parser.add_argument(
        "--alarms", type=float, default=ALARMS, help="share of films without a finding that may show any detection"
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="default: auto")
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights and their new card")
    args = parser.parse_args(argv)
    if not 0.0 < args.alarms < 1.0:
        parser.error(f"--alarms lies between 0 and 1, both excluded; it is {args.alarms}")
    args.cohort = args.cohort or f"films of {'a table' if args.split == 'all' else f'split {args.split}'}"
    args.split = None if args.split == "all" else args.split
    return args


if __name__ == "__main__":
    main()
