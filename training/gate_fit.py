"""Fits what the gate's card holds: the classifier of kinds, the estimates of cut-off lungs, and their thresholds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from modules.quality import KINDS, SIDES, CutOff, GateCard, InputGate, Kind, gate_features
from modules.records import FloatArray
from synthetic.not_radiographs import make_not_radiograph
from training.gate_images import (
    Film,
    NotFilm,
    cropped,
    framed,
    nudged,
    random_cuts,
    reencoded,
    scrambled,
    turned,
    varied,
    varied_other,
)

# What follows is chosen, not fitted.
COPIES_OF_AN_IMAGE = 120  # of other things, each varied at random
REFUSED_SHARE = 0.005  # of the films that the threshold is chosen on; half of what is allowed on others
FALSE_WARNING_SHARE = 0.015  # of whole films that the cut-off threshold is chosen on; 0.02 is allowed on others
INVERSE_REGULARISATIONS = (0.01, 0.03, 0.1)  # ascending; the one with the least log loss on val is taken
CUT_OFF_INVERSE_REGULARISATION = 0.01
COMPONENTS = 256  # of the 768 standardised features that the classifiers are fitted on; it saves time, not accuracy
DIGITS = 5  # significant, in the card

Matrix = npt.NDArray[np.float64]
Components = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Examples:
    """Features (N, 768), and what is true of each example: (N,) index of its kind, or (N, 4) sides cut off."""

    features: Matrix
    truth: npt.NDArray[np.intp]


def joined(*parts: Examples) -> Examples:
    """Return all examples as one."""
    return Examples(np.concatenate([p.features for p in parts]), np.concatenate([p.truth for p in parts]))


def film_examples(films: Sequence[Film], rng: np.random.Generator) -> Examples:
    """Show films upright, inverted, turned, cut off, framed and scrambled."""
    features, kinds = [], []

    def add(image: FloatArray, kind: Kind) -> None:
        features.append(gate_features(image))
        kinds.append(KINDS.index(kind))

    for film in films:
        add(framed(varied(film.pixels, rng), rng), Kind.FILM)
        image = framed(varied(film.pixels, rng), rng)
        add(image, Kind.FILM)
        if rng.random() < 0.3:  # cut-off lungs are warned about, not refused
            add(framed(varied(cropped(film.pixels, random_cuts(rng)), rng), rng), Kind.FILM)
        add(turned(image, Kind.INVERTED), Kind.INVERTED)
        for kind in (Kind.TURNED_90, Kind.TURNED_180, Kind.TURNED_270):
            if rng.random() < 0.5:
                add(turned(image, kind), kind)
        if rng.random() < 0.25:  # inverted and turned: no single way on, so it is refused as something else
            add(np.ascontiguousarray(1.0 - np.rot90(image, int(rng.integers(1, 4)))), Kind.OTHER)
        add(scrambled(film.pixels, rng), Kind.OTHER)
    return Examples(np.array(features), np.array(kinds))


def drawn_examples(kinds: Sequence[str], count: int, rng: np.random.Generator) -> Examples:
    """Draw images of the given kinds of junk."""
    features = [gate_features(drawn(kinds, rng)) for _ in range(count)]
    return Examples(np.array(features), np.full(count, KINDS.index(Kind.OTHER)))


def drawn(kinds: Sequence[str], rng: np.random.Generator) -> FloatArray:
    """Draw one image of the given kinds, re-encoded as all others are."""
    return reencoded(make_not_radiograph(rng, kinds=kinds))


def other_examples(images: Sequence[NotFilm], rng: np.random.Generator) -> Examples:
    """Show each image of another thing as it is and in many variations."""
    features = []
    for image in images:
        if image.pixels is not None:
            features.append(gate_features(image.pixels))
            features += [gate_features(varied_other(image.pixels, rng)) for _ in range(COPIES_OF_AN_IMAGE)]
    return Examples(np.array(features), np.full(len(features), KINDS.index(Kind.OTHER)))


def cut_off_examples(films: Sequence[Film], rng: np.random.Generator) -> Examples:
    """Show each film whole, and cut off at one or two sides."""
    features, truth = [], []
    for film in films:
        cuts = random_cuts(rng)
        whole, cut = nudged(film.pixels, rng), nudged(cropped(film.pixels, cuts), rng)
        features += [gate_features(framed(whole, rng)), gate_features(framed(cut, rng))]
        truth += [[0] * len(SIDES), [int(side in cuts) for side in SIDES]]
    return Examples(np.array(features), np.array(truth))


def fit(kinds: Examples, cut_off: Examples, val: Examples) -> tuple[GateCard, float]:
    """Fit everything but the thresholds; return it with the inverse regularisation, chosen by log loss on `val`."""
    scaler = StandardScaler().fit(kinds.features)
    pca = PCA(min(COMPONENTS, len(kinds.features)), svd_solver="covariance_eigh").fit(scaler.transform(kinds.features))
    x, x_val, x_cut = (_components(pca, scaler, e.features) for e in (kinds, val, cut_off))
    model = LogisticRegression(max_iter=300, warm_start=True)
    best = (np.inf, 0.0, np.empty(0), np.empty(0))
    for strength in INVERSE_REGULARISATIONS:
        model.set_params(C=strength).fit(x, kinds.truth)
        loss = log_loss(val.truth, model.predict_proba(x_val), labels=range(len(KINDS)))
        if loss < best[0]:
            best = (float(loss), strength, model.coef_.copy(), model.intercept_.copy())
    _, strength, *fitted = best
    # what is linear in the components is linear in the features: the card holds the latter
    coefficients, intercepts = _unfolded(pca, *fitted)
    card = GateCard(
        mean=_short(scaler.mean_),
        std=_short(scaler.scale_),
        coefficients=tuple(_short(row) for row in coefficients),
        intercepts=_short(intercepts),
        threshold=0.5,
        cut_off=_fit_cut_off(pca, x_cut, cut_off.truth),
        metrics={},
        training="python -m training.gate",
        data="NIH ChestX-ray14 (Wang et al., CVPR 2017), images drawn at random, a few public images of other things",
    )
    return card, strength


def with_thresholds(card: GateCard, films: Sequence[Film]) -> InputGate:
    """Return the gate that refuses, and warns about, a small share of these films."""
    gate = InputGate(card)
    scores = [score(gate, film.pixels) for film in films]
    # never less than an even chance: so few films lie below it that a quantile of them alone would be left to luck
    threshold = min(0.9, max(0.5, float(np.quantile(scores, REFUSED_SHARE))))
    warned = [max(gate.cut_off_probabilities(film.pixels).values()) for film in films]
    cut = min(0.999, float(np.quantile(warned, 1 - FALSE_WARNING_SHARE)))
    cut_off = card.cut_off.model_copy(update={"threshold": round(cut, 4)})
    return InputGate(card.model_copy(update={"threshold": round(threshold, 4), "cut_off": cut_off}))


def score(gate: InputGate, image: FloatArray) -> float:
    """Return the gate's score of an image."""
    return gate.kind_probabilities(image)[Kind.FILM]


def _fit_cut_off(pca: PCA, components: Components, truth: npt.NDArray[np.intp]) -> CutOff:
    models = [
        LogisticRegression(C=CUT_OFF_INVERSE_REGULARISATION, max_iter=300).fit(components, truth[:, side])
        for side in range(len(SIDES))
    ]
    fitted = (np.concatenate([getattr(model, name) for model in models]) for name in ("coef_", "intercept_"))
    coefficients, intercepts = _unfolded(pca, *fitted)
    return CutOff(coefficients=tuple(_short(row) for row in coefficients), intercepts=_short(intercepts), threshold=0.5)


def _components(pca: PCA, scaler: StandardScaler, features: Matrix) -> Components:
    return np.asarray(pca.transform(scaler.transform(features)), np.float32)


def _unfolded(pca: PCA, coefficients: Matrix, intercepts: Matrix) -> tuple[Matrix, Matrix]:
    """Return coefficients and intercepts on the standardised features from those on their components."""
    unfolded = np.asarray(coefficients, np.float64) @ pca.components_
    return unfolded, np.asarray(intercepts - unfolded @ pca.mean_)


def _short(values: Matrix) -> tuple[float, ...]:
    return tuple(float(f"{value:.{DIGITS}g}") for value in values.tolist())
