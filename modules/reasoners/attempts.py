"""Asking a remote service: within the time limit, again where that helps, every failure put in one sentence."""

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import SecretStr

from modules.errors import ReaderUnavailable
from modules.reasoners.addresses import is_this_machine
from modules.reasoners.base import Control
from modules.reasoners.turns import TurnName

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")

CONNECT_S = 10.0  # chosen: a host that takes longer cannot be reached
_NOT_MEASURED = -9999.0  # what OpenAI's interface gives for a token that is not among the likeliest
_TALKATIVE = ("google_genai", "google.genai", "google.auth", "openai", "httpx", "httpx2", "httpcore", "httpcore2")


@dataclass(frozen=True)
class Patience:
    """How often a service is asked, and how long is waited between two attempts when it names no time itself."""

    attempts: int = 3
    first_delay_s: float = 1.0

    def delay(self, failed: int) -> float:
        """Return the seconds to wait after so many failed attempts: doubled each time, and spread by chance."""
        return self.first_delay_s * (1 << failed - 1) * random.uniform(0.5, 1.0)


@dataclass(frozen=True)
class Failure:
    """Why an attempt failed, for the user; whether another may succeed, and when at the soonest."""

    sentence: str
    passing: bool = False
    wait_s: float | None = None


@dataclass(frozen=True)
class Service:
    """A remote service as sentences name it, and which settings mend what."""

    name: str
    key: str
    model: str
    address: str
    not_found: str  # what a 404 means

    def answered(self, status: int, wait_s: float | None = None) -> Failure:
        """Return the failure that an HTTP status means."""
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            return Failure(f"{self.name} refused the key: check {self.key}.")
        if status == HTTPStatus.NOT_FOUND:
            return Failure(f"{self.name} {self.not_found}")
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            return Failure(
                f"{self.name} allows no more requests now: try again later.",
                passing=True,
                wait_s=wait_s,
            )
        if status == HTTPStatus.REQUEST_TIMEOUT or status >= 500:
            return Failure(f"{self.name} failed: try again later.", passing=True, wait_s=wait_s)
        if 300 <= status < 400:
            return Failure(f"{self.name} points to another address, where the film does not go: check {self.address}.")
        return Failure(f"{self.name} refused the request: check that {self.model} names a model that reads images.")

    def broke(self, exc: BaseException) -> Failure:
        """Return the failure that an exception of the connection, or any other one, means."""
        import httpx2

        if isinstance(exc, (httpx2.ReadError, httpx2.WriteError, httpx2.CloseError, httpx2.RemoteProtocolError)):
            return Failure(f"{self.name} broke off its reply: try again.", passing=True)
        if isinstance(exc, (TimeoutError, httpx2.TimeoutException)) and not isinstance(exc, httpx2.ConnectTimeout):
            return Failure(f"{self.name} gave no answer within the time limit: try again, or raise READER_TIMEOUT_S.")
        if isinstance(exc, (OSError, httpx2.TransportError, httpx2.InvalidURL)):
            return Failure(f"{self.name} cannot be reached: check {self.address}.")
        return Failure(f"{self.name} sent something that is no reply: check {self.address} and {self.model}.")

    @property
    def silent(self) -> ReaderUnavailable:
        """The failure to say anything."""
        return ReaderUnavailable(f"{self.name} sent an empty reply.")

    @property
    def cut(self) -> ReaderUnavailable:
        """The failure to say anything within the budget, which a model that thinks first can use up."""
        return ReaderUnavailable(f"{self.name} used up its budget before it replied: raise READER_MAX_TOKENS.")

    @property
    def declined(self) -> ReaderUnavailable:
        """The refusal to speak about this film."""
        return ReaderUnavailable(f"{self.name} declined to answer about this film.")


# ── Attempts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def persist(
    attempt: Callable[[bool], Awaitable[T]],
    explain: Callable[[Exception], Failure],
    control: Control,
    patience: Patience,
) -> T:
    """Make attempts until one succeeds or no further one can help; each is told whether it is the last.

    `explain` translates whatever the attempt raises; nothing of the exception itself gets out, for it may quote the
    request, the reply or the key.
    """
    failed = 0
    while True:
        try:
            return await attempt(failed + 1 >= patience.attempts)
        except ReaderUnavailable:
            raise
        except Exception as exc:
            failure = explain(exc)
        failed += 1
        delay = patience.delay(failed) if failure.wait_s is None else failure.wait_s
        if not failure.passing or failed >= patience.attempts or delay >= control.remaining_s:
            raise ReaderUnavailable(failure.sentence)
        await asyncio.sleep(delay)


def finish(work: Callable[[], Awaitable[T]], explain: Callable[[Exception], Failure], control: Control) -> T:
    """Run a coroutine to its end, the time limit, or the stop of the reading, which closes its connections at once.

    The thread that calls it must have no event loop of its own.
    """
    limit_s = control.remaining_s if math.isfinite(control.remaining_s) else None

    async def watched() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def cancel() -> None:
            with suppress(RuntimeError):  # the loop has ended: there is nothing left to stop
                if task is not None:
                    loop.call_soon_threadsafe(task.cancel)

        control.when_stopped(cancel)
        async with asyncio.timeout(limit_s):
            return await work()

    try:
        return asyncio.run(watched())
    except ReaderUnavailable:
        raise
    except asyncio.CancelledError:
        sentence = "The second reader was stopped."
    except Exception as exc:  # the time limit, and what fails before there is a connection
        sentence = explain(exc).sentence
    raise ReaderUnavailable(sentence)


class Draft:
    """Hands words on as they come; what a second attempt says again is not repeated."""

    def __init__(self, turn: TurnName, control: Control) -> None:
        self._turn = turn
        self._control = control
        self._said = 0
        self.text = ""

    def begin(self) -> None:
        """Start anew, with another attempt."""
        self.text = ""

    def add(self, words: str) -> None:
        """Take the next words."""
        self.text += printable(words)
        if len(self.text) > self._said:
            self._control.say(self._turn, self.text[self._said :])
            self._said = len(self.text)


# ── Parts of requests and replies ────────────────────────────────────────────────────────────────────────────────────


def http_client(url: str, *hooks: "Callable[[httpx2.Request], Awaitable[None]]") -> "httpx2.AsyncClient":
    """Return a client that follows no redirect, so that a film goes to this address or nowhere."""
    import httpx2

    async def bounded(request: httpx2.Request) -> None:
        # `finish` ends the rest in time; the clients would set limits of their own, and tell Gemini, which refuses
        # those under 10 seconds (livekit/agents issue 3723).
        request.extensions["timeout"] = httpx2.Timeout(None, connect=CONNECT_S).as_dict()

    # A proxy of the environment would carry what is meant for this machine somewhere else.
    trust_env = not is_this_machine(url)
    return httpx2.AsyncClient(follow_redirects=False, trust_env=trust_env, event_hooks={"request": [bounded, *hooks]})


def usable_key(key: SecretStr, setting: str) -> str:
    """Return a key that can stand in a header; raises ReaderUnavailable."""
    text = key.get_secret_value().strip()
    if not (text.isascii() and text.isprintable() and " " not in text):
        raise ReaderUnavailable(f"{setting} holds a character that no key has: set it again.")
    return text


def silence() -> None:
    """Keep the clients from logging: what they log can hold the request, the reply or an address."""
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def wait_of(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a Retry-After header asks for, given as a number or as a date (RFC 9110, 10.2.3).

    A date counts from that of the answer, both of the server's clock: this machine's may be wrong.
    """
    value = headers.get("retry-after", "")
    with suppress(ValueError):
        return seconds(float(value))
    with suppress(ValueError, TypeError, OverflowError):
        wait = parsedate_to_datetime(value) - parsedate_to_datetime(headers.get("date", ""))
        return max(0.0, wait.total_seconds())
    return None


def seconds(value: float) -> float | None:
    """Return a number of seconds that can be waited, or None."""
    return value if math.isfinite(value) and value >= 0 else None


def sound(logprob: Any) -> float | None:
    """Return a log-probability, or None for what cannot be one: NaN, infinite, above zero, or a mark for "unknown"."""
    if isinstance(logprob, bool) or not isinstance(logprob, (int, float)):
        return None
    return float(logprob) if _NOT_MEASURED < logprob <= 0 else None


def printable(text: str) -> str:
    """Return a text that can be encoded: JSON can spell half a surrogate pair."""
    return text.encode("utf-8", "replace").decode("utf-8")


def piece(text: Any) -> bytes:
    """Return the bytes of a token's text."""
    return text.encode("utf-8", "replace") if isinstance(text, str) else b""
