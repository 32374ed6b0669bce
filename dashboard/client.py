"""The API as the dashboard sees it: requests go out, records or one class of error come back."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import TypeVar, get_args

import httpx
import httpx_sse
from pydantic import BaseModel, SecretStr, ValidationError

from modules.answers import Health, Problem
from modules.curves import Curves
from modules.events import EVENT_RECORDS, Event, EventName
from modules.records import HeatmapChoice
from modules.weights import WeightsCard

# A file name often holds a patient's name: the server never gets it.
NEUTRAL_NAME = "film"
MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".dcm": "application/dicom"}
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
CONNECT_TIMEOUT_S = 5.0
HEALTH_TIMEOUT_S = 5.0
RENDER_TIMEOUT_S = 60.0

RecordT = TypeVar("RecordT", bound=BaseModel)


@dataclass(eq=False)
class ClientError(Exception):
    """Whatever kept an answer from arriving; `message` says what happened and what to do about it.

    `code` is the server's own, or one of the dashboard's: unreachable, bad_address, timeout, connection_lost,
    unexpected_answer, version_mismatch.
    """

    message: str
    code: str
    status: int | None = None
    retry_after_s: int | None = None
    request_id: str | None = None
    gate_score: float | None = None

    def __str__(self) -> str:
        return self.message


class AssistantClient:
    """Speaks to one API server; a given `transport` is closed after each request."""

    def __init__(
        self,
        base_url: str,
        timeout_s: float,
        transport: httpx.BaseTransport | None = None,
        api_key: SecretStr | None = None,
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._timeout_s = timeout_s
        self._transport = transport
        self._headers = {"X-API-Key": api_key.get_secret_value()} if api_key else {}

    def stream(
        self,
        name: str,
        data: bytes,
        symptoms: str,
        *,
        heatmaps: HeatmapChoice = "all",
        invert: bool = False,
        force: bool = False,
    ) -> Iterator[tuple[EventName, Event]]:
        """Yield what the server tells of a film, stage by stage; the last event, `done`, is the whole analysis.

        Leaving the iteration stops the server's second reader.
        """
        fields = {"symptoms": symptoms, "heatmaps": heatmaps, "invert": _flag(invert), "force": _flag(force)}
        files = {"image": (NEUTRAL_NAME, data, _media_type(name))}
        name_of_last: str | None = None
        try:
            with (
                self._client(self._timeout_s) as client,
                httpx_sse.connect_sse(
                    client, "POST", f"{self._base_url}/analyze/stream", files=files, data=fields
                ) as source,
            ):
                if source.response.status_code != httpx.codes.OK:
                    source.response.read()
                    self._raise_for_problem(source.response)
                try:
                    for event in source.iter_sse():
                        name_of_last = event.event
                        yield self._event(event, source.response)
                except httpx_sse.SSEError as exc:
                    raise self._unexpected(source.response) from exc
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as exc:
            raise self._translated(exc, self._timeout_s) from exc
        if name_of_last != "done":
            raise self._translated(httpx.RemoteProtocolError("the stream ended early"), self._timeout_s)

    def _event(self, event: httpx_sse.ServerSentEvent, response: httpx.Response) -> tuple[EventName, Event]:
        if event.event == "error":
            problem = self._validated(event.data, Problem, response)
            told = _explained(problem, problem.status, None)
            raise ClientError(told, problem.code, problem.status, request_id=problem.request_id)
        known = [name for name in get_args(EventName) if name == event.event]
        if not known:
            raise self._unexpected(response)
        return known[0], self._validated(event.data, EVENT_RECORDS[known[0]], response)

    def card(self) -> WeightsCard:
        """Return the weights card of the server's CNN."""
        return self._record(self._send("GET", "/model", HEALTH_TIMEOUT_S), WeightsCard)

    def render(self, name: str, data: bytes, invert: bool = False) -> bytes:
        """Return a PNG of the film for display."""
        fields = {"invert": _flag(invert)}
        response = self._send("POST", "/render", RENDER_TIMEOUT_S, image=(name, data), fields=fields)
        self._raise_for_problem(response)
        if not response.content.startswith(PNG_SIGNATURE):
            raise self._unexpected(response)
        return response.content

    def health(self) -> Health:
        """Return the state of the server's models."""
        return self._record(self._send("GET", "/health", HEALTH_TIMEOUT_S), Health)

    def curves(self) -> Curves:
        """Return the curves that were measured with the server's weights; `not_found` when there are none."""
        return self._record(self._send("GET", "/model/curves", HEALTH_TIMEOUT_S), Curves)

    def _send(
        self,
        method: str,
        path: str,
        timeout_s: float,
        image: tuple[str, bytes] | None = None,
        fields: dict[str, str] | None = None,
    ) -> httpx.Response:
        files = {"image": (NEUTRAL_NAME, image[1], _media_type(image[0]))} if image else None
        try:
            with self._client(timeout_s) as client:
                return client.request(method, self._base_url + path, files=files, data=fields)
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as exc:
            raise self._translated(exc, timeout_s) from exc

    def _client(self, timeout_s: float) -> httpx.Client:
        timeout = httpx.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s))
        # A proxy named in the environment must not see the film: the server is this machine, or one that was named.
        return httpx.Client(transport=self._transport, timeout=timeout, trust_env=False, headers=self._headers)

    def _translated(self, exc: Exception, timeout_s: float) -> ClientError:
        """Turn an error of the transport into ours; the order goes from the special to the general."""
        where = _shown(self._base_url)
        match exc:
            case httpx.ConnectError() | httpx.ConnectTimeout() | httpx.ProxyError():
                return ClientError(
                    f"The server cannot be reached at {where}. {_how_to_start(self._base_url)}", "unreachable"
                )
            case httpx.TimeoutException():
                return ClientError(
                    f"The server at {where} did not answer within {timeout_s:g} seconds. A second reader on a CPU can "
                    "take minutes: try again, raise DASHBOARD_TIMEOUT_S, or start the server with MEDGEMMA_MODE=dummy.",
                    "timeout",
                )
            case httpx.UnsupportedProtocol() | httpx.InvalidURL() | UnicodeError():
                return ClientError(
                    f"The address of the server, {where}, cannot be used. Set BACKEND_URL to something like "
                    "http://127.0.0.1:8000 and restart the dashboard.",
                    "bad_address",
                )
            case httpx.TransportError():
                return ClientError(
                    f"The connection to {where} broke before the answer came. Look whether the server still runs, then "
                    "try again.",
                    "connection_lost",
                )
            case _:
                return ClientError(
                    f"The answer from {where} could not be read: is another program listening there? See BACKEND_URL.",
                    "unexpected_answer",
                )

    def _record(self, response: httpx.Response, record: type[RecordT]) -> RecordT:
        self._raise_for_problem(response)
        return self._validated(response.content, record, response)

    def _validated(self, content: str | bytes, record: type[RecordT], response: httpx.Response) -> RecordT:
        try:
            return record.model_validate_json(content)
        except ValidationError as exc:
            if _is_not_json(exc):
                raise self._unexpected(response) from exc
            raise ClientError(
                "The answer does not fit this dashboard: server and dashboard are of different versions. Update the "
                f"project and restart both. What differs: {_differences(exc)}.",
                "version_mismatch",
                response.status_code,
            ) from exc

    def _raise_for_problem(self, response: httpx.Response) -> None:
        if response.status_code == httpx.codes.OK:
            return
        try:
            problem = Problem.model_validate_json(response.content)
        except ValidationError as exc:
            raise self._unexpected(response) from exc
        retry_after_s = _seconds(response.headers.get("Retry-After"))
        raise ClientError(
            _explained(problem, response.status_code, retry_after_s),
            problem.code,
            response.status_code,
            retry_after_s,
            problem.request_id,
            problem.gate_score,
        )

    def _unexpected(self, response: httpx.Response) -> ClientError:
        return ClientError(
            f"Something at {_shown(self._base_url)} answered with status {response.status_code}, but not as this "
            "project's server does. Another program may be listening there, or a proxy may stand between: check "
            "BACKEND_URL and BACKEND_PORT.",
            "unexpected_answer",
            response.status_code,
            _seconds(response.headers.get("Retry-After")),
        )


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _media_type(name: str) -> str:
    return MEDIA_TYPES.get(PurePath(name).suffix.lower(), "application/octet-stream")


def _shown(base_url: str) -> str:
    """Return the address for display, without a user's name and password in it."""
    try:
        url = httpx.URL(base_url)
    except (httpx.InvalidURL, UnicodeError):
        return "given in BACKEND_URL"
    return f"{url.scheme}://{url.netloc.decode('ascii')}{url.path.rstrip('/')}" if url.host else base_url


def _how_to_start(base_url: str) -> str:
    url = httpx.URL(base_url)
    if url.host not in LOOPBACK_HOSTS:
        return "See that it runs there, or set BACKEND_URL to where it does and restart the dashboard."
    return (
        "Start server and dashboard together with: make run. To start the server alone, in the project's folder: "
        f"uvicorn main:app --host {url.host} --port {url.port or 80}. If it runs elsewhere, set BACKEND_URL."
    )


def _seconds(header: str | None) -> int | None:
    """Return `Retry-After` in seconds; its other form, a date, is not used by our server."""
    return int(header) if header and header.isascii() and header.isdigit() else None


def _explained(problem: Problem, status: int, retry_after_s: int | None) -> str:
    parts = [problem.detail]
    fields = [": ".join(error.values()) for error in problem.errors or ()]
    parts += [field for field in fields if field not in problem.detail]
    if status == httpx.codes.UNAUTHORIZED:
        parts.append("The dashboard sends API_KEY: set it to the server's key, and restart the dashboard")
    if status in (httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.TOO_MANY_REQUESTS):
        parts.append(f"Try again in {retry_after_s} s" if retry_after_s else "Try again in a moment")
    elif status >= httpx.codes.INTERNAL_SERVER_ERROR:
        parts.append("Try again; if it happens again, the server's log tells more under the request id")
    return " ".join(_sentence(part) for part in parts if part.strip())


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text.endswith((".", "!", "?", ":")) else f"{text}."


def _is_not_json(exc: ValidationError) -> bool:
    return any(error["type"] == "json_invalid" for error in exc.errors(include_url=False, include_input=False))


def _differences(exc: ValidationError, shown: int = 3) -> str:
    """Name the fields that do not fit, without their content."""
    errors = exc.errors(include_url=False, include_input=False, include_context=False)
    named = [f"{'.'.join(map(str, error['loc'])) or 'the whole answer'} ({error['type']})" for error in errors[:shown]]
    return ", ".join(named) + (f" and {len(errors) - shown} more" if len(errors) > shown else "")
