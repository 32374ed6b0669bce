"""One film to one row, inside a worker process."""

import hashlib
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batch.rows import MAX_MESSAGE, Row, Status, findings_of, model_columns
from batch.sources import Film, unreadable
from modules.archives import BOUNDED_METHODS, ZIP_ERRORS
from modules.errors import (
    FileTooLarge,
    GateRefusal,
    ImageError,
    InvalidSymptoms,
    UndecodableImage,
    UnsupportedImageType,
)
from modules.records import ModelInfo, Record
from modules.settings import MEBIBYTE, Settings

if TYPE_CHECKING:
    from modules.pipeline import Pipeline

MAX_DATA_BYTES = 6 << 30  # of a worker on the CPU: a film within the default limits takes less than 1 GiB of it
READER_WAIT_S = 600.0  # for a local model to load; the films would otherwise be read without it


class Loaded(Record):
    """What a worker says once it can read films."""

    model: ModelInfo
    card_sha256: str
    reader: str


class Unpacking(Exception):
    """A member of an archive cannot be unpacked; the message says why."""


@dataclass(frozen=True)
class Recipe:
    """How a worker makes what reads films; sent to its process."""

    settings: Settings
    version: str
    threads: int
    force: bool = False
    invert: bool = False

    def __call__(self) -> "tuple[FilmReader, Loaded]":
        """Load the pipeline with its threads set; raises ConfigurationError."""
        import cv2

        cv2.setNumThreads(self.threads)
        from modules.pipeline import Pipeline

        # a worker has one film at a time: there is nothing to share a pass with
        own = self.settings.model_copy(update={"cnn_threads": self.threads, "cnn_batch": 1})
        pipeline = Pipeline.from_settings(own)
        # The drivers of other devices map memory as they please, and a local model's process would inherit the limit.
        if pipeline.cnn.info.device == "cpu" and self.settings.medgemma_mode == "dummy":
            _limit_memory()
        reader = pipeline.reader.wait_until_settled(READER_WAIT_S)
        card = hashlib.sha256(pipeline.cnn.card.model_dump_json().encode()).hexdigest()
        says = reader.mode if reader.reason is None else f"{reader.mode} ({reader.reason})"
        return FilmReader(pipeline, self), Loaded(model=pipeline.cnn.info, card_sha256=card, reader=says)


class FilmReader:
    """Reads films one after the other; an error of one is its row."""

    def __init__(self, pipeline: "Pipeline", recipe: Recipe) -> None:
        self._pipeline = pipeline
        self._recipe = recipe
        self._model = model_columns(pipeline.cnn.info, recipe.version)
        self._files = _Files(recipe.settings.max_upload_bytes)

    def __call__(self, film: Film) -> Row:
        """Return the row of a film; raises MemoryError alone."""
        start = time.perf_counter()
        times: dict[str, float] = {}
        known: dict[str, Any] = {}
        try:
            data = self._files.read(film)
            times["read"] = _milliseconds(start)
            known["sha256"] = hashlib.sha256(data).hexdigest()
            known |= self._analysed(data, film.symptoms, times)
        except MemoryError:
            raise  # what it left behind is better not trusted with another film
        except (ImageError, InvalidSymptoms) as exc:
            status: Status = "undecodable" if isinstance(exc, UndecodableImage | UnsupportedImageType) else "refused"
            known |= _wrong(status, exc.code, str(exc)) | {"gate_score": getattr(exc, "score", None)}
            if isinstance(exc, GateRefusal):
                known |= self._size(data)
        except Unpacking as exc:
            known |= _wrong("undecodable", "damaged_archive", str(exc))
        except OSError as exc:
            trouble = unreadable(exc)
            known |= _wrong("failed", trouble.code, trouble.message)
        except Exception as exc:  # one line a film, whatever happens
            said = f"This program failed on the film ({type(exc).__name__}). Please report it, without the film."
            known |= _wrong("failed", "internal_error", said)
        times["total"] = _milliseconds(start)
        return Row(file=film.name, ms=times, **self._model, **known)

    def close(self) -> None:
        """Release what the pipeline holds."""
        self._pipeline.close()

    def _analysed(self, data: bytes, symptoms: str, times: dict[str, float]) -> dict[str, Any]:
        analysis = self._pipeline.analyze(
            data, symptoms, heatmaps="none", force=self._recipe.force, invert=self._recipe.invert
        )
        times.update((stage, ms) for stage, ms in analysis.timings_ms.items() if stage != "total")
        return findings_of(analysis)

    def _size(self, data: bytes) -> dict[str, int]:
        """Return width and height by the header of a film that was refused later."""
        from modules.images import ImageLimits, open_image

        settings = self._recipe.settings
        with suppress(ImageError):
            header = open_image(data, ImageLimits(settings.max_upload_bytes, settings.max_pixels)).header
            return {"width": header.width, "height": header.height}
        return {}


class _Files:
    """Reads files and members of archives within a limit; the archive that was read last stays open."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._path = ""
        self._archive: zipfile.ZipFile | None = None

    def read(self, film: Film) -> bytes:
        """Return the content; raises OSError, FileTooLarge or Unpacking."""
        if film.member is None:
            with Path(film.path).open("rb") as file:
                return self._bounded(film.size, file.read)
        try:
            archive = self._open(film.path)
            listed = archive.infolist()[film.member]
            if listed.compress_type not in BOUNDED_METHODS:  # another archive than the one that was listed
                raise zipfile.BadZipFile
            with archive.open(listed) as member:
                return self._bounded(film.size, member.read)
        except FileTooLarge:
            raise
        except (IndexError, *ZIP_ERRORS) as exc:
            if isinstance(exc, MemoryError):
                raise
            raise Unpacking(f"It cannot be unpacked from its archive ({type(exc).__name__}).") from exc

    def _bounded(self, size: int, read: Callable[[int], bytes]) -> bytes:
        """Read at most the limit: what a directory says of a size may be wrong."""
        data = read(self._max_bytes + 1) if size <= self._max_bytes else b""
        if size > self._max_bytes or len(data) > self._max_bytes:
            raise FileTooLarge(
                f"The file has {max(size, len(data)) / MEBIBYTE:.1f} MiB; the limit is "
                f"{self._max_bytes / MEBIBYTE:.0f} MiB (MAX_UPLOAD_MB)."
            )
        return data

    def _open(self, path: str) -> zipfile.ZipFile:
        if self._archive is None or self._path != path:
            if self._archive is not None:
                self._archive.close()
            self._archive, self._path = None, ""
            self._archive, self._path = zipfile.ZipFile(path), path
        return self._archive


def _wrong(status: Status, code: str, message: str) -> dict[str, Any]:
    return {"status": status, "code": code, "message": message[:MAX_MESSAGE]}


def _milliseconds(since: float) -> float:
    return 1000 * (time.perf_counter() - since)


def _limit_memory() -> None:
    """Bound the private memory of this process, on the systems that can: a film beyond it fails, not the machine."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (MAX_DATA_BYTES, MAX_DATA_BYTES))
