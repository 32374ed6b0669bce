"""What one browser session holds: its film, the analysis asked for and its answer; no Streamlit in it.

When the user touches a widget while an analysis runs, Streamlit starts the script again in a second thread, beside the
first one, and aborts the first at its next access to `st`. So the answer is written into an object that both threads
hold, and a lock lets the second wait for the answer instead of asking again.
"""

import threading
from dataclasses import dataclass, field

from dashboard.client import AssistantClient, ClientError
from modules.answers import Analysis


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
    """A request with its answer, or with the reason why there is none."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.analysis: Analysis | None = None
        self.failure: ClientError | None = None
        self.finished = False
        self._lock = threading.Lock()

    def run(self, client: AssistantClient) -> None:
        """Send the request once; a second caller waits for the answer to the first."""
        request = self.request
        with self._lock:
            if self.finished:
                return
            try:
                self.analysis = client.analyze(
                    request.film.name, request.film.data, request.symptoms, invert=request.invert, force=request.force
                )
            except ClientError as exc:
                self.failure = exc
            finally:
                self.finished = True


@dataclass
class Session:
    """State of one browser session."""

    film: Film | None = None
    sample_chosen: bool = False
    uploads_cleared: int = 0
    job: Job | None = None
    previews: dict[tuple[str, bool], bytes | ClientError] = field(default_factory=dict)

    @property
    def busy(self) -> bool:
        """Whether an answer is still to come."""
        return self.job is not None and not self.job.finished

    def choose(self, film: Film | None) -> None:
        """Take a film; another film than before drops everything that was about the old one."""
        if film == self.film:
            return
        self.film, self.job = film, None
        self.previews.clear()

    def ask(self, symptoms: str, *, invert: bool = False, force: bool = False) -> None:
        """Note that the film is to be analysed; the old answer is dropped, so that it can't be taken for the new."""
        if self.film is not None and not self.busy:
            self.job = Job(Request(self.film, symptoms, invert, force))

    def preview(self, client: AssistantClient, film: Film, invert: bool) -> bytes | ClientError:
        """Return the film as a PNG, or why it can't be shown; asked for once."""
        key = (film.id, invert)
        if key in self.previews:
            return self.previews[key]
        try:
            preview: bytes | ClientError = client.render(film.name, film.data, invert)
        except ClientError as exc:
            preview = exc
        self.previews[key] = preview
        return preview

    def forget_failed_previews(self) -> None:
        """Let a failed preview be asked for again."""
        self.previews = {key: value for key, value in self.previews.items() if isinstance(value, bytes)}
