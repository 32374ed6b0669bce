"""The dashboard's client: what it sends, and that each failure becomes one class of error that says what to do."""

import json
from typing import Any

import httpx
import pytest

from dashboard.client import AssistantClient, ClientError
from modules import answers
from tests.fake_server import (
    URL,
    FakeServer,
    Handler,
    analysis,
    event_stream,
    field,
    health,
    png,
    problem,
    streamed,
)


def client(handler: Handler, url: str = URL) -> AssistantClient:
    return AssistantClient(url, 30.0, httpx.MockTransport(handler))


def failing(handler: Handler, url: str = URL) -> ClientError:
    with pytest.raises(ClientError) as caught:
        list(client(handler, url).stream("film.png", png(), ""))
    return caught.value


def raising(exc: Exception) -> Handler:
    def handler(_: httpx.Request) -> httpx.Response:
        raise exc

    return handler


def test_the_events_come_back_as_records_and_the_last_is_the_analysis() -> None:
    server = FakeServer()
    server.analyses = [streamed(analysis(), "a dra", "ft")]
    told = list(client(server).stream("Jane Doe.png", png(), "cough", heatmaps="top", invert=True))
    assert [name for name, _ in told] == [
        *("accepted", "quality", "cnn", "heatmaps", "reader_words", "reader_words"),
        *("reader", "fusion", "uncertainty", "risk", "done"),
    ]
    assert told[-1][1] == analysis()
    assert told[1][1] == analysis().quality
    form = server.forms()[0]
    assert [field(form, name) for name in ("symptoms", "heatmaps", "invert", "force")] == [
        *("cough", "top", "true", "false"),
    ]


def test_the_name_of_the_file_is_never_sent() -> None:
    server = FakeServer()
    server.analyses = [streamed(analysis())]
    list(client(server).stream("Jane Doe.dcm", b"DICM", ""))
    client(server).render("Jane Doe.dcm", b"DICM")
    for path in ("/analyze/stream", "/render"):
        assert "Jane" not in server.forms(path)[0]
        assert 'filename="film"\r\nContent-Type: application/dicom' in server.forms(path)[0]


def test_a_stream_that_ends_early_is_a_lost_connection() -> None:
    begun = event_stream(("accepted", json.dumps({"request_id": "1", "disclaimer": ""})))
    assert failing(lambda _: begun).code == "connection_lost"


def test_an_error_in_the_stream_is_the_servers() -> None:
    record = answers.Problem(title="A", status=500, detail="It broke", code="internal_error", request_id="request-9")
    caught = failing(lambda _: event_stream(("error", record.model_dump_json())))
    assert (caught.code, caught.status, caught.request_id) == ("internal_error", 500, "request-9")


@pytest.mark.parametrize("told", [("novelty", "{}"), ("cnn", "{}"), ("done", "[]"), ("quality", "no json")])
def test_an_event_of_another_version_is_recognised(told: tuple[str, str]) -> None:
    assert failing(lambda _: event_stream(told)).code in {"version_mismatch", "unexpected_answer"}


def test_the_weights_card_comes_back_as_the_record() -> None:
    assert client(FakeServer()).card().name


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
    caught = failing(lambda _: event_stream(("done", json.dumps(content))))
    assert caught.code == "version_mismatch"
    assert "different versions" in caught.message
    assert says in caught.message


def test_a_date_in_retry_after_is_left_out() -> None:
    response = problem(503, "busy")
    response.headers["Retry-After"] = "Wed, 21 Oct 2026 07:28:00 GMT"
    caught = failing(lambda _: response)
    assert caught.retry_after_s is None
    assert "Try again in a moment" in caught.message
