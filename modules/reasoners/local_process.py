"""The process of a local model as its owner sees it: started without keys, asked over a pipe, killed when it hangs."""

import base64
import json
import os
import queue
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from modules.errors import ReaderUnavailable
from modules.reasoners.base import Control, ReaderFilm
from modules.reasoners.turns import Token, Turn
from modules.reasoners.worker import from_json
from modules.settings import PROJECT_ROOT

# At its time limit a model has this long to leave a film; then its process is killed.
CANCEL_GRACE_S = 0.5
LOAD_LIMIT_S = 1800.0  # gigabytes from a slow disk
STOPPED = "The second reader was stopped before it had finished."
# A model's process opens no connection: the hub's libraries are told so, and secrets are none of its business.
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
CALM = {"OMP_WAIT_POLICY": "PASSIVE"}  # waiting threads that spin take the processor from the CNN
_SECRET_ENDINGS = ("KEY", "KEY_ID", "TOKEN", "SECRET", "PASSWORD", "CREDENTIALS")


class Lost(Exception):
    """The process ended, hangs, or could not load.

    `final` when another try would end the same way; `detail` is for whoever installs the model, not for an answer.
    """

    def __init__(self, why: str, *, final: bool = False, detail: str = "") -> None:
        super().__init__(why)
        self.final = final
        self.detail = detail


class Failed(Exception):
    """The model failed on one film; its process still answers."""


class ModelProcess:
    """One process of `worker.py` and the conversation with it. `when_ended` is called once it is gone."""

    def __init__(self, command: list[str], when_ended: Callable[["ModelProcess"], object]) -> None:
        """Start it; raises Lost when that cannot be done."""
        try:
            self._process = subprocess.Popen(
                command,
                cwd=PROJECT_ROOT,
                env=_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                start_new_session=True,  # Ctrl-C is for its owner; without its owner it ends by itself
            )
        except OSError as exc:
            raise Lost("its process could not be started", final=True, detail=str(exc)) from exc
        self._when_ended = when_ended
        self._messages: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._number = 0
        threading.Thread(target=self._listen, daemon=True, name="medgemma-listening").start()

    @property
    def pid(self) -> int:
        """Its number in the system."""
        return self._process.pid

    def _listen(self) -> None:
        assert self._process.stdout is not None
        # a line may be cut when the process is killed; one that says nothing that is known counts as its end
        with self._process.stdout as lines, suppress(TypeError, ValueError, RecursionError):
            for line in lines:
                self._messages.put(_message(line))
        self._messages.put({"gone": True})
        self._when_ended(self)

    def wait_until_ready(self) -> str:
        """Return what the process says of its engine, once the model is loaded; raises Lost."""
        message = self._next(LOAD_LIMIT_S)
        if "ready" in message:
            return str(message["ready"])
        self.kill()
        if "failed" in message:
            raise Lost(str(message["failed"]), final=True, detail=str(message.get("detail", "")))
        raise Lost("its process ended" if message else "it took too long")

    def ask(self, turn: Turn, film: ReaderFilm, control: Control) -> Iterator[Token]:
        """Yield the tokens of a reply; raises Failed, ReaderUnavailable once stopped, and Lost.

        Whoever stops the reading early frees the model only when it has noticed: between two tokens. It has until the
        time limit; then, whatever it or the pipe to it does, it is killed, which ends every wait here.
        """
        self._number += 1
        number = self._number
        watchdog = threading.Timer(min(control.remaining_s + CANCEL_GRACE_S, threading.TIMEOUT_MAX), self.kill)
        watchdog.daemon = True
        watchdog.start()
        try:
            control.when_stopped(lambda: self._messages.put({"id": number, "stopped": True}))
            self._send(_request(number, turn, film))
            yield from self._tokens(number, control)
        finally:
            watchdog.cancel()

    def _tokens(self, number: int, control: Control) -> Iterator[Token]:
        cancelled = False
        while True:
            message = self._next(None if cancelled else control.remaining_s)
            if "gone" in message:
                raise Lost("its process ended")
            if message.get("id") not in (number, None):
                continue  # of a request that nobody waits for
            if "ended" in message and not control.stopped:
                return
            if "ended" in message or (cancelled and "error" in message):
                raise ReaderUnavailable(STOPPED)
            if "error" in message:
                raise Failed(str(message["error"]))
            if control.stopped:
                if not cancelled:
                    self._send({"cancel": number})
                cancelled = True
            elif "token" in message:
                yield _token(message["token"])

    def _next(self, limit_s: float | None) -> dict[str, Any]:
        try:
            return self._messages.get(timeout=None if limit_s is None else min(limit_s, threading.TIMEOUT_MAX))
        except queue.Empty:
            return {}

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except (OSError, ValueError):
            raise Lost("its process ended") from None

    def kill(self) -> None:
        """End the process at once and collect it."""
        self._process.kill()
        self._process.wait()
        with suppress(OSError, ValueError):
            if self._process.stdin is not None:
                self._process.stdin.close()


def _environment() -> dict[str, str]:
    held = {name: value for name, value in os.environ.items() if not name.upper().endswith(_SECRET_ENDINGS)}
    return held | OFFLINE | CALM


def _message(line: str) -> dict[str, Any]:
    """Return what the process says; raises TypeError or ValueError for what is none."""
    message = json.loads(line)
    if not isinstance(message, dict):
        raise TypeError("no message")
    return message


def _token(said: Any) -> Token:
    try:
        return from_json(said)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise Lost("its process wrote what is no token") from None


def _request(number: int, turn: Turn, film: ReaderFilm) -> dict[str, Any]:
    return {
        "id": number,
        "name": turn.name,
        "messages": [asdict(message) for message in turn.messages],
        "schema": turn.schema,
        "max_tokens": turn.max_tokens,
        "film": base64.b64encode(film.png).decode("ascii"),
    }
