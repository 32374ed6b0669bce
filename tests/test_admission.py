"""Who is let in, in which order films have their turn, and that nobody who asks for one answer waits for those who ask
for many."""

import asyncio
import gc
import socket
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from api import middleware
from api.admission import KEPT_FOR_OTHERS, Admission, Place, Shares
from benchmarks.load import Client, shot
from benchmarks.servers import serving_here
from main import create_app
from modules.errors import Busy
from modules.multimodal_reasoning import SecondReader
from modules.pipeline import Pipeline
from modules.quality import InputGate
from modules.reasoners.base import Reader, ReaderTask
from modules.reasoners.dummy import DummyReader
from modules.records import Reading
from modules.settings import Settings
from tests.api_requests import Doorman
from tests.conftest import MakeClient, as_png
from tests.stages import read

# ── Places ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def taken_by(shares: Shares, client: str, wanted: int = 1000) -> int:
    return sum(shares.take(client) for _ in range(wanted))


@pytest.mark.parametrize("total", [1, 2, KEPT_FOR_OTHERS - 1, KEPT_FOR_OTHERS, 18, 64])
def test_a_client_that_takes_all_it_can_leaves_some_places_to_others_where_there_are_enough(total: int) -> None:
    shares = Shares(total)
    kept = total // KEPT_FOR_OTHERS
    assert taken_by(shares, "greedy") == total - kept
    assert taken_by(shares, "other") == kept
    assert not shares.take("third")
    shares.give_back("greedy")
    assert shares.taken == total - 1


def test_sixteen_requests_of_one_client_have_places_by_default() -> None:
    settings = Settings(_env_file=None)
    assert taken_by(Shares(settings.max_concurrent_analyses + settings.max_queued_analyses), "one") == 16


def test_addresses_are_forgotten_with_their_last_place() -> None:
    shares = Shares(4)
    for number in range(100):
        assert shares.take(f"client {number}")
        shares.give_back(f"client {number}")
    assert not shares._taken


# ── Turns ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def queued(admission: Admission, order: list[int], number: int, hold: asyncio.Event | None = None) -> None:
    with admission.place(f"client {number}") as place:
        await place.wait_for_turn()
        order.append(number)
        await (hold.wait() if hold else asyncio.sleep(0))


@pytest.mark.parametrize("running", [1, 2, 3])
def test_turns_come_in_the_order_in_which_films_came(running: int) -> None:
    async def scene() -> list[int]:
        admission, order = Admission(running, 20), list[int]()
        gates = [asyncio.Event() for _ in range(12)]
        tasks = []
        for number, gate in enumerate(gates):
            tasks.append(asyncio.create_task(queued(admission, order, number, gate)))
            await asyncio.sleep(0)
        assert len(order) == running
        # the slowest of those who work ends last: it must not hold up the row
        for gate in [*gates[1:], gates[0]]:
            gate.set()
            await asyncio.sleep(0.001)
        await asyncio.gather(*tasks)
        return order

    assert asyncio.run(scene()) == list(range(12))


def test_one_who_comes_when_a_turn_is_given_back_does_not_overtake_those_who_wait() -> None:
    async def scene() -> list[int]:
        admission, order, gate = Admission(1, 5), list[int](), asyncio.Event()
        tasks = [
            asyncio.create_task(queued(admission, order, 0, gate)),
            asyncio.create_task(queued(admission, order, 1)),
        ]
        await asyncio.sleep(0)
        gate.set()
        tasks.append(asyncio.create_task(queued(admission, order, 2)))
        await asyncio.gather(*tasks)
        return order

    assert asyncio.run(scene()) == [0, 1, 2]


def test_one_who_stops_waiting_leaves_the_row_and_makes_room() -> None:
    async def scene() -> list[int]:
        admission, order, gate = Admission(1, 1), list[int](), asyncio.Event()
        first = asyncio.create_task(queued(admission, order, 0, gate))
        second = asyncio.create_task(queued(admission, order, 1))
        await asyncio.sleep(0.001)
        with pytest.raises(Busy):
            admission.place()
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        third = asyncio.create_task(queued(admission, order, 2))
        await asyncio.sleep(0.001)
        gate.set()
        await asyncio.gather(first, third)
        return order

    assert asyncio.run(scene()) == [0, 2]


def test_retry_after_grows_with_the_work_ahead() -> None:
    async def told(running: int, waiting: int) -> int:
        admission = Admission(running, waiting)
        places = [admission.place(str(number)) for number in range(running + waiting)]
        with pytest.raises(Busy) as refused:
            admission.place("late")
        for place in places:
            place.leave()
        return refused.value.retry_after_s

    times = [asyncio.run(told(2, waiting)) for waiting in (0, 8, 16)]
    assert times == sorted(set(times))
    assert times[0] >= 1


# ── The server ───────────────────────────────────────────────────────────────────────────────────────────────────────


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.01)


@contextmanager
def queue_of(doorman: Doorman, **settings: Any) -> Iterator[tuple[str, list[Any]]]:
    """A server whose films wait for the doorman, and what was done in its turns, in order."""
    done: list[Any] = []
    pipeline: Any = doorman.pipeline
    for name in ("open", "render"):
        real = getattr(pipeline, name)

        def noted(*args: Any, _real: Any = real, _name: str = name, **kwargs: Any) -> Any:
            done.append(_name)
            return _real(*args, **kwargs)

        setattr(pipeline, name, noted)
    with serving_here(create_app(Settings(_env_file=None, max_concurrent_analyses=1, **settings), pipeline)) as address:
        try:
            yield address, done
        finally:
            doorman.open.set()


def post(address: str, path: str, film: bytes, **fields: str) -> httpx.Response:
    return httpx.post(f"{address}{path}", files={"image": film}, data=fields, timeout=30, trust_env=False)


def test_previews_and_analyses_stand_in_one_row(
    pipeline: Pipeline, film_png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    doorman = Doorman(pipeline)
    paths = ["/analyze", "/render", "/render", "/analyze/stream", "/analyze", "/render"]
    with queue_of(doorman) as (address, done), ThreadPoolExecutor(len(paths)) as pool:
        came = threading.Semaphore(0)
        place = Admission.place

        def noted(self: Admission, client: str = "") -> Place:
            try:
                return place(self, client)
            finally:
                came.release()

        monkeypatch.setattr(Admission, "place", noted)
        sent = []
        for path in paths:
            sent.append(pool.submit(post, address, path, film_png))
            assert came.acquire(timeout=10)  # each is in the row before the next one comes
        doorman.open.set()
        assert [response.result().status_code for response in sent] == [200] * len(paths)
    assert done == ["render" if path == "/render" else "open" for path in paths]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has more than one loopback address")
def test_a_client_with_many_connections_leaves_room_for_one_with_a_single_request(
    pipeline: Pipeline, film_png: bytes
) -> None:
    doorman = Doorman(pipeline)
    request = shot("/render", film_png, "film").request

    async def ask(address: str, source: str) -> int:
        client = Client(address, source)
        try:
            return (await client.ask(request)).status
        finally:
            client.close()

    async def scene(address: str) -> tuple[list[int], int]:
        flood = [asyncio.create_task(ask(address, "127.0.0.1")) for _ in range(40)]
        refused = 0
        while refused < 40 - 14:  # of 16 places two are kept
            await asyncio.sleep(0.02)
            refused = sum(task.done() for task in flood)
        single = asyncio.create_task(ask(address, "127.0.0.2"))
        await asyncio.sleep(0.1)
        assert not single.done(), "the other client was not let in"
        doorman.open.set()
        return [await task for task in flood], await single

    with queue_of(doorman, max_queued_analyses=15) as (address, _):
        flood, single = asyncio.run(asyncio.wait_for(scene(address), 20))
    assert single == 200
    assert sorted(flood) == [200] * 14 + [503] * 26


def test_no_work_is_done_for_a_client_that_left_before_its_turn(pipeline: Pipeline, film_png: bytes) -> None:
    doorman = Doorman(pipeline)
    with queue_of(doorman) as (address, done), ThreadPoolExecutor(2) as pool:
        first = pool.submit(post, address, "/analyze", film_png)
        assert doorman.entered.acquire(timeout=10)
        for path in ("/analyze", "/analyze/stream", "/render"):
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{address}{path}", files={"image": film_png}, timeout=0.2, trust_env=False)
        doorman.open.set()
        assert first.result().status_code == 200
        assert post(address, "/render", film_png).status_code == 200
    assert done == ["open", "render"]


class Hanging(Reader):
    """A reader that never answers."""

    mode = "local"
    model = "hangs"
    looks_at_film = True
    reading = 0  # films that any of them was given

    def read(self, task: ReaderTask) -> Reading:
        Hanging.reading += 1
        stopped = threading.Event()
        task.control.when_stopped(stopped.set)
        stopped.wait(30)
        return read()


def test_readers_that_hang_hold_up_no_answer_of_the_cnn(pipeline: Pipeline, film_png: bytes) -> None:
    """More films than there may be readings or places."""
    films = 40
    second = SecondReader("local", (Hanging(), DummyReader()), limit_s=30.0)
    own = Pipeline(pipeline.cnn, InputGate.load(), second)
    request = shot("/analyze/stream", film_png, "film", mark=b"event: cnn", heatmaps="none")

    async def first_words(address: str) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port(address))
        writer.write(request.request)
        await reader.readuntil(b"event: cnn")
        streams.append(writer)

    streams: list[asyncio.StreamWriter] = []

    async def scene(address: str) -> None:
        for _ in range(films):
            await asyncio.wait_for(first_words(address), 5)
        for writer in streams:
            writer.close()

    with serving_here(create_app(Settings(_env_file=None), own)) as address:
        asyncio.run(scene(address))
    assert len(streams) == films


def test_analyses_that_wait_for_their_readers_take_no_turn(pipeline: Pipeline, film_png: bytes) -> None:
    second = SecondReader("local", (Hanging(), DummyReader()), limit_s=30.0)
    app = create_app(Settings(_env_file=None), Pipeline(pipeline.cnn, InputGate.load(), second))
    request, before = shot("/analyze", film_png, "film").request, Hanging.reading
    with serving_here(app) as address, ExitStack() as stack:
        for _ in range(4):  # more than may work at once
            waiting = stack.enter_context(socket.create_connection(("127.0.0.1", port(address)), timeout=10))
            waiting.sendall(request)
        until(lambda: Hanging.reading >= before + 4)
        files = {"image": ("film", film_png)}
        assert httpx.post(f"{address}/render", files=files, timeout=10, trust_env=False).status_code == 200


@pytest.mark.skipif(sys.platform != "linux", reason="open files are listed as Linux does it")
def test_a_film_that_waits_for_a_reader_takes_no_disk(pipeline: Pipeline) -> None:
    noise = np.random.default_rng(0).integers(96, 160, (1400, 1400), np.uint8)  # too large to be kept in memory
    second = SecondReader("local", (Hanging(), DummyReader()), limit_s=30.0)
    app = create_app(Settings(_env_file=None), Pipeline(pipeline.cnn, InputGate.load(), second))

    def spooled() -> int:
        found: list[str] = []
        for entry in Path("/proc/self/fd").iterdir():
            with suppress(OSError):  # closed meanwhile
                found.append(str(entry.readlink()))
        return sum(name.startswith(tempfile.gettempdir()) and name.endswith("(deleted)") for name in found)

    gc.collect()  # files of other tests
    before = spooled()
    request = shot("/analyze/stream", as_png(noise), "film", heatmaps="none", force="true").request
    with serving_here(app) as address, socket.create_connection(("127.0.0.1", port(address)), timeout=20) as stream:
        stream.sendall(request[:-10])
        until(lambda: spooled() == before + 1)
        stream.sendall(request[-10:])
        said = b""
        while b"event: cnn" not in said:
            said += (more := stream.recv(1 << 16))
            assert more, said
        until(lambda: spooled() == before)


def port(address: str) -> int:
    found = httpx.URL(address).port
    assert found is not None
    return found


# ── Uploads ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def half_sent(address: str, film: bytes) -> Iterator[socket.socket]:
    """Begin an upload, and stop in its middle."""
    request = shot("/render", film, "film").request
    with socket.create_connection(("127.0.0.1", port(address)), timeout=10) as connection:
        connection.sendall(request[: len(request) // 2])
        time.sleep(0.05)  # the server has begun with it
        yield connection


def test_uploads_beyond_the_bound_are_refused_before_their_body_is_read(pipeline: Pipeline, film_png: bytes) -> None:
    request = shot("/render", film_png, "film").request
    app = create_app(Settings(_env_file=None, max_queued_analyses=6), pipeline)
    with serving_here(app) as address, ExitStack() as stack:
        slow = [stack.enter_context(half_sent(address, film_png)) for _ in range(7)]  # of 8 one is kept
        with half_sent(address, film_png) as late:
            answer = late.recv(1 << 16).lower()  # its body never ends, so this came before
        assert b" 503 " in answer
        assert b"retry-after: " in answer
        assert httpx.get(f"{address}/health", trust_env=False).status_code == 200
        slow[0].sendall(request[len(request) // 2 :])
        assert b" 200 " in slow[0].recv(1 << 10)
        assert post(address, "/render", film_png).status_code == 200
        with half_sent(address, film_png):
            assert post(address, "/render", film_png).status_code == 503
        slow[1].close()  # a broken upload gives its place back too
        until(lambda: post(address, "/render", film_png).status_code == 200)


@pytest.mark.parametrize(("path", "kind", "status"), [
    ("/nowhere", "multipart/form-data; boundary=X", 404),
    ("/analyze", "multipart/form-data", 400),
    ("/analyze", "text/plain", 422),
])  # fmt: skip
def test_a_body_that_nobody_reads_gives_its_place_back(
    make_client: MakeClient, film_png: bytes, path: str, kind: str, status: int
) -> None:
    client = make_client()
    answers = [client.post(path, content=bytes(50_000), headers={"Content-Type": kind}) for _ in range(40)]
    assert {answer.status_code for answer in answers} == {status}
    assert client.post("/render", files={"image": ("film", film_png)}).status_code == 200


@pytest.mark.parametrize("bound", ["BODY_STALL_S", "BODY_LIMIT_S"])
def test_an_upload_that_does_not_come_is_ended(
    pipeline: Pipeline, film_png: bytes, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    monkeypatch.setattr(middleware, bound, 0.3)
    with serving_here(create_app(Settings(_env_file=None), pipeline)) as address:
        with half_sent(address, film_png) as connection:
            answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))  # until the server closes it
        assert b" 408 " in answer
        assert b"upload_too_slow" in answer
        assert post(address, "/render", film_png).status_code == 200


def test_an_upload_that_comes_slowly_but_steadily_is_taken(
    pipeline: Pipeline, film_png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(middleware, "BODY_STALL_S", 0.5)
    step = len(film_png) // 8

    async def drip() -> AsyncIterator[bytes]:
        body = shot("/render", film_png, "film").request.split(b"\r\n\r\n", 1)[1]
        for start in range(0, len(body), step):
            yield body[start : start + step]
            await asyncio.sleep(0.1)

    async def scene(address: str) -> int:
        kind = {"Content-Type": "multipart/form-data; boundary=----------------film"}
        async with httpx.AsyncClient(trust_env=False) as client:
            return (await client.post(f"{address}/render", content=drip(), headers=kind)).status_code

    with serving_here(create_app(Settings(_env_file=None), pipeline)) as address:
        assert asyncio.run(scene(address)) == 200
