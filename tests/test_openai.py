"""The OpenAI-compatible reader, with OpenAI's own client, on scripted servers of this machine."""

import logging
import math
import sys
from collections.abc import Iterator

import pytest
from pydantic import SecretStr

from modules.errors import ReaderUnavailable
from modules.reasoners.base import Control, ReaderTask
from modules.reasoners.conversation import ModelReader
from modules.reasoners.openai import UNNAMED, OpenAiWriter
from modules.reasoners.turns import Generation, Token
from tests import loopback
from tests.loopback import (
    CLINICAL_REPLY,
    ECHO,
    FILM,
    FILM_REPLY,
    KEY,
    QUICK,
    TURN,
    Behaviour,
    Listener,
    Script,
    answering,
    check_privacy,
    check_quiet,
    dropping,
    flooding,
    hanging,
    noting,
    openai_error,
    openai_event,
    openai_events,
    openai_logprobs,
    refused,
    sending,
    serving,
    stopped_after,
    streaming,
    timed,
    written,
)
from tests.stages import predict

GOOD = streaming(openai_events(FILM_REPLY))
PLAIN = streaming(openai_events(FILM_REPLY, logprob=None))
DATA = "data:image/png;base64,"


@pytest.fixture(autouse=True)
def _discreet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.DEBUG)
    yield
    check_quiet(caplog)


def writer_at(script: Script, key: SecretStr | None = KEY, model: str | None = "scripted") -> OpenAiWriter:
    return OpenAiWriter(script.url + "/v1", key, model, patience=QUICK)


def written_by(*behaviours: Behaviour) -> tuple[Generation, Script]:
    with serving(*behaviours) as script:
        return written(writer_at(script)), script


def refused_by(*behaviours: Behaviour) -> tuple[str, Script]:
    with serving(*behaviours) as script:
        return refused(writer_at(script)), script


def asked(script: Script) -> list[tuple[bool, bool]]:
    """Return by request whether it asked for log-probabilities and for the schema."""
    return [("logprobs" in request.body, "response_format" in request.body) for request in script.requests]


# ── A reply ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_reply_with_log_probabilities() -> None:
    generation, script = written_by(GOOD)
    assert generation.text == FILM_REPLY
    assert b"".join(token.piece for token in generation.tokens).decode() == FILM_REPLY
    first = generation.tokens[0]
    assert (first.logprob, first.free) == (-0.1, None)
    assert set(first.alternatives) == {(FILM_REPLY[: loopback.TOKEN].encode(), -0.1), (b"?", -3.0)}
    assert len(script.requests) == 1


def test_a_reply_without_log_probabilities() -> None:
    generation, _ = written_by(PLAIN)
    assert (generation.text, generation.tokens) == (FILM_REPLY, ())


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, -9999.0, 0.5])
def test_what_is_no_log_probability_is_left_out(wrong: float) -> None:
    generation, _ = written_by(streaming(openai_events("{}", logprob=wrong)))
    assert generation.tokens[0].logprob is None
    assert generation.tokens[0].alternatives == ((b"?", -3.0),)
    generation, _ = written_by(streaming(openai_events("{}", other=wrong)))
    assert generation.tokens[0].alternatives == ((b"{}", -0.1),)


def test_a_character_that_two_tokens_share() -> None:
    halves = [{"token": "\ufffd", "logprob": -0.1, "bytes": list(half)} for half in (b"\xc3", b"\xa9")]
    events = [
        openai_event({"content": text}, logprobs={"content": [half | {"top_logprobs": []}]})
        for text, half in zip(("", "é"), halves, strict=True)
    ]
    generation, _ = written_by(streaming(events))
    assert (generation.text, [token.piece for token in generation.tokens]) == ("é", [b"\xc3", b"\xa9"])


def test_what_a_model_thinks_aloud_is_no_reply() -> None:
    thought = openai_event({"reasoning_content": "Hm.", "content": None}, logprobs=openai_logprobs("Hm.", -1.0))
    generation, _ = written_by(streaming([thought, *openai_events("{}")]))
    assert (generation.text, len(generation.tokens)) == ("{}", 1)


@pytest.mark.parametrize(
    "odd",
    [
        b": still thinking",
        {},
        {"choices": None},
        {"choices": [{}]},
        {"choices": [{"delta": None}]},
        openai_event({}),
        openai_event({"content": None}),
        openai_event({"content": ""}, logprobs={"content": None}),
        openai_event({"content": ""}, logprobs={}),
        openai_event({"content": ""}, logprobs={"content": [{"token": "", "logprob": None}]}),
    ],
)
def test_odd_chunks_are_passed_over(odd: object) -> None:
    generation, _ = written_by(streaming([odd, *openai_events("{}")]))
    assert generation.text == "{}"
    assert [token for token in generation.tokens if token.piece] == [
        Token(b"{}", -0.1, alternatives=((b"{}", -0.1), (b"?", -3.0)))
    ]


def test_words_arrive_before_the_end() -> None:
    listener = Listener(stops=True)
    slow = streaming(openai_events(FILM_REPLY)[:4], hangs=True)
    with serving(slow) as script, pytest.raises(ReaderUnavailable, match="stopped"):
        writer_at(script).write(TURN, FILM, listener.control)
    assert listener.words == [FILM_REPLY[: loopback.TOKEN]]


def test_the_request() -> None:
    _, script = written_by(GOOD)
    request = script.requests[0]
    assert request.path == "/v1/chat/completions"
    assert request.headers["authorization"] == f"Bearer {KEY.get_secret_value()}"
    body = request.body
    assert [message["role"] for message in body["messages"]] == ["system", "user", "assistant", "user"]
    assert body["messages"][0]["content"] == "You describe films."
    assert body["messages"][1]["content"][1] == {"type": "text", "text": TURN.messages[1].text}
    assert body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "film", "strict": True, "schema": TURN.schema},
    }
    del body["messages"], body["response_format"]
    assert body == {
        "model": "scripted",
        "stream": True,
        "temperature": 0.0,
        "max_tokens": TURN.max_tokens,
        "logprobs": True,
        "top_logprobs": 5,
    }


def test_the_film_is_sent_as_pixels_alone() -> None:
    _, script = written_by(GOOD)
    url = script.requests[0].body["messages"][1]["content"][0]["image_url"]["url"]
    assert url.startswith(DATA)
    check_privacy(script.requests[0].raw, url.removeprefix(DATA))


def test_where_the_film_goes_is_said_before_it_goes() -> None:
    control = Control(5)
    seen: list[str | None] = []
    with serving(noting(seen, control, GOOD)) as script:
        writer_at(script).write(TURN, FILM, control)
        place = script.url.removeprefix("http://")
    assert seen == [control.film_sent_to] == [f"nowhere else: to a server on this machine ({place})"]


def test_a_whole_reading() -> None:
    with serving(GOOD, streaming(openai_events(CLINICAL_REPLY))) as script:
        reading = ModelReader("openai", writer_at(script), max_tokens=4096).read(ReaderTask(FILM, "cough", predict()))
    assert reading.form == "schema"
    assert reading.token_confidence == pytest.approx(math.exp(-0.1))
    assert {statement.status for statement in reading.statements.values()} == {"absent"}


def test_a_reply_that_is_cut_is_handed_on() -> None:
    generation, _ = written_by(streaming(openai_events('{"Ate', finish="length")))
    assert generation.text == '{"Ate'


def test_an_ignored_schema_is_no_failure() -> None:
    generation, _ = written_by(streaming(openai_events("The lungs are clear.")))
    assert generation.text == "The lungs are clear."


def test_an_endless_reply_is_not_read_to_its_end() -> None:
    generation, _ = written_by(streaming([openai_event({"content": "x" * 50_000})] * 200, hangs=True))
    assert len(generation.text) == 100_000


def test_no_reply() -> None:
    assert "declined" in refused_by(streaming(openai_events("I", finish="content_filter")))[0]
    assert "declined" in refused_by(streaming([openai_event({"refusal": ECHO})]))[0]
    assert "empty" in refused_by(streaming(openai_events("")))[0]
    assert "empty" in refused_by(streaming([]))[0]
    assert "READER_MAX_TOKENS" in refused_by(streaming(openai_events("", finish="length")))[0]


# ── Refusals ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def fussy(status: int, *unwanted: str) -> Behaviour:
    """Refuse requests that hold any of these keys, and answer the others."""

    def behave(exchange: loopback.Exchange) -> None:
        body = exchange.server.script.requests[-1].body
        bad = [key for key in unwanted if key in body]
        (openai_error(status, "Unsupported request.") if bad else PLAIN)(exchange)

    return behave


@pytest.mark.parametrize("status", [400, 422, 501])
@pytest.mark.parametrize(
    ("unwanted", "rungs"),
    [
        (("logprobs",), [(True, True), (False, True)]),
        (("response_format",), [(True, True), (False, True), (True, False)]),
        (("logprobs", "response_format"), [(True, True), (False, True), (True, False), (False, False)]),
    ],
)
def test_what_a_server_refuses_is_asked_for_once(
    status: int, unwanted: tuple[str, ...], rungs: list[tuple[bool, bool]]
) -> None:
    with serving(fussy(status, *unwanted)) as script:
        writer = writer_at(script)
        assert written(writer).text == written(writer).text == FILM_REPLY
    assert asked(script) == [*rungs, rungs[-1]]


def test_a_server_that_crashes_over_the_schema() -> None:
    with serving(fussy(500, "response_format")) as script:
        writer = writer_at(script)
        assert written(writer).text == written(writer).text == FILM_REPLY
    assert asked(script) == [(True, True), (True, True), (False, False), (False, False)]


def test_a_refusal_that_names_its_reason() -> None:
    with serving(openai_error(403, "You are not allowed to request logprobs from this model."), PLAIN) as script:
        written(writer_at(script))
    assert asked(script) == [(True, True), (False, True)]
    with serving(openai_error(400, "response_format: json_schema is not supported"), GOOD) as script:
        written(writer_at(script))
    assert asked(script) == [(True, True), (True, False)]


def test_a_refusal_in_the_stream() -> None:
    early = streaming([{"error": {"message": "no logprobs here", "code": 400}}])
    with serving(early, PLAIN) as script:
        assert written(writer_at(script)).text == FILM_REPLY
    assert asked(script) == [(True, True), (False, True)]


def test_the_other_name_of_the_limit() -> None:
    no = openai_error(400, "Unsupported parameter: use 'max_completion_tokens' instead.", "max_tokens")
    cold = openai_error(400, "Unsupported value: 'temperature'", "temperature")
    with serving(no, cold, GOOD) as script:
        writer = writer_at(script)
        assert written(writer).text == written(writer).text == FILM_REPLY
    limits = [{"max_tokens", "max_completion_tokens", "temperature"} & set(r.body) for r in script.requests]
    bare = {"max_completion_tokens"}
    assert limits == [{"max_tokens", "temperature"}, bare | {"temperature"}, bare, bare]
    assert set(asked(script)) == {(True, True)}


@pytest.mark.parametrize(
    ("behaviour", "word"),
    [
        (openai_error(401, ECHO), "OPENAI_API_KEY"),
        (openai_error(403, ECHO), "OPENAI_API_KEY"),
        (openai_error(404, ECHO), "OPENAI_MODEL"),
        (answering(405, ECHO), "refused the request"),
        (answering(302, None, Location="http://127.0.0.1:1/"), "another address"),
        (sending(b"data: " + ECHO.encode() + b"\n\n"), "no reply"),
        (sending(b'data: {"choices": [{"del\n\n'), "no reply"),
        (sending(b'data: {"choices": "' + ECHO.encode() + b'"}\n\n'), "empty"),
        (sending(b'data: {"choices": [{"delta": {"content": [1]}}]}\n\n'), "no reply"),
        (sending(b"data: \xff\xfe\n\n"), "no reply"),
        (sending(bytes(range(256)) * 99), "no reply"),
        (sending(b"data: [1]\n\n"), "empty"),
        (answering(200, {"choices": [{"message": {"content": "not streamed"}}]}), "empty"),
    ],
)
def test_what_no_second_attempt_helps(behaviour: Behaviour, word: str) -> None:
    sentence, script = refused_by(behaviour)
    assert word in sentence
    assert len(script.requests) == 1


def test_no_redirect_is_followed() -> None:
    with serving(GOOD) as elsewhere, serving(answering(307, None, Location=elsewhere.url + "/v1")) as script:
        assert "another address" in refused(writer_at(script))
    assert elsewhere.requests == []


# ── Further attempts ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "failing",
    [
        openai_error(429, ECHO),
        openai_error(500, ECHO),
        openai_error(503, ECHO),
        answering(502, None),
        dropping,
        streaming(openai_events(FILM_REPLY)[:3], breaks=True),
        streaming([*openai_events(FILM_REPLY)[:3], {"error": {"message": ECHO}}]),
    ],
)
def test_a_passing_failure_passes(failing: Behaviour) -> None:
    generation, script = written_by(failing, GOOD)
    assert generation.text == FILM_REPLY
    assert generation.tokens  # a failure that passes costs no measurement
    assert len(script.requests) == 2


@pytest.mark.parametrize(
    ("failing", "word"),
    [
        (openai_error(429, ECHO), "allows no more requests"),
        (openai_error(500, ECHO), "failed"),
        (streaming(openai_events(FILM_REPLY)[:3], breaks=True), "broke off"),
    ],
)
def test_a_lasting_failure_is_met_three_times(failing: Behaviour, word: str) -> None:
    sentence, script = refused_by(failing)
    assert word in sentence
    assert len(script.requests) == 3


def test_words_are_not_said_twice() -> None:
    listener = Listener()
    with serving(streaming(openai_events(FILM_REPLY)[:4], breaks=True), GOOD) as script:
        writer_at(script).write(TURN, FILM, listener.control)
    assert "".join(listener.words) == FILM_REPLY


def test_the_time_that_the_server_names_is_waited() -> None:
    generation, script = written_by(openai_error(429, ECHO, Retry_After="0.2"), GOOD)
    assert generation.text == FILM_REPLY
    assert 0.2 <= script.requests[1].at - script.requests[0].at < 0.5  # QUICK would have waited 0.02


@pytest.mark.parametrize("value", ["", "soon", "-1", "nan", "inf", "1e999", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_odd_times_are_not_waited(value: str) -> None:
    _, script = written_by(openai_error(429, ECHO, Retry_After=value), GOOD)
    assert script.requests[1].at - script.requests[0].at < 0.2


@pytest.mark.parametrize("value", ["36000", "Wed, 21 Oct 2116 07:28:00 GMT"])
def test_no_wait_goes_beyond_the_time_limit(value: str) -> None:
    with serving(openai_error(429, ECHO, Retry_After=value)) as script:
        sentence, took = timed(writer_at(script), 1.0)
    assert "allows no more requests" in sentence
    assert took < 0.5
    assert len(script.requests) == 1


# ── Time limit and stop ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "slow",
    [
        hanging,
        streaming([openai_event({"content": "x"})] * 100, pause_s=0.05),
        streaming([openai_event({"content": "x"})], hangs=True),
        flooding(openai_event({"reasoning_content": "x"})),
        openai_error(429, ECHO, Retry_After="0.3"),
    ],
)
def test_the_time_limit_holds(slow: Behaviour) -> None:
    with serving(slow) as script:
        _, took = timed(writer_at(script), 0.5)
    assert took < 1.0


def test_what_is_too_late_is_called_so() -> None:
    with serving(hanging) as script:
        sentence, _ = timed(writer_at(script), 0.2)
        assert script.left.wait(20)
    assert "READER_TIMEOUT_S" in sentence


@pytest.mark.parametrize("slow", [hanging, streaming([openai_event({"content": "x"})] * 100, pause_s=0.05)])
def test_a_stop_ends_the_request_at_once(slow: Behaviour) -> None:
    with serving(slow) as script:
        assert stopped_after(writer_at(script), lambda: bool(script.requests)) < 0.5
        assert script.left.wait(0.5)


def test_a_stop_ends_the_wait_for_another_attempt() -> None:
    with serving(openai_error(429, ECHO, Retry_After="20")) as script:
        assert stopped_after(writer_at(script), lambda: bool(script.requests)) < 0.5


# ── Addresses, models, keys, packages and the environment ────────────────────────────────────────────────────────────


@pytest.mark.parametrize("url", [None, "", "  ", "ftp://127.0.0.1/", "127.0.0.1:8000/v1", "file:///etc/passwd"])
def test_an_address_is_needed(url: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/ambient")
    with pytest.raises(ReaderUnavailable, match="OPENAI_BASE_URL"):
        OpenAiWriter(url, KEY, "scripted")


def test_nobody_is_there() -> None:
    with serving(GOOD) as script:
        pass
    for model in ("scripted", None):
        sentence, took = timed(writer_at(script, model=model), 5.0)
        assert "cannot be reached: check OPENAI_BASE_URL" in sentence
        assert took < 1.0


@pytest.mark.parametrize("proxy", ["http://user:word@127.0.0.1:port", "gopher://127.0.0.1", "http://127.0.0.1:9"])
@pytest.mark.parametrize("url", ["http://reader.invalid/v1", "https://reader.invalid/v1"])
def test_a_proxy_of_the_environment_that_is_none(url: str, proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, proxy)
    sentence = refused(OpenAiWriter(url, KEY, "scripted", patience=QUICK))
    assert "OPENAI_BASE_URL" in sentence
    assert "word" not in sentence


@pytest.mark.parametrize("url", ["http://0177.0.0.1/v1", "http://127.0.0.1:1", "http://[::1]:1/v1"])
def test_an_address_without_a_server(url: str) -> None:
    assert "cannot be reached: check OPENAI_BASE_URL" in refused(OpenAiWriter(url, KEY, "scripted"))


def listing(*names: str) -> Behaviour:
    return answering(200, {"object": "list", "data": [{"id": name, "object": "model"} for name in names]})


def test_the_only_model_is_taken() -> None:
    with serving(listing("the-one"), GOOD) as script:
        writer = writer_at(script, model=None)
        assert (writer.model, script.requests) == (UNNAMED, [])
        written(writer)
        written(writer)
    assert writer.model == "the-one"
    assert [request.method for request in script.requests] == ["GET", "POST", "POST"]
    assert {request.body["model"] for request in script.requests[1:]} == {"the-one"}


@pytest.mark.parametrize(
    "models", [listing(), listing("one", "two"), answering(404, None), answering(200, {}), answering(200, [ECHO])]
)
def test_among_other_models_none_is_chosen(models: Behaviour) -> None:
    with serving(models) as script:
        assert "OPENAI_MODEL" in refused(writer_at(script, model=None))
    assert [request.method for request in script.requests] == ["GET"]


@pytest.mark.parametrize("key", ["two\nlines", "two words", "Schlüssel"])
def test_what_cannot_be_a_key(key: str) -> None:
    with pytest.raises(ReaderUnavailable, match="OPENAI_API_KEY") as caught:
        OpenAiWriter("http://127.0.0.1:1", SecretStr(key), "scripted")
    assert key not in str(caught.value)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ReaderUnavailable, match="pip install openai"):
        OpenAiWriter("http://127.0.0.1:1", KEY, "scripted")


def test_nothing_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(GOOD) as elsewhere, serving(GOOD) as script:
        for name in ("OPENAI_BASE_URL", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, elsewhere.url)
        for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
            monkeypatch.setenv(name, "ambient")
        monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: ambient\nX-Mine: ambient\nCookie: ambient")
        assert written(writer_at(script, key=None)).text == FILM_REPLY
    assert elsewhere.requests == []
    headers = script.requests[0].headers
    assert headers["authorization"] == "Bearer none"
    assert "ambient" not in "".join(headers.values())
