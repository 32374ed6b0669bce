"""A model on this machine: found in the local cache, loaded in the background, and run where it can be killed."""

import base64
import importlib.util
import json
import logging
import math
import os
import platform
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from modules.errors import ReaderUnavailable
from modules.reasoners import mlx, transformers
from modules.reasoners.base import READY, Control, ReaderFilm, ReaderState
from modules.reasoners.conversation import Writer
from modules.reasoners.turns import Generation, Token, Turn
from modules.reasoners.worker import from_json
from modules.settings import PROJECT_ROOT, Settings

logger = logging.getLogger(__name__)

# A film waits for the one before it as long as that one makes progress; after this silence it goes on without a reader.
PATIENCE_S = 5.0
# A cancelled model has this long to notice; then its process is killed and loaded anew.
CANCEL_GRACE_S = 0.5
MAX_FAILED_STARTS = 3  # in a row, after which no further one is tried
PACKAGES = {"mlx": ("mlx_vlm", "llguidance"), "transformers": ("transformers", "accelerate", "llguidance")}
# A model's process opens no connection: the hub's libraries are told so, and keys are none of its business.
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
CALM = {"OMP_WAIT_POLICY": "PASSIVE"}  # waiting threads that spin take the processor from the CNN
SECRETS = ("GEMINI_API_KEY", "GOOGLE_API_KEY", "OPENAI_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "API_KEY")

_LOADING = ReaderState("loading", "MedGemma is still loading; this film was answered without it.")
_STOPPED = "The second reader was stopped before it had finished."


def engine_of(settings: Settings) -> str:
    """Return mlx on Apple Silicon and transformers elsewhere, unless the settings name one."""
    if settings.medgemma_engine != "auto":
        return settings.medgemma_engine
    return "mlx" if (platform.system(), platform.machine()) == ("Darwin", "arm64") else "transformers"


def model_of(settings: Settings) -> str:
    """Return the folder or name of the local model."""
    default = mlx.DEFAULT_MODEL if engine_of(settings) == "mlx" else transformers.DEFAULT_MODEL
    return settings.medgemma_model or default


def find_model(name: str) -> Path:
    """Return the folder that holds a model, from a path or from the local cache; nothing is downloaded."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = _in_cache(name)
    index = folder / "model.safetensors.index.json"
    try:
        wanted = set(json.loads(index.read_text("utf-8"))["weight_map"].values()) if index.is_file() else set()
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        wanted = {"a readable index"}
    wanted |= {"config.json"}
    missing = sorted(name for name in wanted if not (folder / str(name)).is_file())
    if missing or not any(folder.glob("*.safetensors")):
        raise ReaderUnavailable("MedGemma's weights on this machine are incomplete. Get them again with: make medgemma")
    return folder


def _in_cache(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise ReaderUnavailable(_missing_package("huggingface_hub")) from None
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except LocalEntryNotFoundError:
        raise ReaderUnavailable("MedGemma's weights are not on this machine. Get them with: make medgemma") from None
    except HFValidationError:
        raise ReaderUnavailable("MEDGEMMA_MODEL is neither a folder nor a name such as owner/model.") from None


def check_packages(engine: str) -> None:
    """Raise ReaderUnavailable, with the command that installs it, when a package of the engine is missing."""
    for package in PACKAGES[engine]:
        if importlib.util.find_spec(package) is None:
            raise ReaderUnavailable(_missing_package(package))


def _missing_package(package: str) -> str:
    name = package.replace("_", "-")
    return f"The package {name} is not installed. Install it with: pip install {name}"


class LocalWriter(Writer):
    """Owns the model's process: loads it in the background, asks it one film at a time, kills it when it hangs."""

    plain_schema = True

    def __init__(
        self,
        engine: str,
        folder: Path,
        model: str,
        *,
        dtype: str = "auto",
        quantization: str = "none",
        python: str = sys.executable,
    ) -> None:
        """Start loading; `python` is another interpreter when the engine's packages live there."""
        self.model = model
        self.engine = ""  # what runs it, on what, in which type; known once it is loaded
        self._command = [
            *(python, "-m", "modules.reasoners.worker", "--engine", engine, "--model", str(folder)),
            *("--dtype", dtype, "--quantization", quantization),
        ]
        self._turns = threading.Lock()  # one film at a time
        self._last_sign = -math.inf  # of progress in the film that is being read
        self._state = _LOADING
        self._settled = threading.Event()  # neither loading nor about to
        self._closed = False
        self._failed_starts = 0
        self._worker: _Worker | None = None
        self._restart()

    @classmethod
    def from_settings(cls, settings: Settings) -> "LocalWriter":
        """Find the model and start loading it; raises ReaderUnavailable when a package or the weights are missing."""
        engine, model = engine_of(settings), model_of(settings)
        check_packages(engine)
        if settings.medgemma_quantization == "4bit" and engine == "transformers":
            check_packages_for_4bit()
        return cls(engine, find_model(model), model, quantization=settings.medgemma_quantization)

    def state(self) -> ReaderState:
        """Say whether the model is loading, ready, or why it is neither."""
        return self._state

    def wait_until_settled(self, limit_s: float) -> ReaderState:
        """Wait until the model is ready or has failed, at most `limit_s` seconds."""
        self._settled.wait(limit_s)
        return self._state

    @contextmanager
    def conversation(self, control: Control) -> Iterator[None]:
        """Hold the model for both turns of one film."""
        control.sends_film_to("nowhere: read on this machine")
        while not self._turns.acquire(timeout=0.05):
            control.check()
            if time.monotonic() - self._last_sign > PATIENCE_S:
                raise ReaderUnavailable("MedGemma is busy with another film and shows no progress.")
        try:
            self._last_sign = time.monotonic()
            yield
        finally:
            self._turns.release()

    def write(self, turn: Turn, film: ReaderFilm, control: Control) -> Generation:
        """Let the model's process continue the conversation."""
        worker = self._worker
        if worker is None or self._state is not READY:
            raise ReaderUnavailable(self._state.reason or _LOADING.reason or "")
        tokens = []
        try:
            for token in worker.ask(turn, film, control):
                self._last_sign = time.monotonic()
                control.say(turn.name, token.piece.decode("utf-8", "replace"))
                tokens.append(token)
        except _Lost:
            self._replace(worker)
            reason = _STOPPED if control.stopped else "MedGemma's process ended while it read the film."
            raise ReaderUnavailable(reason) from None
        return Generation(b"".join(token.piece for token in tokens).decode("utf-8", "replace"), tuple(tokens))

    def close(self) -> None:
        """End the model's process."""
        self._closed = True
        if self._worker is not None:
            self._worker.kill()

    def _replace(self, worker: "_Worker") -> None:
        worker.kill()
        if not self._closed:
            self._restart()

    def _restart(self) -> None:
        self._state = _LOADING
        self._settled.clear()
        threading.Thread(target=self._start, daemon=True, name="medgemma-loading").start()

    def _start(self) -> None:
        start = time.monotonic()
        while not self._closed:
            self._worker = _Worker(self._command)
            try:
                description = self._worker.wait_until_ready()
            except _Lost as exc:
                self._failed_starts += 1
                fields = {"error": str(exc), "attempt": self._failed_starts}
                logger.warning("[MedGemma] Local model could not be loaded.", extra={"fields": fields})
                if exc.final or self._failed_starts >= MAX_FAILED_STARTS:
                    reason = f"MedGemma could not be loaded ({exc}). See: make check-medgemma"
                    self._state = ReaderState("unavailable", reason)
                    break
                continue
            self._failed_starts = 0
            self.engine = description
            self._state = READY
            seconds = round(time.monotonic() - start, 1)
            fields = {"model": self.model, "engine": description, "seconds": seconds}
            logger.info("[MedGemma] Local model loaded successfully.", extra={"fields": fields})
            break
        if self._closed and self._worker is not None:
            self._worker.kill()
        self._settled.set()


def check_packages_for_4bit() -> None:
    """Raise ReaderUnavailable when the package that 4-bit weights need is missing."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ReaderUnavailable(_missing_package("bitsandbytes"))


class _Lost(Exception):
    """The model's process ended, hangs, or could not load; `final` when another try would end the same way."""

    def __init__(self, why: str, *, final: bool = False) -> None:
        super().__init__(why)
        self.final = final


class _Worker:
    """One process of `worker.py` and the conversation with it."""

    def __init__(self, command: list[str]) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in SECRETS} | OFFLINE | CALM
        self._process = subprocess.Popen(
            command,
            cwd=PROJECT_ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )
        self._messages: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._number = 0
        threading.Thread(target=self._listen, daemon=True, name="medgemma-listening").start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines, suppress(ValueError):  # a line may be cut when the process is killed
            for line in lines:
                self._messages.put(json.loads(line))
        self._messages.put({"gone": True})

    def wait_until_ready(self) -> str:
        """Return what the process says of its engine, once the model is loaded."""
        message = self._messages.get()
        if "ready" in message:
            return str(message["ready"])
        self.kill()
        if "failed" in message:
            raise _Lost(str(message["failed"]), final=True)
        raise _Lost("its process ended")

    def ask(self, turn: Turn, film: ReaderFilm, control: Control) -> Iterator[Token]:
        """Yield the tokens of a reply; raises _Lost when the process must be replaced."""
        self._number += 1
        number = self._number
        control.when_stopped(lambda: self._messages.put({"id": number, "stopped": True}))
        self._send(
            {
                "id": number,
                "name": turn.name,
                "messages": [asdict(message) for message in turn.messages],
                "schema": turn.schema,
                "max_tokens": turn.max_tokens,
                "film": base64.b64encode(film.png).decode("ascii"),
            }
        )
        while True:
            message = self._next(control.remaining_s)
            if message.get("id") not in (number, None):
                continue  # of a request that nobody waits for
            if "token" in message and not control.stopped:
                yield from_json(message["token"])
            elif "ended" in message:
                return
            elif "error" in message:
                raise ReaderUnavailable(f"MedGemma failed while it read the film ({message['error']}).")
            elif control.stopped or "stopped" in message:
                self._cancel(number)
                raise ReaderUnavailable(_STOPPED)
            elif "gone" in message:
                raise _Lost("its process ended")

    def _cancel(self, number: int) -> None:
        """Ask the process to leave a request; raises _Lost when it does not within its grace."""
        self._send({"cancel": number})
        deadline = time.monotonic() + CANCEL_GRACE_S
        while True:
            message = self._next(deadline - time.monotonic())
            if message.get("id") == number and ("ended" in message or "error" in message):
                return
            if "gone" in message or time.monotonic() >= deadline:
                raise _Lost("it did not stop when asked to")

    def _next(self, limit_s: float) -> dict[str, Any]:
        try:
            return self._messages.get(timeout=max(0.0, min(limit_s, threading.TIMEOUT_MAX)))
        except queue.Empty:
            return {}

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except (OSError, ValueError):
            raise _Lost("its process ended") from None

    def kill(self) -> None:
        """End the process at once and collect it."""
        self._process.kill()
        self._process.wait()
        with suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
