"""`POST /analyze/stream`: what is known of a film is sent at once, while the second reader still writes."""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import anyio
import anyio.to_thread
from fastapi.sse import ServerSentEvent
from pydantic import BaseModel
from starlette.requests import Request

from api.admission import Place
from modules.events import EVENT_RECORDS, Accepted, EventName, ReaderWords, closing_events
from modules.pipeline import Opened, Pipeline, Seen
from modules.reasoners.base import Control, OnWords
from modules.reasoners.turns import TurnName
from modules.records import DISCLAIMER, HeatmapChoice, ReaderInfo, Reading
from modules.settings import ReaderMode

T = TypeVar("T")

# Readers wait for other machines or processes, so that many threads cost little; the pipeline has its own limit below.
READER_THREADS = 64
DISCONNECT_POLL_S = 0.5

STREAM_DESCRIPTION = (
    "Server-sent events, in this order: accepted, quality, cnn, heatmaps, any number of reader_words (a draft, until "
    "the reply has passed its checks), reader, fusion, uncertainty, risk, done. The data of done is the answer of "
    "POST /analyze; error, with a problem as its data, ends a stream that cannot go on. What is wrong with the upload "
    "is answered before the stream begins, as by POST /analyze. A client that goes away stops the second reader. "
    "Schemas of the data: "
    + ", ".join(f"{name}: {record.__name__}" for name, record in EVENT_RECORDS.items())
    + "; error: Problem."
)


async def events(
    pipeline: Pipeline,
    readers: anyio.CapacityLimiter,
    film: "AdmittedFilm",
    heatmaps: HeatmapChoice,
) -> AsyncIterator[ServerSentEvent]:
    """Yield the events of one film in the order in which its stages end; closing this stops the reader."""
    yield _event("accepted", Accepted(request_id=film.opened.request_id, disclaimer=DISCLAIMER))
    yield _event("quality", film.opened.quality)
    seen = await film.run(lambda: pipeline.see(film.opened, heatmaps))
    film.leave()  # waiting for a reader takes no place from others, and no memory for the film in its full size
    yield _event("cnn", seen.cnn)
    yield _event("heatmaps", seen.drawn)
    reading = _Reading(pipeline, seen, readers)
    try:
        async for words in reading.words():
            yield _event("reader_words", words)
        read = await reading.result()
    finally:
        reading.stop()
    analysis = await anyio.to_thread.run_sync(lambda: pipeline.conclude(seen, *read))
    for name, payload in closing_events(analysis):
        yield _event(name, payload)


class AdmittedFilm:
    """A film that was opened, and its place among those admitted, until the CNN has seen it."""

    def __init__(self, opened: Opened, place: Place) -> None:
        self._opened: Opened | None = opened
        self._place = place

    @property
    def opened(self) -> Opened:
        """The film; not to be asked for after `leave`."""
        assert self._opened is not None
        return self._opened

    async def run(self, work: Callable[[], T]) -> T:
        """Run `work` in a thread, in the turn in which the film was opened."""
        return await self._place.run(work)

    def leave(self) -> None:
        """Give up the place and the film."""
        self._opened = None
        self._place.leave()


def _event(name: EventName, payload: BaseModel) -> ServerSentEvent:
    return ServerSentEvent(event=name, raw_data=payload.model_dump_json())


class _Reading:
    """The second reader at work in a thread, and its draft on the event loop."""

    def __init__(self, pipeline: Pipeline, seen: Seen, readers: anyio.CapacityLimiter) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[ReaderWords | None] = asyncio.Queue()
        self._watch = Control()
        read = functools.partial(pipeline.read, seen, watch=self._watch, on_words=self._listener)
        self._task = asyncio.create_task(anyio.to_thread.run_sync(read, limiter=readers))
        self._task.add_done_callback(self._end)

    def _end(self, task: "asyncio.Task[tuple[Reading, ReaderInfo]]") -> None:
        if not task.cancelled():
            task.exception()  # asyncio would else print what nobody asks for any longer
        self._queue.put_nowait(None)

    def _listener(self, mode: ReaderMode) -> OnWords:
        def hear(turn: TurnName, words: str) -> None:
            payload = ReaderWords(mode=mode, turn=turn, words=words)
            self._loop.call_soon_threadsafe(self._queue.put_nowait, payload)

        return hear

    async def words(self) -> AsyncIterator[ReaderWords]:
        """Yield the draft as it is written, until the reader has ended."""
        while (payload := await self._queue.get()) is not None:
            yield payload

    async def result(self) -> tuple[Reading, ReaderInfo]:
        """Return the checked reading."""
        return await self._task

    def stop(self) -> None:
        """Stop the reader, if it still reads: nobody listens any longer."""
        self._watch.stop()


async def stop_when_gone(request: Request, watch: Control) -> None:
    """Stop a reading once the client that asked for it has gone."""
    while not await request.is_disconnected():
        await anyio.sleep(DISCONNECT_POLL_S)
    watch.stop()
