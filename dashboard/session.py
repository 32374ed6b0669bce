"""What one browser session holds: its films, what was asked about them and what came back; no Streamlit in it.

A request runs in a thread of its own and writes what it learns into a `Job`. So nothing is lost when Streamlit starts
the script again, which it does whenever a widget is touched, and the page can show each stage as it ends.
"""

import threading
import time
from dataclasses import dataclass, field
from typing import Literal

from dashboard.client import AssistantClient, ClientError
from dashboard.worklist import Entry, ordered
from modules.answers import Analysis
from modules.events import CnnSeen, HeatmapsDrawn, ReaderWords
from modules.records import Quality
from modules.settings import ReaderMode

MAX_DRAFT = 20_000  # characters of a reader's draft that are kept

State = Literal["new", "waiting", "running", "done", "failed"]


@dataclass(frozen=True)
class Film:
    """An uploaded file; `id` tells two uploads apart without comparing their bytes."""

    id: str
    name: str
    data: bytes = field(repr=False, compare=False)
    synthetic: bool = False


@dataclass(frozen=True)
class Request:
    """One analysis as it was asked for."""

    film: Film
    symptoms: str
    invert: bool = False
    force: bool = False


class Job:
    """A request, and all that is known of its answer so far."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.quality: Quality | None = None
        self.cnn: CnnSeen | None = None
        self.drawn: HeatmapsDrawn | None = None
        self.reader: ReaderMode | None = None  # whose draft it is
        self.draft = ""
        self.analysis: Analysis | None = None
        self.failure: ClientError | None = None
        self.started = time.monotonic()
        self._ended = threading.Event()
        self._unwanted = False

    @property
    def finished(self) -> bool:
        """Whether no more will come."""
        return self._ended.is_set()

    def start(self, client: AssistantClient) -> None:
        """Send the request in a thread of its own."""
        threading.Thread(target=self.run, args=(client,), daemon=True, name="analysis").start()

    def run(self, client: AssistantClient) -> None:
        """Send the request and take in what comes back, until the end."""
        request = self.request
        try:
            for _, event in client.stream(
                request.film.name, request.film.data, request.symptoms, invert=request.invert, force=request.force
            ):
                self._take(event)
                if self._unwanted or self.analysis is not None:  # what breaks after the whole answer takes none of it
                    break
        except ClientError as exc:
            self.failure = exc
        except Exception:  # whatever it was, the page must not wait for ever
            self.failure = ClientError("The dashboard failed while it read the answer. Try again.", "dashboard_error")
        finally:
            self._ended.set()

    def abandon(self) -> None:
        """Listen no longer; the server stops its second reader when it notices."""
        self._unwanted = True

    def wait(self, limit_s: float) -> bool:
        """Wait until the request has ended, at most `limit_s` seconds; return whether it has."""
        return self._ended.wait(limit_s)

    def _take(self, event: object) -> None:
        match event:
            case Quality():
                self.quality = event
            case CnnSeen():
                self.cnn = event
            case HeatmapsDrawn():
                self.drawn = event
            case ReaderWords():
                if event.mode != self.reader:
                    self.reader, self.draft = event.mode, ""
                self.draft = (self.draft + event.words)[-MAX_DRAFT:]
            case Analysis():
                self.analysis = event


@dataclass(eq=False)
class Case:
    """One film of this visit: what was typed about it, and what is known of it."""

    number: int
    film: Film
    symptoms: str = ""
    job: Job | None = None
    waiting: bool = False  # to be analysed when its turn comes

    @property
    def state(self) -> State:
        """Where it stands."""
        if self.waiting:
            return "waiting"
        if self.job is None:
            return "new"
        if not self.job.finished:
            return "running"
        return "done" if self.job.analysis is not None else "failed"

    @property
    def analysis(self) -> Analysis | None:
        """The whole answer, once it is there."""
        return self.job.analysis if self.job is not None else None

    def ask(self, client: AssistantClient, *, invert: bool = False, force: bool = False) -> None:
        """Send the film with its symptoms; the old answer is dropped, so that it can't be taken for the new."""
        self.waiting = False
        if self.state != "running":
            self.job = Job(Request(self.film, self.symptoms, invert, force))
            self.job.start(client)

    @property
    def stale(self) -> bool:
        """Whether the answer does not rest on the symptoms as they stand now."""
        return self.job is not None and self.job.finished and self.job.request.symptoms != self.symptoms


@dataclass
class Session:
    """State of one browser session."""

    cases: list[Case] = field(default_factory=list)
    active: Case | None = None
    draft_symptoms: str = ""  # typed before there was a film
    in_uploader: set[str] = field(default_factory=set)  # ids of the films that the page's uploader shows
    previews: dict[tuple[str, bool], bytes | ClientError] = field(default_factory=dict)
    _counted: int = 0

    def add(self, films: list[Film]) -> None:
        """Add films, and open the first of them."""
        added = [self._add(film) for film in films]
        if added:
            self.active = added[0]

    def add_sample(self, film: Film) -> None:
        """Add the drawn film that comes with the project, or go back to it."""
        held = next((case for case in self.cases if case.film.id == film.id), None)
        self.active = held or self._add(film)

    def _add(self, film: Film) -> Case:
        self._counted += 1
        symptoms, self.draft_symptoms = self.draft_symptoms, ""
        case = Case(self._counted, film, symptoms)
        self.cases.append(case)
        return case

    def drop(self, case: Case) -> None:
        """Forget a film and what was about it."""
        self.cases.remove(case)
        if case.job is not None:
            case.job.abandon()
        self.previews = {key: value for key, value in self.previews.items() if key[0] != case.film.id}
        if self.active is case:
            self.active = self.cases[-1] if self.cases else None

    @property
    def busy(self) -> bool:
        """Whether a film is being read, or waits for its turn."""
        return any(case.state in ("running", "waiting") for case in self.cases)

    def advance(self, client: AssistantClient) -> None:
        """Start the next film that waits, when none runs: the server reads few at a time."""
        if any(case.state == "running" for case in self.cases):
            return
        for case in self.cases:
            if case.waiting:
                case.ask(client)
                return

    def entries(self) -> tuple[Entry, ...]:
        """Return the worklist, the most urgent first."""
        return ordered(tuple(Entry(c.number, c.film.name, c.analysis, c.state) for c in self.cases))

    def case(self, number: int) -> Case | None:
        """Return the film with that number."""
        return next((case for case in self.cases if case.number == number), None)

    def preview(self, client: AssistantClient, film: Film, invert: bool) -> bytes | ClientError:
        """Return the film as a PNG, or why it can't be shown; asked for once."""
        key = (film.id, invert)
        if key not in self.previews:
            try:
                self.previews[key] = client.render(film.name, film.data, invert)
            except ClientError as exc:
                self.previews[key] = exc
        return self.previews[key]

    def forget_failed_previews(self) -> None:
        """Let a failed preview be asked for again."""
        self.previews = {key: value for key, value in self.previews.items() if isinstance(value, bytes)}
