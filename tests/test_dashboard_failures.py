"""The dashboard's failures: each keeps what was typed and says what to do; and foreign text stays text."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from dashboard import failures, findings
from dashboard.client import ClientError
from dashboard.session import Job, Request
from modules import answers, errors, records
from modules.errors import GateRefusal
from modules.images import open_image
from modules.pathologies import NAMES
from modules.quality import InputGate
from modules.settings import PROJECT_ROOT
from synthetic.phantom import make_film
from tests.conftest import as_png
from tests.dashboard_page import (
    SOURCES,
    active,
    analysed,
    buttons,
    chart_rows,
    charts,
    click,
    go_to,
    images,
    opened,
    seen,
    upload,
    words,
)
from tests.fake_server import (
    HOSTILE,
    MODEL,
    FakeServer,
    all_findings,
    analysis,
    answer,
    field,
    finding,
    health,
    heatmap,
    png,
    problem,
    quality,
    reader,
    refused_connection,
    streamed,
)

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


def refusals() -> Iterator[GateRefusal]:
    """Yield what the gate says of each kind of image that it refuses."""
    rng, upright = np.random.default_rng(0), make_film(0, size=256).pixels
    noise = rng.integers(0, 256, (256, 256), dtype=np.uint8)
    for pixels in (noise, 255 - upright, np.rot90(upright), upright[:100], np.full_like(noise, 7)):
        try:
            InputGate.load().assess(open_image(as_png(np.ascontiguousarray(pixels))).decode())
        except GateRefusal as refusal:
            yield refusal


def test_the_page_names_its_buttons_where_the_server_names_fields_of_its_api() -> None:
    told = [(str(refusal), failures.refusal_words(ClientError(str(refusal), refusal.code))) for refusal in refusals()]
    assert len(told) == 5
    assert sum("force=true" in server for server, _ in told) == 4  # a blank image has no way on
    for server, shown in told:
        assert "=true" not in shown
        assert shown.startswith(server.split(". ")[0])
        assert "anyway" in shown


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


HTML_CALLS = ("unsafe_allow", "st.html", "st.write(", "components", "st.table", "st.latex", "st.iframe")


def html_calls(source: str) -> list[str]:
    return [line.strip() for line in source.splitlines() if any(word in line for word in HTML_CALLS)]


def test_html_is_let_through_in_one_place_and_there_it_is_constant() -> None:
    found = {path.name: html_calls(path.read_text(encoding="utf-8")) for path in SOURCES}
    assert {name: calls for name, calls in found.items() if calls} == {"pages.py": ["st.html(STYLE)"]}
    source = (PROJECT_ROOT / "dashboard" / "pages.py").read_text(encoding="utf-8")
    assert source.count("STYLE") == 2
    assert 'STYLE = """<style>' in source
