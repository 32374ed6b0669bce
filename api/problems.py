"""Errors as RFC 9457 problem details: one table from error class to status, and nothing of the server's insides."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from modules import errors
from modules.answers import Problem
from modules.events import EVENT_RECORDS
from modules.settings import MEBIBYTE

MEDIA_TYPE = "application/problem+json"
OPEN_PATH = "/health"  # answers anyone: a container's check, a load balancer
KEY_HEADER = "X-API-Key"
KEYS = {
    "header": {"type": "apiKey", "in": "header", "name": KEY_HEADER},
    "bearer": {"type": "http", "scheme": "bearer"},
}

# Every leaf of the error tree; a test fails when one is missing.
STATUS: Mapping[type[errors.AssistantError], int] = {
    errors.UndecodableImage: 400,
    errors.FileTooLarge: 413,
    errors.TooManyPixels: 413,
    errors.UnsupportedImageType: 415,
    errors.MultipleFrames: 415,
    errors.NotAChestRadiograph: 422,
    errors.InvertedGreyscale: 422,
    errors.RotatedFilm: 422,
    errors.InvalidSymptoms: 422,
    errors.ReaderUnavailable: 500,  # never raised out of the pipeline: the template always answers
    errors.WeightsError: 500,  # both stop start-up; a request never meets them
    errors.ConfigurationError: 500,
    errors.Busy: 503,
    errors.OutOfResources: 503,
}

EXHAUSTED_DETAIL = (
    "The server has run out of disk space, memory, open files or threads. "
    "The film is not to blame: send it again later."
)
EXHAUSTED_RETRY_S = 10  # chosen: what others hold is often free by then
INTERNAL_DETAIL = "Internal error. The request was not answered; the server's log has its request id."


def documented(*statuses: int) -> dict[int | str, dict[str, object]]:
    """Describe error answers for OpenAPI."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": _phrase(status), "content": content} for status in statuses}


def describe(app: FastAPI) -> None:
    """Add to the application's OpenAPI what no route says of itself.

    That is the schemas of problems and events, the key, and the answers to one who may not ask.
    """
    plain = app.openapi

    def with_problem() -> dict[str, Any]:
        schema = plain()
        known = schema["components"]["schemas"]
        for record in (Problem, *EVENT_RECORDS.values()):
            described = record.model_json_schema(mode="serialization", ref_template="#/components/schemas/{model}")
            for name, definition in {**described.pop("$defs", {}), record.__name__: described}.items():
                known.setdefault(name, definition)
        schema["components"]["securitySchemes"] = KEYS
        for path, operations in schema["paths"].items():
            for method, operation in operations.items():
                if path != OPEN_PATH:
                    statuses = (401, 421, 429) if method == "get" else (401, 403, 421, 429)
                    refusals = {str(status): said for status, said in documented(*statuses).items()}
                    operation["responses"] = dict(sorted((operation["responses"] | refusals).items()))
                    operation["security"] = [{}, *({name: []} for name in KEYS)]  # none on the server's own machine
        return schema

    app.openapi = with_problem  # type: ignore[method-assign]


def request_id(request: Request) -> str:
    """Return the id that the middleware gave this request."""
    return str(request.scope["state"]["request_id"])


def answer(problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """Make the response of a problem."""
    body = problem.model_dump_json(exclude_none=True)
    return Response(body, problem.status, {**(headers or {}), "Cache-Control": "no-store"}, media_type=MEDIA_TYPE)


def domain_error(request: Request, exc: Exception) -> Response:
    """Answer an error of the domain by the table."""
    if not isinstance(exc, errors.AssistantError) or STATUS[type(exc)] == 500 or errors.shortage_in(exc) is not None:
        raise exc  # no error of a request: the boundary logs it and answers
    if isinstance(exc, errors.Busy):
        return busy(request_id(request), exc)
    return answer(_domain_problem(exc, request_id(request)))


def busy(id_: str, exc: errors.Busy) -> Response:
    """Answer a full house, and say when to come back."""
    return answer(_domain_problem(exc, id_), {"Retry-After": str(exc.retry_after_s)})


def _domain_problem(exc: errors.AssistantError, id_: str) -> Problem:
    status = STATUS[type(exc)]
    return Problem(
        title=_phrase(status),
        status=status,
        detail=str(exc),
        code=exc.code,
        request_id=id_,
        gate_score=exc.score if isinstance(exc, errors.GateRefusal) else None,
    )


def invalid_request(request: Request, exc: Exception) -> Response:
    """Answer what FastAPI found wrong with the fields, without repeating what was sent."""
    found = exc.errors() if isinstance(exc, RequestValidationError) else []
    fields = [{"field": ".".join(str(part) for part in e["loc"][1:]) or "body", "message": _message(e)} for e in found]
    problem = Problem(
        title=_phrase(422),
        status=422,
        detail="; ".join(f"{f['field']}: {f['message']}" for f in fields) or "The request is not valid.",
        code="invalid_request",
        request_id=request_id(request),
        errors=fields,
    )
    return answer(problem)


def _message(error: Mapping[str, Any]) -> str:
    """Say what is wrong with a field; a film sent as text would else be answered with a name of a Python class."""
    if "UploadFile" in error["msg"]:
        return "Send the film as a file, not as text: with curl, image=@film.png"
    return str(error["msg"])


def _phrase(status: int) -> str:
    """Return the title that RFC 9457 asks for where a problem has no type of its own."""
    return HTTPStatus(status).phrase


def http_error(request: Request, exc: Exception) -> Response:
    """Answer what the framework raises: no such route, wrong method, a body that is no form or too large."""
    shortage = errors.shortage_in(exc)
    if shortage is not None:  # a body that could not be kept: the framework blames its form
        raise shortage
    if not isinstance(exc, HTTPException) or exc.status_code >= 500:
        raise exc
    status = exc.status_code
    codes = {404: "not_found", 405: "method_not_allowed", 413: "file_too_large"}
    problem = Problem(
        title=_phrase(status),
        status=status,
        detail=str(exc.detail),
        code=codes.get(status, "bad_request"),
        request_id=request_id(request),
    )
    return answer(problem, exc.headers)


def unforeseen(id_: str, exc: Exception) -> Response:
    """Answer what nobody foresaw; the log has the rest."""
    problem = unforeseen_problem(id_, exc)
    return answer(problem, {"Retry-After": str(EXHAUSTED_RETRY_S)} if problem.status == 503 else None)


def unforeseen_problem(id_: str, exc: Exception) -> Problem:
    """Describe what nobody foresaw: a shortage as such, anything else without saying anything of it."""
    if errors.shortage_in(exc) is not None:
        return _domain_problem(errors.OutOfResources(EXHAUSTED_DETAIL), id_)
    return Problem(title=_phrase(500), status=500, detail=INTERNAL_DETAIL, code="internal_error", request_id=id_)


def refused(id_: str, status: int, code: str, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """Answer one who may not ask, not so often, or not with such a body."""
    return answer(Problem(title=_phrase(status), status=status, detail=detail, code=code, request_id=id_), headers)


def foreign_charset(id_: str) -> Response:
    """Answer a form that is not UTF-8."""
    detail = "The request's Content-Type names a character set other than UTF-8, or is too long. Send UTF-8."
    return refused(id_, 415, "unsupported_charset", detail)


def too_slow(id_: str) -> Response:
    """Answer a body that does not come."""
    detail = "The upload stood still or took too long. Send the film again."
    return refused(id_, 408, "upload_too_slow", detail, {"Connection": "close"})


def too_large(id_: str, limit_bytes: int) -> Response:
    """Answer a body that is larger than any accepted film."""
    detail = f"The file is larger than the limit of {limit_bytes // MEBIBYTE} MiB. Send a smaller export."
    return refused(id_, 413, "file_too_large", detail)
