"""Which films there are: in folders, in zip archives, in a list of paths; each under a name of its own."""

import csv
import hashlib
import os
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from stat import S_ISREG
from typing import Literal

from modules.archives import BOUNDED_METHODS, ZIP_ERRORS, overlap

FILM_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".dcm", ".dicom", ".dic", ".ima"})
ARCHIVE_SUFFIX = ".zip"
ENCRYPTED = 0x1  # general purpose bit 0 (APPNOTE 4.4.4)
NO_FILMS = frozenset({"dicomdir", "thumbs.db"})  # indices that lie beside films, without pixels of their own

NESTED = "An archive inside an archive is not opened: unpack it first."
PACKED = "It is packed by another method than Deflate: unpack the archive first."
NO_ARCHIVE = "The zip archive is damaged, or is none."
LOCKED = "It is encrypted: unpack the archive with its password first."


class SourceError(ValueError):
    """The films cannot be listed; the message says which source is wrong, and how."""


@dataclass(frozen=True)
class Trouble:
    """Why a film cannot even be tried."""

    status: Literal["undecodable", "failed"]
    code: str
    message: str


def unreadable(error: Exception) -> Trouble:
    """Return what the row of a file says that cannot be opened."""
    why = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
    return Trouble("failed", "unreadable_file", f"It cannot be read: {why}.")


@dataclass(frozen=True)
class Film:
    """Where one film lies, and what it is called in the table."""

    name: str
    path: str
    member: int | None = None  # position in the directory of a zip archive
    size: int = 0  # bytes, unpacked
    stamp: int = 0  # time of the last change in ns, or checksum of a member
    trouble: Trouble | None = None
    symptoms: str = ""


@dataclass(frozen=True)
class Listing:
    """All films by name, and how many other files were left out, by their suffix."""

    films: tuple[Film, ...]
    left_out: Counter[str]

    def sha256(self) -> str:
        """Return a hash of names, sizes and times of change: another one means other films."""
        digest = hashlib.sha256()
        for film in self.films:
            digest.update(f"{film.name}\0{film.size}\0{film.stamp}\n".encode())
        return digest.hexdigest()


def list_films(sources: Sequence[Path], paths_in: Path | None = None) -> Listing:
    """List the films of sources, and of the paths in a text file, one a line; raises SourceError.

    Below a folder whatever cannot be opened gets a row of its own; a source that was named must be there.
    """
    left_out: Counter[str] = Counter()
    found: list[Film] = []
    alone = len(sources) == 1 and paths_in is None
    for source in sources:
        if not source.exists():
            raise SourceError(f"{source} does not exist: a folder, a zip archive or a film is needed.")
        found += _of_source(source, _begin(source) if alone else _text(source), left_out)
        if alone and found and found[0].trouble and found[0].member is None and found[0].path == str(source):
            raise SourceError(f"{source}: {found[0].trouble.message}")
    for path in _listed(paths_in) if paths_in else ():
        found += _of_source(path, _text(path), left_out)
    films = _named_apart(_once(found))
    if not films:
        others = f" {sum(left_out.values())} other files were left out." if left_out else ""
        raise SourceError(f"There is no film to read.{others}")
    return Listing(tuple(films), left_out)


def with_symptoms(films: Iterable[Film], table: Path) -> tuple[Film, ...]:
    """Give films the symptoms of a CSV table with the columns file and symptoms; raises SourceError."""
    films = tuple(films)
    known = {film.name for film in films}
    symptoms: dict[str, str] = {}
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            if not {"file", "symptoms"} <= set(reader.fieldnames or ()):
                raise SourceError(f"{table} needs the columns file and symptoms.")
            for row in reader:
                name = row["file"] or ""
                where = f"{table}, line {reader.line_num}"
                if name in symptoms:
                    raise SourceError(f"{where}: {name[:200]!r} has a row already.")
                if name not in known:
                    raise SourceError(
                        f"{where}: {name[:200]!r} is none of the films. They are called as in the table that is "
                        f"written, such as {films[0].name[:200]!r}."
                    )
                symptoms[name] = (row["symptoms"] or "").strip()
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        raise SourceError(f"{table} cannot be read as a CSV file in UTF-8: {exc}.") from exc
    return tuple(replace(film, symptoms=symptoms.get(film.name, "")) for film in films)


def _listed(paths_in: Path) -> list[Path]:
    try:
        lines = paths_in.read_bytes().splitlines()
    except OSError as exc:
        raise SourceError(f"{paths_in} cannot be read: {exc.strerror or exc}.") from exc
    return [Path(os.fsdecode(line)) for line in lines if line.strip()]


def _begin(source: Path) -> str:
    """Return what names begin with when there is one source."""
    return "" if source.is_dir() else _text(source.name)


def _of_source(source: Path, name: str, left_out: Counter[str]) -> Iterator[Film]:
    """Yield the films of a folder, an archive or a single file; `name` is what their names begin with."""
    if source.is_dir():
        yield from _of_folder(source, name, left_out)
    elif source.suffix.lower() == ARCHIVE_SUFFIX:
        yield from _of_archive(source, name, left_out)
    else:
        yield _of_file(source, name)


def _of_folder(folder: Path, name: str, left_out: Counter[str]) -> Iterator[Film]:
    closed: list[OSError] = []
    for place, folders, files in os.walk(folder, onerror=closed.append):
        folders.sort()
        for file in sorted(files):
            path = Path(place, file)
            inside = "/".join(part for part in (name, _text(path.relative_to(folder))) if part)
            if path.suffix.lower() == ARCHIVE_SUFFIX and path.is_file():
                yield from _of_archive(path, inside, left_out)
            elif not _may_be_film(inside) or (path.exists() and not path.is_file()):
                left_out[path.suffix.lower()] += 1
            else:
                yield _of_file(path, inside)
    for error in closed:
        below = Path(str(error.filename))
        inside = "/".join(part for part in (name, _text(below.relative_to(folder))) if part)
        yield Film(f"{inside}/", str(below), trouble=unreadable(error))


def _of_file(path: Path, name: str) -> Film:
    try:
        stat = path.stat()
    except (OSError, ValueError) as exc:  # ValueError: a list with a byte that no path holds
        return Film(name, str(path), trouble=unreadable(exc))
    if not S_ISREG(stat.st_mode):  # a pipe would be waited for
        return Film(name, str(path), trouble=Trouble("failed", "unreadable_file", "It cannot be read: it is no file."))
    return Film(name, str(path), size=stat.st_size, stamp=stat.st_mtime_ns)


def _of_archive(path: Path, name: str, left_out: Counter[str]) -> Iterator[Film]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        if overlap(members):
            raise zipfile.BadZipFile
    except OSError as exc:
        yield Film(name, str(path), trouble=unreadable(exc))
        return
    except ZIP_ERRORS:
        yield Film(name, str(path), trouble=Trouble("undecodable", "damaged_archive", NO_ARCHIVE))
        return
    for i, member in enumerate(members):
        inside = f"{name}/{_text(member.filename)}".replace("\\", "/")  # some packers write Windows' separator
        suffix = PurePosixPath(inside).suffix.lower()
        trouble = None
        if not member.filename or member.is_dir():  # which asks for the last character
            continue
        if suffix == ARCHIVE_SUFFIX:
            trouble = Trouble("failed", "nested_archive", NESTED)
        elif not _may_be_film(inside):
            left_out[suffix] += 1
            continue
        elif member.flag_bits & ENCRYPTED:
            trouble = Trouble("failed", "encrypted_member", LOCKED)
        elif member.compress_type not in BOUNDED_METHODS:
            trouble = Trouble("failed", "packed_otherwise", PACKED)
        yield Film(inside, str(path), i, member.file_size, member.CRC, trouble)


def _may_be_film(name: str) -> bool:
    """Whether a name is one that films have: a suffix of theirs, or none, as archives export DICOM."""
    path = PurePosixPath(name)
    if path.name.startswith(".") or "__MACOSX" in path.parts or path.name.lower() in NO_FILMS:
        return False
    suffix = path.suffix.lower()
    return suffix in FILM_SUFFIXES or not suffix or suffix[1:].isdecimal()  # names that are DICOM UIDs end in a number


def _text(path: Path | str) -> str:
    """Return a path as text that has an UTF-8; bytes that are none become escapes."""
    return os.fsencode(path if isinstance(path, str) else path.as_posix()).decode("utf-8", "backslashreplace")


def _once(films: Iterable[Film]) -> list[Film]:
    """Leave out what was named by two sources."""
    found: dict[tuple[str, int | None], Film] = {}
    for film in films:
        found.setdefault((os.path.abspath(film.path), film.member), film)  # noqa: PTH100  no link is followed
    return list(found.values())


def _named_apart(films: Iterable[Film]) -> list[Film]:
    """Sort by name, and tell films of one name apart: an archive may hold a name twice."""
    ordered = sorted(films, key=lambda film: (film.name, film.path, film.member or 0))
    taken = {film.name for film in ordered}
    seen: set[str] = set()
    apart = []
    for film in ordered:
        name, number = film.name, 1
        while name in seen or (number > 1 and name in taken):
            number += 1
            name = f"{film.name} #{number}"
        seen.add(name)
        apart.append(replace(film, name=name))
    return sorted(apart, key=lambda film: film.name)
