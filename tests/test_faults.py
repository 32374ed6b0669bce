"""Faults of the machine and of clients: full disks, no file handles, clients that leave, signals, files that change.

Servers are processes that are started as the launcher starts them, and what a fault may not touch is asked meanwhile.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

import launcher
from benchmarks.load import shot
from benchmarks.servers import HOST, Server, free_port
from modules.answers import Analysis
from modules.pipeline import Pipeline
from modules.settings import PROJECT_ROOT, Settings
from tests import loopback
from tests.api_requests import assert_shortage, dicom

if sys.platform != "linux":
    pytest.skip("limits are set on a process that runs, as Linux alone can", allow_module_level=True)

import resource

ROUTES = ("/analyze", "/analyze/stream", "/render")
ENDING = "The server is being stopped."
SPOOLED = 1 << 20  # bytes of an upload that stay in memory, in Starlette


def until(condition: Callable[[], bool], limit_s: float = 30.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)


class Served:
    """An API in a process of its own, as the launcher starts it, and its log."""

    def __init__(self, log: Path, *, through: tuple[str, ...] = (), **settings: str) -> None:
        port = free_port()
        command = launcher.services(Settings(_env_file=None, backend_port=port))[0].command
        given = {"MEDGEMMA_MODE": "dummy", "CNN_CACHE": os.environ["CNN_CACHE"]} | settings
        self.server = Server(tuple(command[3:]), port, "/health", **given)
        self.url, self.port, self._log = self.server.url, port, log
        self.server.start(through=through, log=log)
        self.server.wait(180)  # the first start imports what a later one need not, on a busy machine too

    def post(self, path: str, film: bytes) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", files={"image": film}, timeout=60, trust_env=False)

    def healthy(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=5, trust_env=False).is_success
        except httpx.TransportError:
            return False

    def handles(self) -> set[int]:
        return {int(path.name) for path in Path(f"/proc/{self.server.pid}/fd").iterdir()}

    def lines(self, event: str) -> list[dict[str, Any]]:
        """Return the lines of its log with an event."""
        found = [json.loads(line) for line in self._log.read_text("utf-8").splitlines() if line.startswith("{")]
        return [line for line in found if line["event"] == event]

    @contextmanager
    def limited(self, what: int, most: int) -> Iterator[None]:
        """Let the process have so much of a resource, and then as much as before."""
        before = resource.prlimit(self.server.pid, what)
        resource.prlimit(self.server.pid, what, (most, before[1]))
        try:
            yield
        finally:
            resource.prlimit(self.server.pid, what, before)

    def assert_calm(self) -> None:
        """No trace and no error that nobody foresaw is in its log."""
        text = self._log.read_text("utf-8")
        assert "Traceback" not in text, text
        assert "internal_error" not in text
        assert "Exception in ASGI" not in text


@contextmanager
def served(log: Path, **settings: Any) -> Iterator[Served]:
    api = Served(log, **settings)
    try:
        yield api
    finally:
        api.server.kill()


@pytest.fixture(scope="module")
def small(film_png: bytes) -> bytes:
    return film_png


@pytest.fixture(scope="module")
def large() -> bytes:
    """A film whose upload goes to the disk."""
    from synthetic.phantom import make_film

    film = dicom(make_film(1, 1100).pixels)
    assert len(film) > SPOOLED
    return film


@pytest.fixture(scope="module")
def api(pipeline: Pipeline, small: bytes, large: bytes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with one turn and one place to wait, which all tests share that leave it as it was."""
    log = tmp_path_factory.mktemp("api") / "log"
    with served(log, MAX_CONCURRENT_ANALYSES="1", MAX_QUEUED_ANALYSES="1") as started:
        assert [started.post(path, film).status_code for path in ROUTES for film in (small, large)] == [200] * 6
        yield started
        assert started.healthy()


@pytest.fixture
def calm(api: Served) -> Iterator[Served]:
    """The shared server, which after the test holds no more handles than before it, and logged nothing odd."""
    settled = api.handles()
    yield api
    until(lambda: len(api.handles()) <= len(settled))
    api.assert_calm()


# ── Disks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", ROUTES)
def test_an_upload_that_the_disk_has_no_room_for_is_not_the_films_fault(
    calm: Served, small: bytes, large: bytes, path: str
) -> None:
    with calm.limited(resource.RLIMIT_FSIZE, SPOOLED // 2):
        assert_shortage(calm.post(path, large))
        assert calm.post(path, small).status_code == 200  # one that fits into memory does not notice
    assert calm.lines("out_of_resources")[-1]["reason"] == "File too large"
    assert calm.post(path, large).status_code == 200


def may_mount() -> bool:
    tried = shutil.which("unshare") and subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True)
    return bool(tried) and tried.returncode == 0


@pytest.mark.skipif(not may_mount(), reason="disks cannot be mounted here")
def test_with_a_full_disk_and_a_cache_that_cannot_be_written_the_server_starts_and_counts_right(
    pipeline: Pipeline, small: bytes, large: bytes, tmp_path: Path
) -> None:
    full, fixed = tmp_path / "full", tmp_path / "fixed"
    for folder in (full, fixed):
        folder.mkdir()
    mount = f'mount -t tmpfs -o size=256k tmpfs {full} && mount -t tmpfs -o ro tmpfs {fixed} && exec "$@"'
    through = ("unshare", "-rm", "sh", "-c", mount, "sh")
    with served(tmp_path / "log", through=through, TMPDIR=str(full), CNN_CACHE=str(fixed)) as api:
        (said,) = api.lines("engine_cache_unavailable")
        assert said["reason"] == "CNN_CACHE cannot be written: Read-only file system; each start takes longer"
        assert_shortage(api.post("/analyze", large))
        found = Analysis.model_validate_json(api.post("/analyze", small).content)
        assert api.lines("out_of_resources")[-1]["reason"] == "No space left on device"
        api.assert_calm()
    expected = pipeline.analyze(small).visual_findings
    assert found.visual_findings == pytest.approx(expected, abs=1e-4)


def test_a_log_that_cannot_be_written_stops_no_answer(pipeline: Pipeline, small: bytes, large: bytes) -> None:
    with served(Path("/dev/full")) as api:
        assert [api.post("/analyze", film).status_code for film in (small, large, b"no film")] == [200, 200, 415]


# ── File handles ─────────────────────────────────────────────────────────────────────────────────────────────────────


def handles_left(api: Served, left: int) -> int:
    """Return the limit of handles under which a process can open so many more."""
    taken, limit = api.handles(), 0
    while left or limit in taken:
        left -= limit not in taken
        limit += 1
    return limit


def test_without_a_handle_for_an_upload_it_is_refused_and_others_are_answered(
    calm: Served, small: bytes, large: bytes
) -> None:
    with httpx.Client(base_url=calm.url, timeout=60, trust_env=False) as client:
        assert client.get("/health").status_code == 200  # its connection is open
        with calm.limited(resource.RLIMIT_NOFILE, handles_left(calm, 0)):
            assert_shortage(client.post("/render", files={"image": large}))
            assert client.post("/analyze", files={"image": small}).status_code == 200
        assert client.post("/render", files={"image": large}).status_code == 200
    assert calm.lines("out_of_resources")[-1]["reason"] == "Too many open files"


def test_connections_beyond_the_handles_are_refused_and_health_comes_back_when_they_end(
    calm: Served, small: bytes, large: bytes
) -> None:
    with httpx.Client(base_url=calm.url, timeout=60, trust_env=False) as client:
        assert client.get("/health").status_code == 200
        with calm.limited(resource.RLIMIT_NOFILE, handles_left(calm, 4)):
            with ExitStack() as stack:
                for _ in range(12):
                    stack.enter_context(socket.create_connection((HOST, calm.port), timeout=5))
                until(lambda: not calm.healthy())
                assert client.get("/health").status_code == 200  # who is connected does not notice
                assert client.post("/analyze", files={"image": small}).status_code == 200
            until(calm.healthy)
            assert calm.post("/render", large).status_code == 200


# ── Clients that leave ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("reset", [False, True], ids=["closes", "resets"])
@pytest.mark.parametrize("share", [0.001, 0.5, 1.0], ids=["in the headers", "in the body", "before the answer"])
def test_clients_that_leave_cost_no_place_and_are_no_error(
    calm: Served, small: bytes, large: bytes, share: float, reset: bool
) -> None:
    for number, path in enumerate(ROUTES * 2):
        request = shot(path, (small, large)[number % 2], "film").request
        with socket.create_connection((HOST, calm.port), timeout=5) as connection:
            connection.sendall(request[: max(40, int(share * len(request)))])
            time.sleep(0.02 * number)  # while it is read, opened or answered
            if reset:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def both_places_are_free() -> bool:
        with ThreadPoolExecutor(2) as pool:
            return [r.status_code for r in pool.map(lambda _: calm.post("/render", small), range(2))] == [200, 200]

    until(both_places_are_free)


def test_a_client_that_takes_in_no_answer_holds_no_place(calm: Served, small: bytes) -> None:
    request = shot("/analyze/stream", small, "film", heatmaps="all").request
    with ExitStack() as stack:
        for _ in range(3):
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            connection.connect((HOST, calm.port))
            connection.sendall(request)
            until(lambda: calm.post("/analyze", small).status_code == 200)


# ── Signals ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def hanging(exchange: loopback.Exchange) -> None:
    """Answer nothing until the client has gone."""
    exchange.wait(60)


@contextmanager
def announced(port: int, request: bytes) -> Iterator[socket.socket]:
    """Send the headers of a request, and wait until the application asks for its body."""
    head, _ = request.split(b"\r\n\r\n", 1)
    with socket.create_connection((HOST, port), timeout=30) as connection:
        connection.sendall(head + b"\r\nExpect: 100-continue\r\n\r\n")
        assert b" 100 " in connection.recv(1 << 10)
        yield connection


def all_of(connection: socket.socket) -> bytes:
    with contextlib.suppress(ConnectionResetError):
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))
    return b""


def test_a_server_that_is_told_to_end_answers_what_it_has_taken_and_ends_in_time(
    pipeline: Pipeline, small: bytes, tmp_path: Path
) -> None:
    reading = [shot(path, small, "film", heatmaps="none").request for path in ROUTES[:2] * 2]
    coming = shot("/analyze", small, "film", heatmaps="none").request
    with loopback.serving(hanging) as model, ExitStack() as stack:
        settings = {"MEDGEMMA_MODE": "openai", "OPENAI_BASE_URL": f"{model.url}/v1", "OPENAI_MODEL": "m"}
        api = stack.enter_context(served(tmp_path / "log", **settings))
        readers = [stack.enter_context(socket.create_connection((HOST, api.port), timeout=30)) for _ in reading]
        for connection, request in zip(readers, reading, strict=True):
            connection.sendall(request)
        until(lambda: len(model.requests) == len(reading))  # all are with their reader, which hangs
        uploads = [stack.enter_context(announced(api.port, coming)) for _ in range(4)]
        start = time.monotonic()
        api.server.signal(signal.SIGTERM)
        until(lambda: not api.healthy())
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((HOST, api.port), timeout=5)
        for connection in uploads[1:]:  # the first one stands still
            connection.sendall(coming.split(b"\r\n\r\n", 1)[1])
        answers = [all_of(connection) for connection in (*readers, *uploads[1:])]
        left = all_of(uploads[0])
        code = api.server.ended(launcher.STOP_LIMIT_S)
        took = time.monotonic() - start
        api.assert_calm()
    assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in answers)
    for answer in answers:
        body = answer.rsplit(b"\ndata: ", 1)[-1] if b"event-stream" in answer else answer.rsplit(b"\r\n\r\n", 1)[-1]
        (reader,) = [json.loads(body[body.index(b"{") : body.rindex(b"}") + 1])["reader"]]
        assert (reader["mode"], reader["fallback_reason"]) == ("dummy", ENDING)
    assert b" 503 " in left
    assert b'"code":"busy"' in left
    assert code == -signal.SIGTERM
    assert took < launcher.STOP_LIMIT_S


@contextmanager
def launched(log: Path, **settings: str) -> Iterator[tuple["subprocess.Popen[bytes]", int, int]]:
    """Run the launcher with its two servers; yields it and both ports."""
    ports = free_port(), free_port()
    ours = {name.upper() for name in Settings.model_fields}
    environment = {name: value for name, value in os.environ.items() if name.upper() not in ours}
    given = {"MEDGEMMA_MODE": "dummy", "CNN_CACHE": os.environ["CNN_CACHE"]} | settings
    given |= dict(zip(("BACKEND_PORT", "DASHBOARD_PORT"), map(str, ports), strict=True))
    with log.open("wb") as output:
        command = [sys.executable, str(PROJECT_ROOT / "launcher.py")]
        process = subprocess.Popen(command, env=environment | given, stdout=output, stderr=subprocess.STDOUT)
    try:
        until(lambda: b"Ready." in log.read_bytes(), limit_s=120)
        yield process, *ports
    finally:
        process.terminate()
        process.wait(30)


def process_at(parent: int, port: int) -> int:
    """Return the child that serves on a port."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    (found,) = [c for c in children if str(port) in Path(f"/proc/{c}/cmdline").read_text().split("\0")]
    return int(found)


def test_an_api_that_is_killed_ends_the_dashboard_too_and_the_launcher_says_so(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    with launched(tmp_path / "log") as (process, api, dashboard):
        os.kill(process_at(process.pid, api), signal.SIGKILL)
        assert process.wait(30) == 1
        said = (tmp_path / "log").read_text("utf-8")
    assert "The API ended (by SIGKILL); stopping everything." in said
    assert [launcher.port_fault(HOST, port) for port in (api, dashboard)] == [None, None]


def test_a_launcher_that_is_told_to_end_ends_both_and_leaves_no_film_without_an_answer(
    pipeline: Pipeline, small: bytes, tmp_path: Path
) -> None:
    with loopback.serving(hanging) as model, ThreadPoolExecutor(2) as pool:
        settings = {"MEDGEMMA_MODE": "openai", "OPENAI_BASE_URL": f"{model.url}/v1", "OPENAI_MODEL": "m"}
        with launched(tmp_path / "log", **settings) as (process, api, dashboard):
            asked = [pool.submit(post, api, small) for _ in range(2)]
            until(lambda: len(model.requests) == 2)
            process.send_signal(signal.SIGTERM)
            answers = [Analysis.model_validate_json(each.result().content) for each in asked]
            assert process.wait(30) == 0
    assert [answer.reader.fallback_reason for answer in answers] == [ENDING] * 2
    assert [launcher.port_fault(HOST, port) for port in (api, dashboard)] == [None, None]
    assert "killed" not in (tmp_path / "log").read_text("utf-8")


def post(port: int, film: bytes) -> httpx.Response:
    return httpx.post(f"http://{HOST}:{port}/analyze", files={"image": film}, timeout=60, trust_env=False)
