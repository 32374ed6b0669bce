"""What to search for when nothing may be left: a text in any usual spelling, the bytes of a film, any film at all."""

import base64
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

FILM_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"\xff\xd8\xff\xdb", b"\xff\xd8\xff\xe1", b"\0\0\0\0DICM")
MAX_FILE_BYTES = 64 << 20
POLL_S = 0.01


def spellings(text: str) -> dict[str, bytes]:
    """Return a text (ASCII) in each way in which it may stand in a file, by the name of that way."""
    data = text.encode("ascii")
    found = {
        "UTF-8": data,
        "UTF-16 LE": text.encode("utf-16-le"),
        "UTF-16 BE": text.encode("utf-16-be"),
        "UTF-32": text.encode("utf-32-le"),
        "hex": data.hex().encode(),
        "percent": "".join(f"%{byte:02x}" for byte in data).encode(),
        "JSON escapes": "".join(f"\\u{byte:04x}" for byte in data).encode(),
        "backwards": data[::-1],
    }
    return found | _in_base64("base64", data)


def _in_base64(name: str, data: bytes) -> dict[str, bytes]:
    """Return what base64 makes of bytes at each of the three places in a triple, without what neighbours change."""
    found = {}
    for shift in range(3):
        text = base64.b64encode(b"\0" * shift + data)
        found[f"{name}, {shift} bytes in"] = text[4 if shift else 0 : len(text) - 4]
    return found


def bytes_of(name: str, data: bytes) -> dict[str, bytes]:
    """Return bytes of a film as they are, in hex and in base64."""
    return {name: data, f"{name} in hex": data.hex().encode(), **_in_base64(f"{name} in base64", data)}


@dataclass(frozen=True)
class Search:
    """Texts and bytes that may stand nowhere; letters of texts in either case."""

    needles: Mapping[str, bytes]

    @classmethod
    def of(cls, texts: Iterable[str], films: Mapping[str, bytes]) -> "Search":
        """Make a search for texts and for bytes of films."""
        needles = {f"{text} as {way}": spelt for text in texts for way, spelt in spellings(text).items()}
        for name, data in films.items():
            needles |= bytes_of(name, data)
        return cls(needles)

    def __post_init__(self) -> None:
        assert all(len(needle) >= 8 for needle in self.needles.values())

    def within(self, content: bytes | str) -> list[str]:
        """Return the names of what stands in a content."""
        content = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
        lowered = content.lower()
        return [name for name, needle in self.needles.items() if needle in content or needle.lower() in lowered]

    def below(self, folder: Path, *, leave_out: str = r"$^") -> dict[str, list[str]]:
        """Return what was found by the path of its file, names of files and folders included; films too."""
        found: dict[str, list[str]] = {}
        for path in files_below(folder):
            name = str(path.relative_to(folder))
            if re.search(leave_out, name):
                continue
            hits = self.within(name)
            with suppress(OSError):
                content = path.read_bytes()[:MAX_FILE_BYTES]
                hits += self.within(content) + [f"a film: {s!r}" for s in FILM_SIGNATURES if s in content]
            if hits:
                found[name] = hits
        return found


def files_below(folder: Path) -> Iterator[Path]:
    """Yield files and folders, though some may go meanwhile."""
    for parent, folders, files in os.walk(folder):
        yield from (Path(parent, name) for name in (*folders, *files))


@dataclass
class Watch:
    """Looks into a folder again and again, in a thread of its own, and keeps what it saw of each file."""

    folder: Path
    search: Search
    found: dict[str, list[str]] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    rounds: int = 0

    def __enter__(self) -> "Watch":
        self._known: dict[str, tuple[int, int]] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._stopped.is_set():
            self._look()
            self.rounds += 1
            time.sleep(POLL_S)

    def _look(self) -> None:
        for path in files_below(self.folder):
            with suppress(OSError):
                state = path.stat()
                name, mark = str(path.relative_to(self.folder)), (state.st_mtime_ns, state.st_size)
                if self._known.get(name) == mark:
                    continue
                self._known[name] = mark
                self.names.add(name)
                content = path.read_bytes()[:MAX_FILE_BYTES] if path.is_file() else b""
                hits = self.search.within(name) + self.search.within(content)
                hits += [f"a film: {s!r}" for s in FILM_SIGNATURES if s in content]
                if hits:
                    self.found.setdefault(name, []).extend(hits)


@dataclass(frozen=True)
class OpenFile:
    """A file that a process holds open: where, its links by name, and what is in it."""

    target: str
    links: int
    content: bytes


def processes_below(pid: int) -> list[int]:
    """Return a process of Linux and all that it started."""
    found, todo = [], [pid]
    while todo:
        found.append(todo.pop())
        with suppress(OSError):
            for children in Path(f"/proc/{found[-1]}/task").glob("*/children"):
                todo += map(int, children.read_text().split())
    return found


def written_files(pid: int, folder: Path) -> list[OpenFile]:
    """Return the files of a folder that a process or one that it started holds open, deleted ones too."""
    found = []
    for each in processes_below(pid):
        for link in Path(f"/proc/{each}/fd").glob("*"):
            with suppress(OSError):
                target = str(link.readlink())
                if target.startswith(f"{folder}/"):
                    found.append(OpenFile(target, link.stat().st_nlink, link.read_bytes()))
    return found
