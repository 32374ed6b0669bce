"""One case to one outcome, in a process of its own: how it ended, which lines ran, what time and memory it took."""

import importlib
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from modules import decoder_process, dicom
from modules.errors import AssistantError
from modules.images import ImageLimits, open_image
from modules.settings import MEBIBYTE

LIMITS = ImageLimits(max_bytes=4 * MEBIBYTE, max_pixels=8_000_000)
SYSTEM_BYTES = 4 << 30  # address space of the worker: what is beyond is refused, so that the machine lives on
WATCHED = (
    "/modules/",
    "/batch/",
    "/PIL/PngImagePlugin",
    "/PIL/JpegImagePlugin",
    "/pydicom/filereader",
    "/pydicom/encaps",
)
MAX_MESSAGE = 400
READY = "ready"
DECODERS = ("pydicom.pixels", "gdcm", "jpeg_ls", "openjpeg.utils", "rle.utils", "pylibjpeg.utils")
REAL_EVERY = 500  # of the streams that go to a process of their own; the others go to a fork of this one

Target = Callable[[bytes, ImageLimits, Path], None]
Step = tuple[CodeType, int, int]


@dataclass(frozen=True)
class Outcome:
    """What became of one case."""

    kind: str  # decoded, the code of an error, or `unexpected`
    detail: str = ""
    fresh: bool = False  # lines ran after one another that never did
    cpu_s: float = 0.0  # with its decoders' processes
    wall_s: float = 0.0
    peak_bytes: int = 0  # resident, with the largest of its decoders' processes
    crashes: int = 0  # of those processes: damage that they keep from this one


class Lines:
    """Which line ran after which, in the project and in the readers of files that it calls."""

    def __init__(self) -> None:
        self.fresh = False
        self._seen: set[Step] = set()
        self._watched: dict[CodeType, bool] = {}

    def called(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        """Decide whether the lines of a function are followed: a function for `sys.settrace`."""
        code = frame.f_code
        watched = self._watched.get(code)
        if watched is None:
            watched = self._watched[code] = any(part in code.co_filename for part in WATCHED)
        if not watched:
            return None
        last, seen = 0, self._seen

        def line(frame: FrameType, event: str, _argument: Any) -> Any:
            nonlocal last
            if event == "line":
                step = (code, last, frame.f_lineno)
                last = frame.f_lineno
                if step not in seen:
                    seen.add(step)
                    self.fresh = True
            return line

        return line


class Decoders:
    """Decodes as `decode_elsewhere` does, mostly in one process for many frames: to start one takes half a second."""

    def __init__(self) -> None:
        self.cpu_s, self.peak_bytes, self.crashes = 0.0, 0, 0
        self._spent_s = 0.0  # by the process for many frames, at the end of its last one
        self._calls, self._child, self._pipe = 0, 0, multiprocessing.Pipe()

    def __call__(self, data: bytes, syntax: str, options: dict[str, Any], size: int) -> bytes:
        """Decode one frame into `size` bytes; raises DecoderProcessError."""
        self._calls += 1
        if self._calls % REAL_EVERY == 0:
            return decoder_process.decode_elsewhere(data, syntax, options, size)
        if not self._child:
            self._fork()
        try:
            self._pipe[0].send((data, syntax, options, size))
            pixels, cpu_s, peak_bytes, self._spent_s = self._pipe[0].recv()
        except (EOFError, OSError):  # the decoder crashed, or took more than it is allowed
            _, _, used = os.wait4(self._child, 0)
            pixels, cpu_s, peak_bytes = b"", used.ru_utime + used.ru_stime - self._spent_s, used.ru_maxrss * 1024
            self._child, self.crashes = 0, self.crashes + 1
        self.cpu_s += cpu_s
        self.peak_bytes = max(self.peak_bytes, peak_bytes)
        if len(pixels) != size:
            raise decoder_process.DecoderProcessError
        return bytes(pixels)

    def _fork(self) -> None:
        self._pipe[0].close()
        self._pipe = ours, theirs = multiprocessing.Pipe()
        self._spent_s = 0.0
        self._child = os.fork()
        if self._child == 0:
            try:
                ours.close()
                _decode_many(theirs)
            finally:
                os._exit(1)
        theirs.close()


def _decode_many(pipe: Connection) -> None:
    sys.settrace(None)
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        data, syntax, options, size = pipe.recv()
        _forget_peak()
        before, pixels = time.process_time(), b""
        decoder_process.limit(size, len(data))
        with suppress(BaseException):  # panics of Rust included
            pixels = decoder_process.decode_here(data, syntax, options).tobytes()
        spent = time.process_time()
        pipe.send((pixels, spent - before, _peak(), spent))


def work(connection: Connection, limits: ImageLimits) -> None:
    """Answer each list of cases, names and bytes, with their outcomes one by one until the connection ends."""
    os.setsid()  # so that this process and its forks can be ended together
    resource.setrlimit(resource.RLIMIT_AS, (SYSTEM_BYTES, SYSTEM_BYTES))
    warnings.simplefilter("ignore")
    for module in DECODERS:  # once here, and not in every fork
        with suppress(ImportError):
            importlib.import_module(module)
    decoders, lines = Decoders(), Lines()
    vars(dicom)["decode_elsewhere"] = decoders
    connection.send(READY)
    with suppress(EOFError, OSError), tempfile.TemporaryDirectory() as folder:
        while True:
            for name, data in connection.recv():
                target: Target = _archive if name.startswith("zip") else _film
                connection.send(_run(partial(target, data, limits, Path(folder)), decoders, lines))


def _run(target: Callable[[], None], decoders: Decoders, lines: Lines) -> Outcome:
    decoders.cpu_s, decoders.peak_bytes, decoders.crashes, lines.fresh = 0.0, 0, 0, False
    _forget_peak()
    wall, cpu = time.perf_counter(), time.process_time()
    kind, detail = "decoded", ""
    sys.settrace(lines.called)
    try:
        target()
    except AssistantError as exc:
        kind = exc.code
        if not str(exc).endswith(".") or len(str(exc)) > MAX_MESSAGE:
            kind, detail = "unexpected", f"the message {str(exc)!r}"
    except BaseException as exc:  # whatever a decoder lets out, panics of Rust included
        kind, detail = "unexpected", f"{type(exc).__name__}: {exc}"[:MAX_MESSAGE]
    finally:
        sys.settrace(None)
    return Outcome(
        kind,
        detail,
        lines.fresh,
        time.process_time() - cpu + decoders.cpu_s,
        time.perf_counter() - wall,
        _peak() + decoders.peak_bytes,
        decoders.crashes,
    )


def _film(data: bytes, limits: ImageLimits, _: Path) -> None:
    film = open_image(data, limits).decode(invert=bool(len(data) % 2))
    if film.pixels.shape != (film.header.height, film.header.width) or film.pixels.size > limits.max_pixels:
        raise ValueError(f"a film of {film.pixels.shape}")


def _archive(data: bytes, limits: ImageLimits, folder: Path) -> None:
    """List an archive and read its members as `python -m batch` does."""
    from batch.reading import Unpacking, _Files
    from batch.sources import SourceError, list_films

    path = folder / "films.zip"
    path.write_bytes(data)
    files = _Files(limits.max_bytes)
    with suppress(SourceError):
        for film in list_films([path]).films:
            if film.trouble is None:
                with suppress(Unpacking, AssistantError, OSError):
                    if len(files.read(film)) > limits.max_bytes:
                        raise ValueError("a member beyond the limit")
    if [file.name for file in folder.iterdir()] != [path.name]:
        raise ValueError("something was unpacked onto the disk")


def _forget_peak() -> None:
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", "ascii")


def _peak() -> int:
    """Return the most that was resident since `_forget_peak`, in bytes; elsewhere than on Linux, since the start."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text("ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
