"""Servers for measurements and tests: an API and a dashboard in processes of their own, or an API in this one."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from modules.settings import PROJECT_ROOT, Settings

HOST = "127.0.0.1"
START_LIMIT_S = 60.0
POLL_S = 0.05


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """A process of ours that serves on a port; it can be killed, and started again on the same port."""

    def __init__(self, command: tuple[str, ...], port: int, probe: str, **environment: str) -> None:
        self.url = f"http://{HOST}:{port}"
        self._command = (sys.executable, "-m", *command)
        # What a .env or a shell of this machine says must not change what is measured.
        ours = {name.upper() for name in Settings.model_fields}
        self._environment = {k: v for k, v in os.environ.items() if k.upper() not in ours} | environment
        self._probe = f"{self.url}{probe}"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Its number in the system, once it was started."""
        assert self._process is not None
        return self._process.pid

    def start(self, *, through: tuple[str, ...] = (), log: Path = Path(os.devnull)) -> None:
        """Start it, `through` another command if any; `wait` tells when it serves."""
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                (*through, *self._command),
                cwd=PROJECT_ROOT,
                env=self._environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self, limit_s: float = START_LIMIT_S) -> None:
        """Wait until it answers, at most so long."""
        assert self._process is not None
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if httpx.get(self._probe, timeout=2.0, trust_env=False).is_success:
                    return
            except httpx.HTTPError:
                time.sleep(POLL_S)
        raise RuntimeError(f"no answer from {self._probe}; start it by hand to see why: {' '.join(self._command)}")

    def signal(self, number: int) -> None:
        """Send a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def ended(self, limit_s: float) -> int:
        """Wait for its end, at most so long; returns its exit code."""
        assert self._process is not None
        return self._process.wait(limit_s)

    def kill(self) -> None:
        """End it at once, as a crash does."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None


def api_server(port: int, **settings: str) -> Server:
    """Return an API with the `dummy` reader and other settings, not yet started."""
    command = ("uvicorn", "main:app", "--host", HOST, "--port", str(port), "--http", "h11", "--ws", "none")
    return Server(command, port, "/health", **{"MEDGEMMA_MODE": "dummy"} | settings)


@contextmanager
def running(**settings: str) -> Iterator[Server]:
    """Run an API as the README does, with the `dummy` reader and other settings."""
    server = api_server(free_port(), **settings)
    try:
        server.start()
        server.wait()
        yield server
    finally:
        server.kill()


def dashboard_server(port: int, api_url: str) -> Server:
    """Return a dashboard that asks an API, not yet started."""
    command = ("streamlit", "run", "app.py", "--server.address", HOST, "--server.port", str(port))
    return Server(command, port, "/_stcore/health", BACKEND_URL=api_url)


@contextmanager
def serving() -> Iterator[tuple[Server, Server]]:
    """Run an API and its dashboard."""
    api = api_server(free_port())
    dashboard = dashboard_server(free_port(), api.url)
    try:
        for server in (api, dashboard):
            server.start()
        for server in (api, dashboard):
            server.wait()
        yield api, dashboard
    finally:
        for server in (dashboard, api):
            server.kill()


@contextmanager
def serving_here(app: Any, host: str = HOST, **options: Any) -> Iterator[str]:
    """Serve an application from a thread of this process, over a real socket; yields its address on the loopback."""
    server = uvicorn.Server(uvicorn.Config(app, host, 0, http="h11", log_level="error", **options))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.02)
        yield f"http://{HOST}:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
