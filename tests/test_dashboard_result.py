"""The dashboard's result: every number and map of an answer, the dial, and what can be taken away."""

import csv
import io
import json
from typing import Any

import httpx
import pytest
from PIL import Image
from streamlit.testing.v1 import AppTest

from dashboard import findings, takeaway, viewer
from dashboard.client import AssistantClient
from dashboard.session import Case, Film, Job, Request, Session
from modules import answers, records
from modules.pathologies import NAMES
from tests.dashboard_page import (
    active,
    analysed,
    assert_no_exception,
    chart_rows,
    click,
    grids,
    images,
    metrics,
    pick_finding,
    words,
)
from tests.fake_server import (
    URL,
    FakeServer,
    all_findings,
    analysis,
    answer,
    card,
    field,
    finding,
    heatmap,
    png,
    reader,
    refused_connection,
    streamed,
)

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


def test_a_map_of_numbers_that_are_none_is_no_answer_of_our_server(page: AppTest, server: FakeServer) -> None:
    whole = streamed(analysis(heatmaps=broken(grid=((0.0, 0.1), (0.0, 0.123456)))))
    server.analyses = [httpx.Response(200, text=whole.text.replace("0.123456", "NaN"), headers=whole.headers)]
    analysed(page)
    assert "grid.1.1 (finite_number)" in words(page)
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
