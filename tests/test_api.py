"""The HTTP layer: old clients keep working, request ids come back, and every route says what it is."""

import base64
import io
import json
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from modules.answers import Analysis, Health
from modules.pathologies import NAMES
from modules.records import MAX_SYMPTOMS
from modules.weights import EMBEDDED_WEIGHTS, WeightsCard, read_card
from tests.api_requests import SECRET, Pixels, analyze, assert_problem, dicom, noise_png, render
from tests.conftest import as_png

# ── An analysis ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def answer(client: TestClient, film_png: bytes) -> dict[str, Any]:
    """The JSON of one ordinary analysis, as a client of the original API reads it."""
    response = analyze(client, film_png, symptoms="cough and fever for three days")
    assert response.status_code == 200
    parsed: dict[str, Any] = json.loads(response.content)
    return parsed


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def test_the_ten_original_keys_have_their_names_and_types(answer: dict[str, Any]) -> None:
    assert {key: type(answer[key]) for key in list(answer)[:10]} == {
        "visual_findings": dict,
        "clinical_reasoning": str,
        "differential_diagnosis": list,
        "confidence_scores": dict,
        "risk_level": str,
        "risk_factors": list,
        "contradictions": list,
        "heatmap_available": bool,
        "heatmap_base64": str,
        "disclaimer": str,
    }
    assert answer["risk_level"] in ("Low", "Moderate", "High")
    assert all(isinstance(text, str) for text in answer["differential_diagnosis"] + answer["risk_factors"])
    assert answer["clinical_reasoning"]
    assert "research" in answer["disclaimer"]


def test_a_contradiction_has_the_three_original_keys() -> None:
    contradiction = Analysis.model_json_schema()["$defs"]["Contradiction"]["properties"]
    assert [(key, contradiction[key]["type"]) for key in list(contradiction)[:3]] == [
        ("pathology", "string"),
        ("cnn_probability", "number"),
        ("note", "string"),
    ]


def test_visual_findings_hold_the_14_pathologies_in_order_as_probabilities(answer: dict[str, Any]) -> None:
    assert tuple(answer["visual_findings"]) == NAMES
    assert [finding["pathology"] for finding in answer["findings"]] == list(NAMES)
    assert all(is_number(value) and 0 <= value <= 1 for value in answer["visual_findings"].values())


def test_confidences_are_numbers_while_the_reader_says_that_its_own_was_not_measured(answer: dict[str, Any]) -> None:
    assert list(answer["confidence_scores"]) == ["cnn", "llm", "fused"]
    assert all(is_number(value) and 0 <= value <= 1 for value in answer["confidence_scores"].values())
    assert answer["confidence_scores"]["llm"] == 0.0
    assert answer["reader"]["token_confidence"] is None
    assert answer["reader"]["independent"] is False


def test_the_overlay_is_a_png_of_the_top_finding(answer: dict[str, Any]) -> None:
    overlay = Image.open(io.BytesIO(base64.b64decode(answer["heatmap_base64"], validate=True)))
    assert (overlay.format, overlay.size) == ("PNG", (256, 256))
    assert answer["heatmap_finding"]["pathology"] in NAMES


def test_the_overlay_of_a_large_film_is_at_most_1024_px(client: TestClient, film_pixels: Pixels) -> None:
    large = as_png(np.kron(film_pixels[:, :240], np.ones((5, 5), np.uint8)))
    parsed = analyze(client, large).json()
    overlay = Image.open(io.BytesIO(base64.b64decode(parsed["heatmap_base64"])))
    assert parsed["image"] == {"width": 1200, "height": 1280}
    assert overlay.size == (960, 1024)


def test_top_is_the_default_and_gives_the_grid_of_the_overlay_alone(answer: dict[str, Any]) -> None:
    assert list(answer["heatmaps"]) == [answer["heatmap_finding"]["pathology"]]


def test_all_gives_14_grids_and_none_gives_no_heatmap_at_all(client: TestClient, film_png: bytes) -> None:
    everything = analyze(client, film_png, heatmaps="all").json()
    assert tuple(everything["heatmaps"]) == NAMES
    assert everything["heatmap_available"] is True
    nothing = analyze(client, film_png, heatmaps="none").json()
    assert nothing["heatmap_available"] is False
    assert nothing["heatmap_base64"] == ""
    assert nothing["heatmaps"] == {}
    assert nothing["heatmap_finding"] is None
    assert nothing["visual_findings"] == everything["visual_findings"]


def test_an_analysis_round_trips_through_its_record(client: TestClient, film_png: bytes) -> None:
    response = analyze(client, film_png, heatmaps="all")
    assert Analysis.model_validate_json(response.content).model_dump_json() == response.text


def test_an_answer_is_not_kept_by_caches(client: TestClient, film_png: bytes) -> None:
    for response in (analyze(client, film_png), render(client, film_png)):
        assert response.headers["Cache-Control"] == "no-store"
        assert response.headers["X-Content-Type-Options"] == "nosniff"


def test_4000_characters_of_symptoms_are_read_however_many_bytes_they_take(client: TestClient, film_png: bytes) -> None:
    assert analyze(client, film_png, symptoms="咳" * (MAX_SYMPTOMS - 1) + "🫁").status_code == 200


def test_the_name_and_declared_type_of_the_file_do_not_matter(client: TestClient, film_png: bytes) -> None:
    files = {"image": ("report.pdf", film_png, "application/pdf")}
    assert client.post("/analyze", files=files).status_code == 200


def test_an_inverted_film_is_refused_with_the_way_on_and_analysed_when_it_is_taken(
    client: TestClient, film_pixels: Pixels
) -> None:
    inverted = as_png(255 - film_pixels)
    problem = assert_problem(analyze(client, inverted), 422, "inverted_greyscale")
    assert problem.gate_score is not None
    assert "invert=true" in problem.detail
    parsed = analyze(client, inverted, invert="true").json()
    assert parsed["quality"]["inverted_by_request"] is True
    assert parsed["needs_review"] is True


def test_what_the_gate_refuses_can_be_forced_and_then_needs_review(client: TestClient) -> None:
    problem = assert_problem(analyze(client, noise_png()), 422, "not_a_chest_radiograph")
    assert problem.gate_score is not None
    assert 0 <= problem.gate_score < 0.5
    assert "force=true" in problem.detail
    parsed = analyze(client, noise_png(), force="true").json()
    assert (parsed["quality"]["forced"], parsed["quality"]["accepted"]) == (True, False)
    assert parsed["needs_review"] is True


@pytest.mark.parametrize("quarter_turns", [1, 2, 3])
def test_a_turned_film_is_refused_with_its_score(client: TestClient, film_pixels: Pixels, quarter_turns: int) -> None:
    problem = assert_problem(analyze(client, as_png(np.rot90(film_pixels, quarter_turns))), 422, "rotated_film")
    assert problem.gate_score is not None
    assert "upright" in problem.detail


def test_a_dicom_film_is_analysed_and_its_patient_is_not_in_the_answer(client: TestClient, film_pixels: Pixels) -> None:
    response = analyze(client, dicom(film_pixels, PatientAge="012Y"))
    assert response.status_code == 200
    assert response.json()["quality"]["under_18"] is True
    assert SECRET not in response.text


def test_a_header_that_says_ct_is_refused(client: TestClient, film_pixels: Pixels) -> None:
    problem = assert_problem(analyze(client, dicom(film_pixels, Modality="CT")), 422, "not_a_chest_radiograph")
    assert "force=true" in problem.detail


# ── Request ids ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_well_formed_request_id_comes_back_in_header_and_body(client: TestClient, film_png: bytes) -> None:
    asked = "ward-7.film_0001"
    response = client.post("/analyze", files={"image": film_png}, headers={"X-Request-ID": asked})
    assert (response.headers["X-Request-ID"], response.json()["request_id"]) == (asked, asked)
    refused = client.get("/nowhere", headers={"X-Request-ID": asked})
    assert assert_problem(refused, 404, "not_found").request_id == asked


@pytest.mark.parametrize(
    "hostile", ["a\nSet-Cookie: b=c", "abc\n", "a b", "x" * 65, "", "<script>", "ä", "../../etc/passwd", '{"a":1}']
)
def test_a_hostile_request_id_is_replaced(client: TestClient, hostile: str) -> None:
    response = client.get("/health", headers={b"X-Request-ID": hostile.encode("latin-1")})
    assert re.fullmatch(r"[0-9a-f]{32}", response.headers["X-Request-ID"])
    assert "Set-Cookie" not in response.headers


def test_each_request_gets_an_id_of_its_own(client: TestClient) -> None:
    assert len({client.get("/health").headers["X-Request-ID"] for _ in range(5)}) == 5


# ── The other routes ─────────────────────────────────────────────────────────────────────────────────────────────────


def shown(response: Any) -> Pixels:
    assert (response.status_code, response.headers["content-type"]) == (200, "image/png")
    image = Image.open(io.BytesIO(response.content))
    assert (image.format, image.mode) == ("PNG", "L")
    return np.asarray(image)


def test_a_png_is_rendered_as_it_is_and_inverted_on_request(
    client: TestClient, film_png: bytes, film_pixels: Pixels
) -> None:
    assert np.array_equal(shown(render(client, film_png)), film_pixels)
    assert np.array_equal(shown(render(client, film_png, invert="true")), 255 - film_pixels)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_a_dicom_is_rendered_with_bright_as_dense(client: TestClient, film_pixels: Pixels, photometric: str) -> None:
    stored = film_pixels if photometric == "MONOCHROME2" else 255 - film_pixels
    response = render(client, dicom(stored, photometric))
    assert np.abs(shown(response).astype(int) - film_pixels).max() <= 1
    assert SECRET.encode() not in response.content


def test_a_preview_is_at_most_1024_px_a_side(client: TestClient, film_pixels: Pixels) -> None:
    assert shown(render(client, as_png(np.kron(film_pixels, np.ones((5, 2), np.uint8))))).shape == (1024, 410)


def test_a_preview_does_not_ask_the_gate(client: TestClient) -> None:
    assert render(client, noise_png()).status_code == 200


def test_health_names_the_models_and_why_the_reader_fell_back(client: TestClient) -> None:
    response = client.get("/health")
    assert response.json()["status"] == "healthy"
    assert response.json()["cnn_ready"] is True
    health = Health.model_validate_json(response.content)
    assert health.model.sha256 == read_card(EMBEDDED_WEIGHTS).sha256
    assert health.reader.mode_requested == "local"
    assert health.reader.state in ("loading", "ready", "fallback")
    assert (health.reader.reason is None) == (health.reader.state == "ready")


def test_model_is_the_card_of_the_loaded_weights(client: TestClient) -> None:
    assert WeightsCard.model_validate_json(client.get("/model").content) == read_card(EMBEDDED_WEIGHTS)


def references(schema: object) -> set[str]:
    """Return every $ref inside a JSON document."""
    if isinstance(schema, dict):
        own = {schema["$ref"]} if isinstance(schema.get("$ref"), str) else set()
        return own.union(*map(references, schema.values()))
    return set().union(*map(references, schema)) if isinstance(schema, list) else set()


def test_openapi_documents_every_error_as_a_problem(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    assert {"/analyze", "/render", "/health", "/model"} <= set(schema["paths"])
    for path in ("/analyze", "/render"):
        responses = schema["paths"][path]["post"]["responses"]
        refusals = {"401", "403", "421", "429"}
        assert set(responses) == {"200", "400", "408", "413", "415", "422", "500", "503"} | refusals
        for status in set(responses) - {"200"}:
            assert responses[status]["content"] == {
                "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
            }
    assert {"code", "request_id", "gate_score"} <= set(schema["components"]["schemas"]["Problem"]["properties"])


def test_openapi_describes_each_field_of_the_form_and_refers_to_nothing_that_is_missing(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    form = schema["components"]["schemas"]["Body_analyze_analyze_post"]
    assert set(form["properties"]) == {"image", "symptoms", "heatmaps", "invert", "force"}
    assert all(field.get("description") for field in form["properties"].values())
    assert form["required"] == ["image"]
    named = {f"#/components/schemas/{name}" for name in schema["components"]["schemas"]}
    assert references(schema) <= named


def test_the_docs_page_refers_to_no_other_host(client: TestClient) -> None:
    page = client.get("/docs")
    assert page.status_code == 200
    linked = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", page.text)
    linked += re.findall(r"""url:\s*["']([^"']*)""", page.text)
    assert len(linked) >= 4
    for address in linked:
        assert re.match(r"/(?!/)", address), address
        assert "cdn" not in address
        assert client.get(address).status_code == 200
