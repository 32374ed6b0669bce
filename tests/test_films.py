import math
import random
import zipfile
from pathlib import Path

import pytest

from evaluation.films import (
    MAX_FILE_BYTES,
    OFFICIAL_LISTS,
    LabelsError,
    check_sources,
    decode,
    find_table,
    image_files,
    image_names,
    is_archive,
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


@pytest.mark.parametrize(
    ("age", "years"),
    [
        ("61", 61.0),
        ("058Y", 58.0),
        ("58.0", 58.0),
        ("\u0665\u0668", 58.0),
        ("\u00b2", None),
        ("9" * 5000, None),
        ("-3", None),
    ],
)
def test_an_age_is_years_or_not_known(tmp_path: Path, age: str, years: float | None) -> None:
    found = read_labels(write(tmp_path, OWN + f"a.png,7,val,PA,{age},F,1,0,1\n"))["a.png"].age
    assert found == years if years is not None else math.isnan(found)


@pytest.mark.parametrize(
    ("text", "kept"), [("1024", "1024"), ("2500.0", "2500"), ("\u00b2", ""), ("large", ""), ("9" * 400, "")]
)
def test_native_pixels_are_a_number_or_nothing(tmp_path: Path, text: str, kept: str) -> None:
    table = write(tmp_path, f"image,native_px,Mass\na.png,{text},1\n")
    assert read_labels(table)["a.png"].native_px == kept


def test_spaces_around_cells_and_columns_mean_nothing(tmp_path: Path) -> None:
    films = read_labels(
        write(tmp_path, 'image , patient, sex, Mass\na.png, 12 ,F , 1\nb.png,12, F, 0\n"c, d.png",  ,,\n')
    )
    assert [film.patient for film in films.values()] == ["12", "12", "c, d.png"]  # a blank is no patient
    assert {film.sex for film in films.values()} == {"F", ""}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a.png,7,val,PA,61,F,1,0,1\na.png,7,val,PA,61,F,0,0,1\n", "line 3: 'a.png' has a row already"),
        (",7,val,PA,61,F,1,0,1\n", "line 2: the row names no image"),
        ("a.png,7,val,PA,61,F,1,0,1,1\n", "line 2: the row has more cells"),
    ],
)
def test_a_row_that_cannot_be_meant_is_named(tmp_path: Path, rows: str, message: str) -> None:
    with pytest.raises(LabelsError, match=message):
        read_labels(write(tmp_path, OWN + rows))


def test_a_row_that_says_the_same_twice_is_one(tmp_path: Path) -> None:
    row = "a.png,7,val,PA,,F,1,0,\n"
    assert list(read_labels(write(tmp_path, OWN + row + row))) == ["a.png"]


def test_a_column_that_is_there_twice_is_named(tmp_path: Path) -> None:
    with pytest.raises(LabelsError, match="two columns for Pleural_Thickening"):
        read_labels(write(tmp_path, "image,Pleural_Thickening,pleural thickening\na.png,1,0\n"))


def test_a_folder_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(LabelsError, match="cannot be read"):
        read_labels(tmp_path)
    with pytest.raises(LabelsError, match="no folder"):
        find_table(tmp_path / "nowhere")


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

    def test_a_row_that_is_cut_short_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(LabelsError, match="line 2: '' is none"):
            read_labels(self.table(tmp_path, "test.png\n"))

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


def packed(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_an_archive_that_cannot_be_opened_is_named_and_the_rest_is_read(tmp_path: Path, film_png: bytes) -> None:
    folder = tmp_path / "films"
    folder.mkdir()
    (folder / "a.png").write_bytes(film_png)
    (folder / "none.zip").write_bytes(b"no archive")
    whole = packed(folder / "cut.zip", {"b.png": film_png}).read_bytes()
    directory = whole.rindex(b"PK\x01\x02")
    (folder / "cut.zip").write_bytes(whole[:directory] + b"XX" + whole[directory + 2 :])
    found = dict(image_files([folder]))
    assert found.pop("a.png") == film_png
    assert set(found) == {str(folder / "none.zip"), str(folder / "cut.zip")}
    assert all(is_archive(name) and "damaged zip archive" in str(reason) for name, reason in found.items())
    assert image_names([folder]) == {"a.png"}
    for name in ("none.zip", "cut.zip"):
        for ask in (check_sources, lambda sources: list(image_files(sources))):
            with pytest.raises(LabelsError, match=rf"{name} is a damaged zip archive"):
                ask([folder / name])
    with pytest.raises(LabelsError, match="nowhere does not exist"):
        check_sources([tmp_path / "nowhere"])


def test_an_encrypted_member_is_named(tmp_path: Path, film_png: bytes) -> None:
    path = packed(tmp_path / "films.zip", {"a.png": film_png})
    content = bytearray(path.read_bytes())
    for start, place in ((content.index(b"PK\x03\x04"), 6), (content.index(b"PK\x01\x02"), 8)):
        content[start + place] |= 1  # general purpose flag, bit 0
    path.write_bytes(content)
    assert "encrypted" in str(dict(image_files([path]))["a.png"])


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_no_damage_to_an_archive_raises_anything_but_a_sentence(tmp_path: Path, method: int) -> None:
    path = packed(tmp_path / "films.zip", {f"f/{i}.png": bytes([i]) * 400 for i in range(3)}, method)
    whole, rng = path.read_bytes(), random.Random(method)
    for _ in range(250):
        content = bytearray(whole)
        for _ in range(rng.choice((1, 3, 20))):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content[: rng.choice((len(content), rng.randrange(len(content))))])
        for sources in ([tmp_path], [path]):
            try:
                assert all(isinstance(data, bytes | str) for _, data in image_files(sources))
            except LabelsError as exc:
                assert "films.zip" in str(exc)


def test_a_file_that_is_there_twice_is_yielded_once(tmp_path: Path, film_png: bytes) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(film_png)
    packed(tmp_path / "more.zip", {"x/a.png": film_png, "y/a.png": film_png, "x\\b.png": film_png})
    names = [name for name, _ in image_files([tmp_path, tmp_path / "more.zip"], {"a.png", "b.png"})]
    assert sorted(names) == ["a.png", "b.png"]


def test_two_different_files_of_one_name_are_refused_before_the_first_film(tmp_path: Path, film_png: bytes) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "0.png").write_bytes(film_png)
    (tmp_path / "one" / "a.png").write_bytes(film_png)
    packed(tmp_path / "more.zip", {"x/a.png": film_png + b" "})
    with pytest.raises(
        LabelsError, match=r"a\.png is there twice.*one/a\.png.*x/a\.png in .*more\.zip|more\.zip.*one/a\.png"
    ):
        next(image_files([tmp_path], {"0.png", "a.png"}))
    assert dict(image_files([tmp_path], {"0.png"})) == {"0.png": film_png}  # nobody asked for the other name
    assert sorted(name for name, _ in image_files([tmp_path])) == ["0.png", "a.png", "a.png"]  # nor here, of a table


def test_decoding_gives_a_film_or_a_sentence(film_png: bytes) -> None:
    assert isinstance(decode(film_png), Radiograph)
    assert decode("cannot be read") == "cannot be read"
    assert "damaged" in str(decode(film_png[:500]))
