"""The HTTP layer: old clients keep working, every error is a problem, and nothing that was sent is logged."""

import base64
import hashlib
import io
import json
import logging
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import anyio
import httpx
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
import uvicorn
from PIL import Image
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid
from starlette.testclient import TestClient

from api import logs, problems
from main import create_app
from modules import errors
from modules.answers import Analysis, Health, Problem
from modules.errors import WeightsError
from modules.images import ImageLimits
from modules.pathologies import NAMES
from modules.pipeline import Opened, Pipeline, Seen
from modules.quality import InputGate
from modules.records import MAX_SYMPTOMS, HeatmapChoice, ReaderInfo, Reading
from modules.settings import MEBIBYTE, PROJECT_ROOT, Settings
from modules.weights import CARD_FILE, EMBEDDED_WEIGHTS, WeightsCard, read_card
from tests.conftest import MakeClient, as_png
from tests.image_files import png_claiming

Pixels = npt.NDArray[np.uint8]

# An exception's or a file's trace in an answer: a stack, a path, a module, a class of Python or of this project.
INSIDES = re.compile(
    r"Traceback|File \"|\.py\b|<class|object at 0x|/[\w.-]+/[\w.-]+|\b(?:modules|api|fastapi|starlette|pydantic)\."
    r"|\b(?:" + "|".join(c.__name__ for c in problems.STATUS if c is not errors.Busy) + r")\b"
    r"|\b[A-Z]\w*(?:Error|Exception)\b|\bUploadFile\b"
)

SECRET = "Jane-Doe-1970"


def analyze(client: TestClient, film: bytes, **fields: str) -> Any:
    return client.post("/analyze", files={"image": ("film.png", film, "image/png")}, data=fields)


def render(client: TestClient, film: bytes, **fields: str) -> Any:
    return client.post("/render", files={"image": ("film", film)}, data=fields)


def assert_problem(response: Any, status: int, code: str) -> Problem:
    """Hold an answer against everything that every error must be."""
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")
    problem = Problem.model_validate_json(response.content)
    assert (problem.status, problem.code) == (status, code)
    assert problem.title
    assert problem.detail
    assert problem.request_id == response.headers["X-Request-ID"]
    assert response.headers["Cache-Control"] == "no-store"
    assert not INSIDES.search(response.text), response.text
    return problem


def dicom(pixels: Pixels, photometric: str = "MONOCHROME2", **elements: Any) -> bytes:
    dataset = pydicom.Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = DigitalXRayImageStorageForPresentation, generate_uid()
    dataset.PatientName, dataset.PatientID = SECRET, SECRET
    dataset.Modality, dataset.ViewPosition, dataset.BodyPartExamined = "DX", "PA", "CHEST"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, photometric
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.WindowCenter, dataset.WindowWidth = 128, 256
    dataset.PixelData = pixels.tobytes()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    out = io.BytesIO()
    pydicom.dcmwrite(out, dataset, enforce_file_format=True)
    return out.getvalue()


def noise_png() -> bytes:
    return as_png(np.random.default_rng(0).integers(0, 256, (256, 256), dtype=np.uint8))


class FakePipeline:
    """Answers /health and /model like the real one, and does what it is told with films."""

    def __init__(self, real: Pipeline, work: Callable[[], None]) -> None:
        self.cnn, self.reader = real.cnn, real.reader
        self._real, self._work = real, work

    def open(self, *args: Any, **kwargs: Any) -> Opened:
        self._work()
        return self._real.open(*args, **kwargs)

    def see(self, opened: Opened, heatmaps: HeatmapChoice) -> Seen:
        return self._real.see(opened, heatmaps)

    def read(self, seen: Seen, **kwargs: Any) -> tuple[Reading, ReaderInfo]:
        return self._real.read(seen, **kwargs)

    def conclude(self, seen: Seen, reading: Reading, info: ReaderInfo) -> Analysis:
        return self._real.conclude(seen, reading, info)

    def render(self, *args: Any, **kwargs: Any) -> bytes:
        self._work()
        return self._real.render(*args, **kwargs)


def failing(real: Pipeline, error: Exception) -> Pipeline:
    def fail() -> None:
        raise error

    return cast(Pipeline, FakePipeline(real, fail))


class Doorman:
    """Holds every analysis until it is told to let them through."""

    def __init__(self, real: Pipeline) -> None:
        self.entered, self.open = threading.Semaphore(0), threading.Event()
        self.pipeline = cast(Pipeline, FakePipeline(real, self._wait))

    def _wait(self) -> None:
        self.entered.release()
        assert self.open.wait(20)


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


# ── Errors of the upload ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_damaged_or_empty_image_is_400(client: TestClient, film_png: bytes) -> None:
    for send in (analyze, render):
        for film in (film_png[: len(film_png) // 2], b"", film_png[:4]):
            assert_problem(send(client, film), 400, "undecodable_image")


def test_another_kind_of_file_is_415(client: TestClient, film_pixels: Pixels) -> None:
    gif = io.BytesIO()
    Image.fromarray(film_pixels).save(gif, "GIF")
    for send in (analyze, render):
        for film in (gif.getvalue(), b"%PDF-1.7 and so on", b"patient,age\n1,2\n"):
            assert_problem(send(client, film), 415, "unsupported_image_type")


def test_a_dicom_of_several_frames_is_415(client: TestClient, film_pixels: Pixels) -> None:
    frames = dicom(film_pixels, NumberOfFrames=2, PixelData=film_pixels.tobytes() * 2)
    assert_problem(analyze(client, frames), 415, "multiple_frames")


def test_more_pixels_than_the_limit_are_413(client: TestClient) -> None:
    for send in (analyze, render):
        assert_problem(send(client, png_claiming(10_000, 10_000)), 413, "too_many_pixels")


def test_a_file_beyond_the_limit_of_bytes_is_413(pipeline: Pipeline, make_client: MakeClient, film_png: bytes) -> None:
    strict = Pipeline(pipeline.cnn, InputGate.load(), pipeline.reader, limits=ImageLimits(max_bytes=len(film_png) - 1))
    for send in (analyze, render):
        assert_problem(send(make_client(strict), film_png), 413, "file_too_large")


def test_a_declared_length_beyond_the_limit_is_413_before_the_body_is_read(make_client: MakeClient) -> None:
    response = analyze(make_client(max_upload_mb=1), bytes(2 * MEBIBYTE + 1))
    problem = assert_problem(response, 413, "file_too_large")
    assert "1 MiB" in problem.detail
    absurd = make_client().post("/analyze", content=b"x", headers={"Content-Length": "9" * 5000})
    assert_problem(absurd, 413, "file_too_large")


@pytest.mark.parametrize("path", ["/analyze", "/render"])
def test_a_chunked_body_is_413_as_soon_as_it_passes_the_limit(pipeline: Pipeline, path: str) -> None:
    app = create_app(Settings(_env_file=None, max_upload_mb=1), pipeline)
    sent = 0

    async def flood() -> AsyncIterator[bytes]:
        nonlocal sent
        yield b'--X\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        while sent < 16 * MEBIBYTE:
            sent += 1 << 16
            yield bytes(1 << 16)

    async def post() -> httpx.Response:
        kind = {"Content-Type": "multipart/form-data; boundary=X"}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://testserver") as client:
            return await client.post(path, content=flood(), headers=kind)

    response = anyio.run(post)
    assert "content-length" not in response.request.headers
    assert_problem(response, 413, "file_too_large")
    assert sent <= 2 * MEBIBYTE + (1 << 16)


def test_a_request_without_an_image_is_422_and_names_the_field(client: TestClient, film_png: bytes) -> None:
    for path in ("/analyze", "/render"):
        for request in (
            {},
            {"data": {"symptoms": "cough"}},
            {"files": {"picture": ("film.png", film_png)}},
            {"json": {"image": "film.png"}},
        ):
            problem = assert_problem(client.post(path, **cast(Any, request)), 422, "invalid_request")
            assert problem.errors is not None
            assert [error["field"] for error in problem.errors] == ["image"]


def test_an_image_sent_as_text_is_422_without_the_servers_insides(client: TestClient) -> None:
    """What curl sends for `-F image=film.png`, the @ forgotten."""
    for path in ("/analyze", "/render"):
        problem = assert_problem(client.post(path, data={"image": "film.png"}), 422, "invalid_request")
        assert "file" in problem.detail.lower()


@pytest.mark.parametrize(
    ("field", "value"),
    [("symptoms", "x" * (MAX_SYMPTOMS + 1)), ("heatmaps", "some"), ("invert", "perhaps"), ("force", "perhaps")],
)
def test_a_bad_field_is_422_and_named_but_not_repeated(
    client: TestClient, film_png: bytes, field: str, value: str
) -> None:
    response = analyze(client, film_png, **{field: value})
    problem = assert_problem(response, 422, "invalid_request")
    assert problem.errors is not None
    assert [error["field"] for error in problem.errors] == [field]
    assert value not in response.text


def test_symptoms_that_only_the_pipeline_finds_too_long_are_422(
    pipeline: Pipeline, make_client: MakeClient, film_png: bytes
) -> None:
    fake = failing(pipeline, errors.InvalidSymptoms("The symptoms are too long."))
    assert_problem(analyze(make_client(fake), film_png), 422, "invalid_request")


def raw_form(*parts: tuple[str, bytes]) -> bytes:
    each = (f"--X\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + body + b"\r\n" for head, body in parts)
    return b"".join(each) + b"--X--\r\n"


FILE, SECOND_FILE = 'name="image"; filename="a"', 'name="image"; filename="b"'
HOSTILE_FORMS = {
    "two files": raw_form((FILE, b"1"), (SECOND_FILE, b"2")),
    "many fields": raw_form((FILE, b"1"), *((f'name="field{n}"', b"") for n in range(9))),
    "an oversized field": raw_form((FILE, b"1"), ('name="symptoms"', b"x" * (MEBIBYTE + 1))),
    "an oversized unknown field": raw_form((FILE, b"1"), ('name="extra"', b"x" * (MEBIBYTE + 1))),
    "a part without a name": raw_form(("filename=a", b"1")),
    "cut off in the film": raw_form((FILE, b"1" * 1000))[:500],
    "cut off in a header": raw_form((FILE, b"1"))[:30],
    "no boundary inside": b"film" * 100,
    "nothing": b"",
}


# the parser leaves the temporary file of a form that was cut off to the garbage collector
@pytest.mark.filterwarnings("ignore:.*SpooledTemporaryFile:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", list(HOSTILE_FORMS))
def test_a_hostile_form_is_a_problem_of_the_client(client: TestClient, name: str) -> None:
    for path in ("/analyze", "/render"):
        response = client.post(
            path, content=HOSTILE_FORMS[name], headers={"Content-Type": "multipart/form-data; boundary=X"}
        )
        assert response.status_code in (400, 422)
        assert_problem(
            response, response.status_code, {400: "bad_request", 422: "invalid_request"}[response.status_code]
        )


@pytest.mark.parametrize(
    "kind",
    ["multipart/form-data", "multipart/form-data; boundary="],
)
def test_a_hostile_content_type_is_a_problem_of_the_client(client: TestClient, kind: str) -> None:
    response = client.post("/analyze", content=raw_form((FILE, b"1")), headers={"Content-Type": kind})
    assert_problem(response, 400, "bad_request")


def test_an_unknown_route_is_404_and_a_wrong_method_405(client: TestClient) -> None:
    for path in ("/nowhere", "/static-offline-docs/nowhere", "/static-offline-docs/%2e%2e/core.py"):
        assert_problem(client.get(path), 404, "not_found")
    wrong = client.get("/analyze")
    assert_problem(wrong, 405, "method_not_allowed")
    assert wrong.headers["Allow"] == "POST"


# ── A full house ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_full_house_is_503_with_retry_after_while_health_still_answers(
    pipeline: Pipeline, make_client: MakeClient, film_png: bytes
) -> None:
    doorman = Doorman(pipeline)
    client = make_client(doorman.pipeline, max_concurrent_analyses=1, max_queued_analyses=0)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(analyze, client, film_png)
        try:
            assert doorman.entered.acquire(timeout=20)
            for send in (analyze, render):
                refused = send(client, film_png)
                assert_problem(refused, 503, "busy")
                assert int(refused.headers["Retry-After"]) >= 1
            assert client.get("/health").status_code == 200
        finally:
            doorman.open.set()
        assert first.result().status_code == 200
    assert analyze(client, film_png).status_code == 200


def test_one_who_waits_is_served_when_a_place_is_free(
    pipeline: Pipeline, make_client: MakeClient, film_png: bytes
) -> None:
    doorman = Doorman(pipeline)
    client = make_client(doorman.pipeline, max_concurrent_analyses=1, max_queued_analyses=1)
    with ThreadPoolExecutor(3) as pool:
        sent = [pool.submit(render, client, film_png) for _ in range(3)]
        try:
            assert doorman.entered.acquire(timeout=20)
            deadline = time.monotonic() + 20
            while not any(response.done() for response in sent):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert not doorman.entered.acquire(timeout=0.1), "two ran at the same time"
        finally:
            doorman.open.set()
        assert sorted(response.result().status_code for response in sent) == [200, 200, 503]


def test_a_failed_analysis_gives_its_place_back(make_client: MakeClient, film_png: bytes) -> None:
    client = make_client(max_concurrent_analyses=1, max_queued_analyses=0)
    for _ in range(3):
        assert_problem(analyze(client, b"no film"), 415, "unsupported_image_type")
    assert render(client, film_png).status_code == 200


# ── Errors of the server ─────────────────────────────────────────────────────────────────────────────────────────────

UNFORESEEN = f"{SECRET} in /srv/films/{SECRET}.dcm"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(UNFORESEEN),
        KeyError(UNFORESEEN),
        OSError(2, UNFORESEEN, UNFORESEEN),
        MemoryError(UNFORESEEN),
        errors.ReaderUnavailable(UNFORESEEN),
        errors.WeightsError(UNFORESEEN),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_unforeseen_error_is_500_and_logged_by_class_and_place_but_never_by_its_text(
    pipeline: Pipeline, make_client: MakeClient, film_png: bytes, logged: "Log", error: Exception
) -> None:
    client = make_client(failing(pipeline, error))
    for send in (analyze, render):
        logged.clear()
        response = send(client, film_png)
        problem = assert_problem(response, 500, "internal_error")
        assert SECRET not in response.text
        assert SECRET not in logged.text
        named = [line for line in logged.lines if line["event"] == "internal_error"]
        assert [line["request_id"] for line in named] == [problem.request_id]
        assert type(error).__name__ in json.dumps(named)


def test_an_unforeseen_error_outside_the_pipeline_is_500_too(
    pipeline: Pipeline, make_client: MakeClient, logged: "Log"
) -> None:
    broken = cast(Any, failing(pipeline, RuntimeError()))
    broken.reader = None
    assert_problem(make_client(broken).get("/health"), 500, "internal_error")
    assert "AttributeError" in logged.text


def unmapped(root: type[Exception], table: Any) -> set[type[Exception]]:
    """Return the leaves of an error tree that a table does not hold."""
    below = root.__subclasses__()
    return set().union(*(unmapped(c, table) for c in below)) if below else {root} - set(table)


def test_every_leaf_of_the_error_tree_has_a_status() -> None:
    assert unmapped(errors.AssistantError, problems.STATUS) == set()


def test_a_forgotten_leaf_would_be_noticed() -> None:
    class Root(Exception):
        pass

    class Branch(Root):
        pass

    class Known(Branch):
        pass

    class Forgotten(Branch):
        pass

    assert unmapped(Root, {Known: 400}) == {Forgotten}
    assert unmapped(Root, {Known: 400, Forgotten: 500}) == set()


@pytest.mark.parametrize("kind", list(problems.STATUS), ids=lambda kind: kind.__name__)
def test_each_error_of_the_domain_is_answered_by_the_table(
    pipeline: Pipeline, make_client: MakeClient, film_png: bytes, kind: type[errors.AssistantError]
) -> None:
    error = kind("Something is wrong.", 7) if kind is errors.Busy else kind("Something is wrong.")
    status = problems.STATUS[kind]
    response = analyze(make_client(failing(pipeline, error)), film_png)
    problem = assert_problem(response, status, "internal_error" if status == 500 else kind.code)
    assert (problem.detail == "Something is wrong.") == (status != 500)
    assert response.headers.get("Retry-After") == ("7" if status == 503 else None)


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
        assert set(responses) == {"200", "400", "413", "415", "422", "500", "503"}
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


# ── Logs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Log:
    """Everything that is logged: the lines of the project, and whatever else Python's logging lets through."""

    def __init__(self, stream: io.StringIO, rest: pytest.LogCaptureFixture) -> None:
        self._stream, self._rest = stream, rest

    @property
    def text(self) -> str:
        return self._stream.getvalue() + self._rest.text

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._stream.getvalue().splitlines()]

    def clear(self) -> None:
        self._stream.seek(0)
        self._stream.truncate()
        self._rest.clear()


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[Log]:
    """Read what the handlers of the server write, in place of standard error."""
    logs.configure("info")
    handlers = [
        handler
        for name in logs.LOGGERS
        for handler in logging.getLogger(name).handlers
        if isinstance(handler, logging.StreamHandler) and isinstance(handler.formatter, logs.JsonFormatter)
    ]
    assert len(handlers) == len(logs.LOGGERS)
    stream = io.StringIO()
    before = [(handler, handler.setStream(stream)) for handler in handlers]
    yield Log(stream, caplog)
    for handler, old in before:
        handler.setStream(old)


def marked_requests(client: Any, film: bytes, patient: bytes) -> list[Any]:
    """Send requests of every outcome with the mark wherever a client can write something; `client` is any httpx."""
    headers = {
        "User-Agent": SECRET,
        "Referer": f"http://{SECRET}/",
        "Cookie": f"a={SECRET}",
        "X-Request-ID": f"?{SECRET}",
    }
    headers |= {"Authorization": f"Bearer {SECRET}", f"X-{SECRET}": SECRET}
    query, name = f"?patient={SECRET}", f"{SECRET}.png"

    def post(path: str, content: bytes, **fields: str) -> Any:
        return client.post(path + query, files={"image": (name, content, SECRET)}, data=fields, headers=headers)

    return [
        post("/analyze", film, symptoms=f"{SECRET} coughs"),
        post("/analyze", patient, symptoms=SECRET),
        post("/analyze", film, heatmaps=SECRET, **{SECRET: SECRET}),
        post("/analyze", film, symptoms=SECRET * MAX_SYMPTOMS),
        post("/analyze", SECRET.encode()),
        post("/render", patient[:-100]),
        post("/render", film),
        post(f"/{SECRET}", film),
        client.get(f"/analyze{query}", headers=headers),
        client.get(f"/health/{SECRET}{query}#{SECRET}", headers=headers),
        client.get(f"/health{query}", headers=headers),
        client.post("/analyze", content=SECRET, headers=headers | {"Content-Type": f"multipart/form-data; a={SECRET}"}),
    ]


def test_nothing_that_a_client_writes_is_logged_or_echoed_in_an_error(
    make_client: MakeClient, film_png: bytes, film_pixels: Pixels, logged: Log
) -> None:
    client = make_client(log_level="debug")
    answers = marked_requests(client, film_png, dicom(film_pixels))
    assert [r.status_code for r in answers] == [200, 200, 422, 422, 415, 400, 200, 404, 405, 404, 200, 400]
    assert SECRET not in logged.text
    assert not any(SECRET in r.text for r in answers if r.status_code >= 400)
    assert not any(SECRET in value for r in answers for value in r.headers.values())


def test_each_request_is_one_line_of_json_with_id_route_and_status(
    make_client: MakeClient, film_png: bytes, film_pixels: Pixels, logged: Log
) -> None:
    answers = marked_requests(make_client(), film_png, dicom(film_pixels))
    assert [(line["event"], line["request_id"], line["status"]) for line in logged.lines] == [
        ("request", r.headers["X-Request-ID"], r.status_code) for r in answers
    ]
    routes = ["/analyze"] * 5 + ["/render"] * 2 + ["(other)", "/analyze", "(other)", "/health", "/analyze"]
    assert [line["route"] for line in logged.lines] == routes
    assert all(line["level"] == "info" and line["milliseconds"] >= 0 for line in logged.lines)


def test_a_mark_in_the_log_would_be_noticed(make_client: MakeClient, logged: Log) -> None:
    make_client()
    logging.getLogger("modules.anything").warning("the film of %s", SECRET)
    assert SECRET in logged.text
    logged.clear()
    logging.getLogger("some.library").warning("the film of %s", SECRET)
    assert SECRET in logged.text


def test_an_invented_method_is_not_logged(make_client: MakeClient, logged: Log) -> None:
    assert_problem(make_client().request(SECRET.upper(), "/analyze"), 405, "method_not_allowed")
    assert SECRET.upper() not in logged.text


def test_configuring_the_logs_twice_writes_each_line_once(make_client: MakeClient, logged: Log) -> None:
    make_client()
    make_client().get("/health")
    assert len(logged.lines) == 1


def test_a_real_server_logs_no_address_and_no_error_text(
    pipeline: Pipeline, film_png: bytes, film_pixels: Pixels, logged: Log
) -> None:
    app = create_app(Settings(_env_file=None, log_level="debug"), pipeline)
    server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", 0, ws="none", log_level="debug"))
    capture = logging.StreamHandler(stream := io.StringIO())
    for name in ("uvicorn", "uvicorn.access"):
        logging.getLogger(name).addHandler(capture)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while not server.started:
            assert thread.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        host, port = server.servers[0].sockets[0].getsockname()[:2]
        with httpx.Client(base_url=f"http://{host}:{port}", trust_env=False, timeout=30) as client:
            statuses = [r.status_code for r in marked_requests(client, film_png, dicom(film_pixels))]
            pipeline_error = client.post("/analyze", content=iter([b"x"] * 3))
    finally:
        server.should_exit = True
        thread.join(20)
        for name in ("uvicorn", "uvicorn.access"):
            logging.getLogger(name).removeHandler(capture)
    assert statuses == [200, 200, 422, 422, 415, 400, 200, 404, 405, 404, 200, 400]
    assert_problem(pipeline_error, 422, "invalid_request")
    assert "Uvicorn running" in stream.getvalue()
    assert SECRET not in stream.getvalue() + logged.text


# ── Start-up ─────────────────────────────────────────────────────────────────────────────────────────────────────────

OTHER_WEIGHTS = b"other weights"


@pytest.fixture
def weights_folder(tmp_path: Path) -> Path:
    """A folder of the user's own whose weights are not the ones that its card describes."""
    shutil.copy(EMBEDDED_WEIGHTS / CARD_FILE, tmp_path)
    (tmp_path / read_card(tmp_path).file).write_bytes(OTHER_WEIGHTS)
    return tmp_path


def start_up_error(**settings: Any) -> str:
    app = create_app(Settings(_env_file=None, **settings))
    with pytest.raises(WeightsError) as caught, TestClient(app):
        pass
    return str(caught.value)


def test_weights_that_do_not_exist_stop_the_start_with_what_would_be_accepted(tmp_path: Path) -> None:
    missing = str(tmp_path / "nowhere")
    message = start_up_error(cxr_weights=missing)
    assert missing in message
    assert "embedded" in message
    assert CARD_FILE in message


def test_a_wrong_hash_stops_the_start_and_both_are_named(weights_folder: Path) -> None:
    message = start_up_error(cxr_weights=str(weights_folder))
    assert read_card(weights_folder).sha256 in message
    assert hashlib.sha256(OTHER_WEIGHTS).hexdigest() in message


def test_a_hash_other_than_the_pinned_one_stops_the_start_and_both_are_named() -> None:
    pinned = "0" * 64
    message = start_up_error(cxr_weights_sha256=pinned)
    assert pinned in message
    assert read_card(EMBEDDED_WEIGHTS).sha256 in message


def test_a_card_without_one_of_the_labels_stops_the_start_and_names_it(weights_folder: Path) -> None:
    path = weights_folder / CARD_FILE
    card = json.loads(path.read_text("utf-8"))
    card["outputs"] = [output for output in card["outputs"] if output["label"] != "Hernia"]
    path.write_text(json.dumps(card), "utf-8")
    message = start_up_error(cxr_weights=str(weights_folder))
    assert str(path) in message
    assert "Hernia" in message
    assert "14" in message


def test_the_reason_is_logged_as_a_sentence(tmp_path: Path, logged: Log) -> None:
    message = start_up_error(cxr_weights=str(tmp_path))
    assert [(line["event"], line["reason"]) for line in logged.lines] == [("start_up_failed", message)]


def test_uvicorn_ends_when_the_weights_are_wrong() -> None:
    command = [sys.executable, "-m", "uvicorn", "main:app", "--port", "0"]
    environment = {"CXR_WEIGHTS": "nowhere", "PATH": "", "PYTHONPATH": str(PROJECT_ROOT)}
    ended = subprocess.run(
        command, cwd=PROJECT_ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode != 0
    assert "CXR_WEIGHTS is 'nowhere'" in ended.stderr
    assert "Uvicorn running" not in ended.stderr


@pytest.mark.parametrize("charset", ["punycode", "utf-16", "undefined"])
def test_a_form_that_is_not_utf_8_is_refused_unread(client: TestClient, charset: str) -> None:
    form = raw_form(('name="symptoms"', b"a" * 1000))
    kind = f"multipart/form-data; charset={charset}; boundary=X"
    assert_problem(client.post("/analyze", content=form, headers={"Content-Type": kind}), 415, "unsupported_charset")


def test_a_form_may_say_that_it_is_utf_8(client: TestClient, film_png: bytes) -> None:
    form = raw_form((FILE, film_png), ('name="symptoms"', "Fieber, Übelkeit".encode()))
    kind = "multipart/form-data; charset=UTF-8; boundary=X"
    assert client.post("/analyze", content=form, headers={"Content-Type": kind}).status_code == 200
