"""Labelled films: image files in folders and zip archives, and the table that describes them.

Two tables are understood: this project's own CSV (`python -m synthetic` writes one), and `Data_Entry_2017.csv` of the
full ChestX-ray14 download, with its two lists of the official split beside it.
"""

import csv
import hashlib
import math
import re
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Self

from modules.archives import ZIP_ERRORS
from modules.errors import ImageError
from modules.images import open_image
from modules.pathologies import NAMES, canonical_name
from modules.records import Radiograph

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".dcm"})
MAX_FILE_BYTES = 50 << 20  # of one image, unpacked; the limit of the API's uploads
TOO_LARGE = f"larger than {MAX_FILE_BYTES >> 20} MiB"
NIH_COLUMNS = ("Image Index", "Patient ID", "Finding Labels")
NO_FINDING = "no finding"
VALIDATION_SHARE = 0.125  # of the patients of the official training list, where a table has no validation split
OFFICIAL_LISTS = {"train": "train_val_list.txt", "test": "test_list.txt"}
MAX_AGE = 120  # years; ages beyond are typing errors, of which ChestX-ray14 has some


class LabelsError(ValueError):
    """The table of labels cannot be used; the message says what to change."""


@dataclass(frozen=True)
class LabelledFilm:
    """One row of the table: 1, 0 or NaN (not known) for each of the 14 pathologies, and what subgroups need."""

    image: str
    patient: str
    split: str  # train, val, test, or what the table says
    labels: tuple[float, ...]
    view: str = ""
    sex: str = ""
    age: float = math.nan  # years
    native_px: str = ""

    @property
    def no_finding(self) -> bool:
        """Whether all labels are known, and none is positive."""
        return all(value == 0.0 for value in self.labels)


def read_labels(path: Path) -> dict[str, LabelledFilm]:
    """Read the table, by the name of each image; raises LabelsError with what is wrong and where."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            reader.fieldnames = [column.strip() for column in reader.fieldnames or ()]
            rows = (_read_nih if NIH_COLUMNS[2] in reader.fieldnames else _read_own)(reader, path)
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        raise LabelsError(f"{path} cannot be read as a CSV file in UTF-8: {exc}.") from exc
    if not rows:
        raise LabelsError(f"{path} holds no film.")
    return rows


def is_nih_table(path: Path) -> bool:
    """Whether a table has the columns of ChestX-ray14, whatever its name; False for one that cannot be read."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            columns = csv.DictReader(file, skipinitialspace=True).fieldnames or ()
    except (OSError, UnicodeDecodeError, csv.Error):
        return False
    return NIH_COLUMNS[2] in [column.strip() for column in columns]


def find_table(folder: Path) -> Path:
    """Return the table of labels in a folder; raises LabelsError when there is none, or more than one."""
    if not folder.is_dir():
        raise LabelsError(f"{folder} is no folder in which a table of labels could be. Use --labels.")
    found = sorted({*folder.glob("labels.csv"), *folder.glob("Data_Entry_2017*.csv")})
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise LabelsError(f"One labels.csv or Data_Entry_2017.csv is needed in {folder}, found: {names}. Use --labels.")
    return found[0]


def image_files(sources: Sequence[Path], wanted: Collection[str] | None = None) -> Iterator[tuple[str, bytes | str]]:
    """Yield (file name, content) of every image in folders (with what is below) and zip archives; only wanted names.

    Names are without folders, as tables of labels have them. A file that cannot be read is yielded too, with a sentence
    in place of its content; so is an archive below a folder that cannot be opened, under its path (see `is_archive`).
    A file that is there twice is yielded once. Raises LabelsError before the first film for a source that is neither a
    folder nor a zip archive, and where two different files have a wanted name: a table knows only the name.
    """
    places, damaged = _places(sources, wanted)
    with _Reader() as reader:
        left_out = _repeated(places, reader, tell_apart=wanted is None)
        yield from damaged
        for i, place in enumerate(places):
            if i not in left_out:
                yield place.name, reader.read(place)


def image_names(sources: Sequence[Path], wanted: Collection[str] | None = None) -> set[str]:
    """Return the names that `image_files` would yield, without reading the images; raises LabelsError as it does."""
    return {place.name for place in _places(sources, wanted)[0]}


def is_archive(name: str) -> bool:
    """Whether what `image_files` yielded is no image but an archive that could not be opened."""
    return PurePosixPath(name).suffix.lower() not in IMAGE_SUFFIXES


def check_sources(sources: Sequence[Path]) -> None:
    """Raise LabelsError for a source of images that is not there, or neither a folder nor a zip archive."""
    for source in sources:
        if not source.exists():
            raise LabelsError(f"{source} does not exist: a folder or a zip archive of images is needed.")
        if not source.is_dir():
            _members(source)


def decode(data: bytes | str) -> Radiograph | str:
    """Return the film of what `image_files` yields, or a sentence that says why there is none."""
    if isinstance(data, str):
        return data
    try:
        return open_image(data).decode()
    except ImageError as exc:
        return str(exc)


@dataclass(frozen=True, eq=False)
class _Place:
    """Where one image lies: a file, or a member of a zip archive."""

    name: str
    path: Path
    member: zipfile.ZipInfo | None = None

    def __str__(self) -> str:
        return str(self.path) if self.member is None else f"{self.member.filename} in {self.path}"


class _Reader:
    """Reads images; the archive that was read last stays open, since opening a large one takes long."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._archive: zipfile.ZipFile | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._archive is not None:
            self._archive.close()

    def read(self, place: _Place) -> bytes | str:
        """Return the content, or a sentence that says why there is none."""
        try:
            return self._content(place)
        except OSError as exc:
            return f"cannot be read: {exc.strerror or exc}"
        except ZIP_ERRORS as exc:
            return f"cannot be unpacked: {exc}"

    def _content(self, place: _Place) -> bytes | str:
        size = place.path.stat().st_size if place.member is None else place.member.file_size
        if size > MAX_FILE_BYTES:
            return TOO_LARGE
        if place.member is None:
            return place.path.read_bytes()
        if self._archive is None or self._path != place.path:
            self.__exit__()
            self._archive, self._path = zipfile.ZipFile(place.path), place.path
        with self._archive.open(place.member) as file:
            data = file.read(MAX_FILE_BYTES + 1)  # what the directory of the archive says may be wrong
        return data if len(data) <= MAX_FILE_BYTES else TOO_LARGE


def _places(sources: Sequence[Path], wanted: Collection[str] | None) -> tuple[list[_Place], list[tuple[str, str]]]:
    """Return where the wanted images lie, and (path, reason) of each archive below a folder that cannot be opened."""
    check_sources(sources)
    places: list[_Place] = []
    damaged: list[tuple[str, str]] = []
    for source in sources:
        inside = sorted(p for p in source.rglob("*") if p.is_file()) if source.is_dir() else [source]
        for path in inside:
            if path == source or path.suffix.lower() == ".zip":
                try:
                    members = _members(path)
                except LabelsError as exc:
                    damaged.append((str(path), str(exc)))
                else:
                    places += [_Place(_file_name(member), path, member) for member in members]
            else:
                places.append(_Place(path.name, path))
    return [
        place
        for place in places
        if PurePosixPath(place.name).suffix.lower() in IMAGE_SUFFIXES and (wanted is None or place.name in wanted)
    ], damaged


def _members(path: Path) -> list[zipfile.ZipInfo]:
    """Return the files in an archive; raises LabelsError with a sentence that names it when it cannot be opened."""
    try:
        with zipfile.ZipFile(path) as archive:
            return sorted((e for e in archive.infolist() if e.filename and not e.is_dir()), key=lambda e: e.filename)
    except OSError as exc:
        raise LabelsError(f"{path} cannot be read: {exc.strerror or exc}.") from exc
    except zipfile.BadZipFile as exc:
        if path.suffix.lower() != ".zip" and not zipfile.is_zipfile(path):
            raise LabelsError(f"{path} is neither a folder nor a zip archive of images.") from exc
        raise LabelsError(f"{path} is a damaged zip archive, or none: {exc}.") from exc
    except ZIP_ERRORS as exc:
        raise LabelsError(f"{path} is a zip archive that cannot be opened: {exc}.") from exc


def _file_name(member: zipfile.ZipInfo) -> str:
    return PurePosixPath(member.filename.replace("\\", "/")).name  # some packers write Windows' separator


def _repeated(places: Sequence[_Place], reader: _Reader, *, tell_apart: bool) -> set[int]:
    """Return which places hold a file again that another one holds; raises LabelsError for different ones of a name.

    With `tell_apart`, different files of one name are no error: no table is asked about them.
    """
    by_name: dict[str, list[int]] = {}
    for i, place in enumerate(places):
        by_name.setdefault(place.name, []).append(i)
    left_out = set()
    for name, same in by_name.items():
        seen: dict[bytes | str, int] = {}
        for i in same if len(same) > 1 else ():
            content = reader.read(places[i])
            key = content if isinstance(content, str) else hashlib.sha256(content).digest()
            if seen and key not in seen and not tell_apart:
                raise LabelsError(
                    f"{name} is there twice, and not the same: {places[same[0]]}, and {places[i]}. A table of labels "
                    "has names only, so nobody can say which of them it means: keep one, or rename it in both."
                )
            if key in seen:
                left_out.add(i)
            seen.setdefault(key, i)
    return left_out


def _read_own(reader: "csv.DictReader[str]", path: Path) -> dict[str, LabelledFilm]:
    columns = list(reader.fieldnames or ())
    label_columns = [column for column in columns if canonical_name(column) is not None]
    column_of = {canonical_name(column): column for column in label_columns}
    if "image" not in columns or not column_of:
        raise LabelsError(
            f"{path} needs a column image and one for each labelled pathology (such as {NAMES[0]}); it has: "
            f"{', '.join(columns)}."
        )
    twice = [c for c in columns if columns.count(c) > 1 and c] + [
        c for c in label_columns if c not in column_of.values()
    ]
    if twice:
        raise LabelsError(f"{path} has two columns for {twice[0]}: keep one.")
    films: dict[str, LabelledFilm] = {}
    for row in reader:
        where = f"{path}, line {reader.line_num}"
        if any(row.get(None) or ()):
            raise LabelsError(f"{where}: the row has more cells than the table has columns; is there a comma in one?")
        labels = tuple(
            _label(row.get(column_of[name]) if name in column_of else "", f"{where}, {name}") for name in NAMES
        )
        image = _cell(row, "image")
        film = LabelledFilm(
            image=image,
            patient=_cell(row, "patient") or image,  # without patients, every film is taken as one
            split=_cell(row, "split"),
            labels=labels,
            view=_cell(row, "view"),
            sex=_cell(row, "sex"),
            age=_age(_cell(row, "age")),
            native_px=_pixels(_cell(row, "native_px")),
        )
        _put(films, film, where)
    return films


def _put(films: dict[str, LabelledFilm], film: LabelledFilm, where: str) -> None:
    """Take a row up; raises LabelsError for one that cannot be meant as it stands."""
    if not film.image:
        raise LabelsError(f"{where}: the row names no image.")
    known = films.setdefault(film.image, film)
    if repr(known) != repr(film):  # NaN is not equal to itself
        raise LabelsError(f"{where}: {film.image[:80]!r} has a row already, and the two do not say the same.")


def _cell(row: Mapping[Any, Any], column: str) -> str:
    return (row.get(column) or "").strip()


def _label(text: str | None, where: str) -> float:
    """Return 1, 0, or NaN for an empty cell or −1, which stands for doubt in CheXpert's tables."""
    value = (text or "").strip()
    if value.casefold() in {"", "-1", "-1.0", "nan"}:
        return math.nan
    if value in {"0", "0.0"}:
        return 0.0
    if value in {"1", "1.0"}:
        return 1.0
    raise LabelsError(f"{where}: a label is 0, 1, or empty when it is not known, not {value[:20]!r}.")


def _age(text: str) -> float:
    """Return years from `58`, `58.0` or, as older tables write it, `058Y`; NaN for anything else."""
    found = re.fullmatch(
        r"(\d{1,4})(?:\.0*)?Y?", text
    )  # digits of any script, which int reads; no ², which it does not
    return float(found[1]) if found and int(found[1]) <= MAX_AGE else math.nan


def _pixels(text: str) -> str:
    """Return a number of pixels in plain digits; nothing for anything else."""
    found = re.fullmatch(r"(\d{1,6})(?:\.0*)?", text)
    return str(int(found[1])) if found else ""


def _read_nih(reader: "csv.DictReader[str]", path: Path) -> dict[str, LabelledFilm]:
    missing = [column for column in NIH_COLUMNS if column not in (reader.fieldnames or ())]
    if missing:
        raise LabelsError(f"{path} has no column {missing[0]!r}; is it Data_Entry_2017.csv?")
    split_of = _official_split(path)
    films: dict[str, LabelledFilm] = {}
    for row in reader:
        where = f"{path}, line {reader.line_num}"
        image, patient, findings = (_cell(row, column) for column in NIH_COLUMNS)
        names = [part for part in findings.split("|") if part.strip().casefold() != NO_FINDING]
        unknown = [name for name in names if canonical_name(name) is None]
        if unknown:
            raise LabelsError(f"{where}: {unknown[0][:40]!r} is none of the 14 pathologies.")
        positive = {canonical_name(name) for name in names}
        split = split_of.get(image, "")
        film = LabelledFilm(
            image=image,
            patient=patient or image,
            split="val" if split == "train" and _held_out(patient or image) else split,
            labels=tuple(float(name in positive) for name in NAMES),
            view=_cell(row, "View Position"),
            sex=_cell(row, "Patient Gender") or _cell(row, "Patient Sex"),
            age=_age(_cell(row, "Patient Age")),
        )
        _put(films, film, where)
    return films


def _official_split(path: Path) -> dict[str, str]:
    split_of = {}
    for split, name in OFFICIAL_LISTS.items():
        try:
            lines = (path.parent / name).read_text("utf-8").split()
        except (OSError, UnicodeDecodeError) as exc:
            raise LabelsError(f"{name}, of the ChestX-ray14 download, is needed beside {path}.") from exc
        split_of.update(dict.fromkeys(lines, split))
    return split_of


def _held_out(patient: str) -> bool:
    """Take a patient into validation by a hash of the number, so that every machine takes the same."""
    return int(hashlib.sha256(patient.encode()).hexdigest()[:8], 16) / 16**8 < VALIDATION_SHARE
