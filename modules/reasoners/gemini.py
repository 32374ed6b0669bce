"""Google's Gemini API as a second reader: the film leaves this machine, so only a key of the settings starts it."""

from collections.abc import Collection, Iterable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from modules.errors import ReaderUnavailable
from modules.reasoners.addresses import place_of
from modules.reasoners.attempts import (
    Draft,
    Failure,
    Patience,
    Service,
    finish,
    http_client,
    persist,
    piece,
    seconds,
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
    from google.genai import types

BASE_URL = "https://generativelanguage.googleapis.com"
API_VERSION = "v1beta"  # all that is asked for is in it, which is not certain of v1
ALTERNATIVES = 5  # log-probabilities a token
SERVICE = Service(
    "Google's Gemini API",
    key="GEMINI_API_KEY",
    model="GEMINI_MODEL",
    address="the connection",
    not_found="does not know the model: set GEMINI_MODEL to one that it offers.",
)

_OPTIONAL = ("logprobs", "schema")  # what a model may refuse and is done without, by the word in its refusal
_ENDS = frozenset({"STOP", "MAX_TOKENS", "FINISH_REASON_UNSPECIFIED"})  # any other end is a refusal
_ROLES = {"user": "user", "assistant": "model"}


class GeminiWriter(Writer):
    """A Gemini model behind Google's own client."""

    plain_schema = False

    def __init__(
        self, api_key: SecretStr | None, model: str, *, base_url: str | None = None, patience: Patience | None = None
    ) -> None:
        if api_key is None or not api_key.get_secret_value().strip():
            raise ReaderUnavailable(f"{SERVICE.name} needs a key: set GEMINI_API_KEY.")
        try:
            import google.genai  # noqa: F401
        except ImportError:
            raise ReaderUnavailable(
                f"{SERVICE.name} needs the package google-genai: pip install google-genai"
            ) from None
        silence()
        self.model = model
        self._key = usable_key(api_key, SERVICE.key)
        self._base_url = base_url or BASE_URL
        self._patience = patience or Patience()
        self._asks = frozenset(_OPTIONAL)

    def write(self, turn: Turn, film: ReaderFilm, control: Control) -> Generation:
        """Continue the conversation."""
        return finish(lambda: self._write(turn, film, control), explain, control)

    async def _write(self, turn: Turn, film: ReaderFilm, control: Control) -> Generation:
        from google import genai
        from google.genai import types

        async with http_client(self._base_url) as http:
            # Said, not left out: the client would else take an address, a key or another service from the environment.
            options = types.HttpOptions(base_url=self._base_url, api_version=API_VERSION, httpx_async_client=http)
            with genai.Client(vertexai=False, api_key=self._key, http_options=options) as client:
                draft = Draft(turn.name, control)

                async def attempt(_last: bool) -> Generation:
                    while True:
                        try:
                            return await self._stream(client, turn, film, control, draft)
                        except Exception as exc:
                            refused = _refused(exc, self._asks)
                            if refused is None:
                                raise
                            self._asks -= {refused}  # remembered, so that it is asked for once

                return await persist(attempt, explain, control, self._patience)

    async def _stream(self, client: Any, turn: Turn, film: ReaderFilm, control: Control, draft: Draft) -> Generation:
        contents, config = _contents(turn, film), _config(turn, self._asks)
        tokens: list[Token] = []
        end = None
        draft.begin()
        control.sends_film_to(f"{SERVICE.name} ({place_of(self._base_url).removesuffix(':443')})")
        stream = await client.aio.models.generate_content_stream(model=self.model, contents=contents, config=config)
        async with aclosing(stream):
            async for chunk in stream:
                if chunk.prompt_feedback is not None and chunk.prompt_feedback.block_reason is not None:
                    raise SERVICE.declined
                for candidate in (chunk.candidates or ())[:1]:
                    draft.add("".join(_words(candidate)))
                    tokens += _tokens(candidate.logprobs_result)
                    end = candidate.finish_reason or end
                if len(draft.text) > MAX_REPLY:
                    break
        if end is not None and end.name not in _ENDS:
            raise SERVICE.declined
        if not draft.text:
            raise SERVICE.cut if end is not None and end.name == "MAX_TOKENS" else SERVICE.silent
        return Generation(draft.text, tuple(tokens))


def explain(exc: Exception) -> Failure:
    """Translate whatever the client raises."""
    from google.genai import errors

    if not isinstance(exc, errors.APIError):
        return SERVICE.broke(exc)
    if exc.code == 400 and "API_KEY_INVALID" in str(exc.details):  # Gemini's answer to a wrong key
        return SERVICE.answered(401)
    return SERVICE.answered(exc.code if isinstance(exc.code, int) else 500, _wait_of(exc))


def _wait_of(exc: Any) -> float | None:
    """Return the seconds after which Gemini wants to be asked again: a google.rpc.RetryInfo, or a header."""
    error = exc.details.get("error", exc.details) if isinstance(exc.details, dict) else {}
    details = error.get("details") if isinstance(error, dict) else None
    for detail in details if isinstance(details, list) else ():
        delay = detail.get("retryDelay") if isinstance(detail, dict) else None
        if isinstance(delay, str) and delay.endswith("s"):
            try:
                return seconds(float(delay[:-1]))
            except ValueError:
                break
    return wait_of(getattr(exc.response, "headers", {}))


def _refused(exc: Exception, asks: Collection[str]) -> str | None:
    """Return which part of the request a model refuses."""
    from google.genai import errors

    if not (isinstance(exc, errors.ClientError) and exc.code == 400):
        return None
    complaint = str(exc.details).lower()
    return next((word for word in _OPTIONAL if word in asks and word in complaint), None)


# ── Request and reply ────────────────────────────────────────────────────────────────────────────────────────────────


def _contents(turn: Turn, film: ReaderFilm) -> "list[types.Content]":
    from google.genai import types

    contents = []
    for message in turn.messages:
        if message.role != "system":
            parts = [types.Part.from_bytes(data=film.png, mime_type="image/png")] if message.with_film else []
            contents.append(
                types.Content(role=_ROLES[message.role], parts=[*parts, types.Part.from_text(text=message.text)])
            )
    return contents


def _config(turn: Turn, asks: Collection[str]) -> "types.GenerateContentConfig":
    from google.genai import types

    logprobs = "logprobs" in asks
    return types.GenerateContentConfig(
        system_instruction="\n\n".join(m.text for m in turn.messages if m.role == "system") or None,
        temperature=0.0,
        max_output_tokens=turn.max_tokens,
        response_mime_type="application/json",
        response_json_schema=turn.schema if "schema" in asks else None,
        response_logprobs=True if logprobs else None,
        logprobs=ALTERNATIVES if logprobs else None,
        automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
    )


def _words(candidate: "types.Candidate") -> Iterable[str]:
    """Yield the words of a reply, without what the model thought aloud."""
    for part in (candidate.content and candidate.content.parts) or ():
        if part.text and not part.thought:
            yield part.text


def _tokens(result: "types.LogprobsResult | None") -> Iterable[Token]:
    if result is None:
        return
    tops = result.top_candidates or []
    for k, chosen in enumerate(result.chosen_candidates or ()):
        top = (tops[k].candidates or ()) if k < len(tops) else ()
        measured = {piece(other.token): sound(other.log_probability) for other in (*top, chosen)}
        alternatives = tuple((text, value) for text, value in measured.items() if text and value is not None)
        yield Token(piece(chosen.token), sound(chosen.log_probability), alternatives=alternatives)
