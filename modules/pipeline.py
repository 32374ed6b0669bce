"""The six stages in a row: bytes and symptoms in, the whole answer out. No HTTP, no Streamlit."""

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from modules import explainability, fusion, risk_module, uncertainty
from modules.cnn_model import CnnModel
from modules.errors import InvalidSymptoms
from modules.images import ImageLimits, open_image, to_png
from modules.multimodal_reasoning import SecondReader
from modules.pathologies import NAMES
from modules.quality import InputGate
from modules.records import (
    DISCLAIMER,
    MAX_SYMPTOMS,
    Analysis,
    CnnPrediction,
    ConfidenceScores,
    FloatArray,
    Fusion,
    Heatmap,
    HeatmapChoice,
    ImageSize,
    Radiograph,
)
from modules.settings import Colormap, Settings
from modules.weights import load_weights


class Pipeline:
    """Everything that is loaded once; `analyze` may be called from several threads."""

    def __init__(
        self,
        cnn: CnnModel,
        gate: InputGate,
        reader: SecondReader,
        *,
        limits: ImageLimits | None = None,
        colormap: Colormap = Colormap.INFERNO,
    ) -> None:
        self.cnn = cnn
        self.reader = reader
        self._gate = gate
        self._limits = limits or ImageLimits()
        self._colormap = colormap

    @classmethod
    def from_settings(cls, settings: Settings) -> "Pipeline":
        """Load what the settings name; raises ConfigurationError with a sentence when that cannot be done."""
        weights = load_weights(settings.cxr_weights, settings.cxr_weights_sha256)
        return cls(
            CnnModel(weights, settings.cnn_device, mirror_check=settings.cnn_mirror_check),
            InputGate.load(),
            SecondReader.from_settings(settings),
            limits=ImageLimits(settings.max_upload_bytes, settings.max_pixels),
            colormap=settings.heatmap_colormap,
        )

    def analyze(
        self,
        image: bytes,
        symptoms: str = "",
        *,
        heatmaps: HeatmapChoice = "top",
        invert: bool = False,
        force: bool = False,
        request_id: str | None = None,
    ) -> Analysis:
        """Run all six stages on a PNG, JPEG or DICOM file.

        `invert` exchanges black and white of the film first; `force` goes on although the input gate refuses. Raises
        an ImageError for a file that cannot be analysed, InvalidSymptoms for a text that is too long.
        """
        if len(symptoms) > MAX_SYMPTOMS:
            raise InvalidSymptoms(f"The symptoms have {len(symptoms)} characters; the limit is {MAX_SYMPTOMS}.")
        clock = _Clock()
        with clock.measure("total"):
            with clock.measure("decode"):
                file = open_image(image, self._limits)
                self._gate.check_header(file.header, force=force)
                radiograph = file.decode(invert=invert)
            with clock.measure("gate"):
                quality = self._gate.assess(radiograph, force=force)
            with clock.measure("cnn"):
                prediction = self.cnn.predict(radiograph)
            with clock.measure("reader"):
                reading, reader_info = self.reader.read(radiograph, symptoms, prediction)
            with clock.measure("fusion"):
                fused = fusion.fuse(prediction, reading)
            with clock.measure("uncertainty"):
                sureness = uncertainty.assess(prediction, reading, fused, quality)
            with clock.measure("risk"):
                risk = risk_module.assess(fused, sureness, quality, symptoms)
            with clock.measure("explainability"):
                maps = explainability.calibrated_maps(prediction)
                top = prediction.ranking[0]
                shown = {"all": prediction.ranking, "top": (top,), "none": ()}[heatmaps]
                described = _heatmaps(shown, maps, fused, prediction, radiograph)
                overlay = b""
                if shown:
                    overlay = explainability.overlay_png(radiograph, maps[top], prediction, self._colormap)
        height, width = radiograph.pixels.shape
        return Analysis(
            visual_findings={f.pathology: f.fused_probability for f in fused.findings},
            clinical_reasoning=reading.reasoning,
            differential_diagnosis=reading.differential,
            confidence_scores=ConfidenceScores(cnn=sureness.cnn, llm=sureness.llm or 0.0, fused=sureness.fused),
            risk_level=risk.level,
            risk_factors=risk.factors,
            contradictions=fused.contradictions,
            heatmap_available=bool(overlay),
            heatmap_base64=explainability.as_base64(overlay),
            disclaimer=DISCLAIMER,
            findings=fused.findings,
            agreement=fused.agreement,
            reader=reader_info,
            quality=quality,
            needs_review=risk.needs_review,
            review_reasons=risk.review_reasons,
            heatmap_finding=explainability.heatmap_finding(fused.findings[top], maps[top]) if overlay else None,
            heatmaps=described,
            model=self.cnn.info,
            image=ImageSize(width=width, height=height),
            timings_ms=clock.milliseconds,
            request_id=request_id or uuid.uuid4().hex,
        )

    def render(self, image: bytes, *, invert: bool = False, max_side: int = explainability.MAX_OVERLAY_SIDE) -> bytes:
        """Return any file that can be decoded as a display-ready grey PNG of at most `max_side` pixels a side."""
        return to_png(open_image(image, self._limits).decode(invert=invert), max_side)


def _heatmaps(
    shown: tuple[int, ...], maps: FloatArray, fused: Fusion, prediction: CnnPrediction, radiograph: Radiograph
) -> dict[str, Heatmap]:
    height, width = radiograph.pixels.shape
    return {
        NAMES[k]: explainability.heatmap(fused.findings[k], maps[k], prediction, (height, width)) for k in sorted(shown)
    }


class _Clock:
    """Wall-clock time of each stage, in milliseconds."""

    def __init__(self) -> None:
        self.milliseconds: dict[str, float] = {}

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.milliseconds[stage] = 1000 * (time.perf_counter() - start)
