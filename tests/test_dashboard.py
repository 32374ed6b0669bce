"""The dashboard's page: what is shown in every state, that failures keep what was typed, and that text stays text."""

import csv
import functools
import io
import json
import os
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from streamlit import dataframe_util
from streamlit.testing.v1 import AppTest

from dashboard import failures, findings, progress, takeaway, viewer, views
from dashboard.client import AssistantClient, ClientError
from dashboard.session import Case, Film, Job, Request, Session
from modules import answers, errors, events, records
from modules.errors import GateRefusal
from modules.pathologies import NAMES
from modules.settings import PROJECT_ROOT
from tests.fake_server import (
    HOSTILE,
    MODEL,
    URL,
    FakeServer,
    all_findings,
    analysis,
    answer,
    card,
    event_stream,
    field,
    finding,
    health,
    heatmap,
    interrupted,
    png,
    problem,
    quality,
    reader,
    refused_connection,
    streamed,
)

LIMIT_S = 10.0


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeServer:
    fake = FakeServer()
    monkeypatch.setenv("BACKEND_URL", URL)
    monkeypatch.setenv("MAX_UPLOAD_MB", "50")
    monkeypatch.setattr(views, "SAMPLE_PATH", tmp_path / "sample_xray.png")
    scripted = functools.partial(AssistantClient, transport=httpx.MockTransport(fake))
    monkeypatch.setattr("dashboard.pages.AssistantClient", scripted)
    return fake


def opened() -> AppTest:
    test = AppTest.from_file(str(PROJECT_ROOT / "app.py"), default_timeout=20).run()
    assert_no_exception(test)
    return test


@pytest.fixture
def page(server: FakeServer) -> Iterator[AppTest]:
    test = opened()
    yield test
    assert_no_exception(test)


def assert_no_exception(test: AppTest) -> None:
    assert [(e.message, e.stack_trace) for e in test.exception] == []


# ── What a user does ─────────────────────────────────────────────────────────────────────────────────────────────────


def upload(test: AppTest, *names: str) -> AppTest:
    """Put films into the uploader, in place of those that it holds."""
    films = [(name, png(colour), "image/png") for colour, name in enumerate(names or ("Jane Doe.png",), start=128)]
    return test.file_uploader(key="films").set_value(films).run()


def edit_uploads(test: AppTest, edit: Callable[[list[Any]], list[Any]]) -> AppTest:
    """Change what the uploader holds, and leave the other files as they are: with its own methods all become new."""
    uploader = test.file_uploader(key="films")
    held = [(u.file_id, u.name, u.getvalue(), u.type) for u in uploader.value]
    uploader._files = edit(held)
    return test.run()


def session_of(test: AppTest) -> Session:
    session: Session = test.session_state["session"]
    return session


def active(test: AppTest) -> Case:
    case = session_of(test).active
    assert case is not None
    return case


def until_read(test: AppTest) -> AppTest:
    """Wait for all that runs or waits, as the page's own clock does in a browser."""
    cases = session_of(test).cases
    for _ in cases:
        for case in cases:
            assert case.job is None or case.job.wait(LIMIT_S)
        test.run()
    assert not [case.state for case in cases if case.state in ("running", "waiting")]
    return test.run()


def click(test: AppTest, key: str) -> AppTest:
    return until_read(test.button(key=key).click().run())


def analysed(test: AppTest, symptoms: str = "cough") -> AppTest:
    upload(test)
    test.text_area(key="symptoms_1").set_value(symptoms)
    return click(test, "analyze")


def go_to(test: AppTest, title: str) -> AppTest:
    """Open a page by its title in the navigation; AppTest itself switches between pages of files only."""
    (test._page_hash,) = (key for key, page in test._registered_pages.items() if page.get("page_name") == title)
    return test.run()


def pick_row(test: AppTest, row: int) -> AppTest:
    """Click a row of the worklist."""
    selection = {"selection": {"rows": [row], "columns": [], "cells": []}}
    test.session_state[views.worklist_key(session_of(test))] = selection
    return test.run()


def pick_finding(test: AppTest, name: str) -> AppTest:
    """Click a bar of the chart."""
    test.session_state[f"case_{active(test).number}_chart"] = {"selection": {findings.PICK: [{"pathology": name}]}}
    return test.run()


# ── What is to be seen ───────────────────────────────────────────────────────────────────────────────────────────────


def words(test: AppTest) -> str:
    """Return all that can be read on the page but for the grids and the chart."""
    kinds = ("text", "code", "caption", "subheader", "title", "header", "error", "warning", "info", "markdown")
    return "\n".join(str(getattr(element, "value", "")) for kind in kinds for element in test.get(kind))


def grids(test: AppTest, column: str) -> list[list[dict[str, Any]]]:
    """Return the rows of every grid that has a column."""
    values = [grid.value for grid in test.dataframe]
    return [value.to_dict("records") for value in values if column in value.columns]


def worklist(test: AppTest) -> list[dict[str, Any]]:
    (rows,) = grids(test, "Film")
    return rows


def charts(test: AppTest) -> list[Any]:
    return [element.proto for element in test.get("vega_lite_chart")]


def chart_rows(test: AppTest) -> dict[str, dict[str, Any]]:
    """Return the data of the only chart, in its order."""
    (chart,) = charts(test)
    rows = dataframe_util.convert_arrow_bytes_to_pandas_df(chart.data.data).to_dict("records")
    return {row["pathology"]: row for row in rows}


def images(test: AppTest) -> list[str]:
    """Return the alternative texts of all images."""
    return [image.alt for element in test.get("image") for image in element.proto.imgs]


def buttons(test: AppTest) -> list[str]:
    return [button.key for button in test.button if button.key]


def metrics(test: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in test.metric}


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


def seen() -> events.CnnSeen:
    return events.CnnSeen(findings=all_findings(), confidence=0.6, model=MODEL)


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


# ── The result ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_result_shows_everything(page: AppTest, server: FakeServer) -> None:
    server.analyses = [streamed(analysis())]
    analysed(page, "cough")
    said = words(page)
    for expected in (
        "**Risk level: Moderate**, review needed",
        "Effusion is detected.",
        "Review needed",
        "The readers differ.",
        "The film has little contrast.",
        "A small effusion on the right.",
        "Recommendation: A radiologist should review the film.",
        "Blunted left costophrenic angle.",
        "1.  Parapneumonic effusion",
        "Pneumonia: CNN detected but LLM did not mention (CNN probability 0.040)",
        "Agreement on what the reader states clearly: 50%",
        "Effusion: present, in its words: blunted angle",
        "Effusion: +0.40 log-odds. The reader calls it present.",
        "a-model, SHA-256 0123456789ab…",
        "nowhere: it stayed on this machine",
        "12.3 s",
        "cnn 57 ms",
        "request-1",
    ):
        assert expected in said
    shown = metrics(page)
    assert [shown[f"{who} confidence"] for who in ("CNN", "LLM", "Fused")] == ["0.61", "0.70", "0.58"]
    assert not any("Do not rely" in element.value for element in page.warning)
    form = server.forms()[0]
    assert [field(form, name) for name in ("symptoms", "heatmaps", "invert", "force")] == [
        *("cough", "all", "false", "false"),
    ]
    assert len(server.forms("/render")) == 1


@pytest.mark.parametrize(("level", "kind"), [("Low", "info"), ("Moderate", "warning"), ("High", "error")])
@pytest.mark.parametrize(("review", "says"), [(True, "review needed"), (False, "a professional must read the film")])
def test_each_level_has_a_word_and_a_colour_and_low_is_not_green(
    page: AppTest, server: FakeServer, level: str, kind: str, review: bool, says: str
) -> None:
    server.analyses = [streamed(analysis(risk_level=level, needs_review=review))]
    analysed(page)
    (badge,) = page.get(kind)
    assert badge.value.startswith(f"**Risk level: {level}**, ")
    assert says in badge.value
    assert ("does not exclude disease" in badge.value) == (level == "Low")
    assert not page.success


def test_the_chart_holds_every_finding_with_its_marks(page: AppTest, server: FakeServer) -> None:
    server.analyses = [streamed(analysis())]
    analysed(page)
    rows = chart_rows(page)
    assert list(rows)[:2] == ["Effusion", "Pneumonia"]
    assert list(rows)[-1] == "Hernia"
    assert set(rows) == set(NAMES)
    assert rows["Effusion"] == {
        "pathology": "Effusion",
        "cnn": pytest.approx(findings.drawn_log_odds(0.62)),
        "threshold": pytest.approx(findings.drawn_log_odds(0.28)),
        "fused": pytest.approx(findings.drawn_log_odds(0.71)),
        "colour": findings.DETECTED,
        "label": "0.620 / 0.280  ·  DETECTED  ·  R+",
        "short label": "DETECTED  ·  R+",
        "CNN probability": "0.6200",
        "Operating threshold": "0.2800",
        "Fused probability": "0.7100",
        "Second reader": "present",
        "In its words": "blunted angle",
        "Why fusion moved it": "The reader calls it present.",
        "Data": "sufficient",
    }
    assert rows["Mass"]["colour"] == findings.QUIET
    assert rows["Mass"]["label"] == "0.700 / 0.900"
    assert "few data" in rows["Hernia"]["label"]
    assert "too few" in rows["Hernia"]["Data"]
    assert rows["Hernia"]["Why fusion moved it"] == "it did not"


def test_a_detection_on_few_data_is_not_drawn_like_another() -> None:
    row = findings.chart_row(finding("Hernia", 0.5, 0.1, sufficient_data=False))
    assert row["colour"] == findings.UNCOUNTED
    assert "detected" in str(row["label"])
    assert "DETECTED" not in str(row["label"])


@pytest.mark.parametrize(
    "found",
    [(), (finding("Mass", 0.0, 1.0),), (finding("Mass", 1.0, 0.0),), (finding("Mass", 0.0, 0.0),)],
)
def test_certainty_and_nothing_can_be_drawn(found: tuple[records.Finding, ...]) -> None:
    spec = json.dumps(findings.chart_spec(found), allow_nan=False)
    assert "Infinity" not in spec
    json.dumps([findings.chart_row(f) for f in found], allow_nan=False)


def test_the_table_says_the_same(page: AppTest, server: FakeServer) -> None:
    server.analyses = [streamed(analysis())]
    analysed(page)
    (table,) = grids(page, "Finding")
    rows = {row["Finding"]: row for row in table}
    assert list(rows) == list(chart_rows(page))
    assert rows["Effusion"] == {
        "Finding": "Effusion",
        "Detected": "detected",
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


def test_a_text_that_breaks_its_rules_is_shown_with_a_warning(page: AppTest, server: FakeServer) -> None:
    server.analyses = [streamed(analysis(reader=reader(flags=("it names a drug",), form="prose", saw_cnn=True)))]
    analysed(page)
    assert any("Do not rely" in element.value for element in page.warning)
    assert "it names a drug" in words(page)
    assert "free text, searched for findings" in words(page)
    assert any("moved no number" in element.value for element in page.caption)


def template(**other: Any) -> answers.Analysis:
    """Return an analysis without a second model."""
    ran = reader(mode="dummy", model=None, independent=False, fallback_reason="No model here.", token_confidence=None)
    scores = answers.ConfidenceScores(cnn=0.61, llm=0.0, fused=0.58)
    return analysis(reader=ran, confidence_scores=scores, contradictions=(), agreement=None, **other)


def test_a_reader_that_did_not_run_is_not_given_a_number(page: AppTest, server: FakeServer) -> None:
    server.analyses = [streamed(template())]
    analysed(page)
    shown = metrics(page)
    assert [shown[f"{who} confidence"] for who in ("CNN", "LLM", "Fused")] == ["0.61", "not measured", "0.58"]
    assert "No second model read this film. Why: No model here." in words(page)
    assert "There was no second reader to differ from." in words(page)
    assert any("Written from a template" in element.value for element in page.caption)
    assert "no differential was made" in words(page)


def test_contradictions_are_told_in_both_directions(page: AppTest, server: FakeServer) -> None:
    differ = (
        records.Contradiction(pathology="Mass", cnn_probability=0.7, note="LLM denies it", kind="denied"),
        records.Contradiction(pathology="Edema", cnn_probability=0.01, note="LLM sees it", kind="not_detected"),
    )
    server.analyses = [streamed(analysis(contradictions=differ)), streamed(analysis(contradictions=()))]
    analysed(page)
    assert "Mass: LLM denies it (CNN probability 0.700)" in words(page)
    assert "Edema: LLM sees it (CNN probability 0.010)" in words(page)
    click(page, "analyze")
    assert "No contradiction was found." in words(page)


def test_changed_symptoms_are_said_to_be_missing_from_the_result(page: AppTest, server: FakeServer) -> None:
    server.analyses = [streamed(analysis()), streamed(analysis())]
    analysed(page, "cough")
    assert "symptoms were changed" not in words(page)
    page.text_area(key="symptoms_1").set_value("fever").run()
    assert "symptoms were changed" in words(page)
    click(page, "analyze")
    assert "symptoms were changed" not in words(page)
    assert field(server.forms()[1], "symptoms") == "fever"


# ── The film and its maps ────────────────────────────────────────────────────────────────────────────────────────────


def chooser(test: AppTest) -> Any:
    return test.selectbox(key=f"case_{active(test).number}_map")


def test_the_map_of_the_top_detected_finding_is_shown_at_first(page: AppTest, server: FakeServer) -> None:
    server.analyses = [streamed(analysis())]
    analysed(page)
    asked = len(server.asked)
    assert chooser(page).value == "Effusion"
    assert len(chooser(page).options) == 15
    assert "with the Grad-CAM map of Effusion" in images(page)[0]
    assert "Colour scale of the map" in images(page)
    assert "Effusion: detected (CNN 0.620, threshold 0.280). Peak: upper third, right half" in words(page)
    assert "it does not locate a finding" in words(page)
    chooser(page).select("Pneumonia").run()
    assert "with the Grad-CAM map of Pneumonia" in images(page)[0]
    page.toggle(key="case_1_shown").set_value(False).run()
    assert images(page) == ["The radiograph"]
    chooser(page).select(viewer.FILM_ALONE).run()
    assert images(page) == ["The radiograph"]
    assert page.toggle(key="case_1_shown").disabled
    assert len(server.asked) == asked  # no control asks the server


def test_every_control_of_the_film_can_be_turned(page: AppTest, server: FakeServer) -> None:
    server.analyses = [streamed(analysis())]
    analysed(page)
    for key in ("relative", "peak", "box", "invert"):
        page.toggle(key=f"case_1_{key}").set_value(True).run()
    assert "Stretched to this map's own maximum" in words(page)
    for key in ("opacity", "level", "width"):
        slider = page.slider(key=f"case_1_{key}")
        for value in (slider.min, slider.max):
            slider.set_value(value).run()
            assert_no_exception(page)
            slider = page.slider(key=f"case_1_{key}")


def test_the_map_of_a_finding_that_was_not_detected_says_so_and_is_shown_only_when_chosen(
    page: AppTest, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels: list[str | None] = []
    real = viewer.painter.painted

    def watched(*given: Any) -> bytes:
        labels.append(given[4] if len(given) > 4 else None)
        return real(*given)

    monkeypatch.setattr(viewer.painter, "painted", watched)
    quiet = tuple(finding(name, 0.01, 0.3) for name in NAMES)
    server.analyses = [streamed(analysis(findings=quiet, heatmaps={f.pathology: heatmap(f) for f in quiet}))]
    analysed(page)
    assert chooser(page).value == viewer.FILM_ALONE
    assert images(page) == ["The radiograph"]
    assert labels[-1] is None
    chooser(page).select("Mass").run()
    assert labels[-1] == "Mass: NOT DETECTED"
    assert "Mass: NOT detected (CNN 0.010, threshold 0.300)." in words(page)
    assert chooser(page).format_func("Mass") == "Mass (not detected)"


def test_a_click_on_a_bar_chooses_its_map(page: AppTest, server: FakeServer) -> None:
    server.analyses = [streamed(analysis())]
    analysed(page)
    pick_finding(page, "Mass")
    assert chooser(page).value == "Mass"
    chooser(page).select("Effusion").run()
    assert chooser(page).value == "Effusion"  # the bar that is still marked does not take the choice back
    pick_finding(page, "no pathology")
    assert chooser(page).value == "Effusion"


def test_without_maps_the_film_is_shown_alone(page: AppTest, server: FakeServer) -> None:
    none = {"heatmap_available": False, "heatmap_base64": "", "heatmap_finding": None, "heatmaps": {}}
    server.analyses = [streamed(analysis(**none))]
    analysed(page)
    assert chooser(page).options == [viewer.FILM_ALONE]
    assert images(page) == ["The radiograph"]
    pick_finding(page, "Mass")
    assert chooser(page).value == viewer.FILM_ALONE


def test_a_new_answer_forgets_which_map_was_chosen(page: AppTest, server: FakeServer) -> None:
    quiet = tuple(finding(name, 0.01, 0.3) for name in NAMES)
    server.analyses = [streamed(analysis()), streamed(analysis(findings=quiet))]
    analysed(page)
    assert chooser(page).value == "Effusion"
    click(page, "analyze")
    assert chooser(page).value == viewer.FILM_ALONE


def broken(**other: Any) -> dict[str, records.Heatmap]:
    return {f.pathology: heatmap(f).model_copy(update=other) for f in all_findings()}


@pytest.mark.parametrize(
    ("heatmaps", "says"),
    [
        (broken(grid=((0.0, 0.1), (0.0,))), "no rectangular grid"),
        (broken(grid=()), "no rectangular grid"),
        (broken(full_scale=0.0), "no scale"),
        (broken(grid_to_image=records.GridToImage(x_scale=0.0, x_offset=0.0, y_scale=1.0, y_offset=0.0)), "no place"),
    ],
)
def test_a_map_that_cannot_be_painted_is_named_and_the_film_stays(
    page: AppTest, server: FakeServer, heatmaps: dict[str, records.Heatmap], says: str
) -> None:
    server.analyses = [streamed(analysis(heatmaps=heatmaps))]
    analysed(page)
    assert says in words(page)
    assert "The film is shown alone." in words(page)
    assert images(page) == ["The radiograph"]
    assert "Risk level: Moderate" in words(page)
    page.toggle(key="case_1_relative").set_value(True).run()
    assert_no_exception(page)


def test_a_map_of_numbers_that_are_none_is_named(page: AppTest, server: FakeServer) -> None:
    whole = streamed(analysis(heatmaps=broken(grid=((0.0, 0.1), (0.0, 0.123456)))))
    server.analyses = [httpx.Response(200, text=whole.text.replace("0.123456", "NaN"), headers=whole.headers)]
    analysed(page)
    assert "values that are no numbers" in words(page)
    assert images(page) == ["The radiograph"]


def test_a_map_of_a_film_of_another_shape_is_not_painted(page: AppTest, server: FakeServer) -> None:
    server.analyses = [streamed(analysis(image=answers.ImageSize(width=8, height=16)))]
    analysed(page)
    assert "another shape" in words(page)
    assert images(page) == ["The radiograph"]


@pytest.mark.parametrize("shape", [(1, 2000), (2000, 1)])
def test_a_film_of_any_shape_can_be_shown(page: AppTest, server: FakeServer, shape: tuple[int, int]) -> None:
    buffer = io.BytesIO()
    Image.new("L", shape, 9).save(buffer, "PNG")
    server.render = lambda _: httpx.Response(200, content=buffer.getvalue())
    server.analyses = [streamed(analysis(image=answers.ImageSize(width=shape[0], height=shape[1])))]
    analysed(page)
    assert images(page)[0].startswith("The radiograph") or "cannot be shown" in words(page)
    assert "Risk level: Moderate" in words(page)


# ── The dial ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def dial(test: AppTest, name: str = "Effusion") -> Any:
    return test.select_slider(key=f"case_1_dial_{name}")


def test_the_dial_turns_the_number_beside_the_unshifted_one(page: AppTest, server: FakeServer) -> None:
    server.analyses = [streamed(analysis())]
    analysed(page)
    served = next(o for _, o in card().served if o.label == "Effusion").validation_prevalence
    assert served is not None
    dial(page).set_value(1.0).run()
    rare = metrics(page)
    dial(page).set_value(50.0).run()
    common = metrics(page)
    assert rare[f"As served (for {100 * served:.1f} in 100)"] == common[f"As served (for {100 * served:.1f} in 100)"]
    assert float(rare["At 1 in 100"]) < 0.62 < float(common["At 50 in 100"])
    ppv, npv = "PPV of a detection", "NPV of no detection"
    assert float(rare[ppv].removesuffix(" %")) < float(common[ppv].removesuffix(" %"))
    assert float(rare[npv].removesuffix(" %")) > float(common[npv].removesuffix(" %"))
    assert "Where 50 in 100 films show Effusion, of 100 such films about" in words(page)
    assert "the dial changes neither" in words(page)
    page.selectbox(key="case_1_dial_finding").select("Mass").run()
    assert "Mass was not detected on this film" in words(page)
    assert len([r for r in server.asked if r.url.path == "/model"]) == 1


def test_a_detection_without_known_sensitivity_gets_no_predictive_value(page: AppTest, server: FakeServer) -> None:
    outputs = tuple(o.model_copy(update={"sensitivity": None}) for o in card().outputs)
    server.model = lambda _: answer(card(outputs=outputs))
    server.analyses = [streamed(analysis())]
    analysed(page)
    assert metrics(page)["PPV of a detection"] == metrics(page)["NPV of no detection"] == "not known"


@pytest.mark.parametrize(
    "other",
    [
        {"outputs": tuple(o.model_copy(update={"validation_prevalence": None}) for o in card().outputs)},
        {"calibration": None},
    ],
)
def test_without_a_known_prevalence_there_is_nothing_to_turn(
    page: AppTest, server: FakeServer, other: dict[str, Any]
) -> None:
    server.model = lambda _: answer(card(**other))
    server.analyses = [streamed(analysis())]
    analysed(page)
    assert "there is nothing to turn" in words(page)
    assert not page.select_slider


def test_the_card_of_other_weights_turns_nothing(page: AppTest, server: FakeServer) -> None:
    server.model = lambda _: answer(card(sha256="e" * 64))
    server.analyses = [streamed(analysis())]
    analysed(page)
    assert "other weights now" in words(page)
    assert not page.select_slider
    server.model = lambda _: answer(card())
    page.run()
    assert page.select_slider


def test_a_dial_without_a_card_says_why_and_can_be_asked_for_again(page: AppTest, server: FakeServer) -> None:
    server.model = refused_connection
    server.analyses = [streamed(analysis())]
    analysed(page)
    assert "cannot be reached" in words(page)
    assert "Risk level: Moderate" in words(page)
    server.model = lambda _: answer(card())
    page.button(key="case_1_retry_card").click().run()
    assert page.select_slider


@pytest.mark.parametrize("found", [(), (finding("Novelty", 0.4, 0.3),)])
def test_an_answer_without_a_known_finding_breaks_nothing(
    page: AppTest, server: FakeServer, found: tuple[records.Finding, ...]
) -> None:
    server.analyses = [streamed(analysis(findings=found))]
    analysed(page)
    assert "no finding whose prevalence is known" in words(page)
    assert "Risk level: Moderate" in words(page)


# ── Taking it away ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_three_files_are_offered_without_the_films_name_in_theirs(page: AppTest, server: FakeServer) -> None:
    server.analyses = [streamed(analysis())]
    analysed(page)
    offered = {button.key: button for button in page.get("download_button")}
    assert set(offered) == {"json", "pdf", "csv"}
    assert not [key for key, button in offered.items() if "Jane" in str(button.proto)]


def downloads(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return what is offered for one film under which key."""
    offered: dict[str, Any] = {}

    def offer(label: str, data: Any, file_name: str, mime: str, **other: Any) -> None:
        offered[other["key"]] = data

    monkeypatch.setattr(takeaway.st, "download_button", offer)
    film = Film("1", "Jane Doe.png", png())
    case = Case(1, film, "cough and fever")
    case.job = Job(Request(film, "cough and fever"))
    case.job.analysis = analysis()
    session = Session(cases=[case], active=case)
    session.previews[film.id, False] = png()
    takeaway.offer_downloads(session, AssistantClient(URL, 1.0), case, analysis())
    return offered


@pytest.mark.filterwarnings("ignore")  # Streamlit's own, for a script without a page
def test_the_files_hold_what_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    offered = downloads(monkeypatch)
    assert answers.Analysis.model_validate_json(offered["json"]) == analysis()
    assert offered["pdf"]().startswith(b"%PDF")
    (row,) = csv.DictReader(io.StringIO(offered["csv"].decode("utf-8-sig")))
    assert (row["file"], row["risk_level"]) == ("Jane Doe.png", "Moderate")
    for held in (offered["json"], offered["pdf"]()):
        assert b"Jane" not in held
        assert b"fever" not in held


@pytest.mark.parametrize(
    ("overlay", "given"),
    [({}, png(200)), ({"heatmap_available": False}, None), ({"heatmap_base64": "not base64!"}, None)],
)
def test_a_damaged_overlay_is_left_out_of_the_report(overlay: dict[str, Any], given: bytes | None) -> None:
    assert takeaway.overlay_of(analysis(**overlay)) == given


# ── Several films ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_worklist_appears_with_the_second_film(page: AppTest) -> None:
    upload(page)
    assert grids(page, "Film") == []
    assert "analyze_all" not in buttons(page)
    edit_uploads(page, lambda held: [*held, ("2", "b.png", png(3), "image/png")])
    assert [(row["Film"], row["Risk"], row["File"]) for row in worklist(page)] == [
        ("1", "not analysed", "Jane Doe.png"),
        ("▸ 2", "not analysed", "b.png"),
    ]
    assert page.button(key="analyze_all").label == "Analyze all 2 films"


def three(test: AppTest, server: FakeServer) -> AppTest:
    """Have three films read: of low risk, failed, of high risk."""
    server.analyses = [
        streamed(analysis(risk_level="Low", needs_review=False, request_id="first")),
        problem(400, "undecodable_image"),
        streamed(analysis(risk_level="High", request_id="third")),
    ]
    upload(test, "a.png", "b.png", "c.png")
    test.text_area(key="symptoms_1").set_value("cough")
    return click(test, "analyze_all")


def test_all_films_are_read_one_after_the_other_and_sorted_by_risk(page: AppTest, server: FakeServer) -> None:
    three(page, server)
    assert [(row["Film"], row["Risk"], row["Review"]) for row in worklist(page)] == [
        ("3", "High", "needed"),
        ("▸ 1", "Low", "–"),
        ("2", "failed", ""),
    ]
    assert [field(form, "symptoms") for form in server.forms()] == ["cough", "", ""]
    assert "analyze_all" not in buttons(page)


def test_a_film_that_waits_says_so(page: AppTest) -> None:
    upload(page, "a.png", "b.png")
    first, second = session_of(page).cases
    first.job = Job(Request(first.film, ""))
    second.waiting = True
    session_of(page).active = second
    page.run()
    assert "Waiting for the films before it." in words(page)
    assert [row["Risk"] for row in worklist(page)] == ["being read", "waiting"]


def test_opening_another_film_keeps_the_result_and_the_symptoms_of_the_first(page: AppTest, server: FakeServer) -> None:
    three(page, server)
    page.text_area(key="symptoms_1").set_value("cough, worse")
    pick_row(page, 0)
    assert active(page).number == 3
    assert "Risk level: High" in words(page)
    assert "third" in words(page)
    assert page.text_area(key="symptoms_3").value == ""
    pick_row(page, 2)
    assert active(page).number == 2
    assert "The file cannot be read" in words(page)
    pick_row(page, 1)
    assert active(page).number == 1
    assert "Risk level: Low" in words(page)
    assert page.text_area(key="symptoms_1").value == "cough, worse"
    assert "symptoms were changed" in words(page)
    assert len(server.forms()) == 3


def test_a_film_whose_row_was_picked_before_can_be_opened_again(page: AppTest, server: FakeServer) -> None:
    three(page, server)
    pick_row(page, 0)
    edit_uploads(page, lambda held: [*held, ("4", "d.png", png(4), "image/png")])
    assert active(page).number == 4
    pick_row(page, 0)
    assert active(page).number == 3


def test_a_new_order_of_the_worklist_opens_no_film(page: AppTest, server: FakeServer) -> None:
    upload(page, "a.png", "b.png")
    pick_row(page, 1)
    pick_row(page, 1)  # the film that is open: its row stays marked
    assert active(page).number == 2
    server.analyses = [streamed(analysis(risk_level="High"))]
    click(page, "analyze")
    assert [row["Film"] for row in worklist(page)] == ["▸ 2", "1"]
    assert active(page).number == 2


def test_a_row_that_is_still_marked_opens_no_film(page: AppTest, server: FakeServer) -> None:
    views.SAMPLE_PATH.write_bytes(png(99))
    upload(page, "a.png")
    sample = "Try the synthetic sample"
    next(button for button in page.button if button.label == sample).click().run()
    pick_row(page, 0)
    assert active(page).number == 1
    next(button for button in page.button if button.label == sample).click().run()
    assert active(page).number == 2
    page.run()
    assert active(page).number == 2


def test_removing_an_upload_drops_the_film_and_its_answer(page: AppTest, server: FakeServer) -> None:
    server.analyses = [streamed(analysis())]
    upload(page, "a.png", "b.png")
    click(page, "analyze")
    edit_uploads(page, lambda held: held[1:])
    assert [case.film.name for case in session_of(page).cases] == ["b.png"]
    assert "Risk level" not in words(page)
    assert "Ready to analyse" in words(page)
    edit_uploads(page, lambda held: [])
    assert session_of(page).cases == []
    assert session_of(page).previews == {}
    assert "Choose a film" in words(page)


def test_another_page_and_back_keeps_the_films(page: AppTest, server: FakeServer) -> None:
    server.analyses = [streamed(analysis())]
    upload(page, "a.png", "b.png")
    page.text_area(key="symptoms_1").set_value("cough").run()
    click(page, "analyze")
    go_to(page, "Compare")
    assert "Analyse at least two films" in words(page)
    go_to(page, "Reading room")
    assert page.file_uploader(key="films").value == []
    assert [case.film.name for case in session_of(page).cases] == ["a.png", "b.png"]
    assert page.text_area(key="symptoms_1").value == "cough"
    assert "Risk level: Moderate" in words(page)
    upload(page, "c.png")
    assert [case.film.name for case in session_of(page).cases] == ["a.png", "b.png", "c.png"]
    edit_uploads(page, lambda held: [])
    assert [case.film.name for case in session_of(page).cases] == ["a.png", "b.png"]


def test_a_film_is_read_to_the_end_while_another_page_is_open(page: AppTest, server: FakeServer) -> None:
    gate = threading.Event()
    server.analyses = [interrupted(streamed(analysis()), "cnn", lambda: assert_waited(gate))]
    upload(page)
    page.button(key="analyze").click().run()
    go_to(page, "About and limits")
    gate.set()
    until_read(page)
    go_to(page, "Reading room")
    assert "Risk level: Moderate" in words(page)


def assert_waited(gate: threading.Event) -> None:
    assert gate.wait(LIMIT_S)


def test_two_films_are_compared_side_by_side(page: AppTest, server: FakeServer) -> None:
    go_to(page, "Compare")
    assert "Analyse at least two films" in words(page)
    go_to(page, "Reading room")
    three(page, server)
    go_to(page, "Compare")
    assert [page.selectbox(key=f"compare_{side}").value for side in ("Left", "Right")] == [3, 1]
    assert "**Risk level: High**" in words(page)
    assert "**Risk level: Low**" in words(page)
    assert len(grids(page, "Finding")) == 2
    assert len([alt for alt in images(page) if "Grad-CAM map of Effusion" in alt]) == 2
    assert "nothing here says that a difference is a change" in words(page)
    page.selectbox(key="compare_Right").select(3).run()  # the same film on both sides
    assert_no_exception(page)
    page.selectbox(key="compare_Left_3_map").select(viewer.FILM_ALONE).run()
    assert len([alt for alt in images(page) if "Grad-CAM" in alt]) == 1


def test_films_whose_previews_failed_can_be_compared(page: AppTest, server: FakeServer) -> None:
    server.render = refused_connection
    three(page, server)
    go_to(page, "Compare")
    assert_no_exception(page)
    assert [key for key in buttons(page) if "retry_preview" in key] == [
        "compare_Left_3_retry_preview",
        "compare_Right_1_retry_preview",
    ]
    server.render = lambda _: httpx.Response(200, content=png())
    page.button(key="compare_Left_3_retry_preview").click().run()
    assert len([alt for alt in images(page) if "Grad-CAM" in alt]) == 2


def test_two_sessions_share_nothing(page: AppTest, server: FakeServer) -> None:
    server.analyses = [streamed(analysis())]
    analysed(page)
    other = opened()
    assert "Risk level" not in words(other)
    assert "Choose a film" in words(other)
    assert session_of(other).cases == []
    assert "card" not in other.session_state


# ── Refusals and failures ────────────────────────────────────────────────────────────────────────────────────────────

GATE_CODES = [error.code for error in GateRefusal.__subclasses__()]


def test_every_refusal_of_the_gate_can_be_overridden() -> None:
    assert set(GATE_CODES) == failures.REFUSAL_CODES


def every_error(of: type[errors.AssistantError]) -> Iterator[type[errors.AssistantError]]:
    for error in of.__subclasses__():
        yield error
        yield from every_error(error)


def test_every_error_that_can_reach_a_user_has_a_title() -> None:
    never_answered = {"configuration_error", "weights_error", "image_error", "gate_refusal", "reader_unavailable"}
    codes = {error.code for error in every_error(errors.AssistantError)} - never_answered
    assert codes <= set(failures.FAILURE_TITLES)


@pytest.mark.parametrize("code", GATE_CODES)
@pytest.mark.parametrize(("key", "sent"), [("invert", ["true", "false"]), ("force", ["false", "true"])])
def test_a_refused_film_can_be_analysed_after_all(
    page: AppTest, server: FakeServer, code: str, key: str, sent: list[str]
) -> None:
    asked_for = quality(forced=key == "force", inverted_by_request=key == "invert")
    refusal = problem(422, code, "The gate refuses it.", gate_score=0.12)
    server.analyses = [refusal, streamed(analysis(quality=asked_for))]
    analysed(page, "cough")
    assert "The film was refused" in words(page)
    assert "The gate refuses it." in words(page)
    assert "0.12" in words(page)
    assert "retry" not in buttons(page)
    assert images(page) == ["The radiograph"]
    click(page, key)
    first, second = server.forms()
    assert [field(second, name) for name in ("invert", "force")] == sent
    assert field(first, "symptoms") == field(second, "symptoms") == "cough"
    assert all(png().decode("latin-1") in form for form in (first, second))
    assert {"invert": "greyscale inverted by request", "force": "overridden"}[key] in words(page)


def test_a_film_refused_although_inverted_stays_inverted_when_forced(page: AppTest, server: FakeServer) -> None:
    refusal = problem(422, "not_a_chest_radiograph")
    server.analyses = [refusal, problem(422, "not_a_chest_radiograph"), streamed(analysis())]
    analysed(page)
    click(page, "invert")
    assert "invert" not in buttons(page)
    assert "greyscale inverted" in words(page)
    click(page, "force")
    assert [field(server.forms()[-1], name) for name in ("invert", "force")] == ["true", "true"]
    assert [field(form, "invert") for form in server.forms("/render")] == ["false", "true"]


@pytest.mark.parametrize(
    ("failure", "says"),
    [
        (httpx.ConnectError("x"), "make run"),
        (httpx.ReadTimeout("x"), "did not answer within"),
        (httpx.ReadError("x"), "broke before the answer"),
        (httpx.Response(200, text="<html>"), "Another program may be listening"),
        (httpx.Response(200, json={}), "cannot be understood"),
        (httpx.Response(502, text="<html>"), "Another program may be listening"),
        (problem(400, "undecodable_image"), "The file cannot be read"),
        (problem(413, "file_too_large"), "The file is too large"),
        (problem(413, "too_many_pixels"), "The image is too large"),
        (problem(415, "unsupported_image_type"), "This type of file is not read"),
        (problem(422, "invalid_request"), "The request was not accepted"),
        (problem(500, "internal_error"), "request-9"),
        (problem(503, "busy"), "Try again in 7 s."),
        (problem(418, "novelty"), "The request failed"),
        (RuntimeError("a secret of the dashboard"), "The dashboard failed"),
    ],
)
def test_a_failure_keeps_film_and_symptoms_and_offers_retry(
    page: AppTest, server: FakeServer, failure: httpx.Response | Exception, says: str
) -> None:
    server.analyses = [failure, streamed(analysis())]
    analysed(page, "cough")
    assert says in words(page)
    assert "secret" not in words(page)
    assert records.DISCLAIMER in words(page)
    assert page.error
    assert images(page) == ["The radiograph"]
    assert page.text_area(key="symptoms_1").value == "cough"
    click(page, "retry")
    assert "Risk level: Moderate" in words(page)
    assert len(server.forms()) == 2
    assert field(server.forms()[1], "symptoms") == "cough"


def test_retry_sends_the_symptoms_as_they_stand_now(page: AppTest, server: FakeServer) -> None:
    server.analyses = [problem(503, "busy"), streamed(analysis())]
    analysed(page, "cough")
    page.text_area(key="symptoms_1").set_value("fever")
    click(page, "retry")
    assert field(server.forms()[1], "symptoms") == "fever"


def test_retry_brings_the_preview_back_too(page: AppTest, server: FakeServer) -> None:
    server.render = refused_connection
    server.analyses = [httpx.ConnectError("x"), streamed(analysis())]
    analysed(page)
    assert images(page) == []
    assert words(page).count("make run") == 1  # one message about one server
    server.render = lambda _: httpx.Response(200, content=png())
    click(page, "retry")
    assert len(images(page)) == 2


# ── Foreign text ─────────────────────────────────────────────────────────────────────────────────────────────────────

# Of all elements only these show text as it is. A text area shows the user what the user typed; of an image the text is
# its `alt`, of a chart its data (see below).
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
        heatmaps={f.pathology: heatmap(f).model_copy(update={"zone": HOSTILE, "pathology": HOSTILE}) for f in found},
        model=MODEL.model_copy(
            update=dict.fromkeys(("weights", "sha256", "architecture", "engine", "device"), HOSTILE)
        ),
        timings_ms={HOSTILE: 1.0},
        request_id=HOSTILE,
    )


def assert_alt_only(test: AppTest, text: str) -> None:
    for element in test.get("image"):
        for image in element.proto.imgs:
            image.ClearField("alt")
    assert "image" not in kinds_that_show(test, text)


def test_hostile_text_in_a_result_stays_text(page: AppTest, server: FakeServer) -> None:
    server.analyses = [streamed(hostile_analysis()), streamed(hostile_analysis())]
    analysed(page, HOSTILE)
    assert HOSTILE in [element.value for element in page.text]
    shown = kinds_that_show(page, "evil.example")
    assert {"text", "code"} <= shown <= PLAIN_KINDS | {"image", "vega_lite_chart"}
    assert_alt_only(page, "evil.example")
    upload(page, "a.png")
    click(page, "analyze")
    go_to(page, "Compare")
    assert kinds_that_show(page, "evil.example") <= PLAIN_KINDS | {"image", "vega_lite_chart"}
    assert_alt_only(page, "evil.example")


def test_the_chart_holds_foreign_text_as_data_alone(page: AppTest, server: FakeServer) -> None:
    server.analyses = [streamed(hostile_analysis())]
    analysed(page)
    (chart,) = charts(page)
    rows = chart_rows(page)
    assert rows["Mass"]["In its words"] == rows["Mass"]["Why fusion moved it"] == HOSTILE
    assert "evil.example" not in chart.spec
    # Two answers that differ in every word give the same chart but for its numbers; the rest is Streamlit's own.
    spec = json.loads(chart.spec)
    plainly = tuple(f.model_copy(update={"reader": records.ReaderStatement(status="absent")}) for f in all_findings())
    assert keys_of(spec) - keys_of(findings.chart_spec(plainly)) == {"autosize", "contains"}
    # A tooltip's text is escaped unless a row has an `image` or an `url` channel; every field is a constant of ours.
    assert {entry["field"] for entry in spec["encoding"]["tooltip"]} < set(rows["Mass"])
    assert not {"image", "url", "href"} & (set(rows["Mass"]) | keys_of(spec))
    assert set(rows["Mass"]) == set(findings.chart_row(plainly[0]))


def keys_of(spec: Any) -> set[str]:
    """Return every key of a specification, at any depth."""
    if isinstance(spec, dict):
        return set(spec) | {key for value in spec.values() for key in keys_of(value)}
    return {key for value in spec for key in keys_of(value)} if isinstance(spec, list | tuple) else set()


def test_hostile_text_in_a_draft_stays_text(page: AppTest) -> None:
    upload(page)
    case = active(page)
    case.job = Job(Request(case.film, ""))
    case.job.quality, case.job.cnn, case.job.draft = quality(reason=HOSTILE), seen(), HOSTILE
    page.run()
    assert HOSTILE in [element.value for element in page.text]
    assert kinds_that_show(page, "evil.example") <= PLAIN_KINDS


def test_hostile_text_in_an_error_stays_text(page: AppTest, server: FakeServer) -> None:
    server.render = lambda _: problem(400, HOSTILE, HOSTILE)
    server.analyses = [problem(422, HOSTILE, HOSTILE, errors=[{HOSTILE: HOSTILE}])]
    upload(page, f"{HOSTILE}.png".replace("/", ""), "b.png")
    assert {"text"} <= kinds_that_show(page, "alert(1)") <= PLAIN_KINDS
    click(page, "analyze")
    assert {"text"} <= kinds_that_show(page, "alert(1)") <= PLAIN_KINDS


def test_a_hostile_name_of_a_file_stays_text(page: AppTest, server: FakeServer) -> None:
    server.analyses = [streamed(analysis()), streamed(analysis())]
    name = HOSTILE.replace("/", "") + ".png"
    upload(page, name, "b.png")
    click(page, "analyze_all")
    assert kinds_that_show(page, "alert(1)") <= PLAIN_KINDS
    go_to(page, "Compare")
    assert name in [element.value for element in page.text]
    assert kinds_that_show(page, "alert(1)") <= PLAIN_KINDS


def test_hostile_text_in_health_stays_text(server: FakeServer) -> None:
    state = answers.ReaderHealth(mode_requested="local", mode="dummy", state="fallback", reason=HOSTILE)
    model = MODEL.model_copy(update={"weights": HOSTILE, "device": HOSTILE})
    server.health = lambda _: answer(health(reader=state, model=model))
    assert kinds_that_show(opened(), "evil.example") == {"text"}


def careless_page() -> None:
    import streamlit as st

    st.markdown("![x](http://evil.example/x.png)")
    st.metric("http://evil.example", 1)


def test_the_search_for_hostile_text_can_find_it() -> None:
    found = kinds_that_show(AppTest.from_function(careless_page).run(), "evil.example")
    assert found == {"markdown", "metric"}


SOURCES = [PROJECT_ROOT / "app.py", *sorted((PROJECT_ROOT / "dashboard").glob("*.py"))]
HTML_CALLS = ("unsafe_allow", "st.html", "st.write(", "components", "st.table", "st.latex", "st.iframe")


def html_calls(source: str) -> list[str]:
    return [line.strip() for line in source.splitlines() if any(word in line for word in HTML_CALLS)]


def test_html_is_let_through_in_one_place_and_there_it_is_constant() -> None:
    found = {path.name: html_calls(path.read_text(encoding="utf-8")) for path in SOURCES}
    assert {name: calls for name, calls in found.items() if calls} == {"pages.py": ["st.html(STYLE)"]}
    source = (PROJECT_ROOT / "dashboard" / "pages.py").read_text(encoding="utf-8")
    assert source.count("STYLE") == 2
    assert 'STYLE = """<style>' in source


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
