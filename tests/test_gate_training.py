import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from evaluation.metrics import wilson_interval
from modules.quality import KINDS, SIDES, GateCard, InputGate, Side
from modules.records import FloatArray
from synthetic.not_radiographs import KINDS as DRAWN_KINDS
from synthetic.not_radiographs import make_not_radiograph
from synthetic.phantom import make_film
from training import gate, gate_metrics
from training.gate_images import COPY_SIDE, NotFilm, cropped, read_films, read_not_films, reencoded, scrambled
from training.gate_metrics import in_halves

CATEGORIES = {"photo": 4, "chart": 3}


def write(folder: Path, name: str, pixels: FloatArray) -> None:
    folder.mkdir(exist_ok=True)
    assert cv2.imwrite(str(folder / name), np.round(pixels * 255).astype(np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with films of 8 and 6 patients, some with two, and a few other images."""
    folder = tmp_path_factory.mktemp("images")
    for split, patients in (("train", range(8)), ("val", range(20, 26))):
        for patient in patients:
            for film in range(1 + patient % 2):
                pixels = make_film(seed=10 * patient + film, size=96, patient=patient).pixels
                write(folder / split, f"{patient:08d}_{film:03d}.png", pixels / np.float32(255))
    rng = np.random.default_rng(5)
    for category, count in CATEGORIES.items():
        for number in range(count):
            write(folder / "others", f"{category}__{number}.jpg", make_not_radiograph(rng, 90))
    return folder


def run(folder: Path, out: Path, seed: int = 0) -> None:
    paths = [f"--{key}={folder / name}" for key, name in (("train", "train"), ("val", "val"), ("not-films", "others"))]
    gate.main([*paths, "--every=1", f"--seed={seed}", f"--out={out}"])


@pytest.fixture(scope="module")
def card(folder: Path) -> GateCard:
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        run(folder, folder / "gate.json")
    return InputGate.load(folder / "gate.json").card


def shorten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(gate_metrics, "DRAWN_IMAGES", 4)
    patch.setattr(gate_metrics, "MEASURED_VARIANTS", 2)
    patch.setattr(gate, "CHOSEN_ON_DRAWN", 10)


def test_the_card_holds_counts_for_each_category(card: GateCard) -> None:
    others = card.metrics["held_out"]["not_films"]
    assert {category: others[category]["images"] for category in CATEGORIES} == CATEGORIES
    assert others["all"]["images"] == sum(CATEGORIES.values())
    for row in (others["all"], *(others[category] for category in CATEGORIES)):
        assert 0 <= row["refused_by_pixels"] <= row["refused_with_plain_rules"] <= row["images"]
    missed = others["all"]["images"] - others["all"]["refused_by_pixels"]
    assert len(others["accepted_by_pixels"]) == missed


def test_every_kind_of_drawn_image_is_measured_by_a_gate_that_did_not_see_it(card: GateCard) -> None:
    drawn, kinds = card.metrics["held_out"]["drawn"], card.metrics["halves"]["drawn_kinds"]
    assert set(drawn) - {"all"} == set(DRAWN_KINDS)
    assert all(row["images"] == 4 for kind, row in drawn.items() if kind != "all")
    assert sorted(kinds[0] + kinds[1]) == sorted(DRAWN_KINDS)


def test_every_validation_film_is_measured_once(card: GateCard) -> None:
    films = card.metrics["held_out"]["films"]
    assert films["films"] == 9
    assert films["share"] == pytest.approx(films["refused"] / 9, abs=1e-4)
    low, high = films["wilson_95"]
    assert low <= films["share"] <= high
    assert set(card.metrics["held_out"]["named_rightly"]) == {kind.value for kind in KINDS[:-1]}
    cut_off = dict(card.metrics["held_out"]["cut_off"])
    assert set(cut_off.pop("sides_from_which_a_fifth_or_more_is_missed")) <= set(SIDES)
    assert {row.split(",")[0] for row in cut_off} == {*SIDES, "whole films"}


def test_what_was_not_measured_is_said(card: GateCard) -> None:
    assert card.metrics["lateral"].startswith("not measured")
    assert card.metrics["fitted_on"] == {"films": 12, "every": 1, "seed": 0, "not_films": 7}


def test_one_seed_makes_one_file(folder: Path, card: GateCard, monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch)
    run(folder, folder / "again.json")
    run(folder, folder / "other.json", seed=1)
    first = (folder / "gate.json").read_bytes()
    assert (folder / "again.json").read_bytes() == first
    assert (folder / "other.json").read_bytes() != first
    assert json.loads(first)["threshold"] == card.threshold


def test_halves_share_no_patient_no_picture_and_no_kind(folder: Path) -> None:
    films, others = read_films([folder / "val"]), read_not_films([folder / "others"])
    twin = NotFilm("scan__0.dcm", None, "another format of photo__0 and chart__0")
    one, two = in_halves(films, [*others, twin], np.random.default_rng(3))
    assert not {f.patient for f in one.films} & {f.patient for f in two.films}
    assert not {o.subject for o in one.others} & {o.subject for o in two.others}
    assert not set(one.drawn_kinds) & set(two.drawn_kinds)
    assert sorted(f.name for half in (one, two) for f in half.films) == sorted(f.name for f in films)
    assert len(one.others) + len(two.others) == len(others) + 1
    assert min(len(one.films), len(two.films)) >= 3


def test_categories_are_spread_over_both_halves() -> None:
    images = [NotFilm(f"{category}__{category}{k}.png", None, "") for category in "abc" for k in range(6)]
    for half in in_halves([], images, np.random.default_rng(0)):
        assert sorted(image.category for image in half.others) == sorted("abc" * 3)


def test_a_patient_in_both_lists_is_an_error(folder: Path) -> None:
    train = folder / "train"
    with pytest.raises(SystemExit, match="8 patients are in both"):
        gate.main([f"--train={train}", f"--val={train}", f"--not-films={folder / 'others'}", "--every=1"])


def test_too_few_images_are_an_error(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="--not-films holds 0 images"):
        gate.main([f"--train={folder / 'train'}", f"--val={folder / 'val'}", f"--not-films={tmp_path}"])


def test_all_files_are_re_encoded_alike() -> None:
    noise = np.random.default_rng(0).random((300, 200), np.float32)
    small = reencoded(noise)
    assert small.shape == (COPY_SIDE, round(COPY_SIDE * 200 / 300))
    assert reencoded(small[:64, :50]).shape == (64, 50)
    encoded = cv2.imencode(".jpg", np.round(small * 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
    again = cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE) / 255
    assert np.abs(again - small).mean() < 0.02  # it already went through this


def test_a_crop_takes_the_named_side_away() -> None:
    ramp = np.tile(np.linspace(0, 1, COPY_SIDE, dtype=np.float32), (COPY_SIDE, 1))
    assert cropped(ramp, {Side.LEFT: 0.3}).min() == pytest.approx(0.3, abs=0.02)
    assert cropped(ramp, {Side.RIGHT: 0.3}).max() == pytest.approx(0.7, abs=0.02)
    assert cropped(ramp.T, {Side.TOP: 0.3}).min() == pytest.approx(0.3, abs=0.02)
    assert cropped(ramp.T, {Side.BOTTOM: 0.3}).max() == pytest.approx(0.7, abs=0.02)


def test_a_scrambled_film_is_another_image() -> None:
    film = make_film(seed=1, size=COPY_SIDE).pixels.astype(np.float32) / 255
    rng = np.random.default_rng(0)
    assert all(np.abs(scrambled(film, rng) - film).mean() > 0.02 for _ in range(40))


@pytest.mark.parametrize(
    ("hits", "of", "interval"), [(0, 100, (0.0, 0.037)), (5, 10, (0.2366, 0.7634)), (10, 10, (0.7225, 1.0))]
)
def test_wilson_intervals(hits: int, of: int, interval: tuple[float, float]) -> None:
    found = wilson_interval(hits, of)
    assert (found.low, found.high) == pytest.approx(interval, abs=2e-4)


def test_drawn_kinds_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    all_kinds = make_not_radiograph(np.random.default_rng(0), kinds=list(DRAWN_KINDS))
    assert (make_not_radiograph(np.random.default_rng(0)) == all_kinds).all()
    with pytest.raises(KeyError):
        make_not_radiograph(np.random.default_rng(0), kinds=["film"])
    monkeypatch.setitem(DRAWN_KINDS, "bars", lambda _, side: np.full((side, side), 0.5, np.float32))
    rng = np.random.default_rng(0)
    assert all(abs(make_not_radiograph(rng, 32, ["bars"]).mean() - 0.5) < 0.02 for _ in range(30))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": "nowhere"}, "nowhere does not exist"),
        ({"out": "train"}, "train is a folder"),
        ({"out": "gate_of_a_file/gate.json"}, "is no folder"),
        ({"val": "one patient"}, "--val holds films of 1 patient"),
        ({"not-films": "one picture"}, "--not-films holds 1 picture"),
    ],
)
def test_what_cannot_be_fitted_is_said_before_the_work(folder: Path, change: dict[str, str], message: str) -> None:
    (folder / "gate_of_a_file").write_text("")
    for name in ("7_0.png", "7_1.png"):
        write(folder / "one patient", name, make_film(seed=int(name[2]), size=96).pixels / np.float32(255))
    for name in ("photo__1.png", "chart__1.png"):
        write(folder / "one picture", name, make_not_radiograph(np.random.default_rng(1), 90))
    options = {"train": "train", "val": "val", "not-films": "others", "out": "new.json"} | change
    with pytest.raises(SystemExit, match=message):
        gate.main([*(f"--{key}={folder / name}" for key, name in options.items()), "--every=1"])
    assert not (folder / "new.json").exists()


def test_every_film_or_every_second_one_but_not_every_none(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [f.name for f in read_films([folder / "train"], 5)] == [f.name for f in read_films([folder / "train"])][::5]
    with pytest.raises(SystemExit):
        gate.main(["--train=a", "--val=b", "--not-films=c", "--every=0"])
    assert "at least 1" in capsys.readouterr().err


def test_an_archive_that_cannot_be_opened_is_no_image(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder / "mixed", "photo__1.jpg", make_not_radiograph(np.random.default_rng(1), 90))
    (folder / "mixed" / "more.zip").write_bytes(b"no archive")
    assert [image.name for image in read_not_films([folder / "mixed"])] == ["photo__1.jpg"]
    assert "more.zip is a damaged zip archive" in capsys.readouterr().err
