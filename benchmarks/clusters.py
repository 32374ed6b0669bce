"""Ray on this machine, for measurements and tests: a cluster of one node, and replicas of the API in it."""

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import httpx

from benchmarks.servers import HOST, free_port
from modules.settings import PROJECT_ROOT, Settings
from scale.environment import environment

START_LIMIT_S = 240.0
END_LIMIT_S = 60.0
POLL_S = 0.2
STORE_BYTES = 100_000_000
STARTED = b"Ray runtime started"
REPLICA = "ray::ServeReplica"


def clean() -> dict[str, str]:
    """Return the environment without settings of this machine."""
    ours = {name.upper() for name in Settings.model_fields} | {"RAY_ADDRESS"}
    kept = {key: value for key, value in os.environ.items() if key.upper() not in ours}
    return kept | environment() | {"MEDGEMMA_MODE": "dummy"}


@contextmanager
def cluster(cores: int, **settings: str) -> Iterator[dict[str, str]]:
    """Run a cluster of one node with so many cores; yields the environment of whoever asks it for something.

    Ports are fixed before: Ray else waits 15 s for each and gives up, which is too short beside other work.
    """
    port, *others = (free_port() for _ in range(5))
    flags = ("dashboard-agent-grpc-port", "runtime-env-agent-port", "metrics-export-port", "ray-client-server-port")
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}"]
        command += [f"--{flag}={number}" for flag, number in zip(flags, others, strict=True)]
        command += [f"--num-cpus={cores}", "--include-dashboard=false", f"--object-store-memory={STORE_BYTES}"]
        ours = {
            "RAY_TMPDIR": folder,
            "RAY_raylet_start_wait_time_s": f"{START_LIMIT_S:.0f}",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),  # `ray start` makes none
        }
        surroundings = clean() | settings | ours
        said = Path(folder) / "start.log"
        with said.open("wb") as log:
            process = _start(command, surroundings, log)
        try:
            deadline = time.monotonic() + START_LIMIT_S
            while STARTED not in said.read_bytes():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"Ray does not start: {said.read_text('utf-8', 'replace')[-500:]}")
                time.sleep(POLL_S)
            yield surroundings | {"RAY_ADDRESS": f"{HOST}:{port}"}
        finally:
            end(process, signal.SIGTERM)


def serve(surroundings: dict[str, str], *words: str) -> "subprocess.Popen[bytes]":
    """Start `serve run` in a cluster, as docs/SCALE.md says."""
    command = [sys.executable, "-m", "ray.serve.scripts", "run", "scale.serve:build", *words]
    return _start(command, surroundings)


def _start(
    command: list[str], surroundings: dict[str, str], out: int | IO[bytes] = subprocess.DEVNULL
) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        command,
        cwd=PROJECT_ROOT,
        env=surroundings,
        stdout=out,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def end(process: "subprocess.Popen[bytes]", sent: signal.Signals) -> None:
    """Send a signal and wait; what does not end is killed with what it started."""
    with suppress(ProcessLookupError):
        process.send_signal(sent)
    try:
        process.wait(END_LIMIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(url: str, process: "subprocess.Popen[bytes]", replicas: int) -> float:
    """Wait until so many replicas serve; returns how many seconds that took."""
    start = time.monotonic()
    while time.monotonic() - start < START_LIMIT_S:
        if process.poll() is not None:
            raise RuntimeError(f"serve run ended with {process.returncode}")
        with suppress(httpx.HTTPError):
            healthy = httpx.get(f"{url}/health", timeout=5.0, trust_env=False).is_success
            if healthy and len(replica_pids()) >= replicas:
                return time.monotonic() - start
        time.sleep(POLL_S)
    raise RuntimeError(f"no {replicas} replicas after {START_LIMIT_S:.0f} s")


def replica_pids() -> list[int]:
    """Return the processes of replicas that have started to serve."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,args="], capture_output=True, text=True, check=True).stdout
    rows = (line.split(None, 1) for line in listed.splitlines())
    return [int(row[0]) for row in rows if len(row) == 2 and row[1].startswith(REPLICA) and "initialize" not in row[1]]


def ray_mib() -> float:
    """Return the resident memory of all processes of Ray on this machine, replicas included."""
    listed = subprocess.run(["ps", "-A", "-o", "rss=,args="], capture_output=True, text=True, check=True).stdout
    rows = (line.split(None, 1) for line in listed.splitlines())
    return sum(int(row[0]) for row in rows if len(row) == 2 and ("ray::" in row[1] or "/ray/" in row[1])) / 1024
