"""The load generator counts right, and the benchmark of the server runs from start to end, on a tiny scale."""

import asyncio
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks import measuring, server, soak
from benchmarks.load import Load, Outcome, Sender, closed_loop, open_loop, probing, shot
from benchmarks.servers import serving_here
from main import create_app
from modules.pipeline import Pipeline
from modules.settings import Settings

Answer = Callable[[str], tuple[int, dict[str, str]]]


@contextmanager
def answering(answer: Answer, seconds: float = 0.0) -> Iterator[str]:
    """A server whose answers a test chooses by the path."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        while (await receive()).get("more_body"):
            pass
        await asyncio.sleep(seconds)
        status, headers = answer(scope["path"])
        head = [(key.encode(), value.encode()) for key, value in {"Content-Length": "2", **headers}.items()]
        await send({"type": "http.response.start", "status": status, "headers": head})
        await send({"type": "http.response.body", "body": b"ok"})

    with serving_here(app) as address:
        yield address


def sent(address: str, count: int, clients: int = 1, **options: Any) -> Load:
    shots = itertools.repeat(shot("/film", b"film", "film"))
    return asyncio.run(closed_loop(address, [Sender(shots, **options)] * clients, requests=count))


def test_a_closed_loop_sends_as_many_requests_as_it_is_told_from_all_clients_at_once() -> None:
    with answering(lambda _: (200, {}), seconds=0.1) as address:
        load = sent(address, 20, clients=10)
    assert len(load.outcomes) == load.in_time == 20
    assert 0.2 <= load.seconds < 1.0  # one after another would take two seconds
    assert all(0.1 <= outcome.seconds < 0.5 for outcome in load.outcomes)


def test_a_refused_client_waits_as_it_is_told_and_its_refusals_and_its_time_count() -> None:
    answers = iter([(503, {"Retry-After": "1"}), (200, {})])
    with answering(lambda _: next(answers)) as address:
        (outcome,) = sent(address, 1).outcomes
    assert (outcome.answered, outcome.refusals, outcome.clean) == (True, 1, True)
    assert outcome.seconds >= 1.0


def test_a_503_that_does_not_say_when_to_come_back_is_an_error() -> None:
    with answering(lambda _: (503, {})) as address:
        (outcome,) = sent(address, 1).outcomes
    assert (outcome.answered, outcome.refused, outcome.clean) == (False, False, False)
    assert server._of([outcome])["errors"] == 1


@pytest.mark.parametrize(("status", "expected"), [(500, 200), (200, 422), (404, 200)])
def test_any_other_answer_than_the_right_one_is_an_error(status: int, expected: int) -> None:
    with answering(lambda _: (status, {})) as address:
        shots = itertools.repeat(shot("/film", b"film", "film", expected=expected))
        load = asyncio.run(closed_loop(address, [Sender(shots)], requests=1))
    assert (load.in_time, server._of(load.outcomes)["errors"]) == (0, 1)


def test_no_answer_is_an_error_too() -> None:
    with answering(lambda _: (200, {})) as address:
        pass
    load = sent(address, 2)
    assert server._of(load.outcomes) == {
        "answers": 0,
        "p50 ms": "-",
        "p95 ms": "-",
        "p99 ms": "-",
        "503": 0,
        "errors": 2,
    }


def test_an_open_loop_keeps_its_rate_however_slow_the_answers_are() -> None:
    with answering(lambda _: (200, {}), seconds=0.5) as address:
        load = asyncio.run(open_loop(address, itertools.repeat(shot("/film", b"film", "film")), 60, 1.0))
    assert 40 <= len(load.outcomes) <= 80
    assert load.in_time < len(load.outcomes)  # some came after the time
    assert all(outcome.answered for outcome in load.outcomes)


def test_an_open_loop_takes_a_503_for_an_answer() -> None:
    with answering(lambda _: (503, {"Retry-After": "1"})) as address:
        load = asyncio.run(open_loop(address, itertools.repeat(shot("/film", b"film", "film")), 30, 0.3))
    figures = server._of(load.outcomes)
    assert figures["503"] == len(load.outcomes) > 0
    assert (figures["answers"], figures["errors"]) == (0, 0)


def test_health_is_asked_all_the_time_and_a_failure_is_not_forgotten() -> None:
    healthy = True

    def answer(path: str) -> tuple[int, dict[str, str]]:
        assert path == "/health"
        return 200 if healthy else 500, {}

    async def scene(address: str) -> list[float]:
        nonlocal healthy
        async with probing(address) as found:
            await asyncio.sleep(0.3)
            healthy = False
            await asyncio.sleep(0.1)
        return found

    with answering(answer) as address:
        found = asyncio.run(scene(address))
    assert len(found) > 5
    assert found[0] < 0.3
    assert found[-1] == float("inf")


def test_the_time_of_an_event_in_a_stream_is_noted(pipeline: Pipeline, film_png: bytes) -> None:
    one = shot("/analyze/stream", film_png, "film", mark=b"event: cnn")
    with serving_here(create_app(Settings(_env_file=None), pipeline)) as address:
        load = asyncio.run(closed_loop(address, [Sender(itertools.repeat(one))], requests=2))
    for outcome in load.outcomes:
        assert outcome.answered
        assert outcome.marked is not None
        assert 0 < outcome.marked < outcome.seconds


def test_the_generators_own_work_is_measured() -> None:
    load = Load()
    from benchmarks.load import _measured

    with _measured(load):
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass
    assert 0.0 < load.own_cores <= 1.1


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(n) for n in range(100, 0, -1)]
    assert [measuring.percentile(values, p) for p in (1, 50, 99, 100)] == [1.0, 50.0, 99.0, 100.0]
    assert measuring.percentile([7.0], 50) == 7.0
    outcomes = [Outcome("film", 200, 200, seconds) for seconds in values]
    assert server._of(outcomes)["p99 ms"] == 99_000.0


def test_the_whole_benchmark_runs_and_says_what_it_found(
    pipeline: Pipeline,
    film_png: bytes,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Here:
        def __init__(self, url: str) -> None:
            self.url, self.pid = url, os.getpid()

    @contextmanager
    def running(**_: str) -> Iterator[Here]:
        with serving_here(create_app(Settings(_env_file=None), pipeline)) as address:
            yield Here(address)

    monkeypatch.setattr(server, "running", running)
    monkeypatch.setattr(server, "WARM_UP", 1)
    monkeypatch.setattr(server, "WARM_UP_S", 0.1)
    monkeypatch.setattr(server, "RATES", (0.5,))
    monkeypatch.setattr(server, "FLOOD", 3)
    film, out = tmp_path / "film.png", tmp_path / "found.json"
    film.write_bytes(film_png)
    server.main(["--film", str(film), "--clients", "1", "2", "--rounds", "1", "--seconds", "0.5", "--out", str(out)])
    found = json.loads(out.read_text("utf-8"))
    assert [row["clients"] for row in found["closed loop"]] == [1, 2]
    assert all(row["errors"] == 0 for row in (*found["closed loop"], *found["open loop"], *found["hanging reader"]))
    assert found["best films/s"] > 0
    assert len(found["ratios"]) == 3
    said = capsys.readouterr().out
    for title in ("closed loop", "open loop", "ratios", "films of all sizes", "the second reader"):
        assert title in said


def test_a_soak_counts_every_request_and_breaks_no_promise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "MOST_MIB", 1e6)  # so short, the server still grows into its work
    out = tmp_path / "soak.json"
    assert soak.main(["--minutes", "2", "--requests", "40", "--out", str(out)]) == 0
    found = json.loads(out.read_text("utf-8"))
    assert found["soak"]["sent"] >= 40
    assert found["soak"]["left by their client"] > 0
    assert {row["clients"] for row in found["clients"]} >= {"films", "no films"}
    assert all(found["kept"].values())


@pytest.mark.parametrize(
    ("outcome", "broken"),
    [
        (Outcome("film", 500, 200, 0.1), "no wrong answer"),
        (Outcome("film", 0, 200, 0.1), "sent = answered + left"),
        (Outcome("film", 200, 200, 0.1, None, 1, clean=False), "no wrong answer"),
    ],
)
def test_a_soak_notices_a_wrong_answer_and_none(outcome: Outcome, broken: str) -> None:
    tally = soak.Tally()
    for one in (Outcome("film", 200, 200, 0.1), outcome):
        tally.note("films", one)
    found = soak._found(tally, [(0, 100.0), (1, 100.0), (2, 100.0)], [0.001], 1.0)
    assert not found["kept"][broken]
    assert soak._found(tally, [(0, 100.0), (1, 100.0), (2, 101.0)], [0.001], 1.0)["kept"]["memory is flat"] is False
    busy = [(at, 300.0 + (at % 7) * (20 + at / 20)) for at in range(1800)]  # ever larger films on their way
    assert soak._found(tally, busy, [0.001], 1.0)["kept"]["memory is flat"] is True
    leak = [(at, mib + 0.002 * at) for at, mib in busy]
    assert soak._found(tally, leak, [0.001], 1.0)["kept"]["memory is flat"] is False
    assert soak._found(tally, [(1, 9.0), (2, 9.0)], [float("inf")], 1.0)["kept"]["/health always answered"] is False
