"""Scripted servers on this machine: each request gets the next behaviour, and the last one repeats."""

import base64
import io
import json
import select
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from pydantic import SecretStr

from modules.errors import ReaderUnavailable
from modules.images import PNG_SIGNATURE, open_image
from modules.reasoners.attempts import Patience
from modules.reasoners.base import Control, ReaderFilm
from modules.reasoners.conversation import Writer
from modules.reasoners.replies import FIELDS, ReplyLimits, film_schema
from modules.reasoners.turns import Generation, Message, Turn

HANG_S = 5.0  # no test waits longer for a client to go
TOKEN = 8  # characters of a scripted token
QUICK = Patience(first_delay_s=0.02)
KEY = SecretStr("key-that-nobody-may-see")
SYMPTOMS = "cough that nobody may see"
ECHO = f"provider's words, {KEY.get_secret_value()}, {SYMPTOMS}"
NAME = "DOE^JANE"

FILM_REPLY = json.dumps({field: {"status": "absent", "quote": "clear"} for field in FIELDS.values()})
CLINICAL_REPLY = json.dumps(
    {"clinical_reasoning": "Nothing explains it.", "key_observations": [], "differential": [], "recommendation": ""}
)


@dataclass(frozen=True)
class Request:
    """What a client sent."""

    method: str
    path: str
    headers: dict[str, str]
    raw: bytes
    at: float = field(default_factory=time.monotonic)

    @property
    def body(self) -> Any:
        return json.loads(self.raw)


class Exchange(BaseHTTPRequestHandler):
    """One connection, as behaviours see it."""

    protocol_version = "HTTP/1.1"
    server: "_Server"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        behave = self.server.script.take(Request(self.command, self.path, headers, raw))
        with suppress(OSError):  # the client has gone
            behave(self)

    def send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def begin(self) -> None:
        """Open a stream of events."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def chunk(self, content: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(content), content))

    def wait(self, seconds: float) -> None:
        """Wait, and note it when the client closes the connection meanwhile."""
        readable, _, _ = select.select([self.connection], [], [], seconds)
        if readable:
            self.server.script.left.set()
            raise ConnectionAbortedError


Behaviour = Callable[[Exchange], None]


@dataclass
class Script:
    """What a server does, and what it saw."""

    behaviours: list[Behaviour]
    requests: list[Request] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)  # a client closed a connection that was in use
    url: str = ""

    def take(self, request: Request) -> Behaviour:
        self.requests.append(request)
        return self.behaviours.pop(0) if len(self.behaviours) > 1 else self.behaviours[0]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, script: Script) -> None:
        super().__init__(("127.0.0.1", 0), Exchange)
        self.script = script

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients that break off are what is tested."""


@contextmanager
def serving(*behaviours: Behaviour) -> Iterator[Script]:
    """Run a server; `requests` shows what it got."""
    script = Script(list(behaviours))
    server = _Server(script)
    script.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield script
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# ── Behaviours ───────────────────────────────────────────────────────────────────────────────────────────────────────


def answering(status: int, body: object = None, **headers: str) -> Behaviour:
    """Answer with JSON."""
    content = json.dumps({} if body is None else body).encode()
    named = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda exchange: exchange.send(status, content, named)


def sending(content: bytes) -> Behaviour:
    """Answer 200 with these bytes as an event stream, whatever they are."""
    return lambda exchange: exchange.send(200, content, {"Content-Type": "text/event-stream"})


def streaming(
    events: Iterable[object], *, pause_s: float = 0.0, breaks: bool = False, hangs: bool = False
) -> Behaviour:
    """Send events one by one; then end, break the connection, or say nothing more."""
    lines = [event if isinstance(event, bytes) else json.dumps(event).encode() for event in events]

    def behave(exchange: Exchange) -> None:
        exchange.begin()
        for line in lines:
            comment = line.startswith(b":")
            exchange.chunk(line + b"\n\n" if comment else b"data: " + line + b"\n\n")
            if pause_s:
                exchange.wait(pause_s)
        if hangs:
            exchange.wait(HANG_S)
        if breaks:
            exchange.close_connection = True
        else:
            exchange.chunk(b"")

    return behave


def flooding(event: object) -> Behaviour:
    """Send one event again and again, as fast as it goes, until the client leaves."""
    line = b"data: " + json.dumps(event).encode() + b"\n\n"

    def behave(exchange: Exchange) -> None:
        exchange.begin()
        while True:
            exchange.chunk(line * 100)

    return behave


def hanging(exchange: Exchange) -> None:
    """Take the request and never answer."""
    exchange.wait(HANG_S)
    exchange.close_connection = True


def dropping(exchange: Exchange) -> None:
    """Take the request and close the connection."""
    exchange.close_connection = True


# ── Gemini's events ──────────────────────────────────────────────────────────────────────────────────────────────────


def gemini_events(text: str, *, logprob: float | None = -0.1, finish: str = "STOP", other: float = -3.0) -> list[Any]:
    """Return the events of a reply, a token each."""
    tokens = [text[k : k + TOKEN] for k in range(0, len(text), TOKEN)]
    events = [gemini_event(token, logprob=logprob, other=other) for token in tokens]
    return [*events, gemini_event("", finish=finish)]


def gemini_event(
    token: str, *, logprob: float | None = None, finish: str | None = None, other: float = -3.0
) -> dict[str, Any]:
    """Return one event of Gemini."""
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": [{"text": token}]}, "index": 0}
    if finish is not None:
        candidate["finishReason"] = finish
    if logprob is not None:
        chosen = {"token": token, "tokenId": 1, "logProbability": logprob}
        rest = {"token": "?", "tokenId": 2, "logProbability": other}
        candidate["logprobsResult"] = {"chosenCandidates": [chosen], "topCandidates": [{"candidates": [chosen, rest]}]}
    return {"candidates": [candidate], "modelVersion": "scripted"}


def gemini_error(status: int, message: str, *details: dict[str, str], **headers: str) -> Behaviour:
    """Refuse as Gemini does."""
    error = {"code": status, "message": message, "status": "SCRIPTED", "details": list(details)}
    return answering(status, {"error": error}, **headers)


# ── OpenAI's events ──────────────────────────────────────────────────────────────────────────────────────────────────


def openai_events(text: str, *, logprob: float | None = -0.1, finish: str = "stop", other: float = -3.0) -> list[Any]:
    """Return the events of a reply, a token each, with all the chunks that servers add around them."""
    tokens = [text[k : k + TOKEN] for k in range(0, len(text), TOKEN)]
    start = openai_event({"role": "assistant", "content": None})
    middle = [openai_event({"content": token}, logprobs=openai_logprobs(token, logprob, other)) for token in tokens]
    usage = openai_event(None) | {"usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}
    return [start, *middle, openai_event({}, finish=finish), usage, b"[DONE]"]


def openai_logprobs(token: str, logprob: float | None, other: float = -3.0) -> dict[str, Any] | None:
    """Return the log-probabilities of one token."""
    if logprob is None:
        return None
    chosen = {"token": token, "logprob": logprob, "bytes": list(token.encode())}
    return {"content": [chosen | {"top_logprobs": [chosen, {"token": "?", "logprob": other, "bytes": None}]}]}


def openai_event(
    delta: dict[str, Any] | None, *, logprobs: dict[str, Any] | None = None, finish: str | None = None
) -> dict[str, Any]:
    """Return one chunk; without a delta, one without choices."""
    choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
    head = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "scripted"}
    return head | {"choices": [] if delta is None else [choice]}


def openai_error(status: int, message: str, param: str | None = None, **headers: str) -> Behaviour:
    """Refuse as OpenAI does."""
    return answering(status, {"error": {"message": message, "type": "x", "param": param, "code": None}}, **headers)


# ── What both back ends are asked, and what is asked of both ─────────────────────────────────────────────────────────


def film() -> tuple[ReaderFilm, bytes]:
    """Return a film, and the upload that it came from, which names a patient."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30), np.uint8)
    notes = PngImagePlugin.PngInfo()
    notes.add_text("PatientName", NAME)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", pnginfo=notes, dpi=(300, 300))
    return ReaderFilm.of(open_image(out.getvalue()).decode()), out.getvalue()


FILM, UPLOAD = film()
TURN = Turn(
    "film",
    (
        Message("system", "You describe films."),
        Message("user", f"Describe this one. {SYMPTOMS}", with_film=True),
        Message("assistant", "not JSON"),
        Message("user", "Again, as JSON."),
    ),
    film_schema(ReplyLimits.within(4096), plain=False),
    4096,
)


def check_privacy(sent: bytes, base64_png: str) -> None:
    """Check that the image holds the pixels of the film and nothing else, and the request nothing else of the file."""
    png = base64.b64decode(base64_png.translate(str.maketrans("-_", "+/")), validate=True)  # Google's spelling too
    decoded = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    assert decoded is not None and np.array_equal(decoded, FILM.pixels)
    assert set(chunks_of(png)) == {b"IHDR", b"IDAT", b"IEND"}
    assert NAME.encode() in UPLOAD
    rest = sent.replace(base64_png.encode(), b"")
    for of_the_file in (NAME, "PatientName", base64.b64encode(NAME.encode()).decode()[:8], "iVBOR"):
        assert of_the_file.encode() not in rest
    assert NAME.encode() not in png


def chunks_of(png: bytes) -> list[bytes]:
    """Return the names of a PNG's chunks, which must fill the file."""
    names, at = [], len(PNG_SIGNATURE)
    assert png.startswith(PNG_SIGNATURE)
    while at < len(png):
        names.append(png[at + 4 : at + 8])
        at += 12 + int.from_bytes(png[at : at + 4], "big")
    assert at == len(png)
    return names


def refused(writer: Writer, *, limit_s: float = 5.0) -> str:
    """Return why a writer gave no reply; the sentence and what is behind it must be fit to be seen."""
    with pytest.raises(ReaderUnavailable) as caught:
        writer.write(TURN, FILM, Control(limit_s))
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    check_discreet(str(caught.value))
    return str(caught.value)


def check_discreet(text: str) -> None:
    for secret in (KEY.get_secret_value(), SYMPTOMS, "provider's", NAME, "iVBOR", "http"):
        assert secret not in text


def check_quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Check that a test logged nothing at any level; `asyncio` names the kind of its selector."""
    records = caplog.get_records("call")  # those of the test itself, also for a fixture that ends after it
    assert [record.getMessage() for record in records if record.name != "asyncio"] == []


def stopped_after(writer: Writer, ready: Callable[[], bool]) -> float:
    """Stop a writer from another thread once `ready`, and return how many seconds it took to notice."""
    control = Control(30)
    at: list[float] = []

    def stop() -> None:
        deadline = time.monotonic() + 2
        while not ready() and time.monotonic() < deadline:
            time.sleep(0.005)
        at.append(time.monotonic())
        control.stop()

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(ReaderUnavailable, match="stopped"):
        writer.write(TURN, FILM, control)
    took = time.monotonic() - at[0]
    thread.join()
    return took


def timed(writer: Writer, limit_s: float) -> tuple[str, float]:
    start = time.monotonic()
    return refused(writer, limit_s=limit_s), time.monotonic() - start


def written(writer: Writer) -> Generation:
    return writer.write(TURN, FILM, Control(5))


class Listener:
    """Hears the words of a draft, and stops the reading at the first ones where it is told to."""

    def __init__(self, *, stops: bool = False) -> None:
        self.words: list[str] = []
        self._stops = stops
        self.control = Control(5, self._hear)

    def _hear(self, turn: str, words: str) -> None:
        assert turn == TURN.name
        self.words.append(words)
        if self._stops:
            self.control.stop()


def noting(seen: list[str | None], control: Control, then: Behaviour) -> Behaviour:
    """Note where the film is said to go when it arrives."""

    def behave(exchange: Exchange) -> None:
        seen.append(control.film_sent_to)
        then(exchange)

    return behave
