"""The six stages in a row: bytes and symptoms in, the whole answer out. No HTTP, no Streamlit."""

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from modules import explainability, fusion, risk_module, uncertainty
from modules.answers import Analysis, ConfidenceScores, ImageSize
from modules.cnn_model import CnnModel
from modules.engines.base import GpuOptions
from modules.errors import InvalidSymptoms
from modules.events import CnnSeen, HeatmapsDrawn
from modules.images import ImageLimits, open_image, to_png
from modules.multimodal_reasoning import SecondReader
from modules.pathologies import NAMES
from modules.quality import InputGate
from modules.reasoners.base import Control, OnWords, ReaderFilm
from modules.records import (
    DISCLAIMER,
    MAX_SYMPTOMS,
    CnnPrediction,
    HeatmapChoice,
    Quality,
    Radiograph,
    ReaderInfo,
    Reading,
)
from modules.settings import Colormap, ReaderMode, Settings
from modules.version import VERSION
from modules.weights import load_weights


class _Clock:
    """Wall-clock time of each stage, in milliseconds."""

    def __init__(self) -> None:
        self.milliseconds: dict[str, float] = {}

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.milliseconds[stage] = 1000 * (time.perf_counter() - start)


@dataclass(frozen=True, eq=False)
class Opened:
    """A film that was decoded and let through by the input gate."""

    radiograph: Radiograph
    quality: Quality
    symptoms: str
    request_id: str
    clock: _Clock


@dataclass(frozen=True, eq=False)
class Seen:
    """What the CNN made of a film, and what the second reader needs of it."""

    prediction: CnnPrediction
    cnn: CnnSeen
    drawn: HeatmapsDrawn
    film: ReaderFilm
    size: ImageSize
    quality: Quality
    symptoms: str
    request_id: str
    clock: _Clock


NOTHING_READ = Reading(reasoning="", independent=False)
NO_FILM = ReaderFilm(np.zeros((1, 1), np.uint8))  # for readers that look at none


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
            CnnModel(
                weights,
                settings.cnn_device,
                engine=settings.cnn_engine,
                cache=settings.cnn_cache,
                threads=settings.cnn_threads,
                mirror_check=settings.cnn_mirror_check,
                gpu=GpuOptions(settings.cnn_precision, settings.cnn_batch, settings.cnn_compile),
            ),
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
        seen = self.see(self.open(image, symptoms, invert=invert, force=force, request_id=request_id), heatmaps)
        return self.conclude(seen, *self.read(seen))

    def open(
        self,
        image: bytes,
        symptoms: str = "",
        *,
        invert: bool = False,
        force: bool = False,
        request_id: str | None = None,
    ) -> Opened:
        """Decode a film and ask the input gate; raises as `analyze` does."""
        if len(symptoms) > MAX_SYMPTOMS:
            raise InvalidSymptoms(f"The symptoms have {len(symptoms)} characters; the limit is {MAX_SYMPTOMS}.")
        clock = _Clock()
        with clock.measure("decode"):
            file = open_image(image, self._limits)
            self._gate.check_header(file.header, force=force)
            radiograph = file.decode(invert=invert)
        with clock.measure("gate"):
            quality = self._gate.assess(radiograph, force=force)
        return Opened(radiograph, quality, symptoms, request_id or uuid.uuid4().hex, clock)

    def see(self, opened: Opened, heatmaps: HeatmapChoice = "top") -> Seen:
        """Run the CNN and draw its maps; what comes back no longer holds the film in its full size."""
        radiograph, clock = opened.radiograph, opened.clock
        with clock.measure("cnn"):
            prediction = self.cnn.predict(radiograph)
        with clock.measure("explainability"):
            findings = fusion.fuse(prediction, NOTHING_READ).findings
            maps = explainability.calibrated_maps(prediction)
            top = prediction.ranking[0]
            shown = {"all": prediction.ranking, "top": (top,), "none": ()}[heatmaps]
            size = (radiograph.pixels.shape[0], radiograph.pixels.shape[1])
            drawn = HeatmapsDrawn(heatmap_available=False, heatmap_base64="", heatmap_finding=None, heatmaps={})
            if shown:
                overlay = explainability.overlay_png(radiograph, maps[top], prediction, self._colormap)
                drawn = HeatmapsDrawn(
                    heatmap_available=True,
                    heatmap_base64=explainability.as_base64(overlay),
                    heatmap_finding=explainability.heatmap_finding(findings[top], maps[top]),
                    heatmaps={
                        NAMES[k]: explainability.heatmap(findings[k], maps[k], prediction, size) for k in sorted(shown)
                    },
                )
        return Seen(
            prediction=prediction,
            cnn=CnnSeen(
                findings=findings,
                confidence=uncertainty.cnn_confidence(prediction.probabilities),
                model=self.cnn.info,
            ),
            drawn=drawn,
            film=ReaderFilm.of(radiograph) if self.reader.looks_at_film else NO_FILM,
            size=ImageSize(width=size[1], height=size[0]),
            quality=opened.quality,
            symptoms=opened.symptoms,
            request_id=opened.request_id,
            clock=clock,
        )

    def read(
        self, seen: Seen, *, watch: Control | None = None, on_words: Callable[[ReaderMode], OnWords] | None = None
    ) -> tuple[Reading, ReaderInfo]:
        """Let the second reader read the film; see `SecondReader.read`."""
        with seen.clock.measure("reader"):
            return self.reader.read(seen.film, seen.symptoms, seen.prediction, watch=watch, on_words=on_words)

    def conclude(self, seen: Seen, reading: Reading, info: ReaderInfo) -> Analysis:
        """Merge both readers, measure how sure they are, decide the risk, and make the answer."""
        clock = seen.clock
        with clock.measure("fusion"):
            fused = fusion.fuse(seen.prediction, reading)
        with clock.measure("uncertainty"):
            sureness = uncertainty.assess(seen.prediction, reading, fused, seen.quality)
        with clock.measure("risk"):
            risk = risk_module.assess(fused, sureness, seen.quality, seen.symptoms)
        return Analysis(
            visual_findings={f.pathology: f.fused_probability for f in fused.findings},
            clinical_reasoning=reading.reasoning,
            differential_diagnosis=reading.differential,
            confidence_scores=ConfidenceScores(cnn=sureness.cnn, llm=sureness.llm or 0.0, fused=sureness.fused),
            risk_level=risk.level,
            risk_factors=risk.factors,
            contradictions=fused.contradictions,
            heatmap_available=seen.drawn.heatmap_available,
            heatmap_base64=seen.drawn.heatmap_base64,
            disclaimer=DISCLAIMER,
            findings=fused.findings,
            agreement=fused.agreement,
            key_observations=reading.key_observations,
            recommendation=reading.recommendation,
            reader=info,
            quality=seen.quality,
            needs_review=risk.needs_review,
            review_reasons=risk.review_reasons,
            heatmap_finding=seen.drawn.heatmap_finding,
            heatmaps=seen.drawn.heatmaps,
            model=seen.cnn.model,
            image=seen.size,
            timings_ms={**clock.milliseconds, "total": sum(clock.milliseconds.values())},
            version=VERSION,
            request_id=seen.request_id,
        )

    def close(self) -> None:
        """Release what the second reader and the network's engine hold."""
        self.reader.close()
        self.cnn.close()

    def render(self, image: bytes, *, invert: bool = False, max_side: int = explainability.MAX_OVERLAY_SIDE) -> bytes:
        """Return any file that can be decoded as a display-ready grey PNG of at most `max_side` pixels a side."""
        return to_png(open_image(image, self._limits).decode(invert=invert), max_side)
