"""The dashboard's page: what it says before and while a film is read, and what it never loads."""

import os
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path
from typing import Any

import httpx
import pytest
from streamlit.testing.v1 import AppTest

from dashboard import findings, progress, views
from dashboard.client import ClientError
from dashboard.session import Film, Job, Request
from modules import answers, events, records
from modules.settings import PROJECT_ROOT
from tests.dashboard_page import (
    LIMIT_S,
    SOURCES,
    active,
    analysed,
    assert_no_exception,
    buttons,
    chart_rows,
    charts,
    click,
    edit_uploads,
    go_to,
    images,
    opened,
    seen,
    session_of,
    until_read,
    upload,
    words,
)
from tests.fake_server import (
    FakeServer,
    all_findings,
    analysis,
    answer,
    event_stream,
    health,
    interrupted,
    png,
    problem,
    quality,
    refused_connection,
    streamed,
)

# ── Before a film is read ────────────────────────────────────────────────────────────────────────────────────────────


def test_the_first_page_says_what_to_do_and_how_the_server_is(page: AppTest) -> None:
    said = words(page)
    assert "Choose a film" in said
    assert "dummy, fallback (nothing is installed)" in said
    assert "Asked for: local" in said
    assert page.button(key="analyze").disabled
    assert "retry" not in buttons(page)
    uploader = page.file_uploader(key="films")
    assert "50 MB" in uploader.label
    assert uploader.proto.max_upload_size_mb == 50
    assert set(uploader.allowed_type) >= {".png", ".jpg", ".jpeg", ".dcm"}
    assert page.text_area(key="symptoms_0").max_chars == 4000
    assert "54-year-old" in page.text_area(key="symptoms_0").placeholder


@pytest.mark.parametrize("title", ["Reading room", "Compare", "Model card", "About and limits"])
@pytest.mark.parametrize("reachable", [True, False])
def test_every_page_states_that_it_is_for_research_only(server: FakeServer, title: str, reachable: bool) -> None:
    if not reachable:
        server.health = server.model = server.curves = refused_connection
    page = go_to(opened(), title)
    assert_no_exception(page)
    assert records.DISCLAIMER in [caption.value for caption in page.caption]


def test_the_first_page_without_a_server_says_how_to_start_it(server: FakeServer) -> None:
    server.health = refused_connection
    page = opened()
    assert "make run" in words(page)
    server.health = lambda _: answer(health())
    page.button(key="retry").click().run()
    assert "make run" not in words(page)


def loading_reader(state: str = "loading") -> answers.ReaderHealth:
    return answers.ReaderHealth(mode_requested="local", mode="local", state=state, reason=None)


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"cnn_ready": False, "reader": loading_reader("ready")}, "still loading its weights"),
        ({"reader": loading_reader()}, "local, loading"),
    ],
)
def test_what_is_still_loading_is_named_and_can_be_looked_at_again(
    server: FakeServer, state: dict[str, Any], says: str
) -> None:
    server.health = lambda _: answer(health(**state))
    page = opened()
    assert says in words(page)
    server.health = lambda _: answer(health(reader=loading_reader("ready")))
    page.button(key="retry").click().run()
    assert "Ready." in words(page)
    assert "loading" not in words(page)
    assert "retry" not in buttons(page)


def test_a_film_is_shown_before_it_is_analysed(page: AppTest, server: FakeServer) -> None:
    upload(page, "Jane Doe.dcm")
    page.run()
    assert len(server.forms("/render")) == 1
    assert images(page) == ["The radiograph"]
    assert "Ready to analyse" in words(page)
    assert not page.button(key="analyze").disabled
    assert server.forms() == []
    assert not [request for request in server.asked if b"Jane" in request.content]


def test_symptoms_typed_before_the_upload_are_kept(page: AppTest) -> None:
    page.text_area(key="symptoms_0").set_value("fever").run()
    upload(page)
    assert page.text_area(key="symptoms_1").value == "fever"


def test_symptoms_that_arrive_together_with_the_upload_are_kept(page: AppTest) -> None:
    page.text_area(key="symptoms_0").set_value("fever")
    upload(page)
    assert page.text_area(key="symptoms_1").value == "fever"
    page.text_area(key="symptoms_1").set_value("cough")
    edit_uploads(page, lambda held: [*held, ("2", "b.png", png(3), "image/png")])
    assert page.text_area(key="symptoms_2").value == ""
    assert session_of(page).cases[0].symptoms == "cough"


def test_a_failed_preview_can_be_asked_for_again(page: AppTest, server: FakeServer) -> None:
    server.render = lambda _: problem(400, "undecodable_image", "The file is truncated.")
    upload(page)
    page.run()
    assert "The file is truncated." in words(page)
    assert len(server.forms("/render")) == 1
    server.render = lambda _: httpx.Response(200, content=png())
    page.button(key="retry_preview").click().run()
    assert images(page) == ["The radiograph"]


def test_a_damaged_preview_is_said(page: AppTest, server: FakeServer) -> None:
    server.render = lambda _: httpx.Response(200, content=png()[:20])
    server.analyses = [streamed(analysis())]
    upload(page)
    assert "cannot be shown" in words(page)
    click(page, "analyze")
    assert "cannot be shown" in words(page)
    assert "Risk level: Moderate" in words(page)


def test_the_sample_is_offered_only_where_there_is_one(page: AppTest, server: FakeServer) -> None:
    assert [button.label for button in page.button] == ["Analyze"]
    views.SAMPLE_PATH.write_bytes(png(99))
    page.run()
    page.text_area(key="symptoms_0").set_value("fever")
    sample = next(button for button in page.button if "synthetic sample" in button.label)
    sample.click().run()
    assert "not a patient" in words(page)
    assert active(page).symptoms == "fever"
    server.analyses = [streamed(analysis())]
    click(page, "analyze")
    assert "not a patient" in words(page)
    assert png(99).decode("latin-1") in server.forms()[0]
    upload(page)
    assert "not a patient" not in words(page)
    next(button for button in page.button if "synthetic sample" in button.label).click().run()
    assert [case.film.synthetic for case in session_of(page).cases] == [True, False]  # gone back to, not added again
    assert "Risk level: Moderate" in words(page)


def test_a_wrong_setting_is_named(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_UPLOAD_MB", "secret")
    page = opened()
    assert "MAX_UPLOAD_MB" in words(page)
    assert "secret" not in words(page)


# ── While a film is read ─────────────────────────────────────────────────────────────────────────────────────────────


def drawn() -> events.HeatmapsDrawn:
    return events.HeatmapsDrawn(heatmap_available=False, heatmap_base64="", heatmap_finding=None, heatmaps={})


def test_each_stage_is_named() -> None:
    job = Job(Request(Film("1", "a.png", png()), ""))
    named = [progress.stage_of(job)]
    job.quality = quality()
    named.append(progress.stage_of(job))
    job.cnn = seen()
    named.append(progress.stage_of(job))
    job.drawn = drawn()
    named.append(progress.stage_of(job))
    job.draft = "A sm"
    named.append(progress.stage_of(job))
    for stage, word in zip(named, ("decoding", "network", "maps", "looks at the film", "writes"), strict=True):
        assert word in stage


def test_a_page_of_a_running_job_shows_the_stage_and_the_film(page: AppTest) -> None:
    upload(page)
    case = active(page)
    case.job = Job(Request(case.film, ""))
    page.run()
    assert "Sending and decoding the film" in words(page)
    assert images(page) == ["The radiograph"]
    assert page.button(key="analyze").disabled
    assert not charts(page)


def test_the_cnns_findings_and_the_draft_are_shown_before_the_reader_is_done(page: AppTest, server: FakeServer) -> None:
    reached, gate = threading.Event(), threading.Event()

    def wait() -> None:
        reached.set()
        assert gate.wait(LIMIT_S)

    server.analyses = [interrupted(streamed(analysis(), "A small eff", "usion?"), "reader_words", wait)]
    upload(page)
    page.button(key="analyze").click().run()
    try:
        assert reached.wait(LIMIT_S)
        deadline = time.monotonic() + LIMIT_S
        while active(page).job.draft != "A small effusion?" and time.monotonic() < deadline:  # type: ignore[union-attr]
            time.sleep(0.01)
        page.run()
        assert active(page).state == "running"
        assert "The second reader writes" in words(page)
        assert list(chart_rows(page)) == [f.pathology for f in findings.ranked(all_findings())]
        assert "the second reader has not been heard yet" in words(page)
        assert "draft: not checked yet, and may be withdrawn" in words(page)
        assert "A small effusion?" in [text.value for text in page.text]
        assert "Risk level" not in words(page)
    finally:
        gate.set()
    until_read(page)
    assert "Risk level: Moderate" in words(page)
    assert "A small effusion?" not in words(page)


def test_a_stream_that_breaks_in_the_middle_is_a_failure_that_can_be_retried(page: AppTest, server: FakeServer) -> None:
    def broken() -> None:
        raise httpx.ReadError("x")

    server.analyses = [interrupted(streamed(analysis()), "cnn", broken), streamed(analysis())]
    analysed(page, "cough")
    assert "The connection broke" in words(page)
    assert "Risk level" not in words(page)
    assert page.text_area(key="symptoms_1").value == "cough"
    click(page, "retry")
    assert "Risk level: Moderate" in words(page)


@pytest.mark.parametrize(
    ("stream", "says"),
    [
        (event_stream(("accepted", '{"request_id": "1", "disclaimer": ""}')), "broke before the answer"),
        (event_stream(("error", problem(500, "internal_error").text)), "The server failed"),
        (event_stream(("novelty", "{}")), "cannot be understood"),
        (event_stream(("cnn", "{}")), "different versions"),
    ],
)
def test_a_stream_that_ends_badly_is_a_failure_that_can_be_retried(
    page: AppTest, server: FakeServer, stream: httpx.Response, says: str
) -> None:
    server.analyses = [stream, streamed(analysis())]
    analysed(page, "cough")
    assert says in words(page)
    click(page, "retry")
    assert "Risk level: Moderate" in words(page)


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
    modules = [f"dashboard.{path.stem}" for path in SOURCES if path.stem not in ("app", "__init__")]
    assert len(modules) > 10
    assert not loads_torch(f"import app, {', '.join(modules)}, modules.records")


def test_the_check_for_torch_can_fail(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("", encoding="utf-8")
    (tmp_path / "careless.py").write_text("import torch", encoding="utf-8")
    assert loads_torch("import dashboard.client, careless", tmp_path)


def test_the_server_of_the_page_keeps_to_itself() -> None:
    config = tomllib.loads((PROJECT_ROOT / ".streamlit" / "config.toml").read_text(encoding="utf-8"))
    assert config["server"]["address"] == "127.0.0.1"
    assert config["browser"]["gatherUsageStats"] is False
    assert config["client"]["showErrorDetails"] == "none"
    assert config["client"]["showErrorLinks"] is False


def test_a_failure_without_a_status_shows_no_code(page: AppTest, server: FakeServer) -> None:
    server.analyses = [httpx.ConnectError("x"), problem(500, "internal_error")]
    analysed(page)
    assert not page.code
    click(page, "retry")
    assert [element.value for element in page.code] == ["status 500, code internal_error, request request-9"]


def test_a_client_error_is_told_as_what_it_says() -> None:
    assert str(ClientError("It broke.", "busy")) == "It broke."
