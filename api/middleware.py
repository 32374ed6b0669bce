"""What happens around every request: its id, a bound on its body, one line of log, and an answer to any error."""

import logging
import re
import time
import traceback
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import problems
from modules.settings import MEBIBYTE

logger = logging.getLogger("assistant.http")

REQUEST_ID_HEADER = "X-Request-ID"
FORM_OVERHEAD_BYTES = MEBIBYTE  # what a form may add to the film that it carries
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
MAX_CONTENT_TYPE = 512  # characters
_FOREIGN_CHARSET = re.compile(r"charset(?!\s*=\s*\"?utf-?8\b)")
_ACCEPTED_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class BodyTooLarge(Exception):
    """More bytes came than the limit allows; raised where the body is read."""


class RequestBoundary:
    """The outermost layer of the application.

    It logs the route's own path, never the address that was asked for, and the class and place of an unforeseen error,
    never its text: either may hold what somebody typed.
    """

    def __init__(self, app: ASGIApp, max_film_bytes: int) -> None:
        self._app = app
        self._max_film_bytes = max_film_bytes
        self._max_body_bytes = max_film_bytes + FORM_OVERHEAD_BYTES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        asked = headers.get(REQUEST_ID_HEADER, "")
        request_id = asked if _ACCEPTED_ID.fullmatch(asked) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        exchange = _Exchange(request_id, receive, send, self._max_body_bytes)
        start = time.perf_counter()
        try:
            if not _plain_charset(headers):
                await problems.foreign_charset(request_id)(scope, receive, exchange.send)
            elif exchange.declared_too_large(headers):
                await problems.too_large(request_id, self._max_film_bytes)(scope, receive, exchange.send)
            else:
                await self._app(scope, exchange.receive, exchange.send)
        except Exception as exc:
            if exchange.overflowed and exchange.status is None:
                await problems.too_large(request_id, self._max_film_bytes)(scope, receive, exchange.send)
            else:
                log_unforeseen(request_id, exc)
                if exchange.status is not None:
                    raise ConnectionAbortedError("the answer broke off") from None
                await problems.internal_error(request_id)(scope, receive, exchange.send)
        finally:
            route = getattr(scope.get("route"), "path", "(other)")
            fields = {
                "request_id": request_id,
                "method": scope["method"] if scope["method"] in METHODS else "(other)",
                "route": route,
                "status": exchange.status,
                "milliseconds": round(1000 * (time.perf_counter() - start), 1),
            }
            logger.info("request", extra={"fields": fields})


def _plain_charset(headers: Headers) -> bool:
    """Say whether the form is UTF-8: some codecs of Python take quadratic time, and a request may name any."""
    content_type = headers.get("content-type", "").lower()
    return len(content_type) <= MAX_CONTENT_TYPE and not _FOREIGN_CHARSET.search(content_type)


class _Exchange:
    """One request and its answer: counts what comes in, and stamps what goes out."""

    def __init__(self, request_id: str, receive: Receive, send: Send, max_body_bytes: int) -> None:
        self.status: int | None = None
        self.overflowed = False
        self._request_id = request_id
        self._receive = receive
        self._send = send
        self._max_body_bytes = max_body_bytes
        self._received = 0

    def declared_too_large(self, headers: Headers) -> bool:
        length = headers.get("content-length", "")
        return length.isdecimal() and (len(length) > 18 or int(length) > self._max_body_bytes)

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._received += len(message.get("body", b""))
            if self._received > self._max_body_bytes:
                self.overflowed = True
                raise BodyTooLarge
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if self.overflowed and message["status"] != 413:
                raise BodyTooLarge  # whatever the application made of the broken body
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers[REQUEST_ID_HEADER] = self._request_id
            headers["X-Content-Type-Options"] = "nosniff"
            if headers.get("content-type", "").startswith("text/event-stream"):
                headers["Cache-Control"] = "no-store"  # the framework's "no-cache" lets an answer be kept
        await self._send(message)


def log_unforeseen(request_id: str, exc: Exception) -> None:
    """Log the class and place of an error, never its text."""
    frames = traceback.extract_tb(exc.__traceback__)
    where = [f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno} {frame.name}" for frame in frames[-8:]]
    fields = {"request_id": request_id, "error": type(exc).__name__, "where": where}
    logger.error("internal_error", extra={"fields": fields})
