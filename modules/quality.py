"""The input gate: is this a frontal chest radiograph the right way round, and is it good enough to be read?

The gate looks at a 64 × 64 copy: a coarse thumbnail says where a chest is bright and dark, histograms of oriented
gradients (Dalal and Triggs, CVPR 2005) say how its edges run, and a multinomial logistic regression tells a chest film
from an inverted one, a turned one and anything else. From the same features, four more logistic regressions estimate
whether the lungs reach beyond a side of the image. `python -m training.gate` fits all of them.
"""

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError

from modules.errors import ConfigurationError, GateRefusal, InvertedGreyscale, NotAChestRadiograph, RotatedFilm
from modules.records import FloatArray, ImageHeader, Quality, QualityWarning, Radiograph, Record
from modules.settings import PROJECT_ROOT

GATE_CARD = PROJECT_ROOT / "assets" / "weights" / "gate.json"

SIDE = 64  # pixels of the copy that the gate looks at
THUMBNAIL_SIDE = 16
CELLS = 8  # per side
ORIENTATIONS = 8  # over the full circle: an inverted film has every gradient reversed
N_FEATURES = THUMBNAIL_SIDE**2 + CELLS**2 * ORIENTATIONS  # 768

# What follows is chosen, not fitted.
FLAT_CONTRAST = 4 / 255  # between the 1st and 99th percentile; less is a blank image
MAX_ASPECT = 2.0
MAX_COLOURFULNESS = 0.1  # mean spread between colour channels; a photograph of a film is below
MIN_READABLE_SIDE_PX = 64  # smaller than any film that the network was trained on
MIN_SIDE_PX = 224  # fewer pixels than the network's input
MAX_WHITE_SHARE = 0.15  # of the pixels at the very top of the scale
MAX_BLACK_SHARE = 0.6
FULL_GREY = 254.5 / 255
ADULT_AGE = 18  # years

BLANK = "The image is blank: nothing on it can be read. Export the film again and send the new copy."

# DICOM PS3.3 C.7.3.1.1.1: modalities that can hold a projection radiograph; others never do.
PROJECTION_MODALITIES = frozenset({"CR", "DX", "DR", "RG", "RF", "XA", "OT", "SC"})
# DICOM PS3.3 C.8.7.1.1: right and left lateral, and the words that some vendors write instead.
LATERAL_VIEW = re.compile(r"\b(?:LL|RL|[LR]?LAT\w*)\b")
FRONTAL_VIEWS = frozenset({"AP", "PA"})
CHEST_WORDS = ("CHEST", "THORAX", "LUNG", "RIB", "HEART")


class Kind(StrEnum):
    """What the gate can tell apart, in the order of its outputs."""

    FILM = "film"
    INVERTED = "inverted"
    TURNED_90 = "turned 90° counter-clockwise"
    TURNED_180 = "turned upside down"
    TURNED_270 = "turned 90° clockwise"
    OTHER = "other"


KINDS = tuple(Kind)


class Side(StrEnum):
    """A side of the image beyond which lungs may lie, in the order of the outputs."""

    TOP = "top"
    BOTTOM = "bottom"
    LEFT = "left"
    RIGHT = "right"


SIDES = tuple(Side)

FeatureVector = Annotated[tuple[float, ...], Field(min_length=N_FEATURES, max_length=N_FEATURES)]


class CutOff(Record):
    """Fitted estimates, from the gate's standardised features, that lungs are cut off at each side of the image."""

    coefficients: Annotated[tuple[FeatureVector, ...], Field(min_length=len(SIDES), max_length=len(SIDES))]
    intercepts: Annotated[tuple[float, ...], Field(min_length=len(SIDES), max_length=len(SIDES))]
    threshold: float = Field(gt=0.0, lt=1.0, description="Least probability of a side that is warned about")


class GateCard(Record):
    """The fitted gate, and how it was measured."""

    mean: FeatureVector
    std: FeatureVector
    coefficients: Annotated[tuple[FeatureVector, ...], Field(min_length=len(KINDS), max_length=len(KINDS))]
    intercepts: Annotated[tuple[float, ...], Field(min_length=len(KINDS), max_length=len(KINDS))]
    threshold: float = Field(gt=0.0, lt=1.0, description="Least score of an accepted film")
    cut_off: CutOff
    metrics: dict[str, Any]
    training: str
    data: str


def gate_features(pixels: FloatArray) -> npt.NDArray[np.float64]:
    """Return the gate's features (768,) of a film (H, W) in [0, 1]; they do not depend on brightness or contrast."""
    small = cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), 0.8)
    low, high = np.percentile(small, (1, 99))
    scaled = np.clip((small - low) / max(high - low, FLAT_CONTRAST), 0.0, 1.0)
    thumbnail = cv2.resize(scaled, (THUMBNAIL_SIDE, THUMBNAIL_SIDE), interpolation=cv2.INTER_AREA)
    return np.concatenate([thumbnail.ravel() * 2.0 - 1.0, _oriented_gradients(scaled).ravel()])


def _oriented_gradients(scaled: FloatArray) -> npt.NDArray[np.float64]:
    """Return histograms (CELLS, CELLS, ORIENTATIONS) of gradient directions, normalised by their neighbourhood."""
    dy, dx = np.gradient(cv2.GaussianBlur(scaled, (0, 0), 1.0))
    strength = np.hypot(dx, dy)
    direction = np.arctan2(dy, dx) / (2 * np.pi) * ORIENTATIONS % ORIENTATIONS
    lower = np.floor(direction).astype(int) % ORIENTATIONS
    upper_share = direction - np.floor(direction)
    cell = np.arange(SIDE) // (SIDE // CELLS)
    first_bin = (cell[:, np.newaxis] * CELLS + cell) * ORIENTATIONS
    bins = CELLS * CELLS * ORIENTATIONS
    histogram = np.bincount((first_bin + lower).ravel(), (strength * (1 - upper_share)).ravel(), bins)
    upper = (lower + 1) % ORIENTATIONS
    histogram += np.bincount((first_bin + upper).ravel(), (strength * upper_share).ravel(), bins)
    histogram = histogram.reshape(CELLS, CELLS, ORIENTATIONS)
    energy = cv2.blur(np.sqrt((histogram**2).sum(axis=2)), (3, 3))
    # 0.15: below it a cell counts as empty, so that noise in air is not blown up
    return np.asarray(histogram / (energy[..., np.newaxis] + 0.15))


class InputGate:
    """Decides whether a film is analysed, and warns about what makes its numbers less trustworthy."""

    def __init__(self, card: GateCard) -> None:
        self.card = card
        self._mean, self._std = np.array(card.mean), np.array(card.std)
        self._coefficients, self._intercepts = np.array(card.coefficients), np.array(card.intercepts)
        self._side_coefficients = np.array(card.cut_off.coefficients)
        self._side_intercepts = np.array(card.cut_off.intercepts)

    @classmethod
    def load(cls, path: Path = GATE_CARD) -> "InputGate":
        """Load the fitted gate; raises ConfigurationError if its card is missing or damaged."""
        try:
            return cls(GateCard.model_validate_json(path.read_text("utf-8")))
        except (OSError, UnicodeDecodeError, ValidationError) as exc:
            raise ConfigurationError(f"The input gate cannot be loaded from {path}: restore the file.") from exc

    def kind_probabilities(self, pixels: FloatArray) -> dict[Kind, float]:
        """Return the probability of each kind for pixels (H, W) in [0, 1]; they sum to 1."""
        return self._kinds(self._standardised(pixels))

    def cut_off_probabilities(self, pixels: FloatArray) -> dict[Side, float]:
        """Return for each side the probability that lungs lie beyond it, for an upright film (H, W) in [0, 1]."""
        return self._sides(self._standardised(pixels))

    def _standardised(self, pixels: FloatArray) -> npt.NDArray[np.float64]:
        return np.asarray((gate_features(pixels) - self._mean) / self._std)

    def _kinds(self, features: npt.NDArray[np.float64]) -> dict[Kind, float]:
        logits = self._coefficients @ features + self._intercepts
        weights = np.exp(logits - logits.max())
        return dict(zip(KINDS, (weights / weights.sum()).tolist(), strict=True))

    def _sides(self, features: npt.NDArray[np.float64]) -> dict[Side, float]:
        odds = self._side_coefficients @ features + self._side_intercepts
        return dict(zip(SIDES, (0.5 + 0.5 * np.tanh(0.5 * odds)).tolist(), strict=True))

    def check_header(self, header: ImageHeader, *, force: bool = False) -> None:
        """Refuse what its DICOM header says is no frontal radiograph, before any pixel is decoded."""
        reason = _header_reason(header)
        if reason is not None and not force:
            raise NotAChestRadiograph(f"{reason} Send a frontal (PA or AP) chest radiograph, or force=true to go on.")

    def assess(self, radiograph: Radiograph, *, force: bool = False) -> Quality:
        """Judge a decoded film; raises a GateRefusal, unless `force` is given, for what should not be analysed."""
        copy = cv2.resize(radiograph.pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        low, high = np.percentile(copy, (1, 99))
        if high - low < FLAT_CONTRAST:
            score, sides = 0.0, {}
            refusal: GateRefusal | None = NotAChestRadiograph(BLANK, 0.0)
        else:
            features = self._standardised(np.asarray(copy, np.float32))
            kinds, sides = self._kinds(features), self._sides(features)
            score, refusal = kinds[Kind.FILM], self._refusal(radiograph, kinds)
        if refusal is not None and not force:
            raise refusal
        cut = [side for side, value in sides.items() if value >= self.card.cut_off.threshold]
        under_18 = None if radiograph.header.age_years is None else radiograph.header.age_years < ADULT_AGE
        reason = f"Looks like a frontal chest radiograph: score {score:.2f}, at least {self.card.threshold:.2f} needed."
        return Quality(
            gate_score=score,
            accepted=refusal is None,
            reason=reason if refusal is None else f"Refused by the input gate, analysed because forced. {refusal}",
            # where the lungs should be is not known on what does not look like an upright film
            warnings=_warnings(radiograph, cut if refusal is None else []),
            forced=refusal is not None,
            inverted_by_request=radiograph.inverted_by_request,
            view_position=radiograph.header.view_position,
            under_18=under_18,
        )

    def _refusal(self, radiograph: Radiograph, kinds: dict[Kind, float]) -> GateRefusal | None:
        score = kinds[Kind.FILM]
        reason = plain_reason(radiograph)
        if reason is None and score >= self.card.threshold:
            return None
        likeliest = max(kinds, key=lambda kind: kinds[kind])
        numbers = f"(score {score:.2f}, at least {self.card.threshold:.2f} needed)"
        if reason is None and likeliest is Kind.INVERTED:
            change = "without invert" if radiograph.inverted_by_request else "with invert=true"
            return InvertedGreyscale(
                f"This looks like a chest radiograph with black and white exchanged {numbers}. Send it again {change}, "
                "or with force=true if bright is dense on it.",
                score,
            )
        if reason is None and likeliest in (Kind.TURNED_90, Kind.TURNED_180, Kind.TURNED_270):
            return RotatedFilm(
                f"This looks like a chest radiograph {likeliest.value} {numbers}. Turn it upright and send it again, "
                "or send it with force=true if it is upright.",
                score,
            )
        way_on = "If it is one, send it again with force=true."
        if reason is not None:  # the score had no part in it
            return NotAChestRadiograph(f"{reason} {way_on}")
        return NotAChestRadiograph(f"This does not look like a frontal chest radiograph {numbers}. {way_on}", score)


def plain_reason(radiograph: Radiograph) -> str | None:
    """Return why this is no chest radiograph, where no classifier is needed to say so."""
    height, width = radiograph.pixels.shape
    if max(height, width) > MAX_ASPECT * min(height, width):
        return f"No chest radiograph is {width} x {height} pixels."
    if min(height, width) < MIN_READABLE_SIDE_PX:
        return f"{width} x {height} pixels are too few to read."
    if radiograph.colourfulness > MAX_COLOURFULNESS:
        return "The image is in colour; a radiograph is grey."
    return _header_reason(radiograph.header)


def _header_reason(header: ImageHeader) -> str | None:
    if header.modality and header.modality not in PROJECTION_MODALITIES:
        return f"The DICOM header says modality {header.modality}, which is no projection radiograph."
    if LATERAL_VIEW.search(header.view_position or ""):
        return "The DICOM header says that this is a lateral view."
    return None


def _warnings(radiograph: Radiograph, cut: list[Side]) -> tuple[QualityWarning, ...]:
    header, pixels = radiograph.header, radiograph.pixels
    found: list[tuple[str, str]] = []
    if min(pixels.shape) < MIN_SIDE_PX:
        height, width = pixels.shape
        found.append(("low_resolution", f"Only {width} x {height} pixels: fine detail is missing."))
    white, black = _share(pixels >= FULL_GREY), _share(pixels <= 1 - FULL_GREY)
    if white > MAX_WHITE_SHARE or black > MAX_BLACK_SHARE:
        found.append(("clipped", f"{white:.0%} of the pixels are pure white and {black:.0%} pure black."))
    if cut:
        sides = " and ".join(cut)
        message = (
            f"Part of the lungs seems to be cut off at the {sides} of the image: an estimate from its outline. Look "
            "whether both apices and both costophrenic angles are on it; if not, send the whole film."
        )
        found.append(("cut_off", message))
    if header.view_position and header.view_position not in FRONTAL_VIEWS:
        found.append(("view", "The DICOM header names a view other than PA or AP."))
    if header.body_part and not any(word in header.body_part for word in CHEST_WORDS):
        found.append(("body_part", "The DICOM header names a body part other than the chest."))
    return tuple(QualityWarning(code=code, message=message) for code, message in found)


def _share(marked: npt.NDArray[np.bool_]) -> float:
    return np.count_nonzero(marked) / marked.size  # several times faster than a mean
