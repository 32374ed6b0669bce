"""Which reader answers, when it is left, where the film goes, and what is said when another one answered."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from modules import multimodal_reasoning
from modules.errors import ReaderUnavailable
from modules.multimodal_reasoning import NOT_SAID, NOWHERE, MissingReader, SecondReader
from modules.reasoners.base import READY, Control, Reader, ReaderFilm, ReaderState, ReaderTask
from modules.reasoners.conversation import ModelReader, Writer
from modules.reasoners.dummy import DummyReader
from modules.reasoners.turns import TurnName
from modules.records import CnnPrediction, ReaderInfo, Reading
from modules.settings import ReaderMode, Settings
from tests.scripted import ScriptedReader, ScriptedWriter, clinical_text, film_text
from tests.stages import film, predict, read

SECRET = "key=sk-12345 at /srv/models"
LIMIT_S = 0.3
LOADING = ReaderState("loading", "It is loading.")
BROKEN = ReaderState("unavailable", "It broke.")


def reader_film() -> ReaderFilm:
    return ReaderFilm.of(film())


def ask(second: SecondReader, prediction: CnnPrediction | None = None, **options: Any) -> tuple[Reading, ReaderInfo]:
    return second.read(reader_film(), "cough", prediction or predict(), **options)


def until(condition: Callable[[], bool], limit_s: float = 1.0) -> None:
    """Wait until something has come true in another thread."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.002)


class Hanging(ScriptedReader):
    """Sends the film away, says that it has begun, and does nothing else until it is released."""

    def __init__(self, mode: ReaderMode = "local") -> None:
        super().__init__(mode)
        self.begun = threading.Semaphore(0)
        self.released = threading.Event()
        self.ended = threading.Semaphore(0)

    def read(self, task: ReaderTask) -> Reading:
        self.history.append(task)
        task.control.sends_film_to(self.place)
        self.begun.release()
        try:
            assert self.released.wait(10)
            return read({"Mass": "present"})
        finally:
            self.ended.release()


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    """A reader that hangs until the test has ended."""
    reader = Hanging()
    yield reader
    reader.released.set()
    for _ in reader.history:
        assert reader.ended.acquire(timeout=1)


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


def test_what_is_known_of_a_reading_is_told() -> None:
    answer = read({"Mass": "present"}).model_copy(
        update={"form": "repaired", "flags": ("it prescribes",), "prompt": "1-abc", "saw_cnn": True}
    )
    _, info = ask(SecondReader("local", (ScriptedReader().enqueue(answer),)))
    assert (info.form, info.flags, info.prompt, info.saw_cnn) == ("repaired", ("it prescribes",), "1-abc", True)


def test_a_reader_gets_the_film_the_symptoms_and_the_prediction() -> None:
    reader = ScriptedReader().enqueue(read())
    shown, prediction = reader_film(), predict({"Mass": 0.9})
    SecondReader("local", (reader,), limit_s=60.0).read(shown, "cough", prediction)
    (task,) = reader.history
    assert task.film is shown
    assert task.prediction is prediction
    assert (task.symptoms, task.why_not_others) == ("cough", ())
    assert 55.0 < task.control.remaining_s <= 60.0


def test_readers_are_tried_in_their_order_and_each_learns_why_the_others_did_not_run() -> None:
    first = ScriptedReader("local").enqueue(ReaderUnavailable("The first is loading."))
    second = ScriptedReader("api").enqueue(ReaderUnavailable("The second has no key."))
    third = ScriptedReader("openai").enqueue(read())
    _, info = ask(SecondReader("local", (first, second, third, DummyReader())))
    assert (info.mode_requested, info.mode, info.model) == ("local", "openai", "scripted-openai")
    assert info.fallback_reason == "The first is loading. The second has no key."
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
    with pytest.raises(interrupt):
        ask(SecondReader("local", (ScriptedReader().enqueue(interrupt()), DummyReader())))


def test_when_every_reader_failed_the_error_gives_all_reasons() -> None:
    readers = tuple(ScriptedReader(mode).enqueue(ReaderUnavailable(f"No {mode}.")) for mode in ("local", "api"))
    with pytest.raises(ReaderUnavailable, match=r"^No local\. No api\.$"):
        ask(SecondReader("local", readers))


def test_a_reader_without_its_reading_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="abstract"):
        type("Silent", (Reader,), {})()


# ── The time limit ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_reader_that_hangs_is_left_at_its_limit_and_the_template_answers(hanging: Hanging) -> None:
    start = time.monotonic()
    reading, info = ask(SecondReader("local", (hanging, DummyReader()), limit_s=LIMIT_S))
    assert LIMIT_S <= time.monotonic() - start < LIMIT_S + 1.0
    assert info.mode == "dummy"
    assert info.fallback_reason == "The second reader gave no answer within 0.3 seconds."
    assert reading.reasoning.startswith(f"No second reader ran: {info.fallback_reason} ")
    assert hanging.history[0].control.stopped


def test_each_reader_has_the_whole_limit(hanging: Hanging) -> None:
    left_s: list[float] = []

    class Later(ScriptedReader):
        def read(self, task: ReaderTask) -> Reading:
            left_s.append(task.control.remaining_s)
            return read()

    _, info = ask(SecondReader("local", (hanging, Later("api")), limit_s=LIMIT_S))
    assert info.mode == "api"
    assert LIMIT_S / 2 < left_s[0] <= LIMIT_S


@pytest.mark.parametrize("error", [ReaderUnavailable("It was stopped."), RuntimeError("closed")])
def test_the_limit_is_the_reason_when_a_reader_notices_it_itself(error: Exception) -> None:
    class Attentive(ScriptedReader):
        def read(self, task: ReaderTask) -> Reading:
            time.sleep(task.control.remaining_s)
            raise error

    _, info = ask(SecondReader("local", (Attentive(), DummyReader()), limit_s=0.05))
    assert info.fallback_reason == "The second reader gave no answer within 0.05 seconds."


def test_a_reader_that_hangs_does_not_delay_another_film(hanging: Hanging) -> None:
    second = SecondReader("local", (hanging, DummyReader()), limit_s=LIMIT_S)
    answers: list[ReaderInfo] = []
    threads = [threading.Thread(target=lambda: answers.append(ask(second)[1])) for _ in range(4)]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [info.mode for info in answers] == ["dummy"] * 4
    assert time.monotonic() - start < 2 * LIMIT_S + 0.5  # side by side, not one after the other
    hanging.released.set()
    assert ask(second)[1].mode == "local"


def test_a_reader_that_was_left_says_no_more_and_sends_the_film_nowhere_any_longer(hanging: Hanging) -> None:
    heard: list[str] = []
    _, info = ask(
        SecondReader("local", (hanging, DummyReader()), limit_s=0.05),
        on_words=lambda mode: lambda turn, words: heard.append(words),
    )
    control = hanging.history[0].control
    control.say("film", "too late")
    with pytest.raises(ReaderUnavailable, match="stopped"):
        control.sends_film_to("somewhere that the answer did not name")
    assert heard == []
    assert (control.film_sent_to, info.film_sent_to) == ("the script of local",) * 2


@pytest.mark.parametrize("limit_s", [float("inf"), 1e12])
def test_a_limit_longer_than_threads_can_wait_is_none(limit_s: float) -> None:
    assert ask(SecondReader("local", (ScriptedReader().enqueue(read()),), limit_s=limit_s))[1].mode == "local"


def test_a_reader_that_does_not_say_where_the_film_went_is_not_said_to_have_kept_it() -> None:
    silent = ModelReader("local", ScriptedWriter(film_text(Mass="present"), clinical_text()), max_tokens=1536)
    _, info = ask(SecondReader("local", (silent, DummyReader())))
    assert info.mode == "local", info.fallback_reason
    assert info.film_sent_to == NOT_SAID
    assert not NOT_SAID.startswith("nowhere")


# ── Stopping ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_stopping_returns_at_once_and_stops_the_reader(hanging: Hanging) -> None:
    watch = Control()
    answers: list[ReaderInfo] = []
    second = SecondReader("local", (hanging, ScriptedReader("api"), DummyReader()), limit_s=60.0)
    thread = threading.Thread(target=lambda: answers.append(ask(second, watch=watch)[1]))
    thread.start()
    assert hanging.begun.acquire(timeout=1)
    start = time.monotonic()
    watch.stop()
    thread.join(1)
    assert time.monotonic() - start < 0.5
    (info,) = answers
    assert info.mode == "dummy"
    assert info.fallback_reason
    assert "Nobody waits" in info.fallback_reason
    assert hanging.history[0].control.stopped


def test_nobody_is_asked_for_whom_nobody_waits() -> None:
    watch, reader = Control(), ScriptedReader()
    watch.stop()
    _, info = ask(SecondReader("local", (reader, DummyReader())), watch=watch)
    assert (info.mode, info.film_sent_to) == ("dummy", NOWHERE)
    assert reader.history == []


def test_stopping_after_the_answer_changes_nothing() -> None:
    watch = Control()
    reading, info = ask(SecondReader("local", (ScriptedReader().enqueue(read()),)), watch=watch)
    watch.stop()
    assert (info.mode, reading) == ("local", read())


def test_an_interrupt_of_whoever_waits_stops_the_reader(hanging: Hanging, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(queue.SimpleQueue[Any]):
        def get(self, block: bool = True, timeout: float | None = None) -> Any:
            assert hanging.begun.acquire(timeout=1)
            raise KeyboardInterrupt

    monkeypatch.setattr(queue, "SimpleQueue", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        ask(SecondReader("local", (hanging, DummyReader())))
    assert hanging.history[0].control.stopped


def test_what_is_to_be_done_at_a_stop_is_done_once_and_at_once_when_it_was_stopped_already() -> None:
    control, done = Control(), []
    control.when_stopped(lambda: done.append("first"))
    control.stop()
    control.stop()
    control.when_stopped(lambda: done.append("second"))
    assert done == ["first", "second"]
    with pytest.raises(ReaderUnavailable):
        control.check()


def test_a_stop_from_within_a_stop_does_not_lock_up() -> None:
    control = Control()
    control.when_stopped(control.stop)
    control.when_stopped(lambda: control.when_stopped(control.stop))
    control.stop()
    assert control.stopped


def test_time_runs_out_without_becoming_negative() -> None:
    control = Control(0.0)
    assert (control.remaining_s, control.stopped) == (0.0, True)
    assert Control().remaining_s == float("inf")


# ── How many at once ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_beyond_the_most_readings_a_film_goes_on_without_a_reader(
    hanging: Hanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multimodal_reasoning, "MAX_READINGS", 2)
    second = SecondReader("local", (hanging, DummyReader()), limit_s=0.05)
    for _ in range(2):
        assert "gave no answer" in str(ask(second)[1].fallback_reason)
    _, info = ask(second)
    assert info.fallback_reason == "Too many films are being read at the same time."
    assert len(hanging.history) == 2
    other = SecondReader("local", (ScriptedReader().enqueue(read()),))
    assert ask(other)[1].mode == "local"  # each has places of its own
    hanging.released.set()
    until(lambda: ask(second)[1].mode == "local")


def test_a_place_is_free_again_as_soon_as_the_answer_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multimodal_reasoning, "MAX_READINGS", 1)
    answers: tuple[Reading | Exception, ...] = (read(), ReaderUnavailable("No."), RuntimeError())
    second = SecondReader("local", (ScriptedReader().enqueue(*answers * 100), DummyReader()))
    assert not any("Too many" in str(ask(second)[1].fallback_reason) for _ in range(300))


def test_a_thread_that_cannot_be_started_takes_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoThread(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(multimodal_reasoning, "MAX_READINGS", 1)
    second = SecondReader("local", (ScriptedReader().enqueue(read()), DummyReader()))
    with monkeypatch.context() as patch:
        patch.setattr(threading, "Thread", NoThread)
        assert ask(second)[1].fallback_reason == "The reader 'local' failed unexpectedly."
    assert ask(second)[1].mode == "local"


# ── Where the film went ──────────────────────────────────────────────────────────────────────────────────────────────

NO = ReaderUnavailable("No.")
HERE = "nowhere: read on this machine"


@pytest.mark.parametrize(
    ("places", "where"),
    [
        (("Gemini",), "Gemini"),
        ((HERE,), HERE),
        ((HERE, "Gemini"), "Gemini"),
        (("Gemini", HERE), "Gemini"),
        (("Gemini", "a server of ours"), "Gemini; a server of ours"),
        (("Gemini", HERE, "Gemini"), "Gemini"),
        ((None, HERE), HERE),
        ((None, "Gemini"), "Gemini"),
        (("Gemini", None), "Gemini"),
        ((None,), NOWHERE),
        ((HERE, None), HERE),
    ],
)
@pytest.mark.parametrize("behind", ["answers", "template"])
def test_every_place_elsewhere_that_got_the_film_is_named(
    places: tuple[str | None, ...], where: str, behind: str
) -> None:
    """The last reader answers, or the template does after all of them have failed; None sent it nowhere."""
    modes: tuple[ReaderMode, ...] = ("local", "api", "openai")
    chain: list[Reader] = []
    for mode, place in zip(modes, places, strict=False):
        is_last = len(chain) == len(places) - 1
        if place is None:
            chain.append(MissingReader(mode, "No."))
        else:
            chain.append(ScriptedReader(mode, place).enqueue(read() if is_last and behind == "answers" else NO))
    _, info = ask(SecondReader("local", (*chain, DummyReader())))
    answered = behind == "answers" and places[-1] is not None
    assert (info.mode != "dummy") == answered
    expected = where if answered or not where.startswith("nowhere") else NOWHERE
    assert info.film_sent_to == expected


def test_a_place_counts_when_its_reader_hung_or_failed_unexpectedly(hanging: Hanging) -> None:
    failing = ScriptedReader("api").enqueue(RuntimeError())
    _, info = ask(SecondReader("local", (hanging, failing, DummyReader()), limit_s=0.05))
    assert (info.mode, info.film_sent_to) == ("dummy", "the script of local; the script of api")


# ── Words as they come ───────────────────────────────────────────────────────────────────────────────────────────────


def test_words_reach_whoever_listens_with_the_mode_of_their_reader() -> None:
    heard: list[tuple[ReaderMode, TurnName, str]] = []

    class Talking(ScriptedReader):
        def read(self, task: ReaderTask) -> Reading:
            for words in ("a", "", "b"):
                task.control.say("film", f"{words}")
            task.control.say("clinical", "c")
            return super().read(task)

    chain = (Talking("local").enqueue(NO), Talking("api").enqueue(read()))
    ask(
        SecondReader("local", chain),
        on_words=lambda mode: lambda turn, words: heard.append((mode, turn, words)),
    )
    said = [("film", "a"), ("film", "b"), ("clinical", "c")]
    assert heard == [(mode, *words) for mode in ("local", "api") for words in said]


def test_a_listener_that_fails_costs_the_reading_alone() -> None:
    def refuse(turn: TurnName, words: str) -> None:
        raise RuntimeError("the loop is closed")

    class Talking(ScriptedReader):
        def read(self, task: ReaderTask) -> Reading:
            task.control.say("film", "a")
            return read()

    _, info = ask(SecondReader("local", (Talking(), DummyReader())), on_words=lambda mode: refuse)
    assert info.mode == "dummy"


# ── Health ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("states", "mode", "state", "reason"),
    [
        ((READY,), "local", "ready", None),
        ((READY, BROKEN), "local", "ready", None),
        ((LOADING,), "dummy", "loading", "It is loading."),
        ((LOADING, READY), "api", "loading", "It is loading."),
        ((BROKEN,), "dummy", "fallback", "It broke."),
        ((BROKEN, READY), "api", "fallback", "It broke."),
        ((BROKEN, LOADING), "dummy", "fallback", "It broke. It is loading."),
        ((LOADING, BROKEN), "dummy", "loading", "It is loading. It broke."),
        ((ReaderState("unavailable"), BROKEN), "dummy", "fallback", "It broke."),
    ],
)
def test_health_names_the_reader_that_would_answer_and_why_it_is_not_the_one_asked_for(
    states: tuple[ReaderState, ...], mode: ReaderMode, state: str, reason: str | None
) -> None:
    modes: tuple[ReaderMode, ...] = ("local", "api")
    chain = [ScriptedReader(name) for name in modes[: len(states)]]
    for reader, now in zip(chain, states, strict=True):
        reader.now = now
    health = SecondReader("local", (*chain, DummyReader())).health()
    assert (health.mode_requested, health.mode, health.state, health.reason) == ("local", mode, state, reason)
    assert health.model == (None if mode == "dummy" else f"scripted-{mode}")


def test_health_recovers_with_its_reader() -> None:
    reader = ScriptedReader()
    second = SecondReader("local", (reader, DummyReader()))
    seen = []
    for now in (LOADING, READY, BROKEN, READY):
        reader.now = now
        seen.append((second.health().state, second.health().mode))
    assert seen == [("loading", "dummy"), ("ready", "local"), ("fallback", "dummy"), ("ready", "local")]


def test_without_any_reader_that_could_answer_health_names_the_last() -> None:
    reader = ScriptedReader()
    reader.now = BROKEN
    assert SecondReader("local", (reader,)).health().mode == "local"


def test_waiting_ends_when_nothing_loads_any_longer() -> None:
    reader, behind = ScriptedReader(), ScriptedReader("api")
    reader.now = behind.now = LOADING
    second = SecondReader("local", (reader, behind, DummyReader()))
    start = time.monotonic()
    assert second.wait_until_settled(0.1).state == "loading"
    assert 0.1 <= time.monotonic() - start < 0.6

    def settle() -> None:
        reader.now, behind.now = READY, BROKEN

    threading.Timer(0.1, settle).start()
    assert second.wait_until_settled(5.0).state == "ready"
    assert time.monotonic() - start < 1.5


def test_there_is_nothing_to_wait_for_when_nothing_loads() -> None:
    start = time.monotonic()
    assert SecondReader("dummy", (DummyReader(),)).wait_until_settled(60.0).state == "ready"
    assert time.monotonic() - start < 0.5


def test_closing_closes_all_even_when_one_cannot_be() -> None:
    class Stuck(ScriptedReader):
        def close(self) -> None:
            super().close()
            raise RuntimeError("stuck")

    chain = (ScriptedReader("local"), Stuck("api"), ScriptedReader("openai"), MissingReader("local", "No."))
    with pytest.raises(RuntimeError, match="stuck"):
        SecondReader("local", chain).close()
    assert all(reader.closed for reader in chain[:3] if isinstance(reader, ScriptedReader))


# ── From settings ────────────────────────────────────────────────────────────────────────────────────────────────────


def settings(**changes: Any) -> Settings:
    return Settings(_env_file=None, medgemma_model="tests/no-such-model", **changes)


@pytest.mark.parametrize("mode", ["local", "api", "openai"])
def test_a_reader_that_cannot_be_made_falls_back_with_its_reason(mode: ReaderMode) -> None:
    second = SecondReader.from_settings(settings(medgemma_mode=mode))
    reading, info = ask(second)
    assert (info.mode_requested, info.mode, info.model, info.independent) == (mode, "dummy", None, False)
    assert info.fallback_reason
    assert info.film_sent_to == NOWHERE
    assert reading.reasoning.startswith(f"No second reader ran: {info.fallback_reason} ")
    health = second.health()
    assert (health.mode_requested, health.mode, health.state) == (mode, "dummy", "fallback")
    assert health.reason == info.fallback_reason


def unavailable(why: str) -> Callable[[Settings], Writer]:
    def make(settings: Settings) -> Writer:
        raise ReaderUnavailable(why)

    return make


def test_the_reasons_come_in_the_order_in_which_readers_were_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    for mode in ("local", "api", "openai"):
        monkeypatch.setitem(multimodal_reasoning.WRITERS, mode, unavailable(f"No {mode}."))
    second = SecondReader.from_settings(settings(medgemma_mode="openai", medgemma_fallback=("api", "local", "api")))
    assert ask(second)[1].fallback_reason == "No openai. No api. No local."
    assert second.health().reason == "No openai. No api. No local."


def test_the_template_asked_for_is_no_fallback() -> None:
    second = SecondReader.from_settings(settings(medgemma_mode="dummy"))
    reading, info = ask(second)
    assert (info.mode_requested, info.mode, info.fallback_reason) == ("dummy", "dummy", None)
    assert reading.reasoning.startswith("No second reader ran: MEDGEMMA_MODE asks for none. ")
    assert (second.health().state, second.health().reason) == ("ready", None)


def test_a_reader_behind_the_one_that_answers_is_no_reason() -> None:
    second = SecondReader.from_settings(settings(medgemma_mode="dummy", medgemma_fallback=("api",)))
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
    broken = ScriptedWriter(ReaderUnavailable("local broke."))
    working = ScriptedWriter(film_text(), clinical_text())
    monkeypatch.setitem(multimodal_reasoning.WRITERS, "local", lambda _: broken)
    monkeypatch.setitem(multimodal_reasoning.WRITERS, "openai", lambda _: working)
    monkeypatch.setitem(multimodal_reasoning.WRITERS, "api", unavailable("No api."))
    _, info = ask(SecondReader.from_settings(settings(medgemma_mode="local", medgemma_fallback=fallback)))
    assert (info.mode, info.fallback_reason) == (mode, reason)


def test_the_settings_reach_the_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    writer = ScriptedWriter(film_text(), clinical_text())
    monkeypatch.setitem(multimodal_reasoning.WRITERS, "local", lambda _: writer)
    second = SecondReader.from_settings(settings(reader_max_tokens=2000, reader_sees_cnn=True, reader_timeout_s=7.0))
    _, info = ask(second)
    assert (info.mode, info.saw_cnn, info.model) == ("local", True, "scripted")
    assert [turn.max_tokens for turn in writer.turns] == [2000, 2000]
    second.close()
    assert writer.closed
