"""Faults of the second reader and of the clock, as whoever sends a film to the server meets them."""

import ast
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.servers import serving_here
from main import create_app
from modules.answers import Analysis, ReaderHealth
from modules.multimodal_reasoning import SecondReader
from modules.pipeline import Pipeline
from modules.quality import InputGate
from modules.reasoners.attempts import Patience, wait_of
from modules.reasoners.base import READY
from modules.reasoners.conversation import ModelReader, Writer
from modules.reasoners.dummy import DummyReader
from modules.reasoners.local import LocalWriter
from modules.reasoners.openai import OpenAiWriter
from modules.reasoners.replies import FIELDS
from modules.settings import MIN_REPLY_TOKENS, PROJECT_ROOT, Settings
from tests import loopback, scripted_worker
from tests.loopback import CLINICAL_REPLY, FILM_REPLY, answering, dropping, openai_events, sending, streaming
from tests.scripted import clinical_text, film_text

ENDED = "MedGemma's process ended while it read the film."
LOADING = "MedGemma is still loading."
LATE = "The second reader gave no answer within 3 seconds."
LIMIT_S = 3.0  # of a reading; far above what the scripted model takes, on a busy machine too


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)


@contextmanager
def serving(pipeline: Pipeline, writer: Writer, mode: Any = "local", limit_s: float = LIMIT_S) -> Iterator[str]:
    """A real server with the CNN of the tests, whose reader is this one."""
    second = SecondReader(
        mode, (ModelReader(mode, writer, max_tokens=MIN_REPLY_TOKENS), DummyReader()), limit_s=limit_s
    )
    own = Pipeline(pipeline.cnn, InputGate.load(), second)
    with serving_here(create_app(Settings(_env_file=None), own)) as address:
        yield address
    second.close()


def analysed(address: str, film: bytes) -> Analysis:
    response = httpx.post(
        f"{address}/analyze", files={"image": film}, data={"heatmaps": "none"}, timeout=30, trust_env=False
    )
    assert response.status_code == 200, response.text
    return Analysis.model_validate_json(response.content)


def reader_of(address: str) -> ReaderHealth:
    return ReaderHealth.model_validate(httpx.get(f"{address}/health", timeout=5, trust_env=False).json()["reader"])


def rendered(address: str, film: bytes) -> int:
    return httpx.post(f"{address}/render", files={"image": film}, timeout=30, trust_env=False).status_code


def assert_read(analysis: Analysis) -> None:
    assert (analysis.reader.mode, analysis.reader.fallback_reason) == ("local", None)
    assert {f.pathology: f.reader.status for f in analysis.findings}["Mass"] == "present"


def assert_alone(analysis: Analysis, *reasons: str) -> None:
    """The CNN's answer came alone: it says so and why, and no number was moved."""
    assert (analysis.reader.mode_requested, analysis.reader.mode) == ("local", "dummy")
    assert analysis.reader.fallback_reason in reasons
    assert analysis.clinical_reasoning.startswith(f"No second reader ran: {analysis.reader.fallback_reason}")
    assert all(f.fused_probability == f.cnn_probability for f in analysis.findings)
    assert analysis.confidence_scores.llm == 0.0


def writer_in(folder: Path) -> LocalWriter:
    """Start the scripted model of a folder, which does at its starts what is planned."""
    return LocalWriter("transformers", folder, "scripted", python=str(folder / "python"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    scripted_worker.installed(tmp_path, film_text(**{FIELDS["Mass"]: "present"}), clinical_text())
    return tmp_path


@pytest.fixture
def local(folder: Path) -> Iterator[LocalWriter]:
    writer = writer_in(folder)
    assert writer.wait_until_settled(60) is READY
    yield writer
    writer.close()


# ── A model on this machine ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("die", ENDED),
        ("hang", LATE),
        ("not JSON", ENDED),
        ("no message", ENDED),
        ("deep", ENDED),
        ("half a token", ENDED),
    ],
)
def test_a_model_that_fails_in_the_middle_of_a_film_costs_its_reading_and_comes_back(
    pipeline: Pipeline, film_png: bytes, local: LocalWriter, folder: Path, fault: str, reason: str
) -> None:
    scripted_worker.planned(folder, fault)
    with serving(pipeline, local) as address, ThreadPoolExecutor(1) as pool:
        first = pool.submit(analysed, address, film_png)
        assert rendered(address, film_png) == 200  # others do not notice
        assert_alone(first.result(), reason)
        later: list[Analysis] = []  # a process that hangs is ended a moment after its film was given up

        def read_again() -> bool:
            later.append(analysed(address, film_png))
            return later[-1].reader.mode == "local"

        until(read_again)
        assert_read(later[-1])


def test_a_model_that_fails_at_every_other_film_reads_the_ones_between(
    pipeline: Pipeline, film_png: bytes, local: LocalWriter, folder: Path
) -> None:
    scripted_worker.planned(folder, "", "die", "", "not JSON", "", "prose", "prose", "")  # which is asked twice
    seen = []
    with serving(pipeline, local) as address:
        for _ in range(7):
            seen.append(analysed(address, film_png))
            until(lambda: reader_of(address).state == "ready")
    assert [analysis.reader.mode for analysis in seen] == ["local", "dummy"] * 3 + ["local"]
    for analysis in seen[::2]:
        assert_read(analysis)
    assert_alone(seen[1], ENDED)
    assert_alone(seen[3], ENDED)
    reason = str(seen[5].reader.fallback_reason)
    assert_alone(seen[5], reason)
    assert "lorem" not in seen[5].model_dump_json()


def test_films_that_come_while_the_model_is_loaded_anew_say_so(
    pipeline: Pipeline, film_png: bytes, local: LocalWriter, folder: Path
) -> None:
    scripted_worker.planned(folder, "die", starts=("hang",))
    with serving(pipeline, local) as address:
        assert_alone(analysed(address, film_png), ENDED)
        assert_alone(analysed(address, film_png), LOADING)
        health = reader_of(address)
        assert (health.state, health.mode, health.reason) == ("loading", "dummy", LOADING)


@pytest.mark.parametrize("word", ["die", "not JSON", "no message", "deep"])
def test_a_model_that_never_starts_is_said_to_be_unavailable_and_not_to_be_loading(
    pipeline: Pipeline, film_png: bytes, folder: Path, word: str
) -> None:
    scripted_worker.planned(folder, starts=(word,) * 9)
    writer = writer_in(folder)
    assert writer.wait_until_settled(60).state == "unavailable"
    reason = "MedGemma could not be loaded (its process ended). See: make check-medgemma"
    with serving(pipeline, writer) as address:
        assert_alone(analysed(address, film_png), reason)
        health = reader_of(address)
    assert (health.state, health.mode, health.reason) == ("fallback", "dummy", reason)
    assert (folder / "starts").read_text().count("\n") == 6  # three were tried


# ── A model elsewhere ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_server_of_a_model_that_fails_at_every_other_film_reads_the_ones_between(
    pipeline: Pipeline, film_png: bytes
) -> None:
    good = (streaming(openai_events(FILM_REPLY)), streaming(openai_events(CLINICAL_REPLY)))
    bad = (answering(500, "boom"), dropping, sending(b"HTTP/1.1 200 OK\r\n\r\n\x00garbage"))
    with loopback.serving(*(part for fault in bad for part in (*good, fault)), *good) as script:
        writer = OpenAiWriter(script.url + "/v1", None, "scripted", patience=Patience(attempts=1))
        with serving(pipeline, writer, "openai") as address:
            seen = [analysed(address, film_png) for _ in range(7)]
    assert [analysis.reader.mode for analysis in seen] == ["openai", "dummy"] * 3 + ["openai"]
    assert all(analysis.reader.fallback_reason for analysis in seen[1::2])
    assert not any(analysis.reader.fallback_reason for analysis in seen[::2])
    assert not any("boom" in a.model_dump_json() or "garbage" in a.model_dump_json() for a in seen)


# ── The clock ────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def jumping_clock(monkeypatch: pytest.MonkeyPatch, hours: float) -> Iterator[None]:
    """Set the machine's clock by hours, forwards and backwards, twenty times a second."""
    real, ended = time.time, threading.Event()
    shift = [0.0]

    def jump() -> None:
        while not ended.wait(0.05):
            shift[0] = 0.0 if shift[0] else 3600.0 * hours

    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: real() + shift[0])
        thread = threading.Thread(target=jump)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


@pytest.mark.parametrize("hours", [-30.0, 30.0])
def test_a_clock_that_jumps_lengthens_and_shortens_no_wait(
    pipeline: Pipeline,
    film_png: bytes,
    local: LocalWriter,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    hours: float,
) -> None:
    scripted_worker.planned(folder, "", "hang")
    with jumping_clock(monkeypatch, hours), serving(pipeline, local) as address:
        assert_read(analysed(address, film_png))  # neither late nor refused
        start = time.monotonic()
        hung = analysed(address, film_png)
        assert LIMIT_S <= time.monotonic() - start < LIMIT_S + 10
        assert_alone(hung, LATE)
        assert 0 < hung.reader.seconds < LIMIT_S + 10
        assert all(0 <= spent < 60_000 for spent in hung.timings_ms.values())


@pytest.mark.parametrize("hours", [-30.0, 0.0, 30.0])
def test_a_wrong_clock_changes_no_time_that_a_server_asks_to_wait(
    monkeypatch: pytest.MonkeyPatch, hours: float
) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3600 * hours)
    asked = {"date": "Wed, 21 Oct 2015 07:28:00 GMT", "retry-after": "Wed, 21 Oct 2015 07:28:07 GMT"}
    assert wait_of(asked) == 7.0
    assert wait_of(asked | {"retry-after": "Wed, 21 Oct 2015 07:27:00 GMT"}) == 0.0
    assert wait_of({"retry-after": asked["retry-after"]}) is None  # there is nothing to count from


# What reads the machine's clock, and why it may: none of it bounds a wait.
CLOCK_READERS = {
    "api/logs.py": {"fromtimestamp"},  # when a line was logged
    "dashboard/takeaway.py": {"now"},  # the date on a report
}
CLOCKS = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today", "date.today"}


def clocks_read(source: str) -> set[str]:
    """Return the names by which a source reads the machine's clock."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else node.value.attr
            if f"{owner}.{node.attr}" in CLOCKS or node.attr == "fromtimestamp":
                found.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and node.module == "time":
            found |= {alias.name for alias in node.names if alias.name in ("time", "time_ns")}
    return found


def test_nothing_that_serves_reads_the_machines_clock_to_wait() -> None:
    served = [PROJECT_ROOT / name for name in ("main.py", "app.py", "launcher.py", "medgemma.py")]
    for package in ("api", "batch", "dashboard", "modules"):
        served += sorted((PROJECT_ROOT / package).rglob("*.py"))
    found = {str(path.relative_to(PROJECT_ROOT)): clocks_read(path.read_text("utf-8")) for path in served}
    assert {name: read for name, read in found.items() if read} == CLOCK_READERS


@pytest.mark.parametrize(
    "source", ["import time\ntime.time()", "from time import time", "from datetime import datetime\ndatetime.now()"]
)
def test_a_clock_that_is_read_would_be_noticed(source: str) -> None:
    assert clocks_read(source)
