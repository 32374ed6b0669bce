"""One frozen record a stage: dataclasses hold arrays and stay inside the process, pydantic models reach JSON.

`modules/answers.py` makes the answers of the API of them. Nothing here may import torch: the dashboard parses them.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, model_validator

from modules.odds import probabilities
from modules.pathologies import NAMES
from modules.settings import Precision, ReaderMode

DISCLAIMER = (
    "For research and education only. Not a medical device, not for diagnosis or treatment: the numbers come from "
    "models that miss findings and report false ones, and that look for 14 pathologies only: not for fractures, free "
    "air, tubes or lines. A qualified professional must read the film."
)

MAX_SYMPTOMS = 4000  # characters
FloatArray = npt.NDArray[np.float32]
Status = Literal["present", "absent", "uncertain", "not_mentioned"]
RiskLevel = Literal["Low", "Moderate", "High"]
ReplyForm = Literal["schema", "repaired", "prose"]
HeatmapChoice = Literal["top", "all", "none"]

# Arithmetic is never rounded; JSON is, to the sixth decimal. It knows neither infinity nor NaN.
Rounded = PlainSerializer(lambda value: round(value, 6), return_type=float, when_used="json")
Number = Annotated[float, Field(allow_inf_nan=False), Rounded]
Probability = Annotated[float, Field(ge=0.0, le=1.0), Rounded]


# ── Stage 0: the image ───────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class ImageHeader:
    """What a file says of itself before its pixels are decoded; nothing here identifies a patient."""

    format: Literal["png", "jpeg", "dicom"]
    width: int
    height: int
    modality: str | None = None  # DICOM (0008,0060)
    view_position: str | None = None  # DICOM (0018,5101)
    body_part: str | None = None  # DICOM (0018,0015)
    age_years: float | None = None  # DICOM (0010,1010)
    pixel_spacing_mm: tuple[float, float] | None = None  # row, column; (0028,0030) or else (0018,1164)

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise ValueError(f"an image of {self.width} x {self.height} pixels has no content")


@dataclass(frozen=True, eq=False)
class Radiograph:
    """A decoded film: `pixels` float32 (H, W) in [0, 1], bright = dense."""

    pixels: FloatArray
    header: ImageHeader
    colourfulness: float = 0.0  # mean difference between the largest and smallest colour channel, in [0, 1]
    inverted_by_request: bool = False

    def __post_init__(self) -> None:
        if self.pixels.ndim != 2 or self.pixels.dtype != np.float32:
            raise ValueError(f"pixels must be float32 (H, W), not {self.pixels.dtype} {self.pixels.shape}")
        if self.pixels.size == 0 or not (0.0 <= float(self.pixels.min()) and float(self.pixels.max()) <= 1.0):
            raise ValueError("pixels must lie in [0, 1]")


class Record(BaseModel):
    """Base of the records that reach JSON: immutable, and closed to unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class QualityWarning(Record):
    """Something about the film that makes every number less trustworthy."""

    code: str
    message: str


class Quality(Record):
    """The input gate's view: is this a frontal chest radiograph, and is it good enough?"""

    gate_score: Probability = Field(description="1 = looks like the chest radiographs that the gate was fitted on")
    accepted: bool = Field(description="False only when the caller forced the analysis of a refused film")
    reason: str = Field(description="One sentence that explains the score")
    warnings: tuple[QualityWarning, ...] = ()
    forced: bool = False
    inverted_by_request: bool = False
    view_position: str | None = Field(None, description="From the DICOM header, such as PA or AP")
    under_18: bool | None = Field(None, description="From the DICOM header; null when it is not known")


# ── Stage 1: CNN ─────────────────────────────────────────────────────────────────────────────────────────────────────


class GridToImage(Record):
    """Where the network's grid lies on the film: image x = x_offset + x_scale · grid x, in pixels; likewise y.

    Grid coordinates run from 0 to the number of columns (rows); cell (r, c) is centred on (c + 0.5, r + 0.5).
    """

    x_scale: Number
    x_offset: Number
    y_scale: Number
    y_offset: Number


@dataclass(frozen=True, eq=False)
class CnnPrediction:
    """What one forward pass gives for one film; K = 14 pathologies, in the order of `pathologies.NAMES`."""

    logits: FloatArray  # (K,), of the network, before calibration
    log_odds: FloatArray  # (K,), calibrated
    thresholds: FloatArray  # (K,), operating points on the calibrated probabilities
    sufficient_data: tuple[bool, ...]  # K; False: too few positive validation patients
    features: FloatArray  # (C, h, w), the tensor that enters the global average pooling
    classifier_weight: FloatArray  # (K, C)
    calibration_slope: FloatArray  # (K,), log-odds = slope · logit + intercept
    grid_to_image: GridToImage
    mirrored_log_odds: FloatArray | None = None  # (K,), of the mirrored film, when it was read too

    def __post_init__(self) -> None:
        k, channels = len(NAMES), self.features.shape[0]
        vectors = (self.logits, self.log_odds, self.thresholds, self.calibration_slope)
        if any(v.shape != (k,) for v in vectors) or len(self.sufficient_data) != k:
            raise ValueError(f"logits, log-odds, thresholds, slopes and marks of sufficient data: {k} of each")
        if self.features.ndim != 3 or self.classifier_weight.shape != (k, channels):
            raise ValueError(f"features (C, h, w) and weights ({k}, C) do not fit")
        if self.mirrored_log_odds is not None and self.mirrored_log_odds.shape != (k,):
            raise ValueError(f"{k} mirrored log-odds, or none")

    @cached_property
    def probabilities(self) -> FloatArray:
        """Calibrated probabilities (K,)."""
        return probabilities(self.log_odds)

    @cached_property
    def detected(self) -> tuple[bool, ...]:
        """Whether each probability reaches its operating point."""
        return tuple((self.probabilities >= self.thresholds).tolist())

    @cached_property
    def ranking(self) -> tuple[int, ...]:
        """Indices of the pathologies, the one that stands highest above its operating point (in log-odds) first.

        Labels with sufficient data come before the others. A ranking by probability would always favour the common
        findings.
        """
        with np.errstate(divide="ignore"):  # a threshold of 1 is never reached: its log-odds are infinite
            margins = self.log_odds - (np.log(self.thresholds) - np.log1p(-self.thresholds))
        order = sorted(range(len(NAMES)), key=lambda k: (self.sufficient_data[k], margins[k]), reverse=True)
        return tuple(order)


class ModelInfo(Record):
    """Which network made the numbers."""

    weights: str
    sha256: str
    architecture: str
    engine: str
    device: str
    precision: Precision = "fp32"
    calibrated: bool


# ── Stage 2: second reader ───────────────────────────────────────────────────────────────────────────────────────────


class ReaderStatement(Record):
    """What the reader says of one pathology, with the words that it rests on."""

    status: Status
    quote: str = ""
    confidence: Probability | None = Field(None, description="Measured confidence in this status, or null")


class Reading(Record):
    """A second reader's answer about one film. `independent` is false for a template that repeats the CNN.

    `form` says how the reply was understood: as the schema that was asked for, so after one repair, or as prose.
    `flags` are rules that its text breaks. A reader that saw the CNN's numbers is no evidence beside them.
    """

    reasoning: str
    key_observations: tuple[str, ...] = ()
    differential: tuple[str, ...] = ()
    recommendation: str = ""
    statements: dict[str, ReaderStatement] = Field(default_factory=dict)
    token_confidence: Probability | None = None
    independent: bool = True
    form: ReplyForm | None = None
    flags: tuple[str, ...] = ()
    prompt: str | None = None
    saw_cnn: bool = False

    @model_validator(mode="after")
    def _known_pathologies(self) -> "Reading":
        unknown = sorted(set(self.statements) - set(NAMES))
        if unknown:
            raise ValueError(f"statements about unknown pathologies: {', '.join(unknown)}")
        if not self.independent and (self.statements or self.token_confidence is not None):
            raise ValueError("a reader that is not independent states nothing and measures nothing")
        return self

    def statement(self, pathology: str) -> ReaderStatement:
        """Return what was said of a pathology; silence is `not_mentioned`."""
        return self.statements.get(pathology, ReaderStatement(status="not_mentioned"))


class ReaderInfo(Record):
    """Which reader was asked for, which ran, and where the film went."""

    mode_requested: ReaderMode
    mode: ReaderMode = Field(description="The reader that answered")
    model: str | None = None
    independent: bool = Field(description="True when a second model read the film; a template is none")
    fallback_reason: str | None = None
    film_sent_to: str = Field(description="Where the film went, in words; every reader that was tried is named")
    token_confidence: Probability | None = None
    form: ReplyForm | None = Field(None, description="How the reply was understood; null for the template")
    flags: tuple[str, ...] = Field((), description="Rules that the reader's text seems to break")
    prompt: str | None = Field(None, description="Version and hash of the questions that were asked")
    saw_cnn: bool = Field(False, description="The reader was shown the CNN's numbers: it is no second opinion")
    seconds: Annotated[float, Field(ge=0.0), Rounded]


# ── Stage 3: fusion ──────────────────────────────────────────────────────────────────────────────────────────────────


class Adjustment(Record):
    """One shift of the CNN's log-odds, with its reason."""

    log_odds: Number
    reason: str


class Finding(Record):
    """Everything known of one pathology on this film."""

    pathology: str
    cnn_probability: Probability = Field(description="Calibrated probability of the CNN alone")
    operating_threshold: Probability
    detected: bool = Field(description="The CNN's probability reaches the operating threshold")
    sufficient_data: bool = Field(description="False: too few validation patients; shown, never driving the risk")
    reader: ReaderStatement
    fused_probability: Probability = Field(description="Adjusted by the reader within a fixed cap; not calibrated")
    adjustments: tuple[Adjustment, ...] = ()


class Contradiction(Record):
    """A pathology on which the two readers differ."""

    pathology: str
    cnn_probability: Probability
    note: str
    kind: Literal["not_mentioned", "denied", "not_detected"]


class Fusion(Record):
    """Both readers merged. `agreement` is the share of the reader's clear statements that match the CNN, or None.

    `reader_is_evidence` is false when the reader had seen the CNN's numbers.
    """

    findings: tuple[Finding, ...]
    reader_is_evidence: bool = True
    contradictions: tuple[Contradiction, ...] = ()
    agreement: Probability | None = None

    @model_validator(mode="after")
    def _all_in_order(self) -> "Fusion":
        if tuple(f.pathology for f in self.findings) != NAMES:
            raise ValueError("fusion holds one finding for each of the 14 pathologies, in their order")
        return self


class Uncertainty(Record):
    """How sure each reader is. None was not measured."""

    cnn: Probability
    llm: Probability | None
    fused: Probability
    review_reasons: tuple[str, ...] = ()


class Risk(Record):
    """The level, what drives it, and whether a person must look."""

    level: RiskLevel
    factors: tuple[str, ...]
    needs_review: bool
    review_reasons: tuple[str, ...] = ()


# ── Stage 6: explainability ──────────────────────────────────────────────────────────────────────────────────────────


class Peak(Record):
    """The cell with the largest contribution: its centre in pixels of the film, and its value in log-odds."""

    x: Number
    y: Number
    value: Number


class Box(Record):
    """A rectangle in pixels of the film."""

    x: Number
    y: Number
    width: Number
    height: Number


class Heatmap(Record):
    """Grad-CAM of one pathology: the contribution of each cell to its log-odds, negative ones set to zero."""

    pathology: str
    detected: bool
    probability: Probability
    grid: tuple[tuple[Number, ...], ...] = Field(description="Rows of cells, in calibrated log-odds per cell")
    full_scale: Number = Field(description="Log-odds per cell that get the full colour, on every film the same")
    peak: Peak | None = Field(description="Null when no cell speaks for the pathology")
    zone: str | None = Field(description="Where the peak lies in the image")
    box: Box | None = Field(description="Around the peak; null where the grid is too coarse to mean one")
    grid_to_image: GridToImage


class HeatmapFinding(Record):
    """Which pathology the overlay shows."""

    pathology: str
    detected: bool
    probability: Probability
    note: str
