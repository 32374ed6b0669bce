"""The HTTP layer: every error of a request is a problem, and a full house says when to come back."""

import io
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import anyio
import httpx
import pytest
from PIL import Image
from starlette.testclient import TestClient

from main import create_app
from modules import errors
from modules.images import ImageLimits
from modules.pipeline import Pipeline
from modules.quality import InputGate
from modules.records import MAX_SYMPTOMS
from modules.settings import MEBIBYTE, Settings
from tests.api_requests import Doorman, Pixels, analyze, assert_problem, dicom, failing, render
from tests.conftest import MakeClient
from tests.image_files import png_claiming

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
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://127.0.0.1") as client:
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


@pytest.mark.parametrize("charset", ["punycode", "utf-16", "undefined"])
def test_a_form_that_is_not_utf_8_is_refused_unread(client: TestClient, charset: str) -> None:
    form = raw_form(('name="symptoms"', b"a" * 1000))
    kind = f"multipart/form-data; charset={charset}; boundary=X"
    assert_problem(client.post("/analyze", content=form, headers={"Content-Type": kind}), 415, "unsupported_charset")


def test_a_form_may_say_that_it_is_utf_8(client: TestClient, film_png: bytes) -> None:
    form = raw_form((FILE, film_png), ('name="symptoms"', "Fieber, Übelkeit".encode()))
    kind = "multipart/form-data; charset=UTF-8; boundary=X"
    assert client.post("/analyze", content=form, headers={"Content-Type": kind}).status_code == 200


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
