"""A server that speaks OpenAI's Chat Completions as a second reader: Ollama, llama.cpp, LM Studio, vLLM or OpenAI."""

import base64
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from modules.errors import ReaderUnavailable
from modules.reasoners.addresses import described
from modules.reasoners.attempts import (
    Draft,
    Failure,
    Patience,
    Service,
    finish,
    http_client,
    persist,
    piece,
    silence,
    sound,
    usable_key,
    wait_of,
)
from modules.reasoners.base import Control, ReaderFilm
from modules.reasoners.conversation import Writer
from modules.reasoners.replies import MAX_REPLY
from modules.reasoners.turns import Generation, Token, Turn

if TYPE_CHECKING:
    import httpx2
    from openai import AsyncOpenAI

ALTERNATIVES = 5  # log-probabilities a token
NO_KEY = "none"  # a server without keys takes any
UNNAMED = "the server's only model"  # until the server has said its name
SERVICE = Service(
    "The server at OPENAI_BASE_URL",
    key="OPENAI_API_KEY",
    model="OPENAI_MODEL",
    address="OPENAI_BASE_URL",
    not_found="does not know the model, or the address lacks its /v1: check OPENAI_MODEL and OPENAI_BASE_URL.",
)

_REFUSALS = (400, 422, 501)  # a part of the request is not known, or not allowed
# Headers that a request may carry: the client also takes organisations, projects and more from the environment.
_HEADERS = frozenset(
    ("accept", "accept-encoding", "authorization", "connection", "content-length", "content-type", "host", "user-agent")
)


@dataclass(frozen=True)
class Asks:
    """What of a request a server may refuse and is then done without, or spelt another way."""

    logprobs: bool = True
    schema: bool = True
    temperature: bool = True
    limit: str = "max_tokens"

    def without(self, complaint: str, param: str | None) -> "Asks | None":
        """Return what is asked for after a refusal: less than before, or None when nothing is left to give up."""
        if "max_completion_tokens" in complaint and self.limit == "max_tokens":
            return replace(self, limit="max_completion_tokens")
        if param == "temperature" and self.temperature:
            return replace(self, temperature=False)
        if self.logprobs and self.schema:
            return replace(self, schema=False) if "response_format" in complaint else replace(self, logprobs=False)
        if self.schema:  # so it was the schema: its refusal says nothing about log-probabilities
            return replace(self, schema=False, logprobs="logprobs" not in complaint)
        return replace(self, logprobs=False) if self.logprobs else None


class OpenAiWriter(Writer):
    """Whatever model such a server offers, behind OpenAI's own client."""

    plain_schema = False

    def __init__(
        self,
        base_url: str | None,
        api_key: SecretStr | None,
        model: str | None,
        *,
        patience: Patience | None = None,
    ) -> None:
        if base_url is None or not base_url.strip():
            raise ReaderUnavailable("No server is named: set OPENAI_BASE_URL, and OPENAI_MODEL if it has several.")
        try:
            import openai  # noqa: F401
        except ImportError:
            raise ReaderUnavailable("The reader 'openai' needs the package openai: pip install openai") from None
        silence()
        self._base_url = base_url.strip()
        self._place = described(self._base_url)
        self._key = NO_KEY if api_key is None else usable_key(api_key, SERVICE.key) or NO_KEY
        self._named = bool(model)
        self.model = model or UNNAMED
        self._patience = patience or Patience()
        self._asks = Asks()

    def write(self, turn: Turn, film: ReaderFilm, control: Control) -> Generation:
        """Continue the conversation."""
        return finish(lambda: self._write(turn, film, control), explain, control)

    async def _write(self, turn: Turn, film: ReaderFilm, control: Control) -> Generation:
        from openai import AsyncOpenAI

        async def only_ours(request: "httpx2.Request") -> None:
            for name in set(request.headers) - _HEADERS:
                if not name.startswith("x-stainless-"):
                    del request.headers[name]
            request.headers["authorization"] = f"Bearer {self._key}"

        async with http_client(self._base_url, only_ours) as http:
            client = AsyncOpenAI(api_key=self._key, base_url=self._base_url, http_client=http, max_retries=0)
            if not self._named:
                self.model = await persist(lambda _last: _only_model(client), explain, control, self._patience)
                self._named = True
            exchange = _Exchange(client, self.model, turn, film, control, self._place, self._asks)
            generation = await persist(exchange.attempt, explain, control, self._patience)
            self._asks = exchange.asks  # what this server refused is not asked for again
            return generation


async def _only_model(client: "AsyncOpenAI") -> str:
    listed = await client.models.list()
    names = {model.id for model in listed.data or ()}
    if len(names) != 1:
        raise ReaderUnavailable(f"{SERVICE.name} offers {len(names)} models: set OPENAI_MODEL to one of them.")
    return str(names.pop())


@dataclass
class _Exchange:
    """One turn with a server: its attempts, and what they may ask for."""

    client: "AsyncOpenAI"
    model: str
    turn: Turn
    film: ReaderFilm
    control: Control
    place: str
    asks: Asks

    def __post_init__(self) -> None:
        self._draft = Draft(self.turn.name, self.control)
        self._crashed = False

    async def attempt(self, last: bool) -> Generation:
        """Ask until nothing of the request is refused any longer."""
        import openai

        # Some servers crash, instead of refusing, over a part that they do not know. Whether it is that or a passing
        # failure shows when the same request fails again: the last attempt is the barest.
        asks = replace(self.asks, logprobs=False, schema=False) if last and self._crashed else self.asks
        while True:
            try:
                generation = await self._stream(asks)
            except openai.APIError as exc:
                status = _status_of(exc)
                self._crashed |= status == 500
                complaint = str(exc.body).lower()
                refused = status in _REFUSALS or (status == 403 and "logprobs" in complaint)
                weaker = asks.without(complaint, exc.param) if refused and not self._draft.text else None
                if weaker is None:
                    raise
                asks = weaker
            else:
                self.asks = asks
                return generation

    async def _stream(self, asks: Asks) -> Generation:
        draft = self._draft
        tokens: list[Token] = []
        end = None
        draft.begin()
        self.control.sends_film_to(self.place)
        stream = await self.client.chat.completions.create(
            model=self.model, messages=_messages(self.turn, self.film), stream=True, **_options(asks, self.turn)
        )
        async with stream:
            async for chunk in stream:
                for choice in (getattr(chunk, "choices", None) or ())[:1]:
                    delta = getattr(choice, "delta", None)
                    if getattr(delta, "refusal", None):
                        raise SERVICE.declined
                    draft.add(getattr(delta, "content", None) or "")
                    if not _is_thought(delta):
                        tokens += _tokens(getattr(choice, "logprobs", None))
                    end = getattr(choice, "finish_reason", None) or end
                if len(draft.text) > MAX_REPLY:
                    break
        if end == "content_filter":
            raise SERVICE.declined
        if not draft.text:
            raise SERVICE.cut if end == "length" else SERVICE.silent
        return Generation(draft.text, tuple(tokens))


def explain(exc: Exception) -> Failure:
    """Translate whatever the client raises."""
    import openai

    if isinstance(exc, openai.APIStatusError):
        return SERVICE.answered(exc.status_code, wait_of(exc.response.headers))
    if isinstance(exc, openai.APIConnectionError):
        return SERVICE.broke(exc.__cause__ or exc)
    if isinstance(exc, openai.APIError) and not isinstance(exc, openai.APIResponseValidationError):
        return SERVICE.answered(_status_of(exc))
    return SERVICE.broke(exc)


def _status_of(exc: Any) -> int:
    """Return the HTTP status of an error; of one that came in the stream, its code where that is one, else 500."""
    status = getattr(exc, "status_code", None)
    if isinstance(status, int):
        return status
    code = exc.code if isinstance(exc.code, str) else ""
    return int(code) if code.isascii() and code.isdigit() and 400 <= int(code) < 600 else 500


# ── Request and reply ────────────────────────────────────────────────────────────────────────────────────────────────


def _messages(turn: Turn, film: ReaderFilm) -> Any:
    image = {"url": f"data:image/png;base64,{base64.b64encode(film.png).decode()}"}
    return [
        {"role": message.role, "content": message.text}
        if not message.with_film
        else {
            "role": message.role,
            "content": [{"type": "image_url", "image_url": image}, {"type": "text", "text": message.text}],
        }
        for message in turn.messages
    ]


def _options(asks: Asks, turn: Turn) -> dict[str, Any]:
    options: dict[str, Any] = {asks.limit: turn.max_tokens}
    if asks.temperature:
        options["temperature"] = 0.0
    if asks.logprobs:
        options |= {"logprobs": True, "top_logprobs": ALTERNATIVES}
    if asks.schema:
        schema = {"name": turn.name, "strict": True, "schema": turn.schema}
        options["response_format"] = {"type": "json_schema", "json_schema": schema}
    return options


def _is_thought(delta: Any) -> bool:
    """Say whether words are what a model thinks aloud, which some servers send beside the reply."""
    return bool(getattr(delta, "reasoning_content", None) or getattr(delta, "reasoning", None))


def _tokens(logprobs: Any) -> Iterable[Token]:
    for entry in getattr(logprobs, "content", None) or ():
        others = getattr(entry, "top_logprobs", None) or ()
        measured = {_piece(other): sound(other.logprob) for other in (*others, entry)}
        alternatives = tuple((text, value) for text, value in measured.items() if text and value is not None)
        yield Token(_piece(entry), sound(entry.logprob), alternatives=alternatives)


def _piece(entry: Any) -> bytes:
    """Return a token's bytes, which say more than its text where a character is cut in two."""
    given = getattr(entry, "bytes", None)
    if isinstance(given, list) and all(isinstance(byte, int) and 0 <= byte < 256 for byte in given):
        return bytes(given)
    return piece(entry.token)
