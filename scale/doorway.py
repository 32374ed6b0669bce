"""What stands before the replicas, in the process that takes the requests of all of them.

Without it, a request whose replica is lost would be answered with a bare 500 or with text that Ray made. It bounds what
comes in as the application itself does, so that no body fills the memory here, and gives every request its id.
"""

import logging

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import logs, problems
from api.access import Access
from api.middleware import REQUEST_ID_HEADER, RequestBoundary
from modules.answers import Problem
from modules.settings import Settings

logger = logging.getLogger("assistant.doorway")

MAX_BODIES = 64  # chosen: uploads on their way at the same time, at most 3.2 GiB of them with the usual limit
RETRY_AFTER_S = 2  # chosen: another replica can take the film at once, a full queue moves within seconds
START_RETRY_S = 5  # chosen: replicas start within tens of seconds
EVENT_STREAM = "text/event-stream"

BUSY = "All replicas are taken. Send the request again a little later."
LOST = "The process that worked on this request was lost. Send the request again."
STARTING = "No replica has started yet. Send the request again a little later."


def middlewares() -> list[Middleware]:
    """Return what Ray Serve puts around its proxy, by the settings of the machine on which that runs."""
    logs.configure("warning")  # each replica logs its own requests
    return [Middleware(Doorway, settings=Settings())]


class Doorway:
    """The outermost layer of an ASGI application that hands requests to replicas."""

    def __init__(self, app: ASGIApp, settings: Settings, max_bodies: int = MAX_BODIES) -> None:
        self._bounded = RequestBoundary(_Replicas(app), Access(settings), settings.max_upload_bytes, max_bodies)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        await self._bounded(scope, receive, send)


class _Replicas:
    """Hands a request on, and answers it where no replica did."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = str(scope["state"]["request_id"])
        MutableHeaders(scope=scope)[REQUEST_ID_HEADER] = request_id  # the replica's log and answer then say the same
        gone = False

        async def heard() -> Message:
            nonlocal gone
            message = await receive()
            gone = gone or message["type"] == "http.disconnect"
            return message

        answer = _Answer(request_id, send)
        await self._app(scope, heard, answer.send)
        if not gone:
            await answer.finish(scope, receive)


class _Answer:
    """The answer of a replica, or what stands for it.

    The head is held back until the body begins: a replica that is lost between the two has given no answer.
    """

    def __init__(self, request_id: str, send: Send) -> None:
        self._request_id = request_id
        self._send = send
        self._head: Message | None = None
        self._refused: int | None = None  # the status of an answer that Ray made
        self._begun = self._ended = self._is_stream = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            kind = Headers(raw=message["headers"]).get("content-type", "")
            if _made_by_ray(message["status"], kind):
                self._refused = message["status"]
            else:
                self._head, self._is_stream = message, kind.startswith(EVENT_STREAM)
        elif self._refused is None:
            if self._head is not None:
                await self._send(self._head)
                self._head, self._begun = None, True
            await self._send(message)
            self._ended = not message.get("more_body", False)

    async def finish(self, scope: Scope, receive: Receive) -> None:
        """See to it that the request has an answer to its end, or that its connection breaks off."""
        if self._ended:
            return
        problem, after_s = self._problem()
        logger.warning(problem.code, extra={"fields": {"request_id": self._request_id, "begun": self._begun}})
        if not self._begun:
            await problems.answer(problem, {"Retry-After": str(after_s)})(scope, receive, self._send)
        elif self._is_stream:
            event = f"event: error\ndata: {problem.model_dump_json(exclude_none=True)}\n\n"
            await self._send({"type": "http.response.body", "body": event.encode(), "more_body": False})
        else:
            raise ConnectionAbortedError("the answer broke off")

    def _problem(self) -> tuple[Problem, int]:
        if self._refused == 404:
            code, detail, after_s = "starting", STARTING, START_RETRY_S
        elif self._refused in (408, 503):
            code, detail, after_s = "busy", BUSY, RETRY_AFTER_S
        else:
            code, detail, after_s = "replica_lost", LOST, RETRY_AFTER_S
        title = "Service Unavailable"
        return Problem(title=title, status=503, detail=detail, code=code, request_id=self._request_id), after_s


def _made_by_ray(status: int, content_type: str) -> bool:
    """Whether an answer is none of the application's, whose errors are problems."""
    return (status in (404, 408) or status >= 500) and not content_type.startswith(problems.MEDIA_TYPE)
