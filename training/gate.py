"""Fits the input gate: `python -m training.gate --train FILMS --val FILMS --not-films FOLDER`.

Films are shown upright, inverted and turned; everything else is drawn at random, or taken from a folder of images that
are no chest radiographs. Two gates, each fitted on one half of that folder, are measured on the other half; the gate
that ships is fitted on all of it.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from modules.errors import ImageError
from modules.images import open_image
from modules.quality import GATE_CARD, KINDS, SIDE, GateCard, InputGate, Kind, gate_features
from modules.records import FloatArray
from synthetic.not_radiographs import make_not_radiograph
from training.films import read_films

FILM_COPY_SIDE = 2 * SIDE
COPIES_OF_A_REFUSED_IMAGE = 60
REFUSED_SHARE_OF_VALIDATION_FILMS = 0.005
REGULARISATION = 0.01  # inverse strength; chosen on the validation films
DIGITS = 6  # significant, in the card


@dataclass(frozen=True)
class Examples:
    """Features (N, 768) and the index of each example's kind (N,)."""

    features: npt.NDArray[np.float64]
    kinds: npt.NDArray[np.intp]


def main(argv: list[str] | None = None) -> None:
    """Fit, measure and write the gate."""
    args = _arguments(argv)
    rng = np.random.default_rng(args.seed)
    train, val = _small_films(args.train)[:: args.every], _small_films(args.val)
    others = _others(args.not_films)
    halves = [fit(train, list(others.values())[start::2], rng) for start in (0, 1)]
    cross = [measure(_gate(half, val), list(others.items())[1 - start :: 2]) for start, half in enumerate(halves)]
    final = fit(train, list(others.values()), rng)
    gate = _gate(final, val)
    metrics = {
        "refused_validation_films": _refused_share(gate, val),
        "validation_films": len(val),
        "accepted_others_each_measured_by_the_gate_fitted_on_the_other_half": [*cross[0], *cross[1]],
        "others": len(others),
        "accepted_drawn_images_of_1000": _accepted_drawn(gate, 1000, rng),
        "named_rightly_of_validation_films": {
            kind.value: float(np.mean([_likeliest(gate, turned(film, kind)) is kind for film in val]))
            for kind in KINDS[:-1]
        },
    }
    card = gate.card.model_copy(update={"metrics": metrics})
    args.out.write_text(json.dumps(card.model_dump(mode="json"), ensure_ascii=False) + "\n", "utf-8")
    sys.stdout.write(json.dumps({"threshold": card.threshold, **metrics}, indent=1, ensure_ascii=False) + "\n")


def fit(films: list[FloatArray], others: list[FloatArray], rng: np.random.Generator) -> GateCard:
    """Fit the classifier; its threshold and metrics are still to be set."""
    examples = _examples(films, others, rng)
    scaler = StandardScaler().fit(examples.features)
    model = LogisticRegression(C=REGULARISATION, max_iter=400)
    model.fit(scaler.transform(examples.features), examples.kinds)
    return GateCard(
        mean=_short(scaler.mean_),
        std=_short(scaler.scale_),
        coefficients=tuple(_short(row) for row in model.coef_),
        intercepts=_short(model.intercept_),
        threshold=0.5,
        metrics={},
        training="python -m training.gate",
        data="NIH ChestX-ray14 (Wang et al., CVPR 2017), images drawn at random, a few public images of other things",
    )


def measure(gate: InputGate, others: list[tuple[str, FloatArray]]) -> list[str]:
    """Return the names of the images that the gate wrongly accepts."""
    return [name for name, image in others if _score(gate, image) >= gate.card.threshold]


def turned(film: FloatArray, kind: Kind) -> FloatArray:
    """Return an upright film as the given kind would show it."""
    if kind is Kind.INVERTED:
        return np.asarray(1.0 - film, np.float32)
    quarters = {Kind.TURNED_90: 1, Kind.TURNED_180: 2, Kind.TURNED_270: 3}.get(kind, 0)
    return np.ascontiguousarray(np.rot90(film, quarters))


def _examples(films: list[FloatArray], others: list[FloatArray], rng: np.random.Generator) -> Examples:
    features, kinds = [], []

    def add(image: FloatArray, kind: Kind) -> None:
        features.append(gate_features(np.ascontiguousarray(image, np.float32)))
        kinds.append(KINDS.index(kind))

    for original in films:
        film = _varied(original, rng)
        add(film, Kind.FILM)
        add(turned(film, Kind.INVERTED), Kind.INVERTED)
        for kind in (Kind.TURNED_90, Kind.TURNED_180, Kind.TURNED_270):
            if rng.random() < 0.5:
                add(turned(film, kind), kind)
        if rng.random() < 0.25:  # inverted and turned: no single way on, so it is refused as something else
            add(1.0 - np.rot90(film, int(rng.integers(1, 4))), Kind.OTHER)
        add(make_not_radiograph(rng), Kind.OTHER)
    for other in others:
        for _ in range(COPIES_OF_A_REFUSED_IMAGE):
            add(_varied_other(other, rng), Kind.OTHER)
    return Examples(np.array(features), np.array(kinds))


def _varied(image: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Return a copy that is mirrored, turned a little, scaled, shifted and re-exposed at random."""
    height, width = image.shape
    matrix = np.asarray(cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(-10, 10), rng.uniform(0.8, 1.2)))
    matrix[:, 2] += rng.uniform(-0.08, 0.08, 2) * np.array([width, height])
    border = cv2.BORDER_CONSTANT if rng.random() < 0.5 else cv2.BORDER_REPLICATE
    mirrored = image[:, ::-1] if rng.random() < 0.5 else image
    moved = cv2.warpAffine(np.ascontiguousarray(mirrored), matrix, (width, height), borderMode=border)
    return np.asarray(np.clip(moved, 0.0, 1.0) ** rng.uniform(0.6, 1.6), np.float32)


def _varied_other(image: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Return a part of the image, varied, in any of the four orientations, sometimes inverted."""
    share = rng.uniform(0.5, 1.0)
    top, left = (int(rng.uniform(0, 1 - share) * side) for side in image.shape)
    height, width = (max(2, int(share * side)) for side in image.shape)
    part = _varied(_copy(image[top : top + height, left : left + width]), rng)
    part = np.asarray(1.0 - part, np.float32) if rng.random() < 0.3 else part
    return np.ascontiguousarray(np.rot90(part, int(rng.integers(4))))


def _gate(card: GateCard, films: list[FloatArray]) -> InputGate:
    """Set the threshold that refuses a small share of the films, and never less than a chance of one half."""
    scores = [_score(InputGate(card), film) for film in films]
    threshold = float(np.quantile(scores, REFUSED_SHARE_OF_VALIDATION_FILMS))
    return InputGate(card.model_copy(update={"threshold": min(0.5, round(threshold, 4))}))


def _score(gate: InputGate, image: FloatArray) -> float:
    return gate.kind_probabilities(image)[Kind.FILM]


def _likeliest(gate: InputGate, image: FloatArray) -> Kind:
    kinds = gate.kind_probabilities(image)
    return max(kinds, key=lambda kind: kinds[kind])


def _refused_share(gate: InputGate, films: list[FloatArray]) -> float:
    return float(np.mean([_score(gate, film) < gate.card.threshold for film in films]))


def _accepted_drawn(gate: InputGate, count: int, rng: np.random.Generator) -> int:
    return sum(_score(gate, make_not_radiograph(rng)) >= gate.card.threshold for _ in range(count))


def _small_films(source: Path) -> list[FloatArray]:
    return [_copy(film.pixels) for _, film in read_films(source)]


def _others(folder: Path) -> dict[str, FloatArray]:
    """Read every image that can be decoded; what cannot never reaches the gate."""
    found = {}
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        try:
            found[path.name] = _copy(open_image(path.read_bytes()).decode().pixels)
        except ImageError as exc:
            sys.stderr.write(f"left out: {path.name}: {exc}\n")
    return found


def _copy(pixels: FloatArray) -> FloatArray:
    side = FILM_COPY_SIDE
    shrinks = max(pixels.shape) > side
    return np.asarray(
        cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR), np.float32
    )


def _short(values: npt.NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(f"{value:.{DIGITS}g}") for value in values)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training.gate", description=__doc__)
    parser.add_argument("--train", type=Path, required=True, help="folder or zip of chest films to fit on")
    parser.add_argument("--val", type=Path, required=True, help="folder or zip of other patients' films")
    parser.add_argument("--not-films", type=Path, required=True, help="folder of images that are no chest radiographs")
    parser.add_argument("--every", type=int, default=3, help="take every n-th training film (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random numbers (default: 0)")
    parser.add_argument("--out", type=Path, default=GATE_CARD, help="where the gate is written")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
