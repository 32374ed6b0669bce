"""The client turns every failure into one error; the page shows each state, and foreign text only as text."""

import base64
import functools
import io
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from pydantic import BaseModel
from streamlit.testing.v1 import AppTest

from dashboard import result, views
from dashboard.client import AssistantClient, ClientError
from dashboard.session import Film, Session
from modules import answers, records
from modules.errors import GateRefusal
from modules.pathologies import NAMES
from modules.settings import PROJECT_ROOT

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
        "heatmaps": {},
        "model": MODEL,
        "image": answers.ImageSize(width=8, height=8),
        "timings_ms": {"cnn": 57.0},
        "request_id": "request-1",
    }
    return answers.Analysis(**(values | other))


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


def health(**other: Any) -> answers.Health:
    state = answers.ReaderHealth(mode_requested="local", mode="dummy", state="fallback", reason="nothing is installed")
    return answers.Health(**({"cnn_ready": True, "model": MODEL, "reader": state, "version": "0.1.0"} | other))


def answer(record: BaseModel, status: int = 200, **headers: str) -> httpx.Response:
    media_type = "application/problem+json" if isinstance(record, answers.Problem) else "application/json"
    return httpx.Response(status, content=record.model_dump_json(), headers={"Content-Type": media_type, **headers})


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
        self.asked: list[httpx.Request] = []
        self.url = ""

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.asked.append(request)
        if request.url.path == "/analyze":
            scripted = self.analyses.pop(0)
            if isinstance(scripted, Exception):
                raise scripted
            return scripted
        return {"/render": self.render, "/health": self.health}[request.url.path](request)

    def forms(self, path: str = "/analyze") -> list[str]:
        """Return the bodies that were posted to a path."""
        return [r.content.decode("latin-1") for r in self.asked if r.url.path == path]


def refused_connection(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused", request=request)


def field(form: str, name: str) -> str:
    """Return the value of a field in a multipart body."""
    return form.split(f'name="{name}"\r\n\r\n')[1].split("\r\n", maxsplit=1)[0]


# ── Client ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def client(handler: Handler, url: str = URL) -> AssistantClient:
    return AssistantClient(url, 30.0, httpx.MockTransport(handler))


def failing(handler: Handler, url: str = URL) -> ClientError:
    with pytest.raises(ClientError) as caught:
        client(handler, url).analyze("film.png", png(), "")
    return caught.value


def raising(exc: Exception) -> Handler:
    def handler(_: httpx.Request) -> httpx.Response:
        raise exc

    return handler


def test_an_analysis_comes_back_as_the_record() -> None:
    server = FakeServer()
    server.analyses = [answer(analysis())]
    given = client(server).analyze("Jane Doe.png", png(), "cough", heatmaps="all", invert=True)
    assert given == analysis()
    form = server.forms()[0]
    assert [field(form, name) for name in ("symptoms", "heatmaps", "invert", "force")] == [
        "cough",
        "all",
        "true",
        "false",
    ]


def test_the_name_of_the_file_is_never_sent() -> None:
    server = FakeServer()
    server.analyses = [answer(analysis())]
    client(server).analyze("Jane Doe.dcm", b"DICM", "")
    client(server).render("Jane Doe.dcm", b"DICM")
    for path in ("/analyze", "/render"):
        assert "Jane" not in server.forms(path)[0]
        assert 'filename="film"\r\nContent-Type: application/dicom' in server.forms(path)[0]


def test_a_render_is_a_png() -> None:
    server = FakeServer()
    assert client(server).render("film.png", b"", invert=True) == png()
    assert field(server.forms("/render")[0], "invert") == "true"


def test_a_render_that_is_no_png_is_not_shown() -> None:
    with pytest.raises(ClientError) as caught:
        client(lambda _: httpx.Response(200, content=b"<svg onload=alert(1)>")).render("film.png", b"")
    assert caught.value.code == "unexpected_answer"


def test_health_comes_back_as_the_record() -> None:
    assert client(FakeServer()).health() == health()


def every_httpx_error() -> list[type[httpx.HTTPError]]:
    found: list[type[httpx.HTTPError]] = []
    left: list[type[httpx.HTTPError]] = [httpx.RequestError]
    while left:
        error = left.pop()
        found.append(error)
        left += error.__subclasses__()
    return found


@pytest.mark.parametrize("error", every_httpx_error())
def test_every_error_of_the_transport_is_translated(error: type[httpx.HTTPError]) -> None:
    caught = failing(raising(error("secret detail")))
    assert caught.code in {"unreachable", "timeout", "bad_address", "connection_lost", "unexpected_answer"}
    assert "secret" not in str(caught)
    assert caught.status is None


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (httpx.ConnectError("x"), "unreachable", "uvicorn main:app --host 127.0.0.1 --port 8000"),
        (httpx.ConnectTimeout("x"), "unreachable", "make run"),
        (httpx.ReadTimeout("x"), "timeout", "within 30 seconds"),
        (httpx.WriteTimeout("x"), "timeout", "DASHBOARD_TIMEOUT_S"),
        (httpx.ReadError("x"), "connection_lost", "broke"),
        (httpx.RemoteProtocolError("x"), "connection_lost", "still runs"),
        (httpx.DecodingError("x"), "unexpected_answer", "BACKEND_URL"),
    ],
)
def test_an_error_of_the_transport_says_what_to_do(error: httpx.HTTPError, code: str, says: str) -> None:
    caught = failing(raising(error))
    assert caught.code == code
    assert says in caught.message


def test_a_server_on_another_machine_is_not_started_with_make_run() -> None:
    caught = failing(raising(httpx.ConnectError("x")), "http://films.example:9000")
    assert "http://films.example:9000" in caught.message
    assert "make run" not in caught.message


def test_a_server_that_is_really_not_there_is_unreachable() -> None:
    with pytest.raises(ClientError) as caught:
        AssistantClient("http://127.0.0.1:9", 5.0).health()
    assert caught.value.code == "unreachable"


@pytest.mark.parametrize(
    "url", ["localhost:8000", "127.0.0.1:8000", "http://[::1", "http://x:port", "http://" + "a" * 70]
)
def test_an_address_that_is_none_is_named(url: str) -> None:
    with pytest.raises(ClientError) as caught:
        AssistantClient(url, 1.0).health()
    assert caught.value.code == "bad_address"
    assert "BACKEND_URL" in caught.value.message


def test_a_password_in_the_address_is_not_shown() -> None:
    caught = failing(raising(httpx.ConnectError("x")), "http://user:secret@127.0.0.1:8000/")
    assert "http://127.0.0.1:8000" in caught.message
    assert "secret" not in caught.message


def test_a_proxy_in_the_environment_gets_no_film(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    seen: list[dict[str, Any]] = []
    real = httpx.Client

    def watched(**options: Any) -> httpx.Client:
        seen.append(options)
        return real(**options)

    monkeypatch.setattr(httpx, "Client", watched)
    client(FakeServer()).health()
    assert seen[0]["trust_env"] is False


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "undecodable_image"),
        (413, "file_too_large"),
        (415, "unsupported_image_type"),
        (422, "not_a_chest_radiograph"),
        (500, "internal_error"),
        (503, "busy"),
    ],
)
def test_a_problem_keeps_its_detail(status: int, code: str) -> None:
    caught = failing(lambda _: problem(status, code, "The film is upside down", gate_score=0.25))
    assert (caught.status, caught.code, caught.request_id) == (status, code, "request-9")
    assert caught.message.startswith("The film is upside down.")
    assert caught.retry_after_s == (7 if status == 503 else None)
    assert caught.gate_score == 0.25


def test_a_busy_server_says_how_long_to_wait() -> None:
    assert "Try again in 7 s." in failing(lambda _: problem(503, "busy")).message


@pytest.mark.parametrize("detail", ["It went wrong.", "symptoms: too long"])
def test_field_errors_are_named_once(detail: str) -> None:
    errors = [{"field": "symptoms", "message": "too long"}]
    caught = failing(lambda _: problem(422, "invalid_request", detail, errors=errors))
    assert caught.message.count("symptoms: too long.") == 1


@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(502, text="<html>Bad gateway</html>"),
        httpx.Response(404, json={"detail": "Not Found"}),
        httpx.Response(500),
        httpx.Response(302, headers={"Location": "http://elsewhere.example"}),
        httpx.Response(204),
        httpx.Response(200, text="<html>Hello</html>"),
        httpx.Response(200),
    ],
)
def test_an_answer_of_another_program_is_recognised(response: httpx.Response) -> None:
    caught = failing(lambda _: response)
    assert caught.code == "unexpected_answer"
    assert caught.status == response.status_code
    assert "html" not in caught.message


def without(name: str) -> dict[str, Any]:
    content = analysis().model_dump(mode="json")
    content.pop(name)
    return content


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (without("needs_review"), "needs_review (missing)"),
        (analysis().model_dump(mode="json") | {"novelty": 1}, "novelty (extra_forbidden)"),
        ({}, "and "),
        ([], "the whole answer"),
    ],
)
def test_an_answer_of_another_version_is_recognised(content: Any, says: str) -> None:
    caught = failing(lambda _: httpx.Response(200, content=json.dumps(content)))
    assert caught.code == "version_mismatch"
    assert "different versions" in caught.message
    assert says in caught.message


def test_a_date_in_retry_after_is_left_out() -> None:
    response = problem(503, "busy")
    response.headers["Retry-After"] = "Wed, 21 Oct 2026 07:28:00 GMT"
    caught = failing(lambda _: response)
    assert caught.retry_after_s is None
    assert "Try again in a moment" in caught.message


# ── Session ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_second_thread_waits_for_the_answer_instead_of_asking_again() -> None:
    entered, go_on = threading.Event(), threading.Event()
    asked: list[httpx.Request] = []

    def slow(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        entered.set()
        assert go_on.wait(10)
        return answer(analysis())

    session = Session(film=Film("1", "film.png", png()))
    session.ask("cough")
    job = session.job
    assert job is not None
    threads = [threading.Thread(target=job.run, args=(client(slow),)) for _ in range(2)]
    threads[0].start()
    assert entered.wait(10)
    threads[1].start()
    session.ask("something else")
    assert session.busy
    assert session.job is job
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert len(asked) == 1
    assert job.analysis == analysis()
    assert not session.busy


def test_another_film_drops_the_answer_about_the_first() -> None:
    session = Session(film=Film("1", "film.png", png()))
    session.ask("")
    session.previews[("1", False)] = png()
    session.choose(Film("1", "film.png", png()))
    assert session.job is not None
    session.choose(Film("2", "film.png", png()))
    assert session.job is None
    assert session.previews == {}


def test_findings_are_sorted_by_their_margin_not_by_their_probability() -> None:
    order = [f.pathology for f in sorted(all_findings(), key=result.rank, reverse=True)]
    assert order[:2] == ["Effusion", "Pneumonia"]
    assert order.index("Pneumonia") < order.index("Mass")
    assert order[-1] == "Hernia"


# ── Page ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeServer:
    fake = FakeServer()
    monkeypatch.setenv("BACKEND_URL", URL)
    monkeypatch.setenv("MAX_UPLOAD_MB", "50")
    monkeypatch.setattr(views, "SAMPLE_PATH", tmp_path / "sample_xray.png")
    scripted = functools.partial(AssistantClient, transport=httpx.MockTransport(fake))
    monkeypatch.setattr("dashboard.client.AssistantClient", scripted)
    return fake


@pytest.fixture
def page(server: FakeServer) -> Iterator[AppTest]:
    test = AppTest.from_file(str(PROJECT_ROOT / "app.py"), default_timeout=20)
    yield test.run()
    assert_no_exception(test)


def assert_no_exception(test: AppTest) -> None:
    assert [(e.message, e.stack_trace) for e in test.exception] == []


def upload(test: AppTest, name: str = "Jane Doe.png") -> AppTest:
    return test.file_uploader[0].set_value((name, png(), "image/png")).run()


def analysed(test: AppTest, symptoms: str = "cough") -> AppTest:
    upload(test)
    test.text_area(key="symptoms").set_value(symptoms)
    return test.button(key="analyze").click().run()


def words(test: AppTest) -> str:
    """Return all that can be read on the page but for the grid."""
    kinds = ("text", "code", "caption", "subheader", "title", "error", "warning", "info", "success", "markdown")
    return "\n".join(str(getattr(element, "value", "")) for kind in kinds for element in test.get(kind))


def grid(test: AppTest) -> dict[str, dict[str, Any]]:
    rows: list[dict[str, Any]] = test.dataframe[0].value.to_dict("records")
    return {row["Finding"]: row for row in rows}


def test_the_first_page_says_what_to_do_and_how_the_server_is(page: AppTest) -> None:
    said = words(page)
    assert records.DISCLAIMER in said
    assert "Choose a film" in said
    assert "dummy, fallback (nothing is installed)" in said
    assert page.button(key="analyze").disabled
    assert "50 MB" in page.file_uploader[0].label
    assert page.text_area(key="symptoms").max_chars == 4000


def test_the_first_page_without_a_server_says_how_to_start_it(server: FakeServer) -> None:
    server.health = refused_connection
    page = AppTest.from_file(str(PROJECT_ROOT / "app.py"), default_timeout=20).run()
    assert_no_exception(page)
    assert "make run" in words(page)
    server.health = lambda _: answer(health())
    page.button(key="retry").click().run()
    assert "make run" not in words(page)


def test_a_film_is_shown_before_it_is_analysed(page: AppTest, server: FakeServer) -> None:
    upload(page)
    page.run()
    assert len(server.forms("/render")) == 1
    assert len(page.get("image")) == 1
    assert not page.button(key="analyze").disabled
    assert server.forms() == []


def test_a_failed_preview_can_be_asked_for_again(page: AppTest, server: FakeServer) -> None:
    server.render = lambda _: problem(400, "undecodable_image", "The file is truncated.")
    upload(page)
    page.run()
    assert "The file is truncated." in words(page)
    assert len(server.forms("/render")) == 1
    server.render = lambda _: httpx.Response(200, content=png())
    page.button(key="retry_preview").click().run()
    assert len(page.get("image")) == 1


def test_a_result_shows_everything(page: AppTest, server: FakeServer) -> None:
    server.analyses = [answer(analysis())]
    analysed(page, "cough")
    said = words(page)
    for expected in (
        "Risk level: Moderate",
        "Effusion is detected.",
        "Review needed",
        "The readers differ.",
        "Effusion: detected, CNN probability 0.620. Strongest in the right lower zone.",
        "A small effusion on the right.",
        "1.  Parapneumonic effusion",
        "Pneumonia: CNN detected but LLM did not mention (CNN probability 0.040)",
        "Effusion: present, in its words: blunted angle",
        "Effusion: +0.40 log-odds. The reader calls it present.",
        "a-model, SHA-256 0123456789ab…",
        "nowhere: it stayed on this machine",
        "12.3 s",
        "cnn 57 ms",
        "request-1",
        records.DISCLAIMER,
    ):
        assert expected in said
    assert [m.value for m in page.metric] == ["0.61", "0.70", "0.58"]
    assert len(page.get("image")) == 2
    assert page.get("download_button")
    assert field(server.forms()[0], "symptoms") == "cough"


def test_the_table_holds_every_finding_with_its_marks(page: AppTest, server: FakeServer) -> None:
    server.analyses = [answer(analysis())]
    analysed(page)
    rows = grid(page)
    assert list(rows)[:2] == ["Effusion", "Pneumonia"]
    assert set(rows) == set(NAMES)
    assert rows["Effusion"] == {
        "Finding": "Effusion",
        "Detected": "detected",
        "Margin": pytest.approx(math.log(0.62 / 0.38) - math.log(0.28 / 0.72)),
        "CNN": 0.62,
        "Threshold": 0.28,
        "Fused": 0.71,
        "Second reader": "present",
        "Its words": "blunted angle",
        "Data": "",
    }
    assert rows["Mass"]["Detected"] == "–"
    assert rows["Hernia"]["Data"] == "insufficient data"
    assert rows["Hernia"]["Second reader"] == "not mentioned"


def test_a_readers_observations_and_recommendation_are_shown(page: AppTest, server: FakeServer) -> None:
    server.analyses = [answer(analysis())]
    analysed(page)
    assert "Blunted left costophrenic angle." in words(page)
    assert "A radiologist should review the film." in words(page)
    assert not any("Do not rely" in element.value for element in page.warning)


def test_a_text_that_breaks_its_rules_is_shown_with_a_warning(page: AppTest, server: FakeServer) -> None:
    server.analyses = [answer(analysis(reader=reader(flags=("it names a drug",), form="prose", saw_cnn=True)))]
    analysed(page)
    assert any("Do not rely" in element.value for element in page.warning)
    assert "it names a drug" in words(page)
    assert "free text, searched for findings" in words(page)
    assert any("moved no number" in element.value for element in page.caption)


def test_a_reader_that_did_not_run_is_not_given_a_number(page: AppTest, server: FakeServer) -> None:
    ran = reader(mode="dummy", model=None, independent=False, fallback_reason="No model here.", token_confidence=None)
    scores = answers.ConfidenceScores(cnn=0.61, llm=0.0, fused=0.58)
    server.analyses = [answer(analysis(reader=ran, confidence_scores=scores, contradictions=(), agreement=None))]
    analysed(page)
    assert [m.value for m in page.metric] == ["0.61", "not measured", "0.58"]
    assert "No second model read this film. Why: No model here." in words(page)
    assert "There was no second reader to differ from." in words(page)


@pytest.mark.parametrize(("level", "kind"), [("Low", "info"), ("Moderate", "warning"), ("High", "error")])
def test_each_level_has_a_word_and_a_colour_and_low_is_not_green(
    page: AppTest, server: FakeServer, level: str, kind: str
) -> None:
    factor = "No listed finding above its threshold; this does not exclude disease."
    server.analyses = [answer(analysis(risk_level=level, risk_factors=(factor,)))]
    analysed(page)
    assert [getattr(element, "value", "") for element in page.get(kind)] == [f"### Risk level: {level}"]
    assert factor in words(page)
    assert not page.success


def test_an_overlay_of_something_that_was_not_detected_says_so(page: AppTest, server: FakeServer) -> None:
    shown = records.HeatmapFinding(pathology="Mass", detected=False, probability=0.7, note="")
    server.analyses = [answer(analysis(heatmap_finding=shown))]
    analysed(page)
    assert "Mass: NOT detected" in words(page)


@pytest.mark.parametrize(
    ("overlay", "says"),
    [
        ({"heatmap_available": False, "heatmap_base64": "", "heatmap_finding": None}, "There is no overlay"),
        ({"heatmap_base64": "not base64!"}, "cannot be shown"),
        ({"heatmap_base64": base64.b64encode(png()[:20]).decode()}, "cannot be shown"),
    ],
)
def test_a_missing_or_damaged_overlay_is_said(
    page: AppTest, server: FakeServer, overlay: dict[str, Any], says: str
) -> None:
    server.analyses = [answer(analysis(**overlay))]
    analysed(page)
    assert says in words(page)
    assert len(page.get("image")) == 1


def test_changed_symptoms_are_said_to_be_missing_from_the_result(page: AppTest, server: FakeServer) -> None:
    server.analyses = [answer(analysis())]
    analysed(page, "cough")
    assert "symptoms were changed" not in words(page)
    page.text_area(key="symptoms").set_value("fever").run()
    assert "symptoms were changed" in words(page)


def test_another_film_takes_the_result_away(page: AppTest, server: FakeServer) -> None:
    server.analyses = [answer(analysis())]
    analysed(page)
    upload(page, "other.png")
    assert "Risk level" not in words(page)
    assert "Ready to analyse" in words(page)


GATE_CODES = [error.code for error in GateRefusal.__subclasses__()]


def test_every_refusal_of_the_gate_can_be_overridden() -> None:
    assert set(GATE_CODES) == views.REFUSAL_CODES


@pytest.mark.parametrize("code", GATE_CODES)
@pytest.mark.parametrize(("key", "sent"), [("invert", ["true", "false"]), ("force", ["false", "true"])])
def test_a_refused_film_can_be_analysed_after_all(
    page: AppTest, server: FakeServer, code: str, key: str, sent: list[str]
) -> None:
    asked_for = quality(forced=key == "force", inverted_by_request=key == "invert")
    refusal = problem(422, code, "The gate refuses it.", gate_score=0.12)
    server.analyses = [refusal, answer(analysis(quality=asked_for))]
    analysed(page, "cough")
    assert "The gate refuses it." in words(page)
    assert "0.12" in words(page)
    assert not [button for button in page.button if button.key == "retry"]
    page.button(key=key).click().run()
    first, second = server.forms()
    assert [field(second, name) for name in ("invert", "force")] == sent
    assert field(first, "symptoms") == field(second, "symptoms") == "cough"
    assert all(png().decode("latin-1") in form for form in (first, second))
    assert {"invert": "greyscale inverted by request", "force": "overridden"}[key] in words(page)


def test_a_film_refused_although_inverted_stays_inverted_when_forced(page: AppTest, server: FakeServer) -> None:
    refusal = problem(422, "not_a_chest_radiograph")
    server.analyses = [refusal, problem(422, "not_a_chest_radiograph"), answer(analysis())]
    analysed(page)
    page.button(key="invert").click().run()
    assert "invert" not in [button.key for button in page.button]
    page.button(key="force").click().run()
    assert [field(server.forms()[-1], name) for name in ("invert", "force")] == ["true", "true"]


@pytest.mark.parametrize(
    ("failure", "says"),
    [
        (httpx.ConnectError("x"), "make run"),
        (httpx.ReadTimeout("x"), "did not answer within"),
        (httpx.ReadError("x"), "broke before the answer"),
        (httpx.Response(200, text="<html>"), "Another program may be listening"),
        (httpx.Response(200, json={}), "different versions"),
        (problem(400, "undecodable_image"), "It went wrong."),
        (problem(413, "file_too_large"), "It went wrong."),
        (problem(415, "unsupported_image_type"), "It went wrong."),
        (problem(422, "invalid_request"), "It went wrong."),
        (problem(500, "internal_error"), "request-9"),
        (problem(503, "busy"), "Try again in 7 s."),
    ],
)
def test_a_failure_keeps_film_and_symptoms_and_offers_retry(
    page: AppTest, server: FakeServer, failure: httpx.Response | Exception, says: str
) -> None:
    server.analyses = [failure, answer(analysis())]
    analysed(page, "cough")
    assert says in words(page)
    assert records.DISCLAIMER in words(page)
    assert page.error
    assert page.text_area(key="symptoms").value == "cough"
    page.button(key="retry").click().run()
    assert "Risk level: Moderate" in words(page)
    assert len(server.forms()) == 2
    assert field(server.forms()[1], "symptoms") == "cough"


def test_retry_brings_the_preview_back_too(page: AppTest, server: FakeServer) -> None:
    server.render = refused_connection
    server.analyses = [httpx.ConnectError("x"), answer(analysis())]
    analysed(page)
    assert not page.get("image")
    server.render = lambda _: httpx.Response(200, content=png())
    page.button(key="retry").click().run()
    assert len(page.get("image")) == 2


def test_the_sample_is_offered_only_where_there_is_one(page: AppTest, server: FakeServer) -> None:
    assert [button.key for button in page.button] == ["analyze"]
    views.SAMPLE_PATH.write_bytes(png(99))
    upload(page)
    sample = next(button for button in page.button if "synthetic sample" in button.label)
    server.analyses = [answer(analysis())]
    sample.click().run()
    assert "not a patient" in words(page)
    page.button(key="analyze").click().run()
    assert any(png(99) in request.content for request in server.asked if request.url.path == "/analyze")
    upload(page)
    assert "not a patient" not in words(page)


def test_two_sessions_share_nothing(page: AppTest, server: FakeServer) -> None:
    server.analyses = [answer(analysis())]
    analysed(page)
    other = AppTest.from_file(str(PROJECT_ROOT / "app.py"), default_timeout=20).run()
    assert_no_exception(other)
    assert "Risk level" not in words(other)
    assert "Choose a film" in words(other)


def test_a_wrong_setting_is_named(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_UPLOAD_MB", "secret")
    page = AppTest.from_file(str(PROJECT_ROOT / "app.py"), default_timeout=20).run()
    assert_no_exception(page)
    assert "MAX_UPLOAD_MB" in words(page)
    assert "secret" not in words(page)


# ── Foreign text ─────────────────────────────────────────────────────────────────────────────────────────────────────

# Of all elements only these show text as it is. A text area shows the user what the user typed.
PLAIN_KINDS = {"text", "code", "dataframe", "text_area"}


def kinds_that_show(test: AppTest, text: str) -> set[str]:
    """Return the kinds of elements in which a text arrived."""
    nodes = [*test.main, *test.sidebar]
    return {node.type for node in nodes if getattr(node, "proto", None) is not None and text in str(node.proto)}


def hostile_analysis() -> answers.Analysis:
    stated = records.ReaderStatement(status="present", quote=HOSTILE)
    found = tuple(
        finding(name, 0.5, 0.3, reader=stated, adjustments=(records.Adjustment(log_odds=0.1, reason=HOSTILE),))
        for name in NAMES
    )
    return analysis(
        clinical_reasoning=HOSTILE,
        differential_diagnosis=(HOSTILE,),
        key_observations=(HOSTILE,),
        recommendation=HOSTILE,
        risk_factors=(HOSTILE,),
        contradictions=(records.Contradiction(pathology=HOSTILE, cnn_probability=0.5, note=HOSTILE, kind="denied"),),
        disclaimer=HOSTILE,
        findings=found,
        reader=reader(model=HOSTILE, fallback_reason=HOSTILE, film_sent_to=HOSTILE, flags=(HOSTILE,), prompt=HOSTILE),
        quality=quality(reason=HOSTILE, warnings=(records.QualityWarning(code=HOSTILE, message=HOSTILE),)),
        review_reasons=(HOSTILE,),
        heatmap_finding=records.HeatmapFinding(pathology=HOSTILE, detected=True, probability=0.5, note=HOSTILE),
        model=MODEL.model_copy(
            update=dict.fromkeys(("weights", "sha256", "architecture", "engine", "device"), HOSTILE)
        ),
        timings_ms={HOSTILE: 1.0},
        request_id=HOSTILE,
    )


def test_hostile_text_in_a_result_stays_text(page: AppTest, server: FakeServer) -> None:
    server.analyses = [answer(hostile_analysis())]
    analysed(page, HOSTILE)
    assert HOSTILE in [element.value for element in page.text]
    shown = kinds_that_show(page, "evil.example")
    assert {"text", "code"} <= shown <= PLAIN_KINDS


def test_hostile_text_in_an_error_stays_text(page: AppTest, server: FakeServer) -> None:
    server.render = lambda _: problem(400, HOSTILE, HOSTILE)
    server.analyses = [problem(422, HOSTILE, HOSTILE, errors=[{HOSTILE: HOSTILE}])]
    upload(page, f"{HOSTILE}.png".replace("/", ""))
    assert {"text"} <= kinds_that_show(page, "alert(1)") <= PLAIN_KINDS
    page.button(key="analyze").click().run()
    assert {"text"} <= kinds_that_show(page, "alert(1)") <= PLAIN_KINDS


def test_hostile_text_in_health_stays_text(server: FakeServer) -> None:
    state = answers.ReaderHealth(mode_requested="local", mode="dummy", state="fallback", reason=HOSTILE)
    model = MODEL.model_copy(update={"weights": HOSTILE, "device": HOSTILE})
    server.health = lambda _: answer(health(reader=state, model=model))
    page = AppTest.from_file(str(PROJECT_ROOT / "app.py"), default_timeout=20).run()
    assert_no_exception(page)
    assert kinds_that_show(page, "evil.example") == {"text"}


def careless_page() -> None:
    import streamlit as st

    st.markdown("![x](http://evil.example/x.png)")
    st.metric("http://evil.example", 1)


def test_the_search_for_hostile_text_can_find_it() -> None:
    found = kinds_that_show(AppTest.from_function(careless_page).run(), "evil.example")
    assert found == {"markdown", "metric"}


@pytest.mark.parametrize("path", ["app.py", *(f"dashboard/{name}.py" for name in ("client", "session", "views"))])
def test_html_is_never_let_through(path: str) -> None:
    source = (PROJECT_ROOT / path).read_text(encoding="utf-8")
    assert not [word for word in ("unsafe_allow", "st.html", "st.write(", "components", "st.table") if word in source]


# ── Boundaries ───────────────────────────────────────────────────────────────────────────────────────────────────────


def loads_torch(code: str, *folders: Path) -> bool:
    """Return whether a fresh interpreter holds torch after running some code."""
    check = f"{code}\nimport sys\nsys.exit('torch' in sys.modules)"
    path = os.pathsep.join(map(str, (*folders, PROJECT_ROOT)))
    done = subprocess.run(
        [sys.executable, "-c", check],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return bool(done.returncode)


def test_the_dashboard_loads_no_torch() -> None:
    assert not loads_torch("import app, dashboard.client, dashboard.session, dashboard.views, modules.records")


def test_the_check_for_torch_can_fail(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("", encoding="utf-8")
    (tmp_path / "careless.py").write_text("import torch", encoding="utf-8")
    assert loads_torch("import dashboard.client, careless", tmp_path)


def test_the_server_of_the_page_keeps_to_itself() -> None:
    import tomllib

    config = tomllib.loads((PROJECT_ROOT / ".streamlit" / "config.toml").read_text(encoding="utf-8"))
    assert config["server"]["address"] == "127.0.0.1"
    assert config["browser"]["gatherUsageStats"] is False
    assert config["client"]["showErrorDetails"] == "none"
    assert config["client"]["showErrorLinks"] is False
