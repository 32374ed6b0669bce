"""What every second reader is, what it gets, and how it is watched and stopped."""

import math
import threading
import time
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from modules.errors import ReaderUnavailable
from modules.images import display_pixels
from modules.png import encode_png
from modules.reasoners.turns import TurnName
from modules.records import CnnPrediction, Radiograph, Reading
from modules.settings import ReaderMode

FILM_SIDE = 896  # pixels; what MedGemma sees of any film


OnWords = Callable[[TurnName, str], None]


@dataclass(frozen=True, eq=False)
class ReaderFilm:
    """The film as readers get it: uint8 (S, S), at most 896 px a side, padded with black so that nothing is stretched.

    It holds pixels alone: no header, no file name, none of the bytes that were uploaded.
    """

    pixels: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, radiograph: Radiograph) -> "ReaderFilm":
        """Shrink and pad a radiograph."""
        grey = display_pixels(radiograph.pixels, FILM_SIDE)
        height, width = grey.shape
        side = max(height, width)
        square = np.zeros((side, side), np.uint8)
        top, left = (side - height) // 2, (side - width) // 2
        square[top : top + height, left : left + width] = grey
        return cls(square)

    @cached_property
    def png(self) -> bytes:
        """The film as a PNG without metadata."""
        return encode_png(self.pixels)


class Control:
    """The time limit of one reading, its draft, where the film goes, and the way to stop it; for several threads."""

    def __init__(self, limit_s: float = math.inf, on_words: OnWords | None = None) -> None:
        self._deadline = time.monotonic() + limit_s
        self._on_words = on_words
        self._lock = threading.Lock()
        self._stopped = False
        self._when_stopped: list[Callable[[], object]] = []
        self.film_sent_to: str | None = None

    @property
    def remaining_s(self) -> float:
        """Seconds until the time limit; never negative."""
        return max(0.0, self._deadline - time.monotonic())

    @property
    def stopped(self) -> bool:
        """Whether nobody waits for the reading any longer."""
        return self._stopped or self.remaining_s == 0.0

    def check(self) -> None:
        """Raise ReaderUnavailable once the reading has been stopped."""
        if self.stopped:
            raise ReaderUnavailable("The second reader was stopped.")

    def say(self, turn: TurnName, words: str) -> None:
        """Hand on words as they are written: a draft, until the reply has been checked."""
        if self._on_words is not None and words and not self.stopped:
            self._on_words(turn, words)

    def sends_film_to(self, place: str) -> None:
        """Note where the film goes; called before its first byte leaves this process.

        Raises ReaderUnavailable once the reading has been stopped: what was not noted by then is not sent.
        """
        with self._lock:
            self.check()
            self.film_sent_to = place

    def stop(self) -> None:
        """End the reading: whoever waits for it is woken."""
        with self._lock:
            acts, self._when_stopped = self._when_stopped, []
            self._stopped = True
        for act in acts:
            act()

    def when_stopped(self, act: Callable[[], object]) -> None:
        """Call `act` when the reading is stopped; at once, when it already was."""
        with self._lock:
            if not self._stopped:
                self._when_stopped.append(act)
                return
        act()


@dataclass(frozen=True, eq=False)
class ReaderTask:
    """What a reader gets. The CNN's prediction is for the template: others must not look unless a setting says so."""

    film: ReaderFilm
    symptoms: str
    prediction: CnnPrediction
    why_not_others: tuple[str, ...] = ()  # sentences: why the readers asked for before this one did not run
    control: Control = field(default_factory=Control)


@dataclass(frozen=True)
class ReaderState:
    """Whether a reader can answer now, and if not, why."""

    state: Literal["ready", "loading", "unavailable"]
    reason: str | None = None


READY = ReaderState("ready")


class Reader(Protocol):
    """A back end. Its constructor may raise ReaderUnavailable, and loads nothing heavy in this process."""

    mode: ReaderMode
    model: str | None
    looks_at_film: bool

    @abstractmethod
    def read(self, task: ReaderTask) -> Reading:
        """Read the film; raises ReaderUnavailable with a sentence for the user when it cannot."""

    def state(self) -> ReaderState:
        """Say whether it could read now."""
        return READY

    def close(self) -> None:
        """Release what it holds."""
        return
