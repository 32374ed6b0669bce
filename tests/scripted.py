"""A reader and a writer that answer what a test enqueues, and replies of the form that readers are asked for."""

import json
from collections import deque
from typing import Any

from modules.reasoners.base import READY, Control, Reader, ReaderFilm, ReaderState, ReaderTask
from modules.reasoners.conversation import Writer
from modules.reasoners.replies import FIELDS
from modules.reasoners.turns import Generation, Token, Turn
from modules.records import Reading
from modules.settings import ReaderMode


class ScriptedReader(Reader):
    """Answers what was enqueued, in that order, and keeps every task it got."""

    looks_at_film = True

    def __init__(self, mode: ReaderMode = "local", place: str | None = None) -> None:
        self.mode = mode
        self.model = f"scripted-{mode}"
        self.place = place or f"the script of {mode}"
        self.history: list[ReaderTask] = []
        self.now = READY
        self.closed = False
        self._queue: deque[Reading | BaseException] = deque()

    def enqueue(self, *answers: Reading | BaseException) -> "ScriptedReader":
        """Add answers; one that is an exception is raised."""
        self._queue.extend(answers)
        return self

    def read(self, task: ReaderTask) -> Reading:
        """Say where the film goes, and give the next answer."""
        self.history.append(task)
        task.control.sends_film_to(self.place)
        answer = self._queue.popleft()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def state(self) -> ReaderState:
        """Return what the test set."""
        return self.now

    def close(self) -> None:
        """Note it."""
        self.closed = True


class ScriptedWriter(Writer):
    """Writes what was enqueued, in that order, and keeps every turn it got."""

    model = "scripted"

    def __init__(self, *answers: Generation | str | Exception, plain_schema: bool = True) -> None:
        self.plain_schema = plain_schema
        self.turns: list[Turn] = []
        self.closed = False
        self._queue: deque[Generation | str | Exception] = deque(answers)

    def write(self, turn: Turn, film: ReaderFilm, control: Control) -> Generation:
        """Hand on the next answer as a draft, and return it."""
        self.turns.append(turn)
        answer = self._queue.popleft()
        if isinstance(answer, Exception):
            raise answer
        generation = Generation(answer) if isinstance(answer, str) else answer
        control.say(turn.name, generation.text)
        return generation

    def close(self) -> None:
        """Note it."""
        self.closed = True


def film_reply(**statuses: Any) -> dict[str, Any]:
    """Return a first reply: a status by the name of its field, or a whole statement; silence about the rest."""
    silent = {"status": "not_mentioned", "quote": ""}
    said = {k: {"status": v, "quote": f"it is {v}"} if isinstance(v, str) else v for k, v in statuses.items()}
    return dict.fromkeys(FIELDS.values(), silent) | said


def clinical_reply(**changes: Any) -> dict[str, Any]:
    """Return a second reply."""
    return {
        "clinical_reasoning": "A round opacity in the right lung, and a cough.",
        "key_observations": ["A round opacity"],
        "differential": ["Mass", "Round pneumonia"],
        "recommendation": "A radiologist should read the film.",
    } | changes


def in_pieces(*pieces: str, logprob: float | None = -0.1, free: bool | None = None) -> Generation:
    """Return a reply as the tokens that it was written in, each with the same log-probability."""
    return Generation("".join(pieces), tuple(Token(piece.encode(), logprob, free) for piece in pieces))


def film_text(**statuses: Any) -> str:
    """Return a first reply as JSON."""
    return json.dumps(film_reply(**statuses))


def clinical_text(**changes: Any) -> str:
    """Return a second reply as JSON."""
    return json.dumps(clinical_reply(**changes))
