"""A load generator that costs little: requests that are made before, bare sockets, answers that nobody parses."""

import asyncio
import itertools
import random
import socket
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

BUSY = 503
NO_ANSWER = 0  # stands for the status where there was none
LIMIT_S = 120.0  # chosen: no answer of the server takes as long
PROBE_PAUSE_S = 0.02
KEEP_ALIVE_S = 2.0  # less than the server's 5 s: it must not close a connection just when it is used again
IMPATIENT_S = 0.05  # before a client that does not wait as it is told sends again
MAX_HEAD = 1 << 16  # bytes
BOUNDARY = "----------------film"


@dataclass(frozen=True)
class Shot:
    """A whole HTTP request, the name it is counted under, and the status that is its right answer."""

    name: str
    request: bytes
    expected: int = 200
    mark: bytes = b""  # what to time in the answer


@dataclass(frozen=True)
class Sender:
    """A client of a closed loop: what it sends, the address that it comes from, whether it waits as it is told."""

    shots: Iterator[Shot]
    source: str | None = None
    waits: bool = True


@dataclass(frozen=True)
class Outcome:
    """What became of one request; seconds count from the moment it was due, refusals and waits included."""

    name: str
    status: int
    expected: int
    seconds: float
    marked: float | None = None
    refusals: int = 0
    clean: bool = True  # every refusal said when to come back

    @property
    def answered(self) -> bool:
        """It got its right answer in the end."""
        return self.status == self.expected

    @property
    def refused(self) -> bool:
        """A clean 503 was all it got."""
        return self.status == BUSY and self.clean


@dataclass
class Load:
    """What a load came to: its outcomes, how long it took, and what share of a core the generator itself took."""

    outcomes: list[Outcome] = field(default_factory=list)
    in_time: int = 0  # right answers before the time was over
    seconds: float = 0.0
    own_cores: float = 0.0

    @property
    def rate(self) -> float:
        """Right answers per second."""
        return self.in_time / self.seconds


@dataclass(frozen=True)
class Answer:
    """What the generator looks at in an answer."""

    status: int
    retry_after_s: int | None
    marked: float | None  # time.perf_counter() when the mark came


def shot(path: str, film: bytes, name: str, *, expected: int = 200, mark: bytes = b"", **fields: str) -> Shot:
    """Make the request that posts a film to a path of the API."""
    parts = [f'name="{key}"\r\n\r\n{value}\r\n'.encode() for key, value in fields.items()]
    parts.append(b'name="image"; filename="film"\r\nContent-Type: application/octet-stream\r\n\r\n' + film + b"\r\n")
    head = f"--{BOUNDARY}\r\nContent-Disposition: form-data; ".encode()
    body = b"".join(head + part for part in parts) + f"--{BOUNDARY}--\r\n".encode()
    lines = (
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}",
        f"Content-Length: {len(body)}",
        "\r\n",
    )
    return Shot(name, "\r\n".join(lines).encode() + body, expected, mark)


class Client:
    """One connection, opened again where the server has closed it; `source` is the address that it comes from."""

    def __init__(self, url: str, source: str | None = None) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._address = (parts.hostname, parts.port)
        self._source = (source, 0) if source else None
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._idle_since = 0.0

    async def ask(self, request: bytes, mark: bytes = b"") -> Answer:
        """Send a request and read its answer to the end; raises OSError or EOFError when there is none."""
        reader = await self.send(request)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.decode("latin-1").lower().split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
            if "content-length" in headers:
                await reader.readexactly(int(headers["content-length"]))
                marked = None
            else:
                marked = await _read_chunks(reader, mark)
        except BaseException:
            self.close()
            raise
        if headers.get("connection") == "close":
            self.close()
        self._idle_since = time.perf_counter()
        after = headers.get("retry-after", "")
        return Answer(int(lines[0].split()[1]), int(after) if after.isdecimal() else None, marked)

    async def send(self, part: bytes) -> asyncio.StreamReader:
        """Send a request, or a part of one; the answer comes from the reader that is returned."""
        if time.perf_counter() > self._idle_since + KEEP_ALIVE_S:
            self.close()
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._address, local_addr=self._source, limit=MAX_HEAD)
            self._streams[1].get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reader, writer = self._streams
        writer.write(part)
        self._idle_since = time.perf_counter()
        return reader

    def close(self) -> None:
        """Close the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def _read_chunks(reader: asyncio.StreamReader, mark: bytes) -> float | None:
    marked = None
    while size := int(await reader.readuntil(b"\r\n"), 16):
        chunk = await reader.readexactly(size + 2)
        if marked is None and mark and mark in chunk:
            marked = time.perf_counter()
    await reader.readexactly(2)
    return marked


async def fire(client: Client, one: Shot, due: float, *, patient: bool, waits: bool = True) -> Outcome:
    """Send one request; a patient client sends it again when a refusal says so, or soon where it does not wait."""
    refusals, clean = 0, True
    while True:
        try:
            answer = await asyncio.wait_for(client.ask(one.request, one.mark), LIMIT_S)
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError):
            return Outcome(one.name, NO_ANSWER, one.expected, time.perf_counter() - due, None, refusals, clean)
        if answer.status == BUSY:
            refusals += 1
            clean = clean and answer.retry_after_s is not None
            if patient and answer.retry_after_s is not None:
                await asyncio.sleep(answer.retry_after_s if waits else IMPATIENT_S)
                continue
        marked = None if answer.marked is None else answer.marked - due
        seconds = time.perf_counter() - due
        return Outcome(one.name, answer.status, one.expected, seconds, marked, refusals, clean)


async def closed_loop(url: str, senders: Sequence[Sender], *, seconds: float = 0.0, requests: int = 0) -> Load:
    """Let clients send one request after another, for a time or until so many were sent by all of them.

    What ends after the time does not count for the rate, which is then that of a full house.
    """
    load = Load()
    numbers = iter(range(requests)) if requests else itertools.count()
    with _measured(load):
        start = time.perf_counter()

        async def send(sender: Sender) -> None:
            client = Client(url, sender.source)
            while not seconds or time.perf_counter() < start + seconds:
                if next(numbers, None) is None:
                    break
                due = time.perf_counter()
                outcome = await fire(client, next(sender.shots), due, patient=True, waits=sender.waits)
                load.outcomes.append(outcome)
                load.in_time += outcome.answered and (not seconds or time.perf_counter() <= start + seconds)
            client.close()

        await asyncio.gather(*(send(sender) for sender in senders))
        load.seconds = seconds or time.perf_counter() - start
    return load


async def open_loop(url: str, shots: Iterator[Shot], rate: float, seconds: float, seed: int = 0) -> Load:
    """Send requests at random moments, so many per second on average, whatever becomes of the ones before."""
    load, rng = Load(), random.Random(seed)
    idle: list[Client] = []

    async def send(one: Shot, due: float) -> None:
        client = idle.pop() if idle else Client(url)
        outcome = await fire(client, one, due, patient=False)
        load.outcomes.append(outcome)
        load.in_time += outcome.answered and time.perf_counter() <= start + seconds
        idle.append(client)

    with _measured(load):
        start = due = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            while (due := due + rng.expovariate(rate)) < start + seconds:
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                group.create_task(send(next(shots), due))
    load.seconds = seconds
    for client in idle:
        client.close()
    return load


@contextmanager
def _measured(load: Load) -> Iterator[None]:
    """Note the cores that this process takes meanwhile: they are taken from the server."""
    start, own = time.perf_counter(), time.process_time()
    yield
    load.own_cores = (time.process_time() - own) / (time.perf_counter() - start)


@asynccontextmanager
async def probing(url: str) -> AsyncIterator[list[float]]:
    """Ask `/health` all the time; yields the seconds that each answer took, infinite where there was none."""
    found: list[float] = []
    client, question = Client(url), b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"

    async def probe() -> None:
        while True:
            start = time.perf_counter()
            try:
                status = (await asyncio.wait_for(client.ask(question), LIMIT_S)).status
            except (OSError, EOFError, ValueError):
                status = NO_ANSWER
            found.append(time.perf_counter() - start if status == 200 else float("inf"))
            await asyncio.sleep(PROBE_PAUSE_S)

    task = asyncio.create_task(probe())
    try:
        yield found
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        client.close()
