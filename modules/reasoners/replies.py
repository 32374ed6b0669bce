"""What a reader must answer: one schema for all of them, the limits of each part, and the check of a reply."""

import json
import re
import unicodedata
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BeforeValidator, Field, ValidationError, create_model

from modules.pathologies import NAMES
from modules.records import Record, Status

MAX_QUOTE = 160  # characters
MAX_REASONING = 1600
MAX_ITEM = 120
MAX_OBSERVATIONS = 6
MAX_DIFFERENTIAL = 5
MAX_RECOMMENDATION = 300
MAX_REPLY = 64_000  # characters; more is no answer to these questions

STATUSES: tuple[Status, ...] = get_args(Status)
FIELDS: dict[str, str] = {name: name.replace(" ", "_") for name in NAMES}

# Printable ASCII without quotes and backslashes: nothing needs an escape and no control character can be written, so
# that a character costs at most one token and a budget in tokens is one in characters.
_PLAIN = r"[ !#-\[\]-~]"
_SEEN = r"[!#-\[\]-~]"
_THOUGHTS = (("<unused94>", "<unused95>"), ("<think>", "</think>"))  # MedGemma's marks, and those of most others
_FENCE = re.compile(r"```(?:json)?(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
_OBJECT = re.compile(r"""\{\s*["']""")
_KEY = re.compile(r"""["']\w+["']\s*:\s*[{\["']""")
_SCALAR = re.compile(r"""null|true|false|[-+.\deE]+|"[^"]*"?""")
R = TypeVar("R", bound=Record)


class ReplyError(Exception):
    """A reply does not have the form that was asked for; the text says what is wrong, for the reader itself."""


# ── Text ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def tidied(text: str, limit: int) -> str:
    """Return a reader's text on one line, without control, formatting or unpaired characters, at most `limit` long."""
    kept = "".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in text)
    kept = "".join(c for c in kept if unicodedata.category(c) not in ("Cf", "Cs", "Co", "Cn"))
    line = " ".join(kept.split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def past_thoughts(text: str) -> int:
    """Return where a reply begins, behind what a model thinks aloud before it; some leave out the opening mark."""
    first = text[:MAX_REPLY].lstrip()
    if first.startswith(("{", "[")):  # a mark inside of JSON is text
        return 0
    start = 0
    for begin, end in _THOUGHTS:
        found = text.rfind(end, start)
        if found >= 0:
            start = found + len(end)
        elif first.startswith(begin):
            return len(text)
    return start


def without_thoughts(text: str) -> str:
    """Return a reply without what a model thinks aloud before it, and without stray line ends around it."""
    return text[past_thoughts(text) :].strip()[:MAX_REPLY]


def _tidy(limit: int) -> BeforeValidator:
    return BeforeValidator(lambda value: tidied(value, limit) if isinstance(value, str) else value)


def _first(count: int) -> BeforeValidator:
    """Keep the first items that say something."""
    return BeforeValidator(lambda value: [v for v in value if v != ""][:count] if isinstance(value, list) else value)


Quote = Annotated[str, Field(max_length=MAX_QUOTE), _tidy(MAX_QUOTE)]
Reasoning = Annotated[str, Field(min_length=1, max_length=MAX_REASONING), _tidy(MAX_REASONING)]
Item = Annotated[str, Field(min_length=1, max_length=MAX_ITEM), _tidy(MAX_ITEM)]
Recommendation = Annotated[str, Field(max_length=MAX_RECOMMENDATION), _tidy(MAX_RECOMMENDATION)]

# ── The two replies ──────────────────────────────────────────────────────────────────────────────────────────────────


class StatusReply(Record):
    """First turn, for one pathology: what the film shows, in the words that it rests on."""

    status: Status
    quote: Quote = ""


# One field a pathology, so that a constrained decoder must answer all 14.
FilmReply = create_model(
    "FilmReply",
    __base__=Record,
    __doc__="First turn: the film alone.",
    **dict.fromkeys(FIELDS.values(), (StatusReply, ...)),  # type: ignore[call-overload]
)


class ClinicalReply(Record):
    """Second turn: the film and the symptoms together."""

    clinical_reasoning: Reasoning
    key_observations: Annotated[tuple[Item, ...], _first(MAX_OBSERVATIONS)] = ()
    differential: Annotated[tuple[Item, ...], _first(MAX_DIFFERENTIAL)] = ()
    recommendation: Recommendation = ""


def parse_film(text: str) -> dict[str, StatusReply]:
    """Return the statement on each pathology by name; raises ReplyError."""
    reply = _validated(FilmReply, text)
    return {name: getattr(reply, field) for name, field in FIELDS.items()}


def parse_clinical(text: str) -> ClinicalReply:
    """Return the second turn's reply; raises ReplyError."""
    return _validated(ClinicalReply, text)


def looks_like_json(text: str) -> bool:
    """Say whether a reply tried to be JSON: what it holds must then not be read as prose, where a name is a finding."""
    part = _json_part(text)
    return part.startswith(("{", "[")) or bool(_KEY.search(part) or _SCALAR.fullmatch(part))


def _json_part(text: str) -> str:
    text = without_thoughts(text)
    fenced = None if text.startswith(("{", "[")) else _FENCE.search(text)  # a quote may hold the marks of a fence
    if fenced:
        text = fenced[1].strip()
    begin, end = _OBJECT.search(text), text.rfind("}")
    # a word before the object is forgiven; a paragraph that happens to hold braces is prose
    return text[begin.start() : end + 1] if begin and begin.start() < 40 and begin.start() < end else text


def _validated(form: type[R], text: str) -> R:
    if len(text) > MAX_REPLY:
        raise ReplyError("The reply is too long.")
    try:
        return form.model_validate_json(_json_part(text).encode("utf-8", "ignore"))  # without half surrogate pairs
    except ValidationError as exc:
        raise ReplyError(_problem(exc)) from None
    except RecursionError:
        raise ReplyError("The reply is nested too deeply.") from None


def _problem(exc: ValidationError) -> str:
    """Name the first faults in words of the schema; values of the reply are not repeated."""
    faults = exc.errors(include_url=False, include_context=False, include_input=False)
    known = {*FIELDS.values(), *StatusReply.model_fields, *ClinicalReply.model_fields}
    named = [".".join(str(part) for part in fault["loc"] if part in known) or "the reply" for fault in faults]
    kinds = [fault["type"].replace("_", " ") for fault in faults]
    return "; ".join(f"{name}: {kind}" for name, kind in zip(named[:3], kinds[:3], strict=True))


# ── Schemas ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class ReplyLimits:
    """How long the parts of both replies may be, in characters, so that even the longest closes within the budget."""

    quote: int
    reasoning: int
    item: int
    recommendation: int

    @classmethod
    def within(cls, max_tokens: int) -> "ReplyLimits":
        """Share a budget of tokens; one plain character costs at most one token."""
        room_film = max_tokens - _SPARE_TOKENS - _FILM_SKELETON
        room_clinical = max_tokens - _SPARE_TOKENS - _CLINICAL_SKELETON
        share = min(1.0, room_clinical / _LONGEST_CLINICAL)
        return cls(
            quote=min(MAX_QUOTE, room_film // len(NAMES)),
            reasoning=int(MAX_REASONING * share),
            item=int(MAX_ITEM * share),
            recommendation=int(MAX_RECOMMENDATION * share),
        )


def film_schema(limits: ReplyLimits, *, plain: bool) -> dict[str, Any]:
    """Return the JSON schema of the first turn; `plain` bounds its texts by a pattern, for constrained decoding."""
    status = _object({"status": {"type": "string", "enum": list(STATUSES)}, "quote": _string(limits.quote, plain)})
    return _object(dict.fromkeys(FIELDS.values(), status))


def clinical_schema(limits: ReplyLimits, *, plain: bool) -> dict[str, Any]:
    """Return the JSON schema of the second turn."""
    item = _string(limits.item, plain, least=1)
    return _object(
        {
            "clinical_reasoning": _string(limits.reasoning, plain, least=1),
            "key_observations": {"type": "array", "items": item, "maxItems": MAX_OBSERVATIONS},
            "differential": {"type": "array", "items": item, "maxItems": MAX_DIFFERENTIAL},
            "recommendation": _string(limits.recommendation, plain),
        }
    )


def _string(limit: int, plain: bool, least: int = 0) -> dict[str, Any]:
    if plain:  # a text that must not be empty must not be blank either: it begins with something to see
        pattern = f"{_SEEN}{_PLAIN}{{0,{limit - 1}}}" if least else f"{_PLAIN}{{0,{limit}}}"
        return {"type": "string", "pattern": f"^{pattern}$"}
    return {"type": "string", "maxLength": limit}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _compact(value: object) -> int:
    return len(json.dumps(value, separators=(",", ":")))


_SPARE_TOKENS = 8  # the end of the turn, and whatever a template adds
_FILM_SKELETON = _compact({field: {"status": max(STATUSES, key=len), "quote": ""} for field in FIELDS.values()})
_CLINICAL_SKELETON = _compact(
    {
        "clinical_reasoning": "",
        "key_observations": [""] * MAX_OBSERVATIONS,
        "differential": [""] * MAX_DIFFERENTIAL,
        "recommendation": "",
    }
)
_LONGEST_CLINICAL = MAX_REASONING + MAX_ITEM * (MAX_OBSERVATIONS + MAX_DIFFERENTIAL) + MAX_RECOMMENDATION
