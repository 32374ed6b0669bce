"""With Ray: two replicas, one of which is killed; the batch on Ray's workers. Skipped where Ray is not installed."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from modules.settings import PROJECT_ROOT
from tests.api_requests import assert_problem

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: make test-ray"),
    pytest.mark.timeout(600),
]
URL = "http://127.0.0.1:8000"
SYMPTOM = "Jane-Doe-1970-cough"
SEND_S = 10.0


@pytest.fixture(scope="module")
def surroundings() -> Iterator[dict[str, str]]:
    from benchmarks.clusters import cluster

    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", 8000)) == 0:
            pytest.skip("port 8000 is in use, where `serve run` listens")
    with cluster(4) as found:  # replicas and a worker of the batch, beside each other
        yield found


@pytest.fixture(scope="module")
def replicas(surroundings: dict[str, str]) -> Iterator[dict[str, str]]:
    from benchmarks import clusters

    process = clusters.serve(surroundings, "replicas=2", "cpus=0.5")
    try:
        clusters.wait_for(URL, process, 2)
        yield surroundings
    finally:
        clusters.end(process, signal.SIGINT)


def post(film: bytes, path: str = "/analyze", **options: float) -> httpx.Response:
    fields = {"heatmaps": "none", "symptoms": SYMPTOM}
    return httpx.post(
        f"{URL}{path}", files={"image": film}, data=fields, timeout=options.get("timeout", 60), trust_env=False
    )


def test_a_lost_replica_costs_clean_refusals_alone_and_comes_back(replicas: dict[str, str], film_png: bytes) -> None:
    from benchmarks.clusters import replica_pids

    until = time.monotonic() + SEND_S
    answers: list[httpx.Response] = []

    def send(_: int) -> None:
        while time.monotonic() < until:
            answers.append(post(film_png))

    victim = replica_pids()[0]
    kill = threading.Timer(2.0, os.kill, (victim, signal.SIGKILL))
    kill.start()
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(send, range(6)))
    refused = [answer for answer in answers if answer.status_code != 200]
    for answer in refused:
        assert_problem(answer, 503, answer.json()["code"])
        assert int(answer.headers["Retry-After"]) >= 1
    assert {answer.json()["code"] for answer in refused} == {"replica_lost"}
    assert len(answers) - len(refused) > 5
    deadline = time.monotonic() + 120
    while len(pids := replica_pids()) < 2 or victim in pids:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert post(film_png).status_code == 200


def test_a_stream_and_the_limits_go_through(replicas: dict[str, str], film_png: bytes) -> None:
    events = [line for line in post(film_png, "/analyze/stream").text.splitlines() if line.startswith("event: ")]
    assert (events[0], events[-1]) == ("event: accepted", "event: done")
    assert_problem(post(b"x" * (60 << 20)), 413, "file_too_large")
    assert_problem(post(b"no film"), 415, "unsupported_image_type")


def test_no_log_of_ray_holds_a_symptom_or_a_film(replicas: dict[str, str], film_png: bytes) -> None:
    assert post(film_png).status_code == 200
    logs = [path for path in Path(replicas["RAY_TMPDIR"]).rglob("*") if path.is_file() and not path.is_symlink()]
    assert any("replica" in path.name for path in logs)
    for path in logs:
        content = path.read_bytes()
        assert SYMPTOM.encode() not in content, path
        assert film_png[:64] not in content, path


def command(module: str, films: Path, out: Path, surroundings: dict[str, str]) -> "subprocess.Popen[bytes]":
    words = [sys.executable, "-m", module, str(films), "--out", str(out), "--workers", "1"]
    return subprocess.Popen(
        words, cwd=PROJECT_ROOT, env=surroundings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def test_the_batch_on_ray_goes_on_after_a_kill_and_has_the_same_table(
    surroundings: dict[str, str], film_png: bytes, tmp_path: Path
) -> None:
    films = tmp_path / "films"
    films.mkdir()
    for number in range(8):
        (films / f"{number}.png").write_bytes(film_png if number != 3 else b"no film")
    out = tmp_path / "ray.jsonl"
    journal = out.with_name("ray.jsonl.journal")
    killed = command("scale.batch", films, out, surroundings)
    deadline = time.monotonic() + 200
    while not journal.exists() or journal.read_bytes().count(b'\n{"row":') < 2:
        assert time.monotonic() < deadline
        assert killed.poll() is None
        time.sleep(0.02)
    killed.kill()
    killed.wait()
    before = journal.read_bytes().count(b'\n{"row":')
    assert command("scale.batch", films, out, surroundings).wait(200) == 3
    assert command("batch", films, tmp_path / "here.jsonl", surroundings).wait(100) == 3

    def rows(path: Path) -> list[dict[str, object]]:
        read = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        return [{key: value for key, value in row.items() if not key.startswith("ms_")} for row in read]

    assert 2 <= before <= 8
    assert rows(out) == rows(tmp_path / "here.jsonl")
    assert [row["file"] for row in rows(out)] == [f"{number}.png" for number in range(8)]
