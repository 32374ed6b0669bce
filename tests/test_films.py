import math
import zipfile
from pathlib import Path

import pytest

from evaluation.films import (
    MAX_FILE_BYTES,
    OFFICIAL_LISTS,
    LabelsError,
    decode,
    find_table,
    image_files,
    read_labels,
)
from modules.pathologies import NAMES
from modules.records import Radiograph

OWN = "image,patient,split,view,age,sex,Effusion,Pleural_Thickening,Mass\n"


def write(folder: Path, text: str, name: str = "labels.csv") -> Path:
    path = folder / name
    path.write_text(text, "utf-8")
    return path


def test_labels_are_found_by_the_name_of_their_column(tmp_path: Path) -> None:
    row = read_labels(write(tmp_path, OWN + "a.png,7,val,PA,61,F,1,0,\n"))["a.png"]
    by_name = dict(zip(NAMES, row.labels, strict=True))
    assert (by_name["Effusion"], by_name["Pleural Thickening"]) == (1.0, 0.0)
    assert math.isnan(by_name["Mass"])  # an empty cell is not known
    assert math.isnan(by_name["Hernia"])  # so is a pathology without a column
    assert (row.patient, row.split, row.view, row.sex, row.age) == ("7", "val", "PA", "F", 61.0)
    assert not row.no_finding


def test_no_finding_needs_every_label_to_be_known(tmp_path: Path) -> None:
    columns = ",".join(name.replace(" ", "_") for name in NAMES)
    rows = f"a.png,{','.join('0' * 14)}\nb.png,{','.join('0' * 13)},\n"
    films = read_labels(write(tmp_path, f"image,{columns}\n{rows}"))
    assert films["a.png"].no_finding
    assert not films["b.png"].no_finding
    assert films["a.png"].patient == "a.png"  # without patients, each film is one


@pytest.mark.parametrize("value", ["2", "yes", "0.5"])
def test_a_label_that_is_none_is_named_with_its_line(tmp_path: Path, value: str) -> None:
    with pytest.raises(LabelsError, match=r"line 3, Effusion.*not"):
        read_labels(write(tmp_path, OWN + f"a.png,7,val,PA,61,F,1,0,1\nb.png,7,val,PA,61,F,{value},0,1\n"))


@pytest.mark.parametrize("text", ["", "name,Effusion\na.png,1\n", "image,something\na.png,1\n", OWN])
def test_a_table_without_films_or_labels_says_what_it_needs(tmp_path: Path, text: str) -> None:
    with pytest.raises(LabelsError, match="needs a column image|holds no film"):
        read_labels(write(tmp_path, text))


def test_a_table_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes(b"\xff\xfe\x00image")
    with pytest.raises(LabelsError, match="UTF-8"):
        read_labels(tmp_path / "labels.csv")


class TestChestXray14:
    """The table and the lists of the full download."""

    HEADER = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position\n"

    def table(self, folder: Path, rows: str) -> Path:
        write(folder, "\n".join(f"{i:08d}_000.png" for i in range(400)), OFFICIAL_LISTS["train"])
        write(folder, "test.png\n", OFFICIAL_LISTS["test"])
        return write(folder, self.HEADER + rows, "Data_Entry_2017.csv")

    def test_findings_are_split_at_bars(self, tmp_path: Path) -> None:
        table = self.table(
            tmp_path, "test.png,Effusion|Pleural_Thickening,0,12,058Y,M,AP\n00000001_000.png,No Finding,0,1,41,F,PA\n"
        )
        films = read_labels(table)
        positive = {name for name, label in zip(NAMES, films["test.png"].labels, strict=True) if label}
        assert positive == {"Effusion", "Pleural Thickening"}
        assert (films["test.png"].split, films["test.png"].age, films["test.png"].view) == ("test", 58.0, "AP")
        assert films["00000001_000.png"].no_finding

    def test_validation_patients_are_held_out_of_the_training_list_as_wholes(self, tmp_path: Path) -> None:
        rows = "".join(f"{i:08d}_000.png,No Finding,0,{i // 2},41,F,PA\n" for i in range(400))
        films = read_labels(self.table(tmp_path, rows)).values()
        assert {film.split for film in films} == {"train", "val"}
        train, val = ({film.patient for film in films if film.split == split} for split in ("train", "val"))
        assert train.isdisjoint(val)
        assert 10 <= len(val) <= 40  # an eighth of 200

    def test_an_unknown_finding_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(LabelsError, match="'Fracture'"):
            read_labels(self.table(tmp_path, "test.png,Fracture,0,12,58,M,AP\n"))

    def test_the_lists_are_asked_for(self, tmp_path: Path) -> None:
        with pytest.raises(LabelsError, match=r"train_val_list\.txt"):
            read_labels(write(tmp_path, self.HEADER + "a.png,No Finding,0,1,41,F,PA\n"))


def test_the_table_is_found_in_its_folder(tmp_path: Path) -> None:
    with pytest.raises(LabelsError, match="found: none"):
        find_table(tmp_path)
    path = write(tmp_path, OWN)
    assert find_table(tmp_path) == path
    write(tmp_path, "", "Data_Entry_2017_v2020.csv")
    with pytest.raises(LabelsError, match="--labels"):
        find_table(tmp_path)


def test_films_come_from_folders_below_and_from_archives(tmp_path: Path, film_png: bytes) -> None:
    (tmp_path / "images_001" / "images").mkdir(parents=True)
    (tmp_path / "images_001" / "images" / "a.png").write_bytes(film_png)
    (tmp_path / "notes.txt").write_text("no film")
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        archive.writestr("some/folder/b.png", film_png)
        archive.writestr("c.png", film_png)
    found = dict(image_files([tmp_path]))
    assert found == {"a.png": film_png, "b.png": film_png, "c.png": film_png}
    assert list(dict(image_files([tmp_path / "more.zip"], {"c.png"}))) == ["c.png"]
    with pytest.raises(LabelsError, match="neither a folder nor a zip"):
        list(image_files([tmp_path / "notes.txt"]))


def test_a_bomb_or_a_damaged_member_is_named_and_the_rest_is_read(tmp_path: Path, film_png: bytes) -> None:
    path = tmp_path / "films.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(MAX_FILE_BYTES + 1))
        archive.writestr("b.png", film_png)
        archive.writestr("c.png", b"c" * 5000)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("c.png").header_offset
    content[start + 40 : start + 44] = b"\xff\xff\xff\xff"  # inside its compressed bytes
    path.write_bytes(content)
    found = dict(image_files([path]))
    assert found["a.png"] == "larger than 50 MiB"
    assert found["b.png"] == film_png
    assert str(found["c.png"]).startswith("cannot be unpacked")


def test_decoding_gives_a_film_or_a_sentence(film_png: bytes) -> None:
    assert isinstance(decode(film_png), Radiograph)
    assert decode("cannot be read") == "cannot be read"
    assert "damaged" in str(decode(film_png[:500]))
