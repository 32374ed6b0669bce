"""The journal of a run: an append-only file of JSON lines, one a film, which is the truth until the table is written.

A line is handed to the system in one piece as soon as its film is done, so that no kill of a process loses it; it is
forced onto the disk at most `SYNC_S` later, so that a power cut loses the films of about a second, which are then read
again. What a crash leaves of a cut line is dropped. Only the parent process writes, and only one run at a time.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from batch.reading import Loaded
from batch.rows import Row
from modules.records import Record

FORMAT = 1
SYNC_S = 1.0  # chosen, not fitted
START = b'{"begun":'
# How a sentence calls what two runs differ in.
SAID = {
    "format": "form of the journal",
    "version": "version of this program",
    "films": "number of films",
    "films_sha256": "films (names, sizes or times of change)",
    "symptoms_sha256": "symptoms",
    "force": "--force",
    "invert": "--invert",
    "reader": "second reader",
    "card_sha256": "weights card",
    "sha256": "weights",
}


class JournalError(Exception):
    """The journal cannot be used or written; the message says why, and what to do."""


class Begun(Record):
    """What a run was begun with; the first line of the journal, and the same for whoever goes on."""

    format: int = FORMAT
    version: str
    films: int
    films_sha256: str
    symptoms_sha256: str | None
    force: bool
    invert: bool
    reader: str
    settings: dict[str, str | int | bool | None]

    def parts(self) -> dict[str, Any]:
        """Return each thing that must stay the same, by its name."""
        return _parts(self.model_dump())


class Journal:
    """An open journal: which films are done, where their lines are, and which films killed a worker."""

    def __init__(self, path: Path, begun: Begun, *, restart: bool = False) -> None:
        """Begin a journal or go on with one; raises JournalError when it belongs to another run, or is in use."""
        self.path = path
        self.places: dict[str, int] = {}
        self.deaths: dict[str, int] = {}
        self.dropped_lines = 0
        self._weights: dict[str, str] | None = None
        self._synced = time.monotonic()
        self._end = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as exc:
            raise JournalError(f"{path} cannot be opened: {exc.strerror or exc}.") from exc
        try:
            self._lock()
            if restart:
                os.ftruncate(self._fd, 0)
            self._load(begun)
        except OSError as exc:
            os.close(self._fd)
            raise JournalError(f"{path} cannot be used: {exc.strerror or exc}.") from exc
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._sync()
        finally:
            os.close(self._fd)

    def check_weights(self, loaded: Loaded) -> None:
        """Take down which weights read the films; raises JournalError when they are not those of the lines above."""
        weights = {"sha256": loaded.model.sha256, "card_sha256": loaded.card_sha256}
        if self._weights is None:
            self._write({"weights": weights})
            self._weights = weights
        self._refuse_difference(self._weights, weights)

    def append(self, row: Row) -> None:
        """Write the line of a film; raises JournalError, after which the same command goes on."""
        if row.file not in self.places:
            self.places[row.file] = self._write({"row": row.model_dump(mode="json", exclude_none=True)})

    def note_death(self, file: str, reason: str, deaths: int) -> None:
        """Write that a film was the last thing of a worker, for it counts beyond this run."""
        self._write({"died": {"file": file, "reason": reason, "deaths": deaths}})
        self.deaths[file] = deaths

    def rows(self) -> Iterator[Row]:
        """Yield all rows, sorted by name, without holding them."""
        with self.path.open("rb") as file:
            for name in sorted(self.places):
                file.seek(self.places[name])
                yield Row.model_validate_json(json.dumps(json.loads(file.readline())["row"]))

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise JournalError(f"{self.path} is in use: another run writes it.") from exc

    def _load(self, begun: Begun) -> None:
        """Read what is there, drop what a crash has cut, and compare."""
        with self.path.open("rb") as file:
            first = file.readline()
            if first and not (first.startswith(START) or START.startswith(first)):
                raise JournalError(f"{self.path} is no journal of this program: move it away, or choose another --out.")
            found = _entry(first)
            if found is not None:
                self._refuse_difference(_parts(found["begun"]), begun.parts())
                self._end = len(first)
                for line in file:
                    entry = _entry(line)
                    if entry is None:
                        break
                    self._take_up(entry)
                    self._end += len(line)
                file.seek(self._end)
                self.dropped_lines = sum(1 for _ in file)
        os.ftruncate(self._fd, self._end)
        if found is None:
            self._write({"begun": begun.model_dump()})
            self._sync()

    def _take_up(self, entry: dict[str, Any]) -> None:
        if "row" in entry:
            self.places.setdefault(entry["row"]["file"], self._end)
        elif "died" in entry:
            self.deaths[entry["died"]["file"]] = entry["died"]["deaths"]
        elif "weights" in entry:
            self._weights = entry["weights"]

    def _refuse_difference(self, then: dict[str, Any], now: dict[str, Any]) -> None:
        different = [SAID.get(name, name) for name in now if then.get(name) != now[name]]
        if different:
            raise JournalError(
                f"{self.path} was begun with other {', '.join(different)}. Start it as it was begun, choose another "
                "--out, or begin anew with --restart, which throws the films away that were read."
            )

    def _write(self, entry: dict[str, Any]) -> int:
        """Append a line; returns where it begins."""
        begins = self._end
        line = json.dumps(entry, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        try:
            written = 0
            while written < len(line):
                written += os.write(self._fd, line[written:])
            self._end += len(line)
            if time.monotonic() - self._synced >= SYNC_S:
                self._sync()
        except OSError as exc:
            raise self._unwritable(exc) from exc
        return begins

    def _sync(self) -> None:
        try:
            os.fsync(self._fd)
        except OSError as exc:
            raise self._unwritable(exc) from exc
        self._synced = time.monotonic()

    def _unwritable(self, exc: OSError) -> JournalError:
        return JournalError(
            f"{self.path} cannot be written: {exc.strerror or exc}. {len(self.places)} films are in it; when that is "
            "put right, the same command goes on."
        )


def _parts(begun: dict[str, Any]) -> dict[str, Any]:
    """Lay the settings, which a sentence calls by their own names, beside the other parts."""
    parts = {**begun, **begun.get("settings", {})}
    parts.pop("settings", None)
    return parts


def _entry(line: bytes) -> dict[str, Any] | None:
    """Return what a line says; None for one that is cut or damaged."""
    if not line.endswith(b"\n"):
        return None
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(entry, dict) and len(entry) == 1 and all(isinstance(part, dict) for part in entry.values())
    return dict(entry) if whole else None
