"""The launcher starts two servers and leaves none behind, however it ends."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

import launcher
from launcher import Launcher, LaunchError, Service, answers, check_ports, port_fault, services
from modules.settings import PROJECT_ROOT, Settings

HOST = "127.0.0.1"
SERVE = "import sys; from http.server import *; HTTPServer(('127.0.0.1', int(sys.argv[1])), SimpleHTTPRequestHandler)"
SERVE_FOREVER = f"{SERVE}.serve_forever()"
SERVE_FOR_A_SECOND = f"import threading, os; threading.Timer(1, os._exit, (3,)).start(); {SERVE_FOREVER}"
SERVE_STUBBORNLY = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SERVE_FOREVER}"
NEVER_READY = "import time; time.sleep(60)"
DIE_AT_ONCE = "raise SystemExit(7)"

posix_only = pytest.mark.skipif(os.name != "posix", reason="signals are sent")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def service(name: str, code: str, port: int, folder: Path) -> Service:
    url = f"http://{HOST}:{port}"
    command = (sys.executable, "-c", code, str(port))
    return Service(name, command, HOST, port, f"{name.upper()}_PORT", url, f"{url}/", folder=folder)


def pair(first: str, second: str, folder: Path) -> tuple[Service, Service]:
    return service("one", first, free_port(), folder), service("two", second, free_port(), folder)


def assert_nothing_left(run: Launcher) -> None:
    assert all(child.returncode is not None for child in run._children.values())
    assert all(port_fault(wanted.host, wanted.port) is None for wanted in run._wanted)


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server((HOST, 0)) as server:
        yield int(server.getsockname()[1])


def test_a_taken_port_is_named_with_the_setting_that_moves_it(tmp_path: Path, taken_port: int) -> None:
    said: list[str] = []
    wanted = (
        service("one", SERVE_FOREVER, free_port(), tmp_path),
        service("two", SERVE_FOREVER, taken_port, tmp_path),
    )
    run = Launcher(wanted, write=said.append)
    assert run.run() == 1
    assert f"Port {taken_port}" in said[0]
    assert "already in use" in said[0]
    assert f"such as TWO_PORT={taken_port + 10 if taken_port < 65_000 else taken_port - 10}." in said[0]
    assert run._children == {}


def test_a_port_that_was_just_freed_is_free() -> None:
    port = free_port()
    with socket.create_server((HOST, port)) as server, socket.create_connection((HOST, port)) as client:
        connection, _ = server.accept()
        # The side that closes first keeps the connection in TIME_WAIT, on the server's port.
        connection.close()
        assert client.recv(1) == b""
    assert port_fault(HOST, port) is None


def test_an_address_of_another_machine_cannot_be_opened() -> None:
    fault = port_fault("192.0.2.1", free_port())
    assert fault is not None
    assert fault.startswith("cannot be opened")


def test_one_port_for_both_is_refused(tmp_path: Path) -> None:
    port = free_port()
    same = (service("one", SERVE_FOREVER, port, tmp_path), service("two", SERVE_FOREVER, port, tmp_path))
    with pytest.raises(LaunchError, match=r"cannot share port .* ONE_PORT or TWO_PORT"):
        check_ports(same)


def test_a_child_that_dies_at_once_stops_the_other(tmp_path: Path) -> None:
    said: list[str] = []
    run = Launcher(pair(SERVE_FOREVER, DIE_AT_ONCE, tmp_path), write=said.append)
    assert run.run() == 1
    assert any("The two ended (exit code 7)" in line for line in said)
    assert_nothing_left(run)


def test_a_child_that_dies_later_stops_the_other(tmp_path: Path) -> None:
    said: list[str] = []
    run = Launcher(pair(SERVE_FOR_A_SECOND, SERVE_FOREVER, tmp_path), write=said.append)
    assert run.run() == 1
    assert any("Ready" in line for line in said)
    assert any("The one ended (exit code 3)" in line for line in said)
    assert_nothing_left(run)


def test_a_child_that_never_answers_is_given_up(tmp_path: Path) -> None:
    said: list[str] = []
    run = Launcher(pair(SERVE_FOREVER, NEVER_READY, tmp_path), write=said.append, start_limit_s=1.5)
    assert run.run() == 1
    assert any("No answer from the two within 1.5 seconds" in line for line in said)
    assert_nothing_left(run)


def test_a_command_that_does_not_exist_stops_the_other(tmp_path: Path) -> None:
    said: list[str] = []
    url = f"http://{HOST}:1"
    missing = Service("two", (str(tmp_path / "missing"),), HOST, free_port(), "TWO_PORT", url, url, folder=tmp_path)
    run = Launcher((service("one", SERVE_FOREVER, free_port(), tmp_path), missing), write=said.append)
    assert run.run() == 1
    assert any("The two could not be started" in line for line in said)
    assert_nothing_left(run)


@posix_only
def test_a_child_that_ignores_the_polite_signal_is_killed(tmp_path: Path) -> None:
    said: list[str] = []

    def stop_when_ready(text: str) -> None:
        said.append(text)
        if "Ready" in text:
            run.stop()

    run = Launcher(pair(SERVE_FOREVER, SERVE_STUBBORNLY, tmp_path), write=stop_when_ready, stop_limit_s=0.5)
    assert run.run() == 0
    assert any("The two did not stop in time" in line for line in said)
    assert run._children["two"].returncode == -signal.SIGKILL
    assert_nothing_left(run)


SCRIPT = """
import os, sys
sys.path[:0] = sys.argv[1:3]
from pathlib import Path
from launcher import Launcher, install_handlers
from test_launcher import SERVE_FOREVER, service

ports = map(int, sys.argv[3:5])
run = Launcher([service(name, SERVE_FOREVER, port, Path(sys.argv[5])) for name, port in zip(("one", "two"), ports)])
install_handlers(run)
code = run.run()
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("no child left")
sys.exit(code)
"""


@posix_only
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_both(tmp_path: Path, number: signal.Signals) -> None:
    ports = [free_port(), free_port()]
    arguments = [str(PROJECT_ROOT), str(PROJECT_ROOT / "tests"), *map(str, ports), str(tmp_path)]
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 20
        while not all(answers(f"http://{HOST}:{port}/") for port in ports):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(number)
        output, _ = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert "no child left" in output
    assert all(port_fault(HOST, port) is None for port in ports)


@posix_only
def test_under_nohup_a_closed_terminal_stays_ignored() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        # A shell that starts it in the background ignores SIGINT for it; a kill -INT must stop it all the same.
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        launcher.install_handlers(Launcher(()))
        assert [signal.getsignal(number) is signal.SIG_IGN for number in numbers] == [False, False, True]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_the_services_follow_the_settings() -> None:
    settings = Settings(
        _env_file=None, backend_host="0.0.0.0", backend_port=9000, dashboard_port=9001, backend_url="http://example:1/"
    )
    api, dashboard = services(settings)
    assert api.command[1:7] == ("-P", "-m", "uvicorn", "--app-dir", str(PROJECT_ROOT), "main:app")
    assert api.command[7:11] == ("--host", "0.0.0.0", "--port", "9000")
    assert api.command[11:15] == ("--http", "h11", "--ws", "none")
    assert api.command[15:] == ("--timeout-graceful-shutdown", "6")
    assert launcher.ANSWER_LIMIT_S < launcher.STOP_LIMIT_S
    assert api.command[0] == dashboard.command[0] == sys.executable
    assert api.probe_url == "http://127.0.0.1:9000/health"
    assert dashboard.command[1:6] == ("-P", "-m", "streamlit", "run", str(PROJECT_ROOT / "app.py"))
    assert dashboard.command[6:10] == ("--server.address", "127.0.0.1", "--server.port", "9001")
    assert dashboard.command[10:] == ("--server.maxUploadSize", "50")
    assert dashboard.probe_url == "http://127.0.0.1:9001/_stcore/health"
    assert dashboard.environment == {"BACKEND_URL": "http://example:1"}


def test_a_wrong_setting_is_named_and_its_value_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BACKEND_PORT", "secret-value")
    assert launcher.main() == 1
    said = capsys.readouterr().err
    assert "BACKEND_PORT" in said
    assert "secret-value" not in said
    assert str(PROJECT_ROOT / ".env") in said


class AlwaysFine(BaseHTTPRequestHandler):
    """Answers anything with success, as a proxy does that stands in for a server."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_a_proxy_in_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with HTTPServer((HOST, 0), AlwaysFine) as proxy:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        url = f"http://{HOST}:{proxy.server_port}"
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("http_proxy", url)
        assert answers(url)
        assert not answers(f"http://{HOST}:{free_port()}/")
        proxy.shutdown()
        thread.join()
