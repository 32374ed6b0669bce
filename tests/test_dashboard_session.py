"""What a browser session holds: the films, whose turn it is, and what a request's thread leaves behind."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from dashboard.client import AssistantClient, ClientError
from dashboard.session import MAX_DRAFT, Case, Film, Job, Request, Session
from modules import events
from tests.fake_server import (
    URL,
    FakeServer,
    analysis,
    interrupted,
    png,
    problem,
    quality,
    refused_connection,
    streamed,
)

LIMIT_S = 10.0


def client(server: FakeServer) -> AssistantClient:
    return AssistantClient(URL, 30.0, httpx.MockTransport(server))


def film(name: str = "a.png") -> Film:
    return Film(name, name, png())


def session_with(*names: str) -> Session:
    session = Session()
    session.add([film(name) for name in names])
    return session


def finished(case: Case) -> Case:
    assert case.job is not None
    assert case.job.wait(LIMIT_S)
    return case


def ran(*scripted: httpx.Response | Exception) -> Job:
    """Return a job that was run to its end, in this thread."""
    server = FakeServer()
    server.analyses = list(scripted)
    job = Job(Request(film(), "cough"))
    job.run(client(server))
    assert job.finished
    return job


class Told(AssistantClient):
    """A client that tells what a test tells it."""

    def __init__(self, told: Iterator[Any]) -> None:
        super().__init__(URL, 1.0)
        self.told = told

    def stream(self, *given: Any, **other: Any) -> Iterator[Any]:
        return self.told


# ── A job ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_job_takes_in_every_stage() -> None:
    job = ran(streamed(analysis(), "a dra", "ft"))
    assert job.quality == analysis().quality
    assert job.cnn is not None
    assert job.cnn.findings == analysis().findings
    assert job.drawn is not None
    assert (job.reader, job.draft) == ("local", "a draft")
    assert job.analysis == analysis()
    assert job.failure is None


def words(mode: Any, text: str) -> tuple[str, Any]:
    return "reader_words", events.ReaderWords(mode=mode, turn="film", words=text)


def test_another_reader_begins_another_draft() -> None:
    job = Job(Request(film(), ""))
    job.run(Told(iter([words("api", "a "), words("api", "b"), words("local", "c")])))
    assert (job.reader, job.draft) == ("local", "c")


def test_a_draft_without_an_end_is_cut() -> None:
    job = Job(Request(film(), ""))
    job.run(Told(iter([words("local", "x" * MAX_DRAFT), words("local", "end")])))
    assert len(job.draft) == MAX_DRAFT
    assert job.draft.endswith("end")


def test_a_failure_of_the_client_is_kept() -> None:
    job = ran(problem(503, "busy"))
    assert job.failure is not None
    assert job.failure.code == "busy"
    assert job.analysis is None


def test_any_other_error_ends_the_job_without_its_words() -> None:
    job = ran(RuntimeError("a secret"))
    assert job.failure is not None
    assert job.failure.code == "dashboard_error"
    assert "secret" not in str(job.failure)


def broken() -> None:
    raise httpx.ReadError("x")


def test_what_was_seen_before_the_stream_broke_is_no_result() -> None:
    job = ran(interrupted(streamed(analysis()), "cnn", broken))
    assert job.cnn is not None
    assert job.analysis is None
    assert job.failure is not None
    assert job.failure.code == "connection_lost"


def test_a_connection_that_breaks_after_the_whole_answer_takes_nothing_away() -> None:
    job = ran(interrupted(streamed(analysis()), "done", broken))
    assert job.analysis == analysis()
    assert job.failure is None


def test_an_abandoned_job_listens_no_longer() -> None:
    job = Job(Request(film(), ""))
    closed = threading.Event()

    def told() -> Iterator[Any]:
        try:
            yield "quality", quality()
            job.abandon()
            yield words("local", "a")
            yield words("local", "b")
        finally:
            closed.set()

    job.run(Told(told()))
    assert job.draft == "a"
    assert job.finished
    assert closed.wait(LIMIT_S)  # the connection with it: so the server's reader stops


def test_waiting_for_a_job_has_a_limit() -> None:
    job = Job(Request(film(), ""))
    assert not job.wait(0.0)
    assert not job.finished


def test_a_job_runs_in_a_thread_of_its_own() -> None:
    gate, server = threading.Event(), FakeServer()
    server.analyses = [interrupted(streamed(analysis()), "cnn", lambda: waited(gate))]
    case = Case(1, film(), "cough")
    case.ask(client(server))
    assert case.state == "running"
    assert case.analysis is None
    gate.set()
    assert finished(case).state == "done"


def waited(gate: threading.Event) -> None:
    assert gate.wait(LIMIT_S)


# ── A film ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_asking_while_it_runs_asks_nothing() -> None:
    gate, server = threading.Event(), FakeServer()
    server.analyses = [interrupted(streamed(analysis()), "cnn", lambda: waited(gate)), streamed(analysis())]
    case = Case(1, film(), "cough")
    case.ask(client(server))
    job = case.job
    case.waiting = True
    case.ask(client(server), force=True)
    assert case.job is job
    assert not case.waiting
    gate.set()
    finished(case)
    assert len(server.forms()) == 1


def test_asking_again_drops_the_old_answer() -> None:
    gate, server = threading.Event(), FakeServer()
    server.analyses = [streamed(analysis()), interrupted(streamed(analysis()), "cnn", lambda: waited(gate))]
    case = Case(1, film(), "cough")
    case.ask(client(server))
    finished(case)
    case.symptoms = "fever"
    assert case.stale
    case.ask(client(server), invert=True)
    assert case.analysis is None
    assert not case.stale
    assert case.job is not None
    assert case.job.request == Request(case.film, "fever", invert=True)
    gate.set()
    finished(case)


def test_the_bytes_of_a_film_are_not_in_its_repr() -> None:
    assert "PNG" not in repr(film())


# ── A session ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_first_of_the_added_films_is_opened_and_gets_what_was_typed_before() -> None:
    session = Session(draft_symptoms="cough")
    session.add([film("a"), film("b")])
    assert [(case.number, case.symptoms) for case in session.cases] == [(1, "cough"), (2, "")]
    assert session.active is session.cases[0]
    assert session.draft_symptoms == ""
    session.add([])
    assert session.active is session.cases[0]
    assert session.case(2) is session.cases[1]
    assert session.case(3) is None


def test_the_sample_is_added_once() -> None:
    session = session_with("a")
    for _ in range(2):
        session.add_sample(film("sample"))
    assert [case.film.id for case in session.cases] == ["a", "sample"]
    assert session.active is session.cases[1]


def test_a_dropped_film_leaves_nothing_and_its_number_is_not_used_again() -> None:
    session = session_with("a", "b")
    first, second = session.cases
    for case in session.cases:
        session.preview(client(FakeServer()), case.film, invert=False)
    session.drop(first)
    assert session.cases == [second]
    assert session.active is second
    assert [key[0] for key in session.previews] == ["b"]
    session.add([film("c")])
    assert [case.number for case in session.cases] == [2, 3]
    session.drop(second)
    assert session.active is session.cases[0]
    session.drop(session.cases[0])
    assert session.active is None


def test_a_film_that_is_dropped_while_it_is_read_is_listened_to_no_longer() -> None:
    gate, server = threading.Event(), FakeServer()
    server.analyses = [interrupted(streamed(analysis(), "a"), "cnn", lambda: waited(gate))]
    session = session_with("a")
    (case,) = session.cases
    case.ask(client(server))
    deadline = time.monotonic() + LIMIT_S
    while (case.job is None or case.job.cnn is None) and time.monotonic() < deadline:
        time.sleep(0.01)
    session.drop(case)
    gate.set()
    assert finished(case).analysis is None


def test_films_are_read_one_at_a_time_in_their_order() -> None:
    server, session = FakeServer(), session_with("a", "b", "c")
    server.analyses = [streamed(analysis()), problem(400, "undecodable_image"), streamed(analysis())]
    session.advance(client(server))
    assert [case.state for case in session.cases] == ["new"] * 3
    for case in session.cases:
        case.waiting = True
    running = Job(Request(film(), ""))
    session.cases[1].job, session.cases[1].waiting = running, False
    session.advance(client(server))
    assert [case.state for case in session.cases] == ["waiting", "running", "waiting"]
    session.cases[1].job, session.cases[1].waiting = None, True
    for case in session.cases:
        session.advance(client(server))
        finished(case)
    session.advance(client(server))
    assert [case.state for case in session.cases] == ["done", "failed", "done"]
    assert len(server.forms()) == 3


def test_the_worklist_has_the_most_urgent_first() -> None:
    server, session = FakeServer(), session_with("a", "b", "c")
    server.analyses = [streamed(analysis(risk_level=level)) for level in ("Low", "High")]
    for case in session.cases[:2]:
        case.ask(client(server))
        finished(case)
    assert [(entry.number, entry.state) for entry in session.entries()] == [(2, "done"), (1, "done"), (3, "new")]


@pytest.mark.parametrize("invert", [False, True])
def test_a_preview_is_asked_for_once_each_way(invert: bool) -> None:
    server, session = FakeServer(), session_with("a")
    for _ in range(2):
        assert session.preview(client(server), session.cases[0].film, invert) == png()
    assert len(server.forms("/render")) == 1
    session.preview(client(server), session.cases[0].film, not invert)
    assert len(server.forms("/render")) == 2


def test_a_failed_preview_is_kept_until_it_is_forgotten() -> None:
    server, session = FakeServer(), session_with("a", "b")
    first, second = (case.film for case in session.cases)
    session.preview(client(server), first, invert=False)
    server.render = refused_connection
    for _ in range(2):
        assert isinstance(session.preview(client(server), second, invert=False), ClientError)
    assert len(server.forms("/render")) == 2
    session.forget_failed_previews()
    server.render = FakeServer().render
    assert session.preview(client(server), second, invert=False) == png()
    session.preview(client(server), first, invert=False)
    assert len(server.forms("/render")) == 3


def test_two_sessions_share_nothing() -> None:
    one, other = session_with("a"), Session()
    one.in_uploader.add("a")
    one.preview(client(FakeServer()), one.cases[0].film, invert=False)
    assert (other.cases, other.in_uploader, other.previews) == ([], set(), {})
