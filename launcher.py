"""Start the API and the dashboard together, and stop them together: `make run`, or `cxr-assistant` once installed."""

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import httpx
from pydantic import ValidationError

from modules.reasoners.addresses import is_loopback
from modules.settings import PROJECT_ROOT, SETTINGS_FOLDER, Settings, wrong_settings

DASHBOARD_HOST = "127.0.0.1"
# A fresh machine compiles and loads the deep-learning packages from a cold disk first.
START_LIMIT_S = 180.0
STOP_LIMIT_S = 8.0
ANSWER_LIMIT_S = 6  # after being told to stop, for answers under way; whoever sends or takes in nothing is then left
PROBE_TIMEOUT_S = 2.0
POLL_INTERVAL_S = 0.2
KILL_SIGNAL = getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows has no SIGKILL; there, terminating is killing

Write = Callable[[str], object]


class LaunchError(Exception):
    """Why the two could not be started or did not keep running; the text is for the person at the terminal."""


@dataclass(frozen=True)
class Service:
    """A child process: how it is started, where it listens, and where it answers once it is ready."""

    name: str
    command: Sequence[str]
    host: str
    port: int
    port_setting: str
    url: str
    probe_url: str
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: Path = SETTINGS_FOLDER


def check_access(settings: Settings) -> None:
    """Raise LaunchError where other machines could reach the API, and none of them would be answered."""
    host = settings.backend_host
    if settings.api_key is None and host != "localhost" and not is_loopback(host):
        raise LaunchError(
            f"BACKEND_HOST={host} opens the API to other machines, which are answered with a key alone. Set API_KEY, "
            "or leave BACKEND_HOST at 127.0.0.1."
        )


def services(settings: Settings) -> tuple[Service, Service]:
    """Return the API and the dashboard as the settings want them."""
    # -P: the folder of an installed package's user may hold a main.py or a `modules` of its own
    python = (sys.executable, "-P", "-m")
    api_url = settings.model_copy(update={"backend_url": None}).api_url
    dashboard_url = f"http://{DASHBOARD_HOST}:{settings.dashboard_port}"
    api = Service(
        "API",
        (
            *(*python, "uvicorn", "--app-dir", str(PROJECT_ROOT), "main:app"),
            *("--host", settings.backend_host, "--port", str(settings.backend_port)),
            # h11 bounds the headers of a request, which httptools does not; nothing here speaks WebSocket
            *("--http", "h11", "--ws", "none", "--timeout-graceful-shutdown", str(ANSWER_LIMIT_S)),
        ),
        settings.backend_host,
        settings.backend_port,
        "BACKEND_PORT",
        api_url,
        f"{api_url}/health",
    )
    dashboard = Service(
        "Dashboard",
        (
            # beside it lies .streamlit/config.toml, which Streamlit then reads last, wherever it is started
            *(*python, "streamlit", "run", str(PROJECT_ROOT / "app.py")),
            *("--server.address", DASHBOARD_HOST, "--server.port", str(settings.dashboard_port)),
            *("--server.maxUploadSize", str(settings.max_upload_mb)),
        ),
        DASHBOARD_HOST,
        settings.dashboard_port,
        "DASHBOARD_PORT",
        dashboard_url,
        f"{dashboard_url}/_stcore/health",
        {"BACKEND_URL": settings.api_url},
    )
    return api, dashboard


def check_ports(wanted: Sequence[Service]) -> None:
    """Raise LaunchError unless each service can have its port."""
    taken: dict[int, Service] = {}
    for service in wanted:
        other = taken.setdefault(service.port, service)
        if other is not service:
            raise LaunchError(
                f"{other.name} and {service.name} cannot share port {service.port}: set {other.port_setting} or "
                f"{service.port_setting} to another port."
            )
        fault = port_fault(service.host, service.port)
        if fault:
            other_port = service.port + 10 if service.port < 65_000 else service.port - 10
            raise LaunchError(
                f"Port {service.port} on {service.host}, wanted by the {service.name}, {fault}. Stop what uses it, or "
                f"set {service.port_setting} to another port, such as {service.port_setting}={other_port}."
            )


def port_fault(host: str, port: int) -> str | None:
    """Return why a server could not listen there, or None when it could."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            # As servers do: connections of a server that has just ended don't block its port. On Windows the same
            # option would take a port away from a server that is running.
            if os.name == "posix":
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as exc:
        return "is already in use" if exc.errno == errno.EADDRINUSE else f"cannot be opened ({exc.strerror or exc})"
    return None


def answers(url: str) -> bool:
    """Return whether a server answers there with success; a proxy in the environment is not asked."""
    try:
        return httpx.get(url, timeout=PROBE_TIMEOUT_S, trust_env=False).is_success
    except httpx.HTTPError:
        return False


class Launcher:
    """Runs services until it is told to stop or one of them ends, and leaves none behind."""

    def __init__(
        self,
        wanted: Sequence[Service],
        *,
        start_limit_s: float = START_LIMIT_S,
        stop_limit_s: float = STOP_LIMIT_S,
        write: Write = sys.stdout.write,
    ) -> None:
        self._wanted = tuple(wanted)
        self._start_limit_s = start_limit_s
        self._stop_limit_s = stop_limit_s
        self._write = write
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        # A flag that is polled, not an Event: setting an Event in a signal handler can deadlock with its own wait.
        self._told_to_stop = False

    def stop(self, _signal: int = 0, _frame: FrameType | None = None) -> None:
        """Ask `run` to end; also the signal handler."""
        self._told_to_stop = True

    def run(self) -> int:
        """Start all, wait, stop all; return 0 when told to stop and 1 when something went wrong."""
        try:
            check_ports(self._wanted)
            for service in self._wanted:
                self._start(service)
            self._wait_until_ready()
            self._announce()
            self._wait()
        except LaunchError as exc:
            self._say(str(exc))
            return 1
        finally:
            self._stop_all()
        return 0

    def _start(self, service: Service) -> None:
        if self._told_to_stop:
            return
        self._say(f"Starting the {service.name} on port {service.port} ...")
        try:
            self._children[service.name] = subprocess.Popen(
                list(service.command),
                cwd=service.folder,
                env={**os.environ, **service.environment},
                # Ctrl-C in a terminal reaches a whole group. In groups of their own, the children are stopped by us
                # alone, once, with everything that they started.
                start_new_session=True,
            )
        except OSError as exc:
            raise LaunchError(f"The {service.name} could not be started: {exc.strerror or exc}.") from exc

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self._start_limit_s
        waiting = list(self._wanted)
        while waiting and not self._told_to_stop:
            self._check_children()
            waiting = [service for service in waiting if not answers(service.probe_url)]
            if waiting and time.monotonic() > deadline:
                names = " and ".join(service.name for service in waiting)
                raise LaunchError(f"No answer from the {names} within {self._start_limit_s:g} seconds: gave up.")
            if waiting:
                time.sleep(POLL_INTERVAL_S)

    def _announce(self) -> None:
        if self._told_to_stop:
            return
        lines = [f"{service.name + ':':<11} {service.url}" for service in self._wanted]
        self._say("\n".join(["", "Ready. Stop with Ctrl-C.", *lines, ""]))

    def _wait(self) -> None:
        while not self._told_to_stop:
            self._check_children()
            time.sleep(POLL_INTERVAL_S)

    def _check_children(self) -> None:
        for name, child in self._children.items():
            if child.poll() is not None and not self._told_to_stop:
                raise LaunchError(f"The {name} ended ({_ending(child.returncode)}); stopping everything.")

    def _stop_all(self) -> None:
        """End every child: first politely, after a while by force; each is waited for, so none stays a zombie."""
        if any(child.poll() is None for child in self._children.values()):
            self._say("Stopping ...")
        for child in self._children.values():
            _signal_group(child, signal.SIGTERM)
        deadline = time.monotonic() + self._stop_limit_s
        for name, child in self._children.items():
            try:
                child.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._say(f"The {name} did not stop in time and is killed.")
            # The group outlives its leader when a grandchild ignores the polite signal.
            _signal_group(child, KILL_SIGNAL)
            child.wait()

    def _say(self, text: str) -> None:
        # A closed terminal must not keep the children from being stopped.
        with suppress(OSError, ValueError):
            self._write(f"{text}\n")
            sys.stdout.flush()


def _signal_group(child: subprocess.Popen[bytes], number: int) -> None:
    """Signal a child and what it started; on systems without process groups, end the child."""
    with suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(child.pid, number)
        else:
            child.terminate()


def _ending(return_code: int) -> str:
    if return_code >= 0:
        return f"exit code {return_code}"
    with suppress(ValueError):
        return f"by {signal.Signals(-return_code).name}"
    return f"by signal {-return_code}"


def install_handlers(launcher: Launcher) -> None:
    """Let Ctrl-C, a polite kill and a closed terminal stop the launcher in order."""
    signal.signal(signal.SIGINT, launcher.stop)
    signal.signal(signal.SIGTERM, launcher.stop)
    # Under nohup a closed terminal is ignored on purpose.
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, launcher.stop)


def main() -> int:
    """Start API and dashboard as the settings want them; return the exit code."""
    try:
        settings = Settings()
    except ValidationError as exc:
        for wrong in wrong_settings(exc):
            sys.stderr.write(f"{wrong}\n")
        sys.stderr.write(f"Correct this in the environment or in {(SETTINGS_FOLDER / '.env').resolve()}.\n")
        return 1
    try:
        check_access(settings)
    except LaunchError as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    launcher = Launcher(services(settings))
    install_handlers(launcher)
    return launcher.run()


if __name__ == "__main__":
    sys.exit(main())
