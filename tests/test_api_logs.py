"""The HTTP layer: errors of the server, nothing of what was sent in its logs, and what stops its start."""

import hashlib
import io
import json
import logging
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import uvicorn
from starlette.testclient import TestClient

from api import logs, problems
from main import create_app
from modules import errors
from modules.errors import WeightsError
from modules.pipeline import Pipeline
from modules.records import MAX_SYMPTOMS
from modules.settings import PROJECT_ROOT, Settings
from modules.weights import CARD_FILE, EMBEDDED_WEIGHTS, read_card
from tests.api_requests import SECRET, Pixels, analyze, assert_problem, dicom, failing, render
from tests.conftest import MakeClient

# ── Errors of the server ─────────────────────────────────────────────────────────────────────────────────────────────


UNFORESEEN = f"{SECRET} in /srv/films/{SECRET}.dcm"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(UNFORESEEN),
        KeyError(UNFORESEEN),
        OSError(2, UNFORESEEN, UNFORESEEN),
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
    client = make_client(broken)
    broken.reader = None
    assert_problem(client.get("/health"), 500, "internal_error")
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
    if kind is errors.OutOfResources:
        pytest.skip("in words of the server's own: tests/test_shortages.py")
    error = kind("Something is wrong.", 7) if kind is errors.Busy else kind("Something is wrong.")
    status = problems.STATUS[kind]
    response = analyze(make_client(failing(pipeline, error)), film_png)
    problem = assert_problem(response, status, "internal_error" if status == 500 else kind.code)
    assert (problem.detail == "Something is wrong.") == (status != 500)
    assert response.headers.get("Retry-After") == ("7" if status == 503 else None)


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
