"""Past one machine: what stands before the replicas, what they are told, and the workers' pool. Without Ray."""

import asyncio
import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from api.admission import Admission
from batch.pool import PoolError
from benchmarks.servers import serving_here
from main import create_app
from modules.multimodal_reasoning import SecondReader
from modules.pipeline import Pipeline
from modules.quality import InputGate
from modules.reasoners.dummy import DummyReader
from modules.settings import MEBIBYTE, PROJECT_ROOT, Settings
from scale import workers
from scale.doorway import LOST, Doorway, middlewares
from scale.environment import environment
from scale.serve import Arguments, WithState, build, options
from tests.api_requests import analyze, assert_problem
from tests.test_streaming import Hand, until, until_stopped
from tests.test_structure import loaded_by

Send = Callable[[dict[str, Any]], Awaitable[None]]
START = "http.response.start"
ONE_MIB = Settings(_env_file=None, max_upload_mb=1)
BODY = "http.response.body"


def head(status: int, kind: str, *more: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": START, "status": status, "headers": [(b"content-type", kind.encode()), *more]}


def body(content: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": BODY, "body": content, "more_body": more}


def proxy(*messages: dict[str, Any], reads: bool = True) -> Any:
    """A proxy that answers what it is told to and then ends, as Ray's does when a replica is lost."""

    async def app(scope: Any, receive: Any, send: Send) -> None:
        while reads and (await receive()).get("more_body"):
            pass
        for message in messages:
            await send({**message})

    return app


def asked(app: Any, **request: Any) -> httpx.Response:
    """Ask over a real socket: what a client sees, broken connections too."""
    with serving_here(Doorway(app, ONE_MIB)) as address:
        return httpx.request(request.pop("method", "GET"), f"{address}/analyze", timeout=20, trust_env=False, **request)


# ── What stands before the replicas ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ((), "replica_lost"),
        ((head(500, "text/plain"), body(b"The actor died: /srv/x.py")), "replica_lost"),
        ((head(502, "text/html"), body(b"")), "replica_lost"),
        ((head(503, "text/plain", (b"retry-after", b"0")), body(b"Request dropped due to backpressure")), "busy"),
        ((head(408, "text/plain"), body(b"Request timed out")), "busy"),
        ((head(404, "text/plain"), body(b"Path '/Jane-Doe' not found.")), "starting"),
        ((head(200, "application/json"),), "replica_lost"),  # lost between head and body
    ],
)
def test_whatever_ray_says_is_a_clean_refusal(answer: tuple[dict[str, Any], ...], code: str) -> None:
    response = asked(proxy(*answer), headers={"X-Request-ID": "mine-1"})
    problem = assert_problem(response, 503, code)
    assert int(response.headers["Retry-After"]) >= 1
    assert problem.request_id == "mine-1"
    assert response.headers.get_list("X-Request-ID") == ["mine-1"]


@pytest.mark.parametrize("status", [200, 422, 404, 500, 503])
def test_an_answer_of_the_application_passes_as_it_is(status: int) -> None:
    kind = "application/json" if status == 200 else "application/problem+json"
    twice = ((b"x-request-id", b"theirs"), (b"x-request-id", b"theirs"), (b"retry-after", b"7"))
    response = asked(proxy(head(status, kind, *twice), body(b'{"a":', more=True), body(b"1}")))
    assert (response.status_code, response.headers["content-type"], response.json()) == (status, kind, {"a": 1})
    assert response.headers["Retry-After"] == "7"
    assert len(response.headers.get_list("X-Request-ID")) == 1


def test_a_stream_whose_replica_is_lost_ends_with_an_error_event() -> None:
    event = b'event: accepted\ndata: {"request_id":"a"}\n\n'
    response = asked(proxy(head(200, "text/event-stream; charset=utf-8"), body(event, more=True)))
    first, last = response.text.strip().split("\n\n")
    name, data = last.split("\n")
    assert first.encode() == event.strip()
    assert name == "event: error"
    problem = json.loads(data.removeprefix("data: "))
    assert (problem["code"], problem["status"], problem["detail"]) == ("replica_lost", 503, LOST)
    assert problem["request_id"] == response.headers["X-Request-ID"]


def test_a_stream_passes_event_by_event() -> None:
    go_on = threading.Event()

    async def app(scope: Any, receive: Any, send: Send) -> None:
        await send(head(200, "text/event-stream"))
        await send(body(b"data: 1\n\n", more=True))
        while not go_on.is_set():
            await asyncio.sleep(0.01)
        await send(body(b"data: 2\n\n"))

    with serving_here(Doorway(app, ONE_MIB)) as address, httpx.stream("GET", address, trust_env=False) as response:
        chunks = response.iter_bytes()
        assert next(chunks) == b"data: 1\n\n"
        go_on.set()
        assert list(chunks) == [b"data: 2\n\n"]


def test_any_other_answer_that_breaks_off_breaks_the_connection() -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        asked(proxy(head(200, "application/json"), body(b'{"a":', more=True)))


def test_a_body_is_bounded_before_any_replica_sees_it() -> None:
    film = b"x" * (3 * MEBIBYTE)
    response = asked(proxy(head(200, "text/plain"), body(b"ok")), method="POST", content=film)
    assert_problem(response, 413, "file_too_large")

    def chunks() -> Any:
        for _ in range(30):
            yield b"x" * (MEBIBYTE // 8)

    taken = asked(proxy(head(200, "text/plain"), body(b"ok")), method="POST", content=chunks())
    assert_problem(taken, 413, "file_too_large")
    assert asked(proxy(head(200, "text/plain"), body(b"ok")), method="POST", content=b"film").text == "ok"


def test_the_replica_hears_the_id_that_the_client_gets_and_no_other() -> None:
    heard: list[str] = []

    async def app(scope: Any, receive: Any, send: Send) -> None:
        heard.extend(value.decode() for key, value in scope["headers"] if key == b"x-request-id")
        await send(head(200, "text/plain"))
        await send(body(b"ok"))

    response = asked(app, headers={"X-Request-ID": "Jane Doe, <script>"})
    assert heard == [response.headers["X-Request-ID"]]
    assert "Jane" not in heard[0]


def test_a_client_that_left_is_no_lost_replica(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Send) -> None:
        while scope["type"] == "http" and (await receive())["type"] != "http.disconnect":
            pass

    with serving_here(Doorway(app, ONE_MIB)) as address:
        with pytest.raises(httpx.ReadTimeout):
            httpx.get(address, timeout=0.3, trust_env=False)
        time.sleep(0.2)
    assert "replica_lost" not in caplog.text


def test_ray_gets_the_doorway_with_the_limits_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_UPLOAD_MB", "7")
    (middleware,) = middlewares()
    assert middleware.cls is Doorway
    assert middleware.kwargs["settings"].max_upload_bytes == 7 * MEBIBYTE
    module, _, function = environment()["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"].partition(":")
    assert (module, function) == (middlewares.__module__, middlewares.__name__)


# ── Replicas ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_replica_has_its_share_of_the_cores_and_of_a_gpu() -> None:
    found = options(Arguments(replicas=2, max_replicas=4, cpus=2, gpu_fraction=0.25), Settings(_env_file=None))
    assert found["autoscaling_config"]["min_replicas"] == 2
    assert found["autoscaling_config"]["max_replicas"] == 4
    actor = found["ray_actor_options"]
    assert (actor["num_cpus"], actor["num_gpus"]) == (2, 0.25)
    assert actor["runtime_env"]["env_vars"] == {
        "CNN_THREADS": "2", "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE",
    }  # fmt: skip
    alone = options(Arguments(cpus=0.5), Settings(_env_file=None))
    assert alone["num_replicas"] == 1
    assert "autoscaling_config" not in alone
    assert alone["ray_actor_options"]["runtime_env"]["env_vars"]["CNN_THREADS"] == "1"
    assert alone["ray_actor_options"]["runtime_env"]["env_vars"]["CNN_DEVICE"] == "cpu"


def test_no_key_is_given_to_ray() -> None:
    settings = Settings(_env_file=None, gemini_api_key="secret-1", openai_api_key="secret-2")
    assert "secret" not in repr(options(Arguments(), settings))
    assert not set(environment()) & {name.upper() for name in Settings.model_fields}


def test_nothing_is_reported_and_the_project_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"/elsewhere{os.pathsep}{PROJECT_ROOT}")
    assert environment()["RAY_USAGE_STATS_ENABLED"] == "0"
    assert environment()["PYTHONPATH"].split(os.pathsep) == [str(PROJECT_ROOT), "/elsewhere"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"replicas": "0"},
        {"cpus": "0"},
        {"gpu_fraction": "1.5"},
        {"replica": "2"},
        {"replicas": "3", "max_replicas": "2"},
    ],
)
def test_wrong_arguments_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        Arguments.model_validate(wrong)


def test_a_film_is_read_through_doorway_and_replica_as_without_them(pipeline: Pipeline, film_png: bytes) -> None:
    app = create_app(Settings(_env_file=None), pipeline)
    with TestClient(
        Doorway(WithState(app), Settings(_env_file=None)), "http://127.0.0.1", client=("127.0.0.1", 1)
    ) as client:
        answer = analyze(client, film_png, heatmaps="none")
        assert answer.status_code == 200
        assert answer.json()["visual_findings"].keys() == pipeline.analyze(film_png).visual_findings.keys()
        assert_problem(analyze(client, b"no film"), 415, "unsupported_image_type")
        assert client.get("/health").json()["status"] == "healthy"


def test_requests_get_what_the_start_made_and_share_nothing_else() -> None:
    async def seen(request: Request) -> JSONResponse:
        found = sorted(request.scope["state"])
        request.scope["state"]["mine"] = 1
        return JSONResponse(found)

    async def lifespan(_: Starlette) -> Any:
        yield {"made": "at the start"}

    app = Starlette(routes=[Route("/", seen)], lifespan=contextlib.asynccontextmanager(lifespan))

    async def without_state(scope: Any, receive: Any, send: Any) -> None:
        """Ray Serve's way: what the start-up made is not given to requests."""
        await WITH({key: value for key, value in scope.items() if key != "state"}, receive, send)

    WITH = WithState(app)  # noqa: N806
    with TestClient(without_state) as client:
        assert [client.get("/").json() for _ in range(2)] == [["made"], ["made"]]


# ── A request that is cancelled ──────────────────────────────────────────────────────────────────────────────────────


def test_a_cancelled_request_keeps_its_turn_until_its_work_has_ended() -> None:
    """Ray cancels the task of a request; a thread goes on, and must not run beside more than were allowed."""
    entered, let_go = threading.Event(), threading.Event()

    def work() -> None:
        entered.set()
        assert let_go.wait(10)

    async def scene() -> None:
        admission = Admission(1, 1)

        async def request() -> None:
            with admission.place() as place:
                await place.wait_for_turn()
                await place.run(work)

        first = asyncio.create_task(request())
        while not entered.is_set():
            await asyncio.sleep(0.01)
        first.cancel()
        second = admission.place()
        turn = asyncio.create_task(second.wait_for_turn())
        await asyncio.sleep(0.1)
        assert not turn.done()
        let_go.set()
        with pytest.raises(asyncio.CancelledError):
            await first
        await asyncio.wait_for(turn, 5)
        second.leave()

    asyncio.run(scene())


def test_a_cancelled_request_stops_its_reader(pipeline: Pipeline, film_png: bytes) -> None:
    reader = Hand(until_stopped)
    second = SecondReader("local", (reader, DummyReader()), limit_s=20.0)
    app = create_app(Settings(_env_file=None), Pipeline(pipeline.cnn, InputGate.load(), second))

    async def cancelling(scope: Any, receive: Any, send: Any) -> None:
        handled = asyncio.create_task(app(scope, receive, send))
        while scope["type"] == "http" and not reader.tasks:
            await asyncio.sleep(0.02)
        if scope["type"] == "http":
            handled.cancel()
        await handled

    with serving_here(cancelling) as address:
        with suppress(httpx.HTTPError):
            httpx.post(f"{address}/analyze", files={"image": film_png}, timeout=20, trust_env=False)
        until(lambda: reader.tasks[0].control.stopped)


# ── Without Ray ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("free", [[2.0], [0.0, 1.0, 2.0]])
def test_a_run_waits_for_the_cores_of_one_that_was_killed(monkeypatch: pytest.MonkeyPatch, free: list[float]) -> None:
    left = iter(free)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(available_resources=lambda: {"CPU": next(left)}))
    monkeypatch.setattr(workers, "POLL_S", 0.0)
    workers._wait_for_room(2)
    assert next(left, None) is None


def test_a_cluster_without_room_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    full = SimpleNamespace(available_resources=dict, cluster_resources=lambda: {"CPU": 4.0})
    monkeypatch.setitem(sys.modules, "ray", full)
    monkeypatch.setattr(workers, "ROOM_S", 0.0)
    with pytest.raises(PoolError, match=r"has 2 cores, and 0 of the cluster's 4 are free\. Stop .* --workers"):
        workers._wait_for_room(2)


def test_importing_any_part_needs_no_ray() -> None:
    assert "ray" not in loaded_by("import scale.serve, scale.doorway, scale.batch, scale.workers, main")


def test_a_missing_ray_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from scale.batch import main

    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with pytest.raises(SystemExit, match="RAY_AUTH_MODE=token serve run"):
        build(Arguments())
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with pytest.raises(SystemExit, match="pip install .*requirements-ray"):
        build(Arguments())
    (tmp_path / "film.png").write_bytes(b"")
    assert main([str(tmp_path), "--out", str(tmp_path / "t.csv")]) == 1
    said = capsys.readouterr().err
    assert "python -m scale.batch: Ray is not installed: pip install" in said
