"""The Gemini reader, with Google's own client, on scripted servers of this machine."""

import logging
import math
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import SecretStr

from modules.errors import ReaderUnavailable
from modules.reasoners.base import Control, ReaderTask
from modules.reasoners.conversation import ModelReader
from modules.reasoners.gemini import GeminiWriter
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
    check_discreet,
    check_privacy,
    check_quiet,
    dropping,
    flooding,
    gemini_error,
    gemini_event,
    gemini_events,
    hanging,
    noting,
    refused,
    sending,
    serving,
    stopped_after,
    streaming,
    timed,
    written,
)
from tests.stages import predict

GOOD = streaming(gemini_events(FILM_REPLY))
RETRY_INFO = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "0.2s"}


@pytest.fixture(autouse=True)
def _discreet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.DEBUG)
    yield
    check_quiet(caplog)


def writer_at(script: Script) -> GeminiWriter:
    return GeminiWriter(KEY, "gemini-scripted", base_url=script.url, patience=QUICK)


def written_by(*behaviours: Behaviour) -> tuple[Any, Script]:
    with serving(*behaviours) as script:
        return written(writer_at(script)), script


def refused_by(*behaviours: Behaviour) -> tuple[str, Script]:
    with serving(*behaviours) as script:
        return refused(writer_at(script)), script


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
    generation, _ = written_by(streaming(gemini_events(FILM_REPLY, logprob=None)))
    assert (generation.text, generation.tokens) == (FILM_REPLY, ())


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, -9999.0, 0.5])
def test_what_is_no_log_probability_is_left_out(wrong: float) -> None:
    generation, _ = written_by(streaming(gemini_events("{}", logprob=wrong)))
    assert generation.tokens[0].logprob is None
    assert generation.tokens[0].alternatives == ((b"?", -3.0),)
    generation, _ = written_by(streaming(gemini_events("{}", other=wrong)))
    assert generation.tokens[0].alternatives == ((b"{}", -0.1),)


def test_words_arrive_before_the_end() -> None:
    listener = Listener(stops=True)
    slow = streaming(gemini_events(FILM_REPLY)[:3], hangs=True)
    with serving(slow) as script, pytest.raises(ReaderUnavailable, match="stopped"):
        writer_at(script).write(TURN, FILM, listener.control)
    assert listener.words == [FILM_REPLY[: loopback.TOKEN]]


def test_the_request() -> None:
    _, script = written_by(GOOD)
    request = script.requests[0]
    assert request.path == "/v1beta/models/gemini-scripted:streamGenerateContent?alt=sse"
    assert request.headers["x-goog-api-key"] == KEY.get_secret_value()
    assert "x-server-timeout" not in request.headers  # Gemini refuses deadlines under 10 seconds
    body = request.body
    assert body["systemInstruction"]["parts"] == [{"text": "You describe films."}]
    assert [content["role"] for content in body["contents"]] == ["user", "model", "user"]
    assert body["contents"][0]["parts"][0]["inlineData"]["mime_type"] == "image/png"
    assert body["contents"][0]["parts"][1] == {"text": TURN.messages[1].text}
    config = body["generationConfig"]
    assert config["responseJsonSchema"] == TURN.schema
    assert config["responseMimeType"] == "application/json"
    assert (config["temperature"], config["maxOutputTokens"]) == (0.0, TURN.max_tokens)
    assert (config["responseLogprobs"], config["logprobs"]) == (True, 5)
    assert set(body) == {"contents", "systemInstruction", "generationConfig"}


def test_the_film_is_sent_as_pixels_alone() -> None:
    _, script = written_by(GOOD)
    check_privacy(script.requests[0].raw, script.requests[0].body["contents"][0]["parts"][0]["inlineData"]["data"])


def test_where_the_film_goes_is_said_before_it_goes() -> None:
    control = Control(5)
    seen: list[str | None] = []
    with serving(noting(seen, control, GOOD)) as script:
        writer_at(script).write(TURN, FILM, control)
        place = script.url.removeprefix("http://")
    assert seen == [control.film_sent_to] == [f"Google's Gemini API ({place})"]


def test_a_whole_reading() -> None:
    with serving(GOOD, streaming(gemini_events(CLINICAL_REPLY))) as script:
        reader = ModelReader("api", writer_at(script), max_tokens=4096)
        reading = reader.read(ReaderTask(FILM, "cough", predict()))
    assert reading.form == "schema"
    assert reading.token_confidence == pytest.approx(math.exp(-0.1))
    assert {statement.status for statement in reading.statements.values()} == {"absent"}


def test_thoughts_are_no_reply() -> None:
    thought: dict[str, Any] = gemini_event("Let me think.")
    thought["candidates"][0]["content"]["parts"][0]["thought"] = True
    generation, _ = written_by(streaming([thought, *gemini_events("{}")]))
    assert generation.text == "{}"


def test_half_a_surrogate_pair_can_be_passed_on() -> None:
    generation, _ = written_by(streaming(gemini_events("\ud83d")))
    assert (generation.text, generation.tokens[0].piece) == ("?", b"?")


def test_a_reply_that_is_cut_is_handed_on() -> None:
    generation, _ = written_by(streaming(gemini_events('{"Ate', finish="MAX_TOKENS")))
    assert generation.text == '{"Ate'


def test_an_endless_reply_is_not_read_to_its_end() -> None:
    generation, _ = written_by(streaming([gemini_event("x" * 50_000)] * 200, hangs=True))
    assert len(generation.text) == 100_000


def test_no_reply() -> None:
    blocked = {"promptFeedback": {"blockReason": "SAFETY"}}
    assert "declined" in refused_by(streaming([blocked]))[0]
    assert "declined" in refused_by(streaming(gemini_events("I", finish="SAFETY")))[0]
    assert "empty" in refused_by(streaming([{"candidates": []}]))[0]
    assert "empty" in refused_by(streaming([]))[0]
    assert "READER_MAX_TOKENS" in refused_by(streaming(gemini_events("", finish="MAX_TOKENS")))[0]


# ── Refusals ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("complaint", "without"),
    [
        ("Logprobs is not enabled for this model", {"responseLogprobs", "logprobs"}),
        ("The specified schema has too many states", {"responseJsonSchema"}),
    ],
)
def test_what_a_model_refuses_is_asked_for_once(complaint: str, without: set[str]) -> None:
    with serving(gemini_error(400, complaint), GOOD) as script:
        writer = writer_at(script)
        assert written(writer).text == written(writer).text == FILM_REPLY
    asked = [set(request.body["generationConfig"]) for request in script.requests]
    assert asked[0] - without == asked[1] == asked[2] != asked[0]


@pytest.mark.parametrize(
    ("behaviour", "word"),
    [
        (gemini_error(401, ECHO), "GEMINI_API_KEY"),
        (gemini_error(403, ECHO), "GEMINI_API_KEY"),
        (gemini_error(400, ECHO, {"reason": "API_KEY_INVALID"}), "GEMINI_API_KEY"),
        (gemini_error(404, ECHO), "GEMINI_MODEL"),
        (gemini_error(400, ECHO), "GEMINI_MODEL"),
        (answering(418, [1, 2]), "refused the request"),
        (answering(302, None, Location="http://127.0.0.1:1/"), "another address"),
        (answering(200, {"error": {"code": 403, "message": ECHO}}), "GEMINI_API_KEY"),
        (sending(b"data: " + ECHO.encode() + b"\n\n"), "no reply"),
        (sending(b'data: {"candidates": [{"con\n\n'), "no reply"),
        (sending(b'data: {"candidates": "' + ECHO.encode() + b'"}\n\n'), "empty"),
        (sending(bytes(range(256)) * 99), "no reply"),
        (sending(b"data: {}\n\n"), "empty"),
        (sending(b"data: [1]\n\n"), "empty"),
    ],
)
def test_what_no_second_attempt_helps(behaviour: Behaviour, word: str) -> None:
    sentence, script = refused_by(behaviour)
    assert word in sentence
    assert len(script.requests) == 1


def test_no_redirect_is_followed() -> None:
    with serving(GOOD) as elsewhere, serving(answering(307, None, Location=elsewhere.url + "/v1beta")) as script:
        assert "another address" in refused(writer_at(script))
    assert elsewhere.requests == []


# ── Further attempts ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "failing",
    [
        gemini_error(429, ECHO),
        gemini_error(500, ECHO),
        gemini_error(503, ECHO),
        answering(502, None),
        dropping,
        streaming(gemini_events(FILM_REPLY)[:3], breaks=True),
        streaming([{"error": {"code": 503, "message": ECHO}}]),
    ],
)
def test_a_passing_failure_passes(failing: Behaviour) -> None:
    generation, script = written_by(failing, GOOD)
    assert generation.text == FILM_REPLY
    assert len(script.requests) == 2


@pytest.mark.parametrize(
    ("failing", "word"),
    [
        (gemini_error(429, ECHO), "allows no more requests"),
        (gemini_error(500, ECHO), "failed"),
        (streaming(gemini_events(FILM_REPLY)[:3], breaks=True), "broke off"),
    ],
)
def test_a_lasting_failure_is_met_three_times(failing: Behaviour, word: str) -> None:
    sentence, script = refused_by(failing)
    assert word in sentence
    assert len(script.requests) == 3


def test_words_are_not_said_twice() -> None:
    listener = Listener()
    with serving(streaming(gemini_events(FILM_REPLY)[:3], breaks=True), GOOD) as script:
        writer_at(script).write(TURN, FILM, listener.control)
    assert "".join(listener.words) == FILM_REPLY


@pytest.mark.parametrize("asking", [gemini_error(429, ECHO, RETRY_INFO), gemini_error(429, ECHO, Retry_After="0.2")])
def test_the_time_that_gemini_names_is_waited(asking: Behaviour) -> None:
    generation, script = written_by(asking, GOOD)
    assert generation.text == FILM_REPLY
    assert 0.2 <= script.requests[1].at - script.requests[0].at < 0.5  # QUICK would have waited 0.02


def test_no_wait_goes_beyond_the_time_limit() -> None:
    with serving(gemini_error(429, ECHO, RETRY_INFO | {"retryDelay": "36000s"})) as script:
        sentence, took = timed(writer_at(script), 1.0)
    assert "allows no more requests" in sentence
    assert took < 0.5
    assert len(script.requests) == 1


# ── Time limit and stop ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "slow",
    [
        hanging,
        streaming([gemini_event("x")] * 100, pause_s=0.05),
        streaming([gemini_event("x")], hangs=True),
        flooding(gemini_event("")),
        gemini_error(429, ECHO, RETRY_INFO | {"retryDelay": "0.3s"}),
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


@pytest.mark.parametrize("slow", [hanging, streaming([gemini_event("x")] * 100, pause_s=0.05)])
def test_a_stop_ends_the_request_at_once(slow: Behaviour) -> None:
    with serving(slow) as script:
        assert stopped_after(writer_at(script), lambda: bool(script.requests)) < 0.5
        assert script.left.wait(0.5)


def test_a_stop_ends_the_wait_for_another_attempt() -> None:
    with serving(gemini_error(429, ECHO, RETRY_INFO | {"retryDelay": "20s"})) as script:
        assert stopped_after(writer_at(script), lambda: bool(script.requests)) < 0.5


def test_a_reading_that_was_stopped_before_sends_nothing() -> None:
    with serving(GOOD) as script:
        control = Control(5)
        control.stop()
        with pytest.raises(ReaderUnavailable):
            writer_at(script).write(TURN, FILM, control)
    assert script.requests == []


def test_two_readings_at_the_same_time() -> None:
    texts: list[str] = []
    with serving(GOOD) as script:
        writer = writer_at(script)
        threads = [threading.Thread(target=lambda: texts.append(written(writer).text)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert texts == [FILM_REPLY] * 4


# ── Keys, packages and the environment ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("key", [None, SecretStr(""), SecretStr("  ")])
def test_a_key_of_the_environment_is_no_consent(key: SecretStr | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_API_KEY", "ambient")
    monkeypatch.setenv("GEMINI_API_KEY", "ambient")
    with pytest.raises(ReaderUnavailable, match="set GEMINI_API_KEY"):
        GeminiWriter(key, "gemini-scripted")


@pytest.mark.parametrize("key", ["two\nlines", "two words", "Schlüssel"])
def test_what_cannot_be_a_key(key: str) -> None:
    with pytest.raises(ReaderUnavailable, match="GEMINI_API_KEY") as caught:
        GeminiWriter(SecretStr(key), "gemini-scripted")
    assert key not in str(caught.value)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google.genai", None)
    with pytest.raises(ReaderUnavailable, match="pip install google-genai"):
        GeminiWriter(KEY, "gemini-scripted")


def test_the_environment_sends_the_film_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(GOOD) as elsewhere, serving(GOOD) as script:
        for name in ("GOOGLE_GEMINI_BASE_URL", "GOOGLE_VERTEX_BASE_URL", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, elsewhere.url)
        monkeypatch.setenv("GOOGLE_API_KEY", "ambient")
        monkeypatch.setenv("GEMINI_API_KEY", "ambient")
        monkeypatch.setenv("GOOGLE_GENAI_USE_VERTEXAI", "true")
        monkeypatch.setenv("GOOGLE_GENAI_API_VERSION", "ambient")
        assert written(writer_at(script)).text == FILM_REPLY
        assert GeminiWriter(KEY, "m")._base_url == "https://generativelanguage.googleapis.com"
    assert elsewhere.requests == []
    assert script.requests[0].path.startswith("/v1beta/models/gemini-scripted:")
    assert script.requests[0].headers["x-goog-api-key"] == KEY.get_secret_value()


def test_nobody_is_there() -> None:
    with serving(GOOD) as script:
        pass
    writer = writer_at(script)
    sentence, took = timed(writer, 5.0)
    assert "cannot be reached" in sentence
    assert took < 1.0
    check_discreet(sentence)
    check_discreet(repr(writer) + str(vars(writer)["_patience"]))
