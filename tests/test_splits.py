"""Patients are divided once, alike everywhere, and no patient is on two sides."""

import csv
import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from evaluation.__main__ import main as evaluate
from evaluation.films import LabelledFilm, LabelsError, read_labels
from evaluation.splits import check_unseen, counts, main, read_split, split_by_patient, split_test_list, write_labels
from modules.weights import EMBEDDED_WEIGHTS, read_card
from training.calibration import main as calibrate

LABELS = (1.0, 0.0, math.nan, *(0.0,) * 11)


def table(*splits: str, films: int = 2) -> dict[str, LabelledFilm]:
    """Return patients, each with some films, in these splits."""
    rows = [
        LabelledFilm(image=f"{patient}_{film}.png", patient=str(patient), split=split, labels=LABELS, age=40.0)
        for patient, split in enumerate(splits)
        for film in range(films)
    ]
    return {row.image: row for row in rows}


def splits_of_patients(films: dict[str, LabelledFilm]) -> dict[str, set[str]]:
    found = defaultdict(set)
    for film in films.values():
        found[film.patient].add(film.split)
    return found


def test_a_table_without_splits_is_divided_by_patient() -> None:
    divided = split_by_patient(table(*[""] * 600))
    assert all(len(splits) == 1 for splits in splits_of_patients(divided).values())
    shares = {split: patients / 600 for split, (_, patients) in counts(divided).items()}
    assert shares == pytest.approx({"train": 0.6, "val": 0.2, "test": 0.2}, abs=0.06)
    assert split_by_patient(table(*[""] * 600)) == divided


def test_a_table_with_splits_keeps_them_and_one_without_val_takes_it_from_train() -> None:
    whole = table("train", "val", "test")
    assert split_by_patient(whole) == whole
    divided = split_by_patient(table(*["train"] * 300, *["test"] * 50))
    assert counts(divided)["test"] == (100, 50)
    assert counts(divided)["val"][1] / 300 == pytest.approx(0.2, abs=0.06)
    assert all(len(splits) == 1 for splits in splits_of_patients(divided).values())


@pytest.mark.parametrize("splits", [("train", "val"), ("test",), ("holdout",), ("train", "test", "valid")])
def test_a_table_that_names_some_splits_only_is_refused(splits: tuple[str, ...]) -> None:
    with pytest.raises(LabelsError, match=splits[-1]):
        split_by_patient(table(*splits))


@pytest.mark.parametrize("other", ["test", ""])
def test_a_patient_in_two_splits_is_refused(other: str) -> None:
    films = table("train", "test")
    films["0_1.png"] = replace(films["0_1.png"], split=other)
    with pytest.raises(LabelsError, match=r"patient of 0_1\.png"):
        split_by_patient(films)


def test_of_chestxray14_only_the_official_test_list_is_measured() -> None:
    before = table(*["train"] * 40, *["val"] * 20, *["test"] * 200, "")
    after = split_test_list(before)
    for film, was in zip(after.values(), before.values(), strict=True):
        allowed = {"train": {"train"}, "val": {"train"}, "test": {"val", "test"}, "": {""}}[was.split]
        assert film.split in allowed
    assert counts(after)["val"][1] == pytest.approx(100, abs=25)
    assert all(len(splits) == 1 for splits in splits_of_patients(after).values())
    with pytest.raises(LabelsError, match="official test list"):
        split_test_list(table("train", "test"))


def test_a_written_table_is_read_as_it_was(tmp_path: Path) -> None:
    films = table("train", "val", "test")
    write_labels(films.values(), tmp_path / "labels.csv")
    again = read_labels(tmp_path / "labels.csv")
    assert list(again) == list(films)
    for name, film in again.items():
        assert film.labels[:2] == (1.0, 0.0)
        assert math.isnan(film.labels[2])
        assert (film.patient, film.split, film.age) == (films[name].patient, films[name].split, 40.0)


def nih_download(folder: Path, patients: int = 40) -> Path:
    """Write what the full download holds beside its films: one film a patient, the second half on the test list."""
    names = [f"{patient:08d}_000.png" for patient in range(patients)]
    half = patients // 2
    (folder / "train_val_list.txt").write_text("\n".join(names[:half]))
    (folder / "test_list.txt").write_text("\n".join(names[half:]))
    path = folder / "Data_Entry_2017.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Image Index", "Finding Labels", "Patient ID", "Patient Age", "Patient Gender"])
        writer.writerows([name, "Effusion|Mass", int(name[:8]), 58, "F"] for name in names)
    return path


def test_the_command_writes_a_table_of_the_films_that_are_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], film_png: bytes
) -> None:
    labels = nih_download(tmp_path)
    films = tmp_path / "films"
    films.mkdir()
    for patient in (1, *range(20, 30)):
        (films / f"{patient:08d}_000.png").write_bytes(film_png)
    out = tmp_path / "labels.csv"
    main(["--labels", str(labels), "--images", str(films), "--out", str(out)])
    written = read_labels(out)
    assert len(written) == 11
    assert counts(written) == counts(read_split(labels, [films]))
    assert counts(written)["train"] == (1, 1)
    assert "train: 1 films of 1 patients" in capsys.readouterr().out


def test_the_shipped_weights_are_never_measured_on_patients_of_the_training_list(tmp_path: Path) -> None:
    known = nih_download(tmp_path).rename(tmp_path / "sample_labels.csv")  # by its columns, whatever its name
    for folder in (EMBEDDED_WEIGHTS, EMBEDDED_WEIGHTS / "first"):
        sha256 = read_card(folder).sha256
        check_unseen(sha256, known, "test")
        for split in ("train", "val", None):
            with pytest.raises(LabelsError, match="--split test"):
                check_unseen(sha256, known, split)
    check_unseen("0" * 64, known, "val")
    assert {film.split for film in read_split(known).values()} == {"train", "val", "test"}
    main(["--labels", str(known), "--out", str(tmp_path / "labels.csv")])
    check_unseen(read_card(EMBEDDED_WEIGHTS).sha256, tmp_path / "labels.csv", "val")
    arguments = ["--images", str(tmp_path), "--labels", str(known), "--out", str(tmp_path / "out")]
    for command in (evaluate, calibrate):
        with pytest.raises(SystemExit, match="training list"):
            command(arguments)


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    labels = nih_download(tmp_path)
    (tmp_path / "films").mkdir()
    with pytest.raises(SystemExit, match="No film of"):
        main(["--labels", str(labels), "--images", str(tmp_path / "films"), "--out", str(tmp_path / "labels.csv")])
    with pytest.raises(SystemExit, match="No such file"):
        main(["--labels", str(labels), "--out", str(tmp_path / "missing" / "labels.csv")])
