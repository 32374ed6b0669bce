"""Which reader answers, what it must answer, and what is said when it did not."""

import json
import logging
from collections import deque
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from modules import multimodal_reasoning
from modules.errors import ReaderUnavailable
from modules.multimodal_reasoning import SecondReader
from modules.pathologies import NAMES
from modules.reasoners.base import (
    MAX_ITEM,
    MAX_ITEMS,
    MAX_QUOTE,
    MAX_REASONING,
    MAX_REPLY,
    Reader,
    ReaderTask,
    parse_replies,
    reply_schemas,
)
from modules.reasoners.dummy import DummyReader
from modules.records import CnnPrediction, ReaderInfo, Reading
from modules.settings import ReaderMode, Settings
from tests.stages import STATUSES, TEMPLATE, film, predict, predictions, read

SECRET = "key=sk-12345 at /srv/models"


class ScriptedReader(Reader):
    """Answers what was enqueued, in that order, and keeps every task it got."""

    def __init__(self, mode: ReaderMode = "local") -> None:
        self.mode = mode
        self.model = f"scripted-{mode}"
        self.film_sent_to = f"the script of {mode}"
        self.history: list[ReaderTask] = []
        self._queue: deque[Reading | Exception] = deque()

    def enqueue(self, *answers: Reading | Exception) -> "ScriptedReader":
        self._queue.extend(answers)
        return self

    def read(self, task: ReaderTask) -> Reading:
        self.history.append(task)
        answer = self._queue.popleft()
        if isinstance(answer, Exception):
            raise answer
        return answer


def ask(second: SecondReader, prediction: CnnPrediction | None = None) -> tuple[Reading, ReaderInfo]:
    return second.read(film(), "cough", prediction or predict())


# ── Which one answers ────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_reader_asked_for_answers_alone() -> None:
    first, second = ScriptedReader("local").enqueue(read({"Mass": "present"}, 0.7)), ScriptedReader("api")
    reading, info = ask(SecondReader("local", (first, second)))
    assert reading == read({"Mass": "present"}, 0.7)
    assert (info.mode_requested, info.mode, info.model) == ("local", "local", "scripted-local")
    assert (info.independent, info.fallback_reason, info.token_confidence) == (True, None, 0.7)
    assert info.film_sent_to == "the script of local"
    assert info.seconds >= 0.0
    assert second.history == []


def test_a_reader_gets_the_film_the_symptoms_and_the_prediction() -> None:
    reader = ScriptedReader().enqueue(read())
    radiograph, prediction = film(), predict({"Mass": 0.9})
    SecondReader("local", (reader,)).read(radiograph, "cough", prediction)
    (task,) = reader.history
    assert task.radiograph is radiograph
    assert task.prediction is prediction
    assert (task.symptoms, task.why_not_others) == ("cough", ())


def test_readers_are_tried_in_their_order_and_each_learns_why_the_others_did_not_run() -> None:
    first = ScriptedReader("local").enqueue(ReaderUnavailable("The first is loading."))
    second = ScriptedReader("api").enqueue(ReaderUnavailable("The second has no key."))
    third = ScriptedReader("openai").enqueue(read())
    _, info = ask(SecondReader("local", (first, second, third, DummyReader())))
    assert (info.mode_requested, info.mode, info.model) == ("local", "openai", "scripted-openai")
    assert info.fallback_reason == "The first is loading. The second has no key."
    assert info.film_sent_to == "the script of openai"
    assert second.history[0].why_not_others == ("The first is loading.",)
    assert third.history[0].why_not_others == ("The first is loading.", "The second has no key.")


def test_a_reader_that_recovers_answers_again() -> None:
    reader = ScriptedReader().enqueue(ReaderUnavailable("It is loading."), read({"Mass": "present"}))
    second = SecondReader("local", (reader, DummyReader()))
    assert ask(second)[1].mode == "dummy"
    reading, info = ask(second)
    assert (info.mode, info.fallback_reason) == ("local", None)
    assert reading.statement("Mass").status == "present"


@pytest.mark.parametrize("error", [RuntimeError(SECRET), ValueError(SECRET), OSError(SECRET), KeyError(SECRET)])
def test_an_unexpected_failure_falls_through_and_leaks_nothing(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    first = ScriptedReader("api").enqueue(error)
    reading, info = ask(SecondReader("api", (first, DummyReader())))
    assert info.mode == "dummy"
    assert info.fallback_reason == "The reader 'api' failed unexpectedly."
    assert reading.reasoning.startswith("No second reader ran: The reader 'api' failed unexpectedly. ")
    told = (reading.model_dump_json(), info.model_dump_json(), *(str(vars(record)) for record in caplog.records))
    assert not any(SECRET in text for text in told)
    (record,) = caplog.records
    assert vars(record)["fields"] == {"reader": "api", "error": type(error).__name__}


def test_a_failure_that_was_announced_is_not_logged_as_unexpected(caplog: pytest.LogCaptureFixture) -> None:
    ask(SecondReader("api", (ScriptedReader("api").enqueue(ReaderUnavailable("No key.")), DummyReader())))
    assert caplog.records == []


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_is_no_failure_of_the_reader(interrupt: type[BaseException]) -> None:
    class Interrupted(ScriptedReader):
        def read(self, task: ReaderTask) -> Reading:
            raise interrupt

    with pytest.raises(interrupt):
        ask(SecondReader("local", (Interrupted(), DummyReader())))


def test_when_every_reader_failed_the_error_gives_all_reasons() -> None:
    readers = tuple(ScriptedReader(mode).enqueue(ReaderUnavailable(f"No {mode}.")) for mode in ("local", "api"))
    with pytest.raises(ReaderUnavailable, match=r"^No local\. No api\.$"):
        ask(SecondReader("local", readers))


# ── From settings ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("mode", ["local", "api", "openai"])
def test_a_reader_that_cannot_be_made_falls_back_with_its_reason(mode: ReaderMode) -> None:
    second = SecondReader.from_settings(Settings(_env_file=None, medgemma_mode=mode))
    reading, info = ask(second)
    assert (info.mode_requested, info.mode, info.model, info.independent) == (mode, "dummy", None, False)
    assert info.fallback_reason
    assert repr(mode) in info.fallback_reason
    assert reading.reasoning.startswith(f"No second reader ran: {info.fallback_reason} ")
    health = second.health()
    assert (health.mode_requested, health.mode, health.state) == (mode, "dummy", "fallback")
    assert health.reason == info.fallback_reason


def test_the_reasons_come_in_the_order_in_which_readers_were_wanted() -> None:
    settings = Settings(_env_file=None, medgemma_mode="openai", medgemma_fallback=("api", "local", "api"))
    _, info = ask(SecondReader.from_settings(settings))
    assert info.mode == "dummy"
    assert info.fallback_reason
    found = [info.fallback_reason.index(repr(mode)) for mode in ("openai", "api", "local")]
    assert found == sorted(found)
    assert info.fallback_reason.count("'api'") == 1


def test_the_template_asked_for_is_no_fallback() -> None:
    second = SecondReader.from_settings(Settings(_env_file=None, medgemma_mode="dummy"))
    reading, info = ask(second)
    assert (info.mode_requested, info.mode, info.fallback_reason) == ("dummy", "dummy", None)
    assert reading.reasoning.startswith("No second reader ran: MEDGEMMA_MODE asks for none. ")
    assert (second.health().state, second.health().reason) == ("ready", None)


def test_a_reader_behind_the_one_that_answers_is_no_reason() -> None:
    settings = Settings(_env_file=None, medgemma_mode="dummy", medgemma_fallback=("api",))
    second = SecondReader.from_settings(settings)
    reading, _ = ask(second)
    assert reading.reasoning.startswith("No second reader ran: MEDGEMMA_MODE asks for none. ")
    assert second.health().reason is None


@pytest.mark.parametrize(
    ("fallback", "mode", "reason"),
    [
        (("openai", "api"), "openai", "local broke."),  # nobody came to the reader behind the one that answered
        (("api", "openai"), "openai", "local broke. No api."),
        (("api",), "dummy", "local broke. No api."),
    ],
)
def test_a_fallback_is_explained_by_the_readers_before_it_in_their_order(
    monkeypatch: pytest.MonkeyPatch, fallback: tuple[ReaderMode, ...], mode: ReaderMode, reason: str
) -> None:
    def make(wanted: ReaderMode) -> Reader:
        if wanted == "api":
            raise ReaderUnavailable("No api.")
        answers = {"local": ReaderUnavailable("local broke."), "openai": read(), "dummy": TEMPLATE}
        return ScriptedReader(wanted).enqueue(answers[wanted])

    monkeypatch.setattr(multimodal_reasoning, "_make", make)
    settings = Settings(_env_file=None, medgemma_mode="local", medgemma_fallback=fallback)
    _, info = ask(SecondReader.from_settings(settings))
    assert (info.mode, info.fallback_reason) == (mode, reason)


# ── The template ─────────────────────────────────────────────────────────────────────────────────────────────────────


@given(predictions())
def test_the_template_repeats_the_cnn_in_its_order_and_states_nothing(prediction: CnnPrediction) -> None:
    reading, info = ask(SecondReader("dummy", (DummyReader(),)), prediction)
    detected = [NAMES[k] for k in prediction.ranking if prediction.detected[k]]
    assert list(reading.differential) == detected
    assert reading.reasoning.startswith("No second reader ran: ")
    assert (reading.statements, reading.token_confidence, reading.independent) == ({}, None, False)
    assert all(reading.statement(name).status == "not_mentioned" for name in NAMES)
    assert (info.film_sent_to.split(":")[0], info.independent, info.token_confidence) == ("nowhere", False, None)
    assert all(name in reading.reasoning for name in detected)


def test_the_template_ranks_by_distance_from_the_threshold_with_sufficient_data_first() -> None:
    prediction = predict(
        {"Mass": 0.9, "Hernia": 0.2, "Edema": 0.6, "Fibrosis": 0.99, "Nodule": 0.4},
        {"Hernia": 0.01},
        insufficient=frozenset({"Fibrosis"}),
    )
    # margins in log-odds: Hernia 3.2, Mass 2.2, Edema 0.4; Fibrosis 4.6, on insufficient data
    assert DummyReader().read(ReaderTask(film(), "", prediction)).differential == (
        "Hernia",
        "Mass",
        "Edema",
        "Fibrosis",
    )


def test_the_template_does_not_reassure_when_nothing_was_detected() -> None:
    reading = DummyReader().read(ReaderTask(film(), "", predict()))
    assert reading.differential == ()
    assert "this does not exclude disease" in reading.reasoning


class FilmNobodyMayOpen:
    """Fails the test when anything of the film is asked."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the template looked at {name} of the film")


def test_the_template_does_not_look_at_the_film() -> None:
    reading, info = SecondReader("dummy", (DummyReader(),)).read(FilmNobodyMayOpen(), "cough", predict())  # type: ignore[arg-type]
    assert reading.reasoning.startswith("No second reader ran: MEDGEMMA_MODE")
    assert info.film_sent_to == "nowhere: no second reader ran"


@pytest.mark.parametrize("claim", [{"statements": {"Mass": {"status": "present"}}}, {"token_confidence": 0.7}])
def test_a_template_that_claims_to_have_read_the_film_is_refused(claim: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="not independent"):
        Reading.model_validate({**TEMPLATE.model_dump(), **claim})


# ── What a reader must answer ────────────────────────────────────────────────────────────────────────────────────────

FIELDS = tuple(name.replace(" ", "_") for name in NAMES)


def film_reply(**changes: Any) -> dict[str, Any]:
    return {field: {"status": "not_mentioned", "quote": ""} for field in FIELDS} | changes


def clinical_reply(**changes: Any) -> dict[str, Any]:
    return {
        "clinical_reasoning": "A round opacity in the right lung.",
        "differential": ["Mass", "Round pneumonia"],
    } | changes


def parse(film: Any = None, clinical: Any = None, **options: Any) -> Reading:
    film, clinical = film_reply() if film is None else film, clinical_reply() if clinical is None else clinical
    return parse_replies(json.dumps(film), json.dumps(clinical), **options)


def test_valid_replies_become_a_reading() -> None:
    said = film_reply(
        Mass={"status": "present", "quote": "a 4 cm mass"}, Pleural_Thickening={"status": "absent", "quote": "smooth"}
    )
    reading = parse(said, token_confidence=0.8, status_confidence={"Mass": 0.9})
    assert reading.reasoning == "A round opacity in the right lung."
    assert reading.differential == ("Mass", "Round pneumonia")
    assert (reading.token_confidence, reading.independent) == (0.8, True)
    assert tuple(reading.statements) == NAMES
    mass, pleura = reading.statement("Mass"), reading.statement("Pleural Thickening")
    assert (mass.status, mass.quote, mass.confidence) == ("present", "a 4 cm mass", 0.9)
    assert (pleura.status, pleura.quote, pleura.confidence) == ("absent", "smooth", None)
    assert reading.statement("Edema").status == "not_mentioned"


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize(("name", "field"), list(zip(NAMES, FIELDS, strict=True)))
def test_each_status_of_each_pathology_reaches_its_own_statement(name: str, field: str, status: str) -> None:
    other = "uncertain" if status != "uncertain" else "absent"
    reading = parse({f: {"status": status if f == field else other} for f in FIELDS})
    assert {n for n in NAMES if reading.statement(n).status == status} == {name}


def test_what_was_not_measured_is_absent() -> None:
    reading = parse()
    assert reading.token_confidence is None
    assert all(statement.confidence is None for statement in reading.statements.values())


def test_html_in_a_reply_stays_text() -> None:
    html = "<script>alert(1)</script> & <b>mass</b>"
    reading = parse(
        film_reply(Mass={"status": "present", "quote": html}),
        clinical_reply(clinical_reasoning=html, differential=[html]),
    )
    assert (reading.reasoning, reading.differential, reading.statement("Mass").quote) == (html, (html,), html)


@pytest.mark.parametrize("field", FIELDS)
def test_a_reply_must_speak_of_every_pathology(field: str) -> None:
    said = film_reply()
    del said[field]
    with pytest.raises(ReaderUnavailable, match="did not fit"):
        parse(said)


MASS = {"status": "present", "quote": "x"}
BAD_FILM: dict[str, Any] = {
    "another pathology": film_reply(Fracture=MASS),
    "a field in a statement": film_reply(Mass={**MASS, "probability": 0.9}),
    "an unknown status": film_reply(Mass={"status": "likely"}),
    "a status in capitals": film_reply(Mass={"status": "Present"}),
    "no status": film_reply(Mass={"quote": "x"}),
    "a bare status": film_reply(Mass="present"),
    "null": film_reply(Mass=None),
    "a long quote": film_reply(Mass={**MASS, "quote": "x" * (MAX_QUOTE + 1)}),
    "a display name": film_reply(**{"Pleural Thickening": MASS}),
    "nothing": {},
    "a list": [],
    "a number": 14,
}
BAD_CLINICAL: dict[str, Any] = {
    "no reasoning": {"differential": ["Mass"]},
    "empty reasoning": clinical_reply(clinical_reasoning=""),
    "long reasoning": clinical_reply(clinical_reasoning="x" * (MAX_REASONING + 1)),
    "a long item": clinical_reply(differential=["x" * (MAX_ITEM + 1)]),
    "too many items": clinical_reply(differential=["x"] * (MAX_ITEMS + 1)),
    "a sentence for a list": clinical_reply(differential="Mass"),
    "a number in the list": clinical_reply(differential=[1]),
    "an unknown field": clinical_reply(risk_level="Low"),
    "null": None,
}


@pytest.mark.parametrize("case", BAD_FILM)
def test_a_first_reply_that_does_not_fit_is_refused(case: str) -> None:
    with pytest.raises(ReaderUnavailable, match=r"^The second reader's reply did not fit the form") as caught:
        parse_replies(json.dumps(BAD_FILM[case]), json.dumps(clinical_reply()))
    assert "xxx" not in str(caught.value)


@pytest.mark.parametrize("case", BAD_CLINICAL)
def test_a_second_reply_that_does_not_fit_is_refused(case: str) -> None:
    with pytest.raises(ReaderUnavailable, match=r"^The second reader's reply did not fit the form"):
        parse_replies(json.dumps(film_reply()), json.dumps(BAD_CLINICAL[case]))


@pytest.mark.parametrize(
    "text",
    ["", "I cannot read films.", "```json\n{}\n```", "{", "null", "[" * 10_000, '{"Mass": NaN}', "\x00", "\ud800"],
    ids=["empty", "prose", "fenced", "cut off", "null", "nested", "NaN", "NUL", "lone surrogate"],
)
def test_what_is_no_json_is_refused(text: str) -> None:
    for replies in ((text, json.dumps(clinical_reply())), (json.dumps(film_reply()), text)):
        with pytest.raises(ReaderUnavailable):
            parse_replies(*replies)


def test_the_longest_replies_that_fit_are_taken() -> None:
    long_film = {field: {"status": "uncertain", "quote": "x" * MAX_QUOTE} for field in FIELDS}
    items = ["x" * MAX_ITEM] * MAX_ITEMS
    reading = parse(
        long_film,
        clinical_reply(clinical_reasoning="x" * MAX_REASONING, differential=items),
    )
    assert len(reading.reasoning) == MAX_REASONING
    assert len(reading.differential) == MAX_ITEMS


def test_a_reply_is_refused_by_its_length_before_it_is_parsed() -> None:
    padded = json.dumps(clinical_reply())
    padded += " " * (MAX_REPLY - len(padded))
    assert parse_replies(json.dumps(film_reply()), padded).reasoning
    for replies in ((json.dumps(film_reply()), padded + " "), (padded + " ", padded)):
        with pytest.raises(ReaderUnavailable, match="too long"):
            parse_replies(*replies)


@given(st.text(max_size=300), st.text(max_size=300))
def test_any_text_is_read_or_refused_with_a_reason(film: str, clinical: str) -> None:
    with pytest.raises(ReaderUnavailable):
        parse_replies(film, clinical)


def test_a_reply_that_does_not_fit_falls_back_to_the_template() -> None:
    class Rambling(ScriptedReader):
        def read(self, task: ReaderTask) -> Reading:
            return parse_replies("The film shows a mass.", "{}")

    reading, info = ask(SecondReader("local", (Rambling(), DummyReader())), predict({"Mass": 0.9}))
    assert info.mode == "dummy"
    assert info.fallback_reason == "The second reader's reply did not fit the form that was asked for."
    assert reading.differential == ("Mass",)


def test_the_schemas_ask_for_all_pathologies_and_the_four_statuses() -> None:
    film_schema, clinical_schema = reply_schemas()
    assert tuple(film_schema["properties"]) == FIELDS
    assert tuple(film_schema["required"]) == FIELDS
    assert len(FIELDS) == 14
    status = film_schema["$defs"]["StatusReply"]["properties"]["status"]["enum"]
    assert sorted(status) == sorted(STATUSES)
    assert film_schema["additionalProperties"] is False
    assert film_schema["$defs"]["StatusReply"]["additionalProperties"] is False
    assert clinical_schema["additionalProperties"] is False
    assert clinical_schema["required"] == ["clinical_reasoning"]
    json.dumps((film_schema, clinical_schema))


def test_the_first_schema_does_not_ask_for_what_symptoms_could_echo_in() -> None:
    film_schema, _ = reply_schemas()
    assert set(film_schema["$defs"]) == {"StatusReply"}
    assert set(film_schema["$defs"]["StatusReply"]["properties"]) == {"status", "quote"}


def test_a_reader_without_its_reading_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="abstract"):
        type("Silent", (Reader,), {})()


def test_reading_leaves_the_prediction_and_the_film_as_they_were() -> None:
    prediction, radiograph = predict({"Mass": 0.9}), film()
    before = prediction.log_odds.copy(), radiograph.pixels.copy()
    SecondReader("dummy", (DummyReader(),)).read(radiograph, "cough", prediction)
    np.testing.assert_array_equal(prediction.log_odds, before[0])
    np.testing.assert_array_equal(radiograph.pixels, before[1])
