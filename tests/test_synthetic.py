"""The phantom: the same seed gives the same film, and a finding shows where its box says."""

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest

from modules.pathologies import NAMES, canonical_name
from synthetic import SUPPORTED_FINDINGS, SyntheticFinding, make_film
from synthetic.__main__ import main, plan

SIZE = 192
SEEDS = (0, 1, 2)
# Drawn into an otherwise unchanged lung; Cardiomegaly and Emphysema rebuild the patient instead.
FOCAL = tuple(name for name in SUPPORTED_FINDINGS if name not in {"Cardiomegaly", "Emphysema"})
OPACITIES = tuple(name for name in FOCAL if name != "Pneumothorax")


def inside(findings: tuple[SyntheticFinding, ...], size: int = SIZE) -> np.ndarray:
    """A mask of every box, with one pixel of margin for the detector's blur."""
    mask = np.zeros((size, size), bool)
    for f in findings:
        rows = slice(max(0, round(f.y) - 1), round(f.y + f.height) + 1)
        mask[rows, max(0, round(f.x) - 1) : round(f.x + f.width) + 1] = True
    return mask


def difference(seed: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Brightness that a finding adds (H, W), and the mask of its boxes."""
    plain = make_film(seed, SIZE, marker=False)
    film = make_film(seed, SIZE, [name], marker=False)
    return film.pixels.astype(float) - plain.pixels.astype(float), inside(film.findings)


def region(pixels: np.ndarray, rows: tuple[float, float], columns: tuple[float, float]) -> float:
    """Mean brightness of a part of the film given in shares of its side."""
    h, w = pixels.shape
    part = pixels[int(rows[0] * h) : int(rows[1] * h), int(columns[0] * w) : int(columns[1] * w)]
    return float(part.mean())


def test_same_seed_same_film() -> None:
    first, second = make_film(7, SIZE, ["Mass"]), make_film(7, SIZE, ["Mass"])
    assert np.array_equal(first.pixels, second.pixels)
    assert first.findings == second.findings


def test_seeds_and_patients_differ() -> None:
    plain = make_film(0, SIZE, marker=False).pixels.astype(float)
    other = make_film(1, SIZE, marker=False).pixels.astype(float)
    follow_up = make_film(1, SIZE, marker=False, patient=0).pixels.astype(float)
    assert np.abs(plain - other).mean() > 3
    assert not np.array_equal(plain, follow_up)
    # The same body under another exposure: the brightness changes, the picture hardly does.
    alike, unlike = (np.corrcoef(plain.ravel(), film.ravel())[0, 1] for film in (follow_up, other))
    assert alike > max(unlike, 0.97)


@pytest.mark.parametrize("size", [32, 128, 200])
def test_pixels_are_an_8_bit_square(size: int) -> None:
    film = make_film(3, size)
    assert film.pixels.dtype == np.uint8
    assert film.pixels.shape == (size, size)
    assert film.seed == 3
    assert film.findings == ()


def test_size_changes_the_sampling_and_not_the_patient() -> None:
    large = cv2.resize(make_film(5, 256, marker=False).pixels, (64, 64), interpolation=cv2.INTER_AREA).astype(float)
    small = cv2.resize(make_film(5, 128, marker=False).pixels, (64, 64), interpolation=cv2.INTER_AREA).astype(float)
    assert np.abs(large - small).mean() < 4


@pytest.mark.parametrize("seed", range(6))
def test_layout_of_a_frontal_chest_film(seed: int) -> None:
    pixels = make_film(seed, SIZE, marker=False).pixels
    mediastinum = region(pixels, (0.35, 0.55), (0.46, 0.54))
    right_lung, left_lung = region(pixels, (0.3, 0.5), (0.22, 0.36)), region(pixels, (0.3, 0.5), (0.66, 0.78))
    abdomen = region(pixels, (0.85, 0.95), (0.35, 0.65))
    assert max(right_lung, left_lung) + 50 < min(mediastinum, abdomen)
    assert 0.4 < pixels.mean() / 255 < 0.75
    assert 0.15 < pixels.std() / 255 < 0.35


@pytest.mark.parametrize("seed", range(6))
def test_the_heart_lies_to_the_image_right(seed: int) -> None:
    (heart,) = make_film(seed, SIZE, ["Cardiomegaly"]).findings
    pixels = make_film(seed, SIZE, marker=False).pixels.astype(float)
    assert heart.x + heart.width / 2 > 0.52 * SIZE
    rows = slice(int(heart.y + 0.4 * heart.height), int(heart.y + 0.6 * heart.height))
    middle = SIZE // 2
    reach = int(0.2 * SIZE)
    left, right = pixels[rows, middle - reach : middle], pixels[rows, middle : middle + reach]
    assert right.mean() > left.mean() + 10


@pytest.mark.parametrize("name", FOCAL)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_focal_finding_changes_the_film_inside_its_box(name: str, seed: int) -> None:
    added, box = difference(seed, name)
    # Scatter and rounding carry a level or two beyond the box.
    strength = np.where(np.abs(added) > 2, np.abs(added), 0.0)
    assert strength[box].sum() > 0.9 * strength.sum()
    assert strength[box].max() >= 12
    assert strength[~box].max(initial=0.0) < 0.5 * strength[box].max()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", OPACITIES)
def test_opacities_are_brighter(name: str, seed: int) -> None:
    added, box = difference(seed, name)
    assert added[box].mean() > 1
    assert added.max() > -2 * added.min()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_pneumothorax_is_darker_and_has_no_vessels(seed: int) -> None:
    added, box = difference(seed, "Pneumothorax")
    assert added[box].mean() < -1
    assert -added.min() > 2 * added.max()


@pytest.mark.parametrize("seed", SEEDS)
def test_cardiomegaly_is_a_wider_heart(seed: int) -> None:
    plain = make_film(seed, SIZE, marker=False)
    large = make_film(seed, SIZE, ["Cardiomegaly"], marker=False)
    box = inside(large.findings)
    added = large.pixels.astype(float) - plain.pixels.astype(float)
    assert added[box].mean() > 5
    assert np.abs(added)[box].sum() > 0.7 * np.abs(added).sum()


@pytest.mark.parametrize("seed", SEEDS)
def test_emphysema_darkens_and_lowers_both_lungs(seed: int) -> None:
    plain = make_film(seed, SIZE, marker=False)
    film = make_film(seed, SIZE, ["Emphysema"], marker=False)
    assert len(film.findings) == 2
    box = inside(film.findings)
    assert film.pixels[box].mean() < plain.pixels[box].mean() - 10


@pytest.mark.parametrize("name", SUPPORTED_FINDINGS)
def test_boxes_lie_on_the_film(name: str) -> None:
    for seed in range(8):
        film = make_film(seed, 96, [name])
        assert film.findings
        for f in film.findings:
            assert f.pathology == name
            assert f.x >= 0
            assert f.y >= 0
            assert f.width > 0
            assert f.height > 0
            assert f.x + f.width <= 96
            assert f.y + f.height <= 96


@pytest.mark.parametrize("name", ["Cardiomegaly", "Nodule", "Effusion"])
def test_boxes_scale_with_the_film(name: str) -> None:
    for seed in SEEDS:
        (small,), (large,) = (make_film(seed, size, [name]).findings for size in (128, 256))
        assert large.x == pytest.approx(2 * small.x, abs=4)
        assert large.y == pytest.approx(2 * small.y, abs=4)
        assert large.width == pytest.approx(2 * small.width, abs=6)


def test_findings_do_not_move_each_other() -> None:
    (alone,) = make_film(9, SIZE, ["Nodule"]).findings
    both = make_film(9, SIZE, ["Effusion", "Nodule", "Nodule"]).findings
    assert [f.pathology for f in both] == ["Effusion", "Nodule"]
    assert both[1] == alone


def test_the_marker_is_burnt_in_at_the_upper_left_only_on_request() -> None:
    for size in (128, 512):
        with_marker, without = make_film(2, size).pixels, make_film(2, size, marker=False).pixels
        rows, columns = np.nonzero(with_marker != without)
        assert len(rows) > 50
        assert rows.max() < max(0.06 * size, 14)
        assert columns.max() < size / 2
        assert with_marker[rows, columns].max() > 200


def test_supported_findings_are_pathologies_of_the_project() -> None:
    assert set(SUPPORTED_FINDINGS) <= set(NAMES)
    assert len(SUPPORTED_FINDINGS) >= 10


@pytest.mark.parametrize("name", ["Hernia", "mass", "Fracture"])
def test_an_unsupported_finding_is_refused_with_the_supported_ones(name: str) -> None:
    with pytest.raises(ValueError, match=r"supported: .*Pneumothorax") as raised:
        make_film(0, 64, ["Mass", name])
    assert all(supported in str(raised.value) for supported in SUPPORTED_FINDINGS)


def test_senseless_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 32"):
        make_film(0, 16)
    with pytest.raises(ValueError, match="negative"):
        make_film(-1, 64)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_command_writes_films_labels_and_boxes_that_agree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "films"
    arguments = ["--out", str(out), "--count", "12", "--seed", "5", "--size", "64", "--findings-rate", "0.7"]
    assert main(arguments) == 0
    assert "12 films" in capsys.readouterr().out
    labels, boxes = rows_of(out / "labels.csv"), rows_of(out / "boxes.csv")
    assert {row["image"] for row in labels} == {path.name for path in out.glob("*.png")}
    assert len(labels) == 12
    columns = list(labels[0])
    assert columns[:8] == ["image", "patient", "split", "view", "age", "sex", "follow_up", "native_px"]
    assert tuple(canonical_name(column) for column in columns[8:]) == NAMES
    assert "Pleural_Thickening" in columns
    for row in labels:
        pixels = cv2.imread(str(out / row["image"]), cv2.IMREAD_UNCHANGED)
        assert pixels is not None
        assert pixels.shape == (64, 64)
        labelled = {name for name in columns[8:] if row[name] == "1"}
        assert labelled == {box["finding"] for box in boxes if box["image"] == row["image"]}
        assert row["view"] == "PA"
        assert row["native_px"] == "64"
    assert any(row[name] == "1" for row in labels for name in columns[8:])
    again = tmp_path / "again"
    assert main(["--out", str(again), *arguments[2:]]) == 0
    assert all((again / p.name).read_bytes() == p.read_bytes() for p in out.iterdir())


def test_every_patient_is_in_one_split_and_some_come_back() -> None:
    studies = plan(600, 1, 0.5)
    splits: dict[int, set[str]] = {}
    for study in studies:
        splits.setdefault(study.patient, set()).add(study.split)
    assert all(len(names) == 1 for names in splits.values())
    assert len(splits) < len(studies)
    shares = {name: sum(s.split == name for s in studies) / len(studies) for name in ("train", "val", "test")}
    assert shares["train"] == pytest.approx(0.70, abs=0.08)
    assert shares["val"] == pytest.approx(0.15, abs=0.06)
    assert sum(bool(s.findings) for s in studies) / len(studies) == pytest.approx(0.5, abs=0.07)
    assert not any(s.findings for s in plan(50, 1, 0.0))


def test_the_sample_is_one_small_png(tmp_path: Path) -> None:
    path = tmp_path / "assets" / "sample.png"
    assert main(["--sample", str(path)]) == 0
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert pixels is not None
    assert pixels.shape == (1024, 1024)
    assert path.stat().st_size < 700_000
    # The bytes depend on the library's version, the picture must be the one in the repository.
    shipped = cv2.imread(str(Path(__file__).parents[1] / "assets" / "sample_xray.png"), cv2.IMREAD_UNCHANGED)
    assert shipped is not None
    assert np.abs(pixels.astype(float) - shipped.astype(float)).mean() < 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required"),
        (["--out", "x", "--count", "0"], "--count must be at least 1"),
        (["--out", "x", "--size", "8"], "--size must be at least 32"),
        (["--out", "x", "--seed", "-1"], "--seed must not be negative"),
        (["--out", "x", "--findings-rate", "1.5"], "--findings-rate must lie in"),
        (["--out", "x", "--sample", "y.png"], "not allowed with"),
        (["--out", __file__], "is a file"),
    ],
)
def test_senseless_arguments_leave_with_a_message(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert message in capsys.readouterr().err


def test_a_folder_with_a_data_set_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "labels.csv").write_text("mine")
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path), "--count", "1", "--size", "64"])
    assert "already holds a data set" in capsys.readouterr().err
    assert (tmp_path / "labels.csv").read_text() == "mine"
