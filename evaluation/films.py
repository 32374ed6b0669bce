"""Labelled films: image files in folders and zip archives, and the table that describes them.

Two tables are understood: this project's own CSV (`python -m synthetic` writes one), and `Data_Entry_2017.csv` of the
full ChestX-ray14 download, with its two lists of the official split beside it.
"""

import csv
import hashlib
import math
import zipfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from modules.errors import ImageError
from modules.images import open_image
from modules.pathologies import NAMES, canonical_name
from modules.records import Radiograph

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".dcm"})
MAX_FILE_BYTES = 50 << 20  # of one image, unpacked; the limit of the API's uploads
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
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or ())
            if "Finding Labels" in columns:
                rows = _read_nih(list(reader), path)
            else:
                rows = _read_own(list(reader), columns, path)
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        raise LabelsError(f"{path} cannot be read as a CSV file in UTF-8: {exc}.") from exc
    if not rows:
        raise LabelsError(f"{path} holds no film.")
    return rows


def find_table(folder: Path) -> Path:
    """Return the table of labels in a folder; raises LabelsError when there is none, or more than one."""
    found = sorted({*folder.glob("labels.csv"), *folder.glob("Data_Entry_2017*.csv")})
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise LabelsError(f"One labels.csv or Data_Entry_2017.csv is needed in {folder}, found: {names}. Use --labels.")
    return found[0]


def image_files(sources: Sequence[Path], wanted: Collection[str] | None = None) -> Iterator[tuple[str, bytes | str]]:
    """Yield (file name, content) of every image in folders (with what is below) and zip archives; only wanted names.

    A file that cannot be read is yielded too, with a sentence in place of its content. Names are without folders, as
    tables of labels have them. Raises LabelsError for a source that is neither a folder nor a zip archive.
    """
    for source in sources:
        if source.is_dir():
            for path in sorted(p for p in source.rglob("*") if p.is_file()):
                if path.suffix.lower() == ".zip":
                    yield from _zipped(path, wanted)
                elif path.suffix.lower() in IMAGE_SUFFIXES and (wanted is None or path.name in wanted):
                    yield path.name, _read(path)
        elif zipfile.is_zipfile(source):
            yield from _zipped(source, wanted)
        else:
            raise LabelsError(f"{source} is neither a folder nor a zip archive of images.")


def decode(data: bytes | str) -> Radiograph | str:
    """Return the film of what `image_files` yields, or a sentence that says why there is none."""
    if isinstance(data, str):
        return data
    try:
        return open_image(data).decode()
    except ImageError as exc:
        return str(exc)


def _read(path: Path) -> bytes | str:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            return f"larger than {MAX_FILE_BYTES >> 20} MiB"
        return path.read_bytes()
    except OSError as exc:
        return f"cannot be read: {exc.strerror}"


def _zipped(source: Path, wanted: Collection[str] | None) -> Iterator[tuple[str, bytes | str]]:
    with zipfile.ZipFile(source) as archive:
        for entry in sorted(archive.infolist(), key=lambda e: e.filename):
            name = PurePosixPath(entry.filename).name
            suffix = PurePosixPath(entry.filename).suffix.lower()
            if entry.is_dir() or suffix not in IMAGE_SUFFIXES or not (wanted is None or name in wanted):
                continue
            if entry.file_size > MAX_FILE_BYTES:
                yield name, f"larger than {MAX_FILE_BYTES >> 20} MiB"
                continue
            try:
                with archive.open(entry) as file:
                    data = file.read(MAX_FILE_BYTES + 1)  # what the directory of the archive says may be wrong
            except (zipfile.BadZipFile, zlib.error, OSError, RuntimeError, NotImplementedError, EOFError) as exc:
                yield name, f"cannot be unpacked: {exc}"
                continue
            yield name, data if len(data) <= MAX_FILE_BYTES else f"larger than {MAX_FILE_BYTES >> 20} MiB"


def _read_own(rows: list[dict[str, str]], columns: list[str], path: Path) -> dict[str, LabelledFilm]:
    column_of = {canonical_name(column): column for column in columns if canonical_name(column) is not None}
    if "image" not in columns or not column_of:
        raise LabelsError(
            f"{path} needs a column image and one for each labelled pathology (such as {NAMES[0]}); it has: "
            f"{', '.join(columns)}."
        )
    films = {}
    for line, row in enumerate(rows, start=2):
        labels = tuple(
            _label(row.get(column_of[name]) if name in column_of else "", f"{path}, line {line}, {name}")
            for name in NAMES
        )
        films[row["image"]] = LabelledFilm(
            image=row["image"],
            patient=row.get("patient") or row["image"],  # without patients, every film is taken as one
            split=row.get("split") or "",
            labels=labels,
            view=row.get("view") or "",
            sex=row.get("sex") or "",
            age=_age(row.get("age") or ""),
            native_px=row.get("native_px") or "",
        )
    return films


def _label(text: str | None, where: str) -> float:
    """Return 1, 0, or NaN for an empty cell or −1, which stands for doubt in CheXpert's tables."""
    value = (text or "").strip()
    if value in {"", "-1", "-1.0", "nan"}:
        return math.nan
    if value in {"0", "0.0"}:
        return 0.0
    if value in {"1", "1.0"}:
        return 1.0
    raise LabelsError(f"{where}: a label is 0, 1, or empty when it is not known, not {value[:20]!r}.")


def _age(text: str) -> float:
    """Return years from `58` or, as older tables write it, `058Y`; NaN for anything else."""
    digits = text.strip().removesuffix("Y")
    return float(digits) if digits.isdigit() and int(digits) <= MAX_AGE else math.nan


def _read_nih(rows: list[dict[str, str]], path: Path) -> dict[str, LabelledFilm]:
    split_of = _official_split(path)
    films = {}
    for line, row in enumerate(rows, start=2):
        try:
            image, patient = row["Image Index"], row["Patient ID"]
            names = [part for part in row["Finding Labels"].split("|") if part.casefold() != NO_FINDING]
        except KeyError as exc:
            raise LabelsError(f"{path} has no column {exc}; is it Data_Entry_2017.csv?") from exc
        unknown = [name for name in names if canonical_name(name) is None]
        if unknown:
            raise LabelsError(f"{path}, line {line}: {unknown[0][:40]!r} is none of the 14 pathologies.")
        positive = {canonical_name(name) for name in names}
        split = split_of.get(image, "")
        films[image] = LabelledFilm(
            image=image,
            patient=patient,
            split="val" if split == "train" and _held_out(patient) else split,
            labels=tuple(float(name in positive) for name in NAMES),
            view=row.get("View Position") or "",
            sex=row.get("Patient Gender") or row.get("Patient Sex") or "",
            age=_age(row.get("Patient Age") or ""),
        )
    return films


def _official_split(path: Path) -> dict[str, str]:
    split_of = {}
    for split, name in OFFICIAL_LISTS.items():
        try:
            lines = (path.parent / name).read_text("utf-8").split()
        except OSError as exc:
            raise LabelsError(f"{name}, of the ChestX-ray14 download, is needed beside {path}.") from exc
        split_of.update(dict.fromkeys(lines, split))
    return split_of


def _held_out(patient: str) -> bool:
    """Take a patient into validation by a hash of the number, so that every machine takes the same."""
    return int(hashlib.sha256(patient.encode()).hexdigest()[:8], 16) / 16**8 < VALIDATION_SHARE
