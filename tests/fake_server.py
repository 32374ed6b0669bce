"""A scripted API server for the dashboard's tests, and the answers that it gives."""

import base64
import io
from collections.abc import Callable, Iterator
from typing import Any

import httpx
from PIL import Image
from pydantic import BaseModel

from modules import answers, events, records
from modules.pathologies import NAMES
from modules.version import VERSION
from modules.weights import EMBEDDED_WEIGHTS, WeightsCard, read_card

URL = "http://127.0.0.1:8000"
HOSTILE = "<script>alert(1)</script> ![x](http://evil.example/x.png) :red[x] $x$"
Handler = Callable[[httpx.Request], httpx.Response]


def png(colour: int = 128) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


MODEL = records.ModelInfo(
    weights="a-model",
    sha256="0123456789ab" + "f" * 52,
    architecture="Net",
    engine="pytorch",
    device="cpu",
    calibrated=True,
)


def finding(pathology: str, probability: float, threshold: float, **other: Any) -> records.Finding:
    values: dict[str, Any] = {
        "sufficient_data": True,
        "reader": records.ReaderStatement(status="not_mentioned"),
        "fused_probability": probability,
    }
    return records.Finding(
        pathology=pathology,
        cnn_probability=probability,
        operating_threshold=threshold,
        detected=probability >= threshold,
        **(values | other),
    )


def all_findings() -> tuple[records.Finding, ...]:
    special = {
        "Effusion": finding(
            "Effusion",
            0.62,
            0.28,
            reader=records.ReaderStatement(status="present", quote="blunted angle", confidence=0.9),
            fused_probability=0.71,
            adjustments=(records.Adjustment(log_odds=0.4, reason="The reader calls it present."),),
        ),
        "Pneumonia": finding("Pneumonia", 0.04, 0.02),
        "Mass": finding("Mass", 0.7, 0.9),
        "Hernia": finding("Hernia", 0.0, 0.1, sufficient_data=False),
    }
    return tuple(special.get(name, finding(name, 0.01, 0.3)) for name in NAMES)


def analysis(**other: Any) -> answers.Analysis:
    found = all_findings()
    values: dict[str, Any] = {
        "visual_findings": {f.pathology: f.fused_probability for f in found},
        "clinical_reasoning": "A small effusion on the right.",
        "differential_diagnosis": ("Parapneumonic effusion", "Heart failure"),
        "confidence_scores": answers.ConfidenceScores(cnn=0.61, llm=0.7, fused=0.58),
        "risk_level": "Moderate",
        "risk_factors": ("Effusion is detected.",),
        "contradictions": (
            records.Contradiction(
                pathology="Pneumonia",
                cnn_probability=0.04,
                note="CNN detected but LLM did not mention",
                kind="not_mentioned",
            ),
        ),
        "heatmap_available": True,
        "heatmap_base64": base64.b64encode(png(200)).decode(),
        "disclaimer": records.DISCLAIMER,
        "findings": found,
        "agreement": 0.5,
        "key_observations": ("Blunted left costophrenic angle.",),
        "recommendation": "A radiologist should review the film.",
        "reader": reader(),
        "quality": quality(),
        "needs_review": True,
        "review_reasons": ("The readers differ.",),
        "heatmap_finding": records.HeatmapFinding(
            pathology="Effusion", detected=True, probability=0.62, note="Strongest in the right lower zone."
        ),
        "heatmaps": {f.pathology: heatmap(f) for f in found},
        "model": MODEL,
        "image": answers.ImageSize(width=8, height=8),
        "timings_ms": {"cnn": 57.0},
        "version": VERSION,
        "request_id": "request-1",
    }
    return answers.Analysis(**(values | other))


def heatmap(found: records.Finding) -> records.Heatmap:
    return records.Heatmap(
        pathology=found.pathology,
        detected=found.detected,
        probability=found.cnn_probability,
        grid=((0.0, 0.1), (0.0, 0.02)),
        full_scale=0.18,
        peak=records.Peak(x=6.0, y=2.0, value=0.1),
        zone="upper third, right half of the image",
        box=None,
        grid_to_image=records.GridToImage(x_scale=4.0, x_offset=0.0, y_scale=4.0, y_offset=0.0),
    )


def reader(**other: Any) -> records.ReaderInfo:
    values: dict[str, Any] = {
        "mode_requested": "local",
        "mode": "local",
        "model": "medgemma",
        "independent": True,
        "film_sent_to": "nowhere: it stayed on this machine",
        "token_confidence": 0.7,
        "seconds": 12.3,
    }
    return records.ReaderInfo(**(values | other))


def quality(**other: Any) -> records.Quality:
    values: dict[str, Any] = {
        "gate_score": 0.93,
        "accepted": True,
        "reason": "It looks like a chest radiograph.",
        "warnings": (records.QualityWarning(code="low_contrast", message="The film has little contrast."),),
    }
    return records.Quality(**(values | other))


def card(**other: Any) -> WeightsCard:
    """Return the card that comes with the project, as if it were that of `MODEL`."""
    return read_card(EMBEDDED_WEIGHTS).model_copy(update={"sha256": MODEL.sha256} | other)


def health(**other: Any) -> answers.Health:
    state = answers.ReaderHealth(mode_requested="local", mode="dummy", state="fallback", reason="nothing is installed")
    return answers.Health(**({"cnn_ready": True, "model": MODEL, "reader": state, "version": "0.1.0"} | other))


def answer(record: BaseModel, status: int = 200, **headers: str) -> httpx.Response:
    media_type = "application/problem+json" if isinstance(record, answers.Problem) else "application/json"
    return httpx.Response(status, content=record.model_dump_json(), headers={"Content-Type": media_type, **headers})


def streamed(analysis: answers.Analysis, *drafts: str) -> httpx.Response:
    """Return an analysis as the server streams it, with a reader's draft if any."""
    seen = events.CnnSeen(findings=analysis.findings, confidence=0.6, model=analysis.model)
    drawn = events.HeatmapsDrawn(
        heatmap_available=analysis.heatmap_available,
        heatmap_base64=analysis.heatmap_base64,
        heatmap_finding=analysis.heatmap_finding,
        heatmaps=analysis.heatmaps,
    )
    told: list[tuple[str, BaseModel]] = [
        ("accepted", events.Accepted(request_id=analysis.request_id, disclaimer=analysis.disclaimer)),
        ("quality", analysis.quality),
        ("cnn", seen),
        ("heatmaps", drawn),
        *(("reader_words", events.ReaderWords(mode="local", turn="film", words=words)) for words in drafts),
        *events.closing_events(analysis),
    ]
    return event_stream(*((name, record.model_dump_json()) for name, record in told))


def event_stream(*told: tuple[str, str]) -> httpx.Response:
    body = ": ping\n\n" + "".join(f"event: {name}\ndata: {data}\n\n" for name, data in told)
    return httpx.Response(200, content=body, headers={"Content-Type": "text/event-stream"})


def interrupted(whole: httpx.Response, after: str, then: Callable[[], None]) -> httpx.Response:
    """Return a stream that calls `then` once the event `after` was sent: to wait there, or to break."""
    parts = [f"{part}\n\n" for part in whole.text.split("\n\n") if part]

    def body() -> Iterator[bytes]:
        for place, part in enumerate(parts):
            yield part.encode()
            following = parts[place + 1] if place + 1 < len(parts) else ""
            if part.startswith(f"event: {after}\n") and not following.startswith(f"event: {after}\n"):
                then()

    return httpx.Response(200, content=body(), headers={"Content-Type": "text/event-stream"})


def problem(status: int, code: str, detail: str = "It went wrong.", **other: Any) -> httpx.Response:
    headers = {"Retry-After": "7"} if status == 503 else {}
    record = answers.Problem(title="A title", status=status, detail=detail, code=code, request_id="request-9", **other)
    return answer(record, status, **headers)


class FakeServer:
    """Stands in for the API: answers as scripted and keeps what it was asked."""

    def __init__(self) -> None:
        self.analyses: list[httpx.Response | Exception] = []
        self.render: Handler = lambda _: httpx.Response(200, content=png())
        self.health: Handler = lambda _: answer(health())
        self.model: Handler = lambda _: answer(card())
        self.curves: Handler = lambda _: problem(404, "not_found")
        self.asked: list[httpx.Request] = []
        self.url = ""

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.asked.append(request)
        if request.url.path == "/analyze/stream":
            scripted = self.analyses.pop(0)
            if isinstance(scripted, Exception):
                raise scripted
            return scripted
        answers_to = {
            "/render": self.render,
            "/health": self.health,
            "/model": self.model,
            "/model/curves": self.curves,
        }
        return answers_to[request.url.path](request)

    def forms(self, path: str = "/analyze/stream") -> list[str]:
        """Return the bodies that were posted to a path."""
        return [r.content.decode("latin-1") for r in self.asked if r.url.path == path]


def refused_connection(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused", request=request)


def field(form: str, name: str) -> str:
    """Return the value of a field in a multipart body."""
    return form.split(f'name="{name}"\r\n\r\n')[1].split("\r\n", maxsplit=1)[0]
