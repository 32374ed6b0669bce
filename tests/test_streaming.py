"""`POST /analyze/stream`: the order of its events, what comes while a reader writes, what a lost client stops."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from benchmarks.servers import serving_here
from main import create_app
from modules.answers import Analysis, Problem
from modules.errors import ReaderUnavailable
from modules.events import EVENT_RECORDS
from modules.multimodal_reasoning import SecondReader
from modules.pipeline import Pipeline
from modules.quality import InputGate
from modules.reasoners.base import Reader, ReaderTask
from modules.reasoners.dummy import DummyReader
from modules.records import Reading
from modules.settings import Settings
from tests.api_requests import noise_png
from tests.conftest import as_png
from tests.stages import read

Events = list[tuple[str, dict[str, Any]]]
ORDER = ["accepted", "quality", "cnn", "heatmaps", "reader", "fusion", "uncertainty", "risk", "done"]


class Hand(Reader):
    """A reader that does what a test tells it, and keeps the tasks that it got."""

    mode = "local"
    model = "by hand"
    looks_at_film = True

    def __init__(self, work: Callable[[ReaderTask], Reading]) -> None:
        self._work = work
        self.tasks: list[ReaderTask] = []

    def read(self, task: ReaderTask) -> Reading:
        self.tasks.append(task)
        return self._work(task)


def until_stopped(task: ReaderTask) -> Reading:
    """Hang, as a model does that no longer answers, until somebody stops it."""
    stopped = threading.Event()
    task.control.when_stopped(stopped.set)
    assert stopped.wait(20)
    raise ReaderUnavailable("stopped")


def until(condition: Callable[[], bool]) -> None:
    """Wait until something has come true in another thread."""
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)


@contextmanager
def serving(pipeline: Pipeline, reader: Reader | None = None, limit_s: float = 20.0, **settings: Any) -> Iterator[str]:
    """A real server over a real socket, with the CNN of the tests and a reader of one's own."""
    chain = (DummyReader(),) if reader is None else (reader, DummyReader())
    second = SecondReader("dummy" if reader is None else "local", chain, limit_s=limit_s)
    own = Pipeline(pipeline.cnn, InputGate.load(), second)
    with serving_here(create_app(Settings(_env_file=None, **settings), own)) as address:
        yield address


@contextmanager
def streaming(address: str, film: bytes, **fields: str) -> Iterator[httpx.Response]:
    files = {"image": ("film.png", film, "image/png")}
    with httpx.stream(
        "POST", f"{address}/analyze/stream", files=files, data=fields, timeout=30, trust_env=False
    ) as response:
        yield response


def events_of(response: httpx.Response) -> Iterator[tuple[str, dict[str, Any]]]:
    """Parse server-sent events as the HTML standard describes them: one event and one line of data each."""
    name = ""
    for line in response.iter_lines():
        if line.startswith("event:"):
            name = line.removeprefix("event:").strip()
        elif line.startswith("data:"):
            yield name, json.loads(line.removeprefix("data:"))


def all_events(address: str, film: bytes, **fields: str) -> Events:
    with streaming(address, film, **fields) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-store"
        return list(events_of(response))


def test_the_stages_come_in_their_order_and_the_last_event_is_the_whole_answer(
    pipeline: Pipeline, film_png: bytes
) -> None:
    with serving(pipeline) as address:
        events = all_events(address, film_png, symptoms="cough", heatmaps="all")
        plain = httpx.post(
            f"{address}/analyze",
            files={"image": film_png},
            data={"symptoms": "cough", "heatmaps": "all"},
            trust_env=False,
            timeout=30,
        )
    assert [name for name, _ in events] == ORDER
    found = dict(events)
    analysis = Analysis.model_validate(found["done"])
    unlike = {"timings_ms", "request_id", "reader"}
    assert analysis.model_dump(exclude=unlike) == Analysis.model_validate_json(plain.content).model_dump(exclude=unlike)
    assert found["accepted"]["request_id"] == analysis.request_id
    assert found["quality"] == json.loads(analysis.quality.model_dump_json())
    assert found["cnn"]["findings"] == found["done"]["findings"]  # a template moves nothing
    assert found["heatmaps"]["heatmap_base64"] == analysis.heatmap_base64
    assert (found["reader"]["reader"]["mode"], found["risk"]["risk_level"]) == ("dummy", analysis.risk_level)
    assert found["fusion"]["contradictions"] == []
    assert found["uncertainty"]["token_confidence"] is None


def test_words_come_as_a_draft_between_the_maps_and_the_checked_reading(pipeline: Pipeline, film_png: bytes) -> None:
    def write(task: ReaderTask) -> Reading:
        for turn in ("film", "clinical"):
            for words in ("one ", "two"):
                task.control.say(turn, words)  # type: ignore[arg-type]
        return read({"Mass": "present"}, 0.7)

    with serving(pipeline, Hand(write)) as address:
        events = all_events(address, film_png)
    assert [name for name, _ in events] == [*ORDER[:4], *["reader_words"] * 4, *ORDER[4:]]
    drafts = [data for name, data in events if name == "reader_words"]
    assert [(d["mode"], d["turn"], d["words"], d["draft"]) for d in drafts] == [
        ("local", turn, words, True) for turn in ("film", "clinical") for words in ("one ", "two")
    ]
    assert dict(events)["reader"]["statements"]["Mass"]["status"] == "present"


def test_the_cnns_part_arrives_while_the_reader_still_reads(pipeline: Pipeline, film_png: bytes) -> None:
    go_on = threading.Event()

    def wait(_: ReaderTask) -> Reading:
        assert go_on.wait(20)
        return read()

    with serving(pipeline, Hand(wait)) as address, streaming(address, film_png) as response:
        events = events_of(response)
        assert [next(events)[0] for _ in range(4)] == ORDER[:4]
        go_on.set()
        assert [name for name, _ in events] == ORDER[4:]


def test_a_client_that_leaves_stops_the_reader(pipeline: Pipeline, film_png: bytes) -> None:
    reader = Hand(until_stopped)
    with serving(pipeline, reader, max_concurrent_analyses=1, max_queued_analyses=0) as address:
        with streaming(address, film_png) as response:
            events = events_of(response)
            while next(events)[0] != "heatmaps":
                pass
            until(lambda: bool(reader.tasks))  # one that has not begun has nothing to stop
        until(lambda: bool(reader.tasks) and reader.tasks[0].control.stopped)


def test_a_reader_that_hangs_costs_its_time_limit_and_takes_no_place(pipeline: Pipeline, film_png: bytes) -> None:
    with serving(
        pipeline, Hand(until_stopped), limit_s=1.0, max_concurrent_analyses=1, max_queued_analyses=0
    ) as address:
        start = time.monotonic()
        with streaming(address, film_png) as response:
            events = events_of(response)
            while next(events)[0] != "heatmaps":
                pass
            # one place only, and it is free again: another film is taken while the first one's reader hangs
            with streaming(address, film_png) as other:
                assert next(events_of(other))[0] == "accepted"
            rest = dict(events)
        assert time.monotonic() - start < 1.0 + 1.0 + 1.0  # the limit, its allowance, and the stages before it
    assert list(rest) == ORDER[4:]
    assert "within 1 seconds" in rest["reader"]["reader"]["fallback_reason"]
    assert rest["done"]["reader"]["mode"] == "dummy"


@pytest.mark.parametrize(
    ("film", "status", "code"),
    [(b"no image", 415, "unsupported_image_type"), (noise_png(), 422, "not_a_chest_radiograph")],
)
def test_what_is_wrong_with_the_upload_is_answered_before_the_stream_begins(
    pipeline: Pipeline, film: bytes, status: int, code: str
) -> None:
    with serving(pipeline) as address, streaming(address, film) as response:
        problem = Problem.model_validate_json(response.read())
    assert (response.status_code, problem.status, problem.code) == (status, status, code)


def test_a_refused_film_gives_its_place_back(pipeline: Pipeline, film_png: bytes) -> None:
    with serving(pipeline, max_concurrent_analyses=1, max_queued_analyses=0) as address:
        for _ in range(3):
            with streaming(address, noise_png()) as response:
                assert response.status_code == 422
        for _ in range(3):
            assert [name for name, _ in all_events(address, film_png)] == ORDER


def test_an_unforeseen_failure_ends_the_stream_with_a_problem_that_tells_nothing(
    pipeline: Pipeline, film_png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("/srv/secret")

    monkeypatch.setattr(Pipeline, "conclude", fail)
    with serving(pipeline) as address:
        events = all_events(address, film_png)
    assert [name for name, _ in events] == [*ORDER[:4], "error"]
    problem = Problem.model_validate(events[-1][1])
    assert (problem.status, problem.code) == (500, "internal_error")
    assert "secret" not in problem.model_dump_json()


def test_the_stream_is_described_in_the_openapi(pipeline: Pipeline) -> None:
    operation = create_app(Settings(_env_file=None), pipeline).openapi()["paths"]["/analyze/stream"]["post"]
    assert all(name in operation["description"] for name in ORDER)
    assert {"400", "413", "415", "422", "503"} <= set(operation["responses"])
    schemas = create_app(Settings(_env_file=None), pipeline).openapi()["components"]["schemas"]
    assert {record.__name__ for record in EVENT_RECORDS.values()} <= set(schemas)


def test_a_client_of_the_whole_answer_that_leaves_stops_the_reader_too(pipeline: Pipeline, film_png: bytes) -> None:
    reader = Hand(until_stopped)
    with serving(pipeline, reader) as address:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{address}/analyze", files={"image": film_png}, timeout=1.5, trust_env=False)
        until(lambda: bool(reader.tasks) and reader.tasks[0].control.stopped)


def test_waiting_films_are_not_decoded_before_their_turn(
    pipeline: Pipeline, film_png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    for name in ("open", "see"):
        real = getattr(Pipeline, name)

        def noted(*args: Any, _real: Any = real, _name: str = name, **kwargs: Any) -> Any:
            order.append(_name)
            return _real(*args, **kwargs)

        monkeypatch.setattr(Pipeline, name, noted)
    with serving(pipeline, max_concurrent_analyses=1) as address, ThreadPoolExecutor(4) as pool:
        assert all(list(pool.map(lambda _: all_events(address, film_png), range(4))))
    assert order == ["open", "see"] * 4


def test_a_blank_film_of_any_size_streams_too(pipeline: Pipeline, film_png: bytes) -> None:
    import numpy as np

    with serving(pipeline) as address:
        events = all_events(address, as_png(np.full((300, 900), 90, np.uint8)), force="true", heatmaps="none")
    assert [name for name, _ in events] == ORDER
    assert dict(events)["heatmaps"]["heatmaps"] == {}
