"""Weights cards: what a set of CNN weights is, how to feed it, and what its numbers mean; and the loading of both.

A folder of weights holds `card.json` and one safetensors file. The card travels with the weights, so preprocessing,
calibration and operating points cannot drift away from them, and labels are mapped by name, never by position.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError, field_validator, model_validator

from modules.errors import WeightsError
from modules.pathologies import NAMES, canonical_name
from modules.records import Record
from modules.settings import PROJECT_ROOT

EMBEDDED_WEIGHTS = PROJECT_ROOT / "assets" / "weights"
CARD_FILE = "card.json"
TORCHXRAYVISION_PREFIX = "densenet121-res224-"

# What safetensors files of weights hold, in numpy's types; BF16 is not among those, and read by hand.
_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4"}

# With fewer positive patients than this in validation, neither calibration nor operating point means much.
MIN_POSITIVE_PATIENTS = 20
# Half precision may serve where no pathology's AUROC moves by as much as this on at least so many films; both chosen.
MAX_AUROC_DIFFERENCE = 0.002
MIN_PRECISION_FILMS = 500
MAX_SIDE = 4096  # pixels to which a card may have films brought: more than any film has to tell

Finite = Annotated[float, Field(allow_inf_nan=False)]
Side = Annotated[int, Field(ge=16, le=MAX_SIDE)]


class Preprocessing(Record):
    """How a radiograph becomes the network's input (1, input_size, input_size)."""

    aspect: Literal["stretch", "crop"] = Field(
        description="stretch: the whole film is made square; crop: the largest centred square is taken"
    )
    degrade_to: Side | None = Field(
        None,
        description="Side to which every film is brought before all else: what makes its sharpness tell nothing",
    )
    reduce_to: Side | None = Field(
        None,
        description="Side to which the film is brought first (by area; smaller ones by cubic), as in training",
    )
    input_size: int = Field(ge=32, le=1024, description="Side of the network's input, in pixels")
    mean: Finite = Field(description="Subtracted from pixels in [0, 1]")
    std: Finite = Field(gt=0.0, description="Divides what is left")


class CardOutput(Record):
    """One output of the network: its label, calibration and operating point."""

    label: str
    slope: Finite = Field(1.0, gt=0.0, description="Calibrated log-odds = slope · logit + intercept")
    intercept: Finite = 0.0
    threshold: float | None = Field(None, gt=0.0, lt=1.0, description="Operating point on the calibrated probability")
    validation_positive_patients: int | None = Field(None, ge=0, description="null: not known")
    validation_prevalence: float | None = Field(
        None, gt=0.0, lt=1.0, description="Share of the films that it was calibrated on; what the probability holds for"
    )
    sensitivity: float | None = Field(None, ge=0.0, le=1.0, description="At the threshold, on validation patients")
    specificity: float | None = Field(None, ge=0.0, le=1.0, description="At the threshold, on validation patients")

    @property
    def sufficient_data(self) -> bool:
        """Whether enough positive validation patients stand behind calibration and operating point."""
        known = self.validation_positive_patients
        return self.threshold is not None and (known is None or known >= MIN_POSITIVE_PATIENTS)


class PrecisionTest(Record):
    """What half precision does to the weights on one device, beside fp32 on the same device and films."""

    dtype: Literal["bf16", "fp16"]
    device: Literal["cuda", "mps"] = Field(description="On the CPU fp32 alone is served")
    device_name: str = Field(description="The device that it was measured on, in its own words")
    torch: str = Field(description="Version of PyTorch")
    weights_sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="Of the weights file that was tested")
    cohort: str = Field(description="Which films these are")
    films: int = Field(ge=1)
    patients: int = Field(ge=1)
    pathologies: int = Field(ge=1, le=len(NAMES), description="Whose AUROC could be measured")
    auroc_difference: Finite = Field(description="Half precision less fp32, of the pathology that it moves furthest")
    mean_auroc_difference: Finite = Field(description="In the mean over the pathologies")
    detections_changed: int = Field(ge=0, description="Of films × 14, how many are detected in one of both alone")
    passes: bool

    @model_validator(mode="after")
    def _passes_by_its_figures(self) -> Self:
        if self.passes != precision_passes(self.films, self.pathologies, self.auroc_difference):
            raise ValueError(f"passes is {self.passes}, which its figures do not say")
        return self


def precision_passes(films: int, pathologies: int, auroc_difference: float) -> bool:
    """Whether half precision leaves the metrics as they are: all 14 were measured, on enough films, and none moved."""
    enough = films >= MIN_PRECISION_FILMS and pathologies == len(NAMES)
    return enough and abs(auroc_difference) < MAX_AUROC_DIFFERENCE


class WeightsCard(Record):
    """Everything that must be known of a set of weights before it may answer."""

    name: str
    file: str = Field(pattern=r"^[^/\\]+$", description="The safetensors file beside the card")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    architecture: Literal["densenet121"] = "densenet121"
    outputs: tuple[CardOutput, ...] = Field(min_length=1, description="In the order of the network's outputs")
    preprocessing: Preprocessing
    calibration: str | None = Field(description="How slopes and intercepts were fitted; null: uncalibrated")
    operating_points: str = Field(description="How the thresholds were chosen")
    gate_sha256: str | None = Field(
        None, pattern=r"^[0-9a-f]{64}$", description="Of the input gate (gate.json) that was measured with the weights"
    )
    precision: tuple[PrecisionTest, ...] = Field((), description="Tests of half precision; the latest of its kind")
    metrics: dict[str, Any] = Field(default_factory=dict, description="What was measured, on which films")
    data: str
    training: str
    licence: str
    citation: str

    @field_validator("metrics")
    @classmethod
    def _are_finite(cls, metrics: dict[str, Any]) -> dict[str, Any]:
        """Refuse NaN and infinity, which JSON does not have: a figure that was not measured is null."""
        left: list[tuple[str, Any]] = list(metrics.items())
        while left:
            where, value = left.pop()
            if isinstance(value, dict):
                left += [(f"{where}.{key}", item) for key, item in value.items()]
            elif isinstance(value, list | tuple):
                left += [(where, item) for item in value]
            elif isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{where} is not finite; what was not measured is null")
        return metrics

    @model_validator(mode="after")
    def _serves_the_14(self) -> Self:
        known = [canonical_name(o.label) for o in self.outputs]
        missing = [name for name in NAMES if name not in known]
        twice = sorted({name for name in known if name is not None and known.count(name) > 1})
        if missing:
            raise ValueError(f"the network has no output for {', '.join(missing)}; this assistant serves all 14")
        if twice:
            raise ValueError(f"the network has two outputs for {', '.join(twice)}")
        return self

    @property
    def served(self) -> tuple[tuple[int, CardOutput], ...]:
        """The 14 outputs in the order of `pathologies.NAMES`, each with its position in the network."""
        position = {canonical_name(o.label): (i, o) for i, o in enumerate(self.outputs)}
        return tuple(position[name] for name in NAMES)


@dataclass(frozen=True, eq=False)
class Weights:
    """A card and the tensors that it describes, in float32; raises WeightsError for a value that is not finite."""

    card: WeightsCard
    tensors: Mapping[str, npt.NDArray[Any]]

    def __post_init__(self) -> None:
        for key, tensor in self.tensors.items():
            if not np.isfinite(tensor).all():
                raise WeightsError(f"{key} of the weights {self.card.name} holds values that are not finite.")


def read_card(folder: Path) -> WeightsCard:
    """Read and validate the card of a weights folder; raises WeightsError with the first thing that is wrong."""
    path = folder / CARD_FILE
    try:
        return WeightsCard.model_validate_json(path.read_text("utf-8"))
    except OSError as exc:
        raise WeightsError(f"No readable {CARD_FILE} in {folder}: {exc.strerror}.") from exc
    except UnicodeDecodeError as exc:
        raise WeightsError(f"{path} is not UTF-8 text.") from exc
    except ValidationError as exc:
        raise WeightsError(f"{path}: {_first(exc)}.") from exc


def load_weights(choice: str, expected_sha256: str | None = None) -> Weights:
    """Load the weights that CXR_WEIGHTS names; they must have the SHA-256 that is expected, a pickle needs one.

    `choice` is "embedded", a TorchXRayVision DenseNet such as densenet121-res224-all, or a folder. Raises WeightsError
    when hash, shape or labels do not fit; the message names both sides.
    """
    if choice == "embedded":
        weights = _load_folder(EMBEDDED_WEIGHTS)
    elif choice.startswith(TORCHXRAYVISION_PREFIX):
        weights = _load_torchxrayvision(choice, expected_sha256)
    elif Path(choice).is_dir():
        weights = _load_folder(Path(choice))
    else:
        raise WeightsError(
            f"CXR_WEIGHTS is {choice!r}: neither 'embedded', nor a TorchXRayVision DenseNet "
            f"('{TORCHXRAYVISION_PREFIX}all', …), nor an existing folder with {CARD_FILE}."
        )
    if expected_sha256 is not None and weights.card.sha256 != expected_sha256:
        raise WeightsError(_hash_mismatch("CXR_WEIGHTS_SHA256", expected_sha256, weights.card.sha256))
    return weights


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as lower-case hex; raises WeightsError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as exc:
        raise WeightsError(_unreadable(path, exc)) from exc


def _unreadable(path: Path, error: OSError) -> str:
    return f"The weights file {path} cannot be read: {error.strerror}."


def _hash_mismatch(source: str, expected: str, found: str) -> str:
    return f"The weights are not the ones expected: {source} says SHA-256 {expected}, the file has {found}."


def _load_folder(folder: Path) -> Weights:
    from safetensors import SafetensorError, deserialize

    card = read_card(folder)
    path = folder / card.file
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise WeightsError(_unreadable(path, exc)) from exc
    found = hashlib.sha256(data).hexdigest()
    if found != card.sha256:
        raise WeightsError(_hash_mismatch(f"the card of {card.name}", card.sha256, found))
    try:
        entries = deserialize(data)  # type: ignore[no-untyped-call]
    except SafetensorError as exc:
        raise WeightsError(f"{path} is not a whole safetensors file.") from exc
    return Weights(card, {key: _as_array(key, entry, card.name) for key, entry in entries})


def _as_array(key: str, entry: Mapping[str, Any], name: str) -> npt.NDArray[Any]:
    """Return an entry of a safetensors file, floating-point ones in float32, in which they serve."""
    kind = entry["dtype"]
    if kind not in _TYPES:
        raise WeightsError(f"{key} of the weights {name} is of type {kind}; {', '.join(_TYPES)} are read.")
    values = np.frombuffer(entry["data"], _TYPES[kind]).reshape(entry["shape"])
    if kind == "BF16":  # the upper half of a float32
        return (values.astype(np.uint32) << 16).view(np.float32)
    return _as_float32(values)


def _as_float32(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused as such
        return values.astype(np.float32 if values.dtype.kind == "f" else values.dtype)


def _load_torchxrayvision(name: str, expected_sha256: str | None) -> Weights:
    """Take a DenseNet of TorchXRayVision from its local cache; never downloads.

    Its files are pickles without a published checksum: loading one runs the code inside. Hence one is opened only when
    it has the SHA-256 that was given.
    """
    try:
        from torchxrayvision import models as xrv_models
        from torchxrayvision.utils import get_cache_dir
    except ImportError as exc:
        raise WeightsError(f"CXR_WEIGHTS={name} needs a package: pip install torchxrayvision") from exc
    if name not in xrv_models.model_urls:
        known = ", ".join(sorted(n for n in xrv_models.model_urls if n.startswith(TORCHXRAYVISION_PREFIX)))
        raise WeightsError(f"TorchXRayVision has no weights named {name!r}; it has {known}.")
    entry = xrv_models.model_urls[name]
    path = Path(get_cache_dir()) / Path(entry["weights_url"]).name
    if not path.is_file():
        raise WeightsError(
            f"The weights {name} are not on this machine, and the server downloads nothing by itself. Fetch them with: "
            f"python -c \"import torchxrayvision as xrv; xrv.models.DenseNet(weights='{name}')\""
        )
    found = sha256_of(path)
    if expected_sha256 is None:
        raise WeightsError(
            f"The weights {name} are a pickle: loading them runs whatever is in {path}. If you trust its "
            f"source, set CXR_WEIGHTS_SHA256 (--weights-sha256 of python -m evaluation) to its SHA-256, {found}."
        )
    if found != expected_sha256:
        raise WeightsError(_hash_mismatch("CXR_WEIGHTS_SHA256", expected_sha256, found))
    card = _torchxrayvision_card(name, entry, path.name, found)
    try:
        model = xrv_models.DenseNet(weights=name)
    except Exception as exc:  # whatever a pickle from elsewhere raises
        raise WeightsError(f"TorchXRayVision cannot load {path.name}: delete the file and fetch it again.") from exc
    tensors = {key: _as_float32(value.numpy()) for key, value in model.state_dict().items() if key != "op_threshs"}
    return Weights(card, tensors)


def _torchxrayvision_card(name: str, entry: Mapping[str, Any], file: str, sha256: str) -> WeightsCard:
    """Describe a TorchXRayVision set: its own label order, raw sigmoid outputs, its published operating points."""
    outputs = tuple(
        CardOutput(label=label or f"(unused {i})", threshold=None if math.isnan(threshold) else threshold)
        for i, (label, threshold) in enumerate(zip(entry["labels"], entry["op_threshs"], strict=True))
    )
    try:
        return WeightsCard(
            name=f"torchxrayvision-{name}",
            file=file,
            sha256=sha256,
            outputs=outputs,
            # (2x - 1) · 1024 for x in [0, 1], after a centre crop
            preprocessing=Preprocessing(aspect="crop", input_size=224, mean=0.5, std=1 / 2048),
            calibration=None,
            operating_points="TorchXRayVision's op_threshs, on uncalibrated sigmoid outputs",
            data=str(entry.get("description", name)),
            training="by the authors of TorchXRayVision",
            licence="Apache-2.0 (TorchXRayVision); the data sets have terms of their own",
            citation="Cohen et al., TorchXRayVision: A library of chest X-ray datasets and models, MIDL 2022",
        )
    except ValidationError as exc:
        raise WeightsError(f"CXR_WEIGHTS={name} does not fit: {exc.errors()[0]['msg']}.") from exc


def write_card(card: WeightsCard, folder: Path) -> None:
    """Write a card beside its weights."""
    (folder / CARD_FILE).write_text(card_text(card), "utf-8")


def card_text(card: WeightsCard) -> str:
    """Return what a card's file holds; raises WeightsError for a changed card that `read_card` would refuse."""
    try:
        WeightsCard.model_validate(card.model_dump())  # a copy with changes was checked by nobody
    except ValidationError as exc:
        raise WeightsError(f"The card of {card.name} cannot be written: {_first(exc)}.") from exc
    return json.dumps(card.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "the card"
    return f"{where}: {first['msg']}"
