"""What happens around every request: its id, access, a bound on its body, one line of log, an answer to any error."""

import asyncio
import logging
import re
import time
import traceback
import uuid

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import problems
from api.access import Access, client_of, stamp
from api.admission import Shares
from modules.errors import Busy, shortage_in
from modules.settings import MEBIBYTE

logger = logging.getLogger("assistant.http")

REQUEST_ID_HEADER = "X-Request-ID"
FORM_OVERHEAD_BYTES = MEBIBYTE  # what a form may add to the film that it carries
BODY_STALL_S = 30.0  # chosen: how long a body may stand still
BODY_LIMIT_S = 600.0  # chosen: 50 MiB at 0.7 Mbit/s
BODY_RETRY_S = 2  # chosen: most uploads take less
MANY_BODIES = "Too many uploads are under way. Send the film again a little later."
ENDING = "The server is being stopped. Send the film again when it is back."
GRACE_IS_OVER = "graceful shutdown"  # in uvicorn's words when it waits no longer; it would answer 500, with a trace
ENDING_RETRY_S = 30  # chosen: a start takes seconds
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
MAX_CONTENT_TYPE = 512  # characters
_FOREIGN_CHARSET = re.compile(r"charset(?!\s*=\s*\"?utf-?8\b)")
_ACCEPTED_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class BodyRefused(Exception):
    """The body of a request is not read any further; raised where it is read."""


class RequestBoundary:
    """The outermost layer of the application.

    It logs the route's own path, never the address that was asked for, and the class and place of an unforeseen error,
    never its text: either may hold what somebody typed.
    """

    def __init__(self, app: ASGIApp, access: Access, max_film_bytes: int, max_bodies: int) -> None:
        self._app = app
        self._access = access
        self._max_film_bytes = max_film_bytes
        self._bodies = Shares(max_bodies)  # a body takes memory or disk before its film can ask for a place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        asked = headers.get(REQUEST_ID_HEADER, "")
        request_id = asked if _ACCEPTED_ID.fullmatch(asked) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        sending = self._access.sending(send, headers)
        exchange = _Exchange(request_id, scope, receive, sending, self._max_film_bytes, self._bodies)
        start = time.perf_counter()
        try:
            answer = self._access.answer(scope, headers, request_id) or exchange.refuse_body(headers)
            if answer:
                # the server throws away what the client still sends, so that the answer is not lost
                await answer(scope, receive, exchange.send)
            else:
                await self._app(scope, exchange.receive, exchange.send)
        except asyncio.CancelledError as exc:
            if GRACE_IS_OVER not in str(exc):  # a server that cancels the request of a client that went away
                raise
            if exchange.status is None:
                await problems.busy(request_id, Busy(ENDING, ENDING_RETRY_S))(scope, receive, exchange.send)
        except Exception as exc:
            if exchange.refusal is not None and exchange.status is None:
                await exchange.refusal(scope, receive, exchange.send)
            else:
                log_unforeseen(request_id, exc)
                if exchange.status is not None:
                    raise ConnectionAbortedError("the answer broke off") from None
                await problems.unforeseen(request_id, exc)(scope, receive, exchange.send)
        finally:
            exchange.end_body()
            route = getattr(scope.get("route"), "path", "(other)")
            fields = {
                "request_id": request_id,
                "method": scope["method"] if scope["method"] in METHODS else "(other)",
                "route": route,
                "status": exchange.status,
                "milliseconds": round(1000 * (time.perf_counter() - start), 1),
            }
            logger.info("request", extra={"fields": fields})


def _has_body(headers: Headers) -> bool:
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


def _plain_charset(headers: Headers) -> bool:
    """Say whether the form is UTF-8: some codecs of Python take quadratic time, and a request may name any."""
    content_type = headers.get("content-type", "").lower()
    return len(content_type) <= MAX_CONTENT_TYPE and not _FOREIGN_CHARSET.search(content_type)


class _Exchange:
    """One request and its answer: bounds what comes in, and stamps what goes out."""

    def __init__(
        self, request_id: str, scope: Scope, receive: Receive, send: Send, max_film_bytes: int, bodies: Shares
    ) -> None:
        self.status: int | None = None
        self.refusal: Response | None = None  # the only answer to a body that was not read to its end
        self._request_id = request_id
        self._client = client_of(scope)
        self._method: str = scope["method"]
        self._receive = receive
        self._send = send
        self._max_film_bytes = max_film_bytes
        self._max_body_bytes = max_film_bytes + FORM_OVERHEAD_BYTES
        self._received = 0
        self._bodies = bodies
        self._body_began: float | None = None  # of the event loop's clock; None: none is under way

    def refuse_body(self, headers: Headers) -> Response | None:
        """Return the answer to a body that will not be read; else give it a place among those that are under way.

        The place is its own until the body has come or the request has ended.
        """
        if not _plain_charset(headers):
            return problems.foreign_charset(self._request_id)
        if self._declared_too_large(headers):
            return problems.too_large(self._request_id, self._max_film_bytes)
        if _has_body(headers):
            if not self._bodies.take(self._client):
                return problems.busy(self._request_id, Busy(MANY_BODIES, BODY_RETRY_S))
            self._body_began = anyio.current_time()
        return None

    def _declared_too_large(self, headers: Headers) -> bool:
        length = headers.get("content-length", "")
        return length.isdecimal() and (len(length) > 18 or int(length) > self._max_body_bytes)

    def end_body(self) -> None:
        if self._body_began is not None:
            self._body_began = None
            self._bodies.give_back(self._client)

    async def receive(self) -> Message:
        message = await (self._receive() if self._body_began is None else self._next_of_body(self._body_began))
        if message["type"] == "http.request":
            self._received += len(message.get("body", b""))
            if self._received > self._max_body_bytes:
                self.refusal = problems.too_large(self._request_id, self._max_film_bytes)
                raise BodyRefused
        if not message.get("more_body", False):
            self.end_body()
        return message

    async def _next_of_body(self, began: float) -> Message:
        left = min(BODY_STALL_S, began + BODY_LIMIT_S - anyio.current_time())
        with anyio.move_on_after(left):
            return await self._receive()
        self.refusal = problems.too_slow(self._request_id)
        raise BodyRefused

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if self.refusal is not None and message["status"] != self.refusal.status_code:
                raise BodyRefused  # whatever the application made of the broken body
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers[REQUEST_ID_HEADER] = self._request_id
            stamp(headers, self._method)
        await self._send(message)


def log_unforeseen(request_id: str, exc: Exception) -> None:
    """Log the class and place of an error, never its text; of a shortage, what there is too little of."""
    frames = traceback.extract_tb(exc.__traceback__)
    where = [f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno} {frame.name}" for frame in frames[-8:]]
    fields = {"request_id": request_id, "error": type(exc).__name__, "where": where}
    shortage = shortage_in(exc)
    if shortage is None:
        logger.error("internal_error", extra={"fields": fields})
    else:
        reason = shortage.strerror if isinstance(shortage, OSError) else None
        logger.error("out_of_resources", extra={"fields": {**fields, "reason": reason}})
