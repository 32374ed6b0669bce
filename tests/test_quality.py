import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from modules import quality
from modules.errors import ConfigurationError, ImageError, InvertedGreyscale, NotAChestRadiograph, RotatedFilm
from modules.images import open_image
from modules.quality import GATE_CARD, InputGate, Kind, Side, gate_features
from modules.records import FloatArray, ImageHeader, Radiograph
from synthetic.not_radiographs import KINDS, make_not_radiograph
from synthetic.phantom import make_film
from tests.real_films import needs_real_films, not_films, originals

GATE = InputGate.load()


def radiograph(pixels: FloatArray, **header: object) -> Radiograph:
    colour = header.pop("colourfulness", 0.0)
    inverted = header.pop("inverted_by_request", False)
    height, width = pixels.shape
    pixels = np.ascontiguousarray(pixels, np.float32)
    return Radiograph(pixels, ImageHeader("dicom", width, height, **header), colour, inverted)  # type: ignore[arg-type]


def phantom(seed: int = 0, size: int = 256) -> FloatArray:
    return make_film(seed=seed, size=size).pixels.astype(np.float32) / 255


@pytest.mark.parametrize("seed", range(20))
def test_synthetic_films_are_accepted(seed: int) -> None:
    quality = GATE.assess(radiograph(phantom(seed)))
    assert quality.accepted
    assert quality.gate_score >= GATE.card.threshold


def test_drawn_images_that_are_no_films_are_refused() -> None:
    rng = np.random.default_rng(2024)
    accepted = 0
    for _ in range(200):
        try:
            GATE.assess(radiograph(make_not_radiograph(rng)))
        except NotAChestRadiograph:
            continue
        except (InvertedGreyscale, RotatedFilm):
            continue
        accepted += 1
    assert accepted <= 2


@pytest.mark.parametrize("grey", [0.0, 0.5, 1.0])
def test_blank_images_are_refused_as_blank(grey: float) -> None:
    with pytest.raises(NotAChestRadiograph, match="blank") as refusal:
        GATE.assess(radiograph(np.full((300, 300), grey, np.float32)))
    assert refusal.value.score == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_inverted_films_are_told_apart_with_the_way_on(seed: int) -> None:
    with pytest.raises(InvertedGreyscale, match="invert=true"):
        GATE.assess(radiograph(1 - phantom(seed)))
    with pytest.raises(InvertedGreyscale, match="without invert"):
        GATE.assess(radiograph(1 - phantom(seed), inverted_by_request=True))


@pytest.mark.parametrize(("quarters", "words"), [(1, "counter-clockwise"), (2, "upside down"), (3, "90° clockwise")])
def test_turned_films_are_told_apart(quarters: int, words: str) -> None:
    with pytest.raises(RotatedFilm, match=words):
        GATE.assess(radiograph(np.rot90(phantom(), quarters)))


def test_neither_brightness_nor_contrast_nor_size_decides() -> None:
    film = phantom(size=512)
    for variant in (film * 0.4 + 0.1, film**0.7, cv2.resize(film, (128, 128), interpolation=cv2.INTER_AREA)):
        assert GATE.assess(radiograph(variant)).accepted


@pytest.mark.parametrize("modality", ["CT", "MR", "US", "MG", "NM"])
def test_headers_of_other_modalities_are_refused_before_the_pixels(modality: str) -> None:
    header = ImageHeader("dicom", 100, 100, modality=modality)
    with pytest.raises(NotAChestRadiograph, match=modality):
        GATE.check_header(header)
    GATE.check_header(header, force=True)
    with pytest.raises(NotAChestRadiograph, match=modality):
        GATE.assess(radiograph(phantom(), modality=modality))


@pytest.mark.parametrize("view", ["LL", "RL", "LATERAL"])
def test_lateral_views_are_refused_by_their_header(view: str) -> None:
    with pytest.raises(NotAChestRadiograph, match="lateral"):
        GATE.check_header(ImageHeader("dicom", 100, 100, modality="DX", view_position=view))


@pytest.mark.parametrize("modality", ["CR", "DX", None])
@pytest.mark.parametrize("view", ["PA", "AP", "", None])
def test_headers_of_frontal_radiographs_pass(modality: str | None, view: str | None) -> None:
    GATE.check_header(ImageHeader("dicom", 100, 100, modality=modality, view_position=view))


def test_colour_and_odd_shapes_are_refused() -> None:
    with pytest.raises(NotAChestRadiograph, match="colour"):
        GATE.assess(radiograph(phantom(), colourfulness=0.3))
    with pytest.raises(NotAChestRadiograph, match="256 x 100 pixels"):
        GATE.assess(radiograph(phantom()[:100]))


def test_a_forced_film_says_that_it_was_refused() -> None:
    quality = GATE.assess(radiograph(1 - phantom()), force=True)
    assert quality.forced
    assert not quality.accepted
    assert "black and white exchanged" in quality.reason


def test_forcing_a_good_film_changes_nothing() -> None:
    assert GATE.assess(radiograph(phantom()), force=True) == GATE.assess(radiograph(phantom()))


@pytest.mark.parametrize(
    ("pixels", "header", "code"),
    [
        (phantom(size=100), {}, "low_resolution"),
        (np.clip(phantom() * 2.2, 0, 1), {}, "clipped"),
        (phantom(), {"body_part": "HAND"}, "body_part"),
    ],
)
def test_what_makes_the_numbers_doubtful_is_a_warning(pixels: FloatArray, header: dict[str, str], code: str) -> None:
    quality = GATE.assess(radiograph(pixels, **header), force=True)
    assert code in [warning.code for warning in quality.warnings]


def test_a_good_film_has_no_warnings() -> None:
    assert GATE.assess(radiograph(phantom(), body_part="CHEST")).warnings == ()


def cut(film: FloatArray, side: Side, share: float) -> FloatArray:
    """Return the film without a share of it at one side."""
    height, width = film.shape
    rows, columns = round(share * height), round(share * width)
    parts = {
        Side.TOP: film[rows:],
        Side.BOTTOM: film[: height - rows],
        Side.LEFT: film[:, columns:],
        Side.RIGHT: film[:, : width - columns],
    }
    return parts[side]


def warned_sides(film: FloatArray) -> list[str]:
    warnings = GATE.assess(radiograph(film), force=True).warnings
    return [warning.message for warning in warnings if warning.code == "cut_off"]


# Less is missed more often at the bottom, as the card says; more at the top is no longer taken for a chest.
CUTS = {Side.TOP: 0.24, Side.BOTTOM: 0.32, Side.LEFT: 0.28, Side.RIGHT: 0.28}


@pytest.mark.parametrize(("side", "share"), CUTS.items())
def test_lungs_cut_off_are_a_warning_that_names_the_side(side: Side, share: float) -> None:
    messages = [warned_sides(cut(phantom(seed), side, share)) for seed in range(8)]
    named = [found for found in messages if found and f" {side.value}" in found[0].split(" of the image")[0]]
    assert len(named) >= 4
    assert "estimate" in named[0][0]
    assert "send the whole film" in named[0][0]


def test_whole_films_are_not_called_cut_off() -> None:
    assert sum(bool(warned_sides(phantom(seed))) for seed in range(20)) <= 1


def test_where_no_upright_film_is_seen_nothing_is_called_cut_off() -> None:
    assert warned_sides(1 - cut(phantom(), Side.BOTTOM, 0.32)) == []


def test_features_are_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(quality, "gate_features", lambda pixels: calls.append(1) or gate_features(pixels))
    GATE.assess(radiograph(phantom()))
    assert len(calls) == 1


def test_assessing_says_what_the_probabilities_say() -> None:
    film = phantom(size=300)
    assert GATE.assess(radiograph(film)).gate_score == GATE.kind_probabilities(film)[Kind.FILM]


def test_what_the_card_says_of_its_measures() -> None:
    metrics = GATE.card.metrics
    assert metrics["lateral"].startswith("not measured")
    held_out = metrics["held_out"]
    for table in (held_out["not_films"], held_out["drawn"]):
        rows = [row for name, row in table.items() if name not in {"all", "accepted_by_pixels"}]
        assert table["all"] == {key: sum(row[key] for row in rows) for key in table["all"]}
    kinds = [set(half) for half in metrics["halves"]["drawn_kinds"]]
    assert not kinds[0] & kinds[1]
    assert kinds[0] | kinds[1] == set(KINDS)
    assert GATE_CARD.stat().st_size < 300_000


@pytest.mark.parametrize(("age", "under_18"), [(None, None), (17.9, True), (18.0, False)])
def test_children_are_marked(age: float | None, under_18: bool | None) -> None:
    assert GATE.assess(radiograph(phantom(), age_years=age)).under_18 is under_18


def test_probabilities_of_the_kinds_sum_to_one() -> None:
    kinds = GATE.kind_probabilities(phantom())
    assert list(kinds) == list(Kind)
    assert sum(kinds.values()) == pytest.approx(1.0)


def test_a_damaged_gate_stops_start_up(tmp_path: Path) -> None:
    card = json.loads(GATE_CARD.read_text("utf-8"))
    damaged = {
        "mean": {"mean": card["mean"][:-1]},
        "threshold": {"threshold": 1.5},
        "sides": {"cut_off": card["cut_off"] | {"coefficients": card["cut_off"]["coefficients"][:3]}},
    }
    for name, part in damaged.items():
        (tmp_path / name).write_text(json.dumps(card | part))
    for name in (*damaged, "missing"):
        with pytest.raises(ConfigurationError, match="input gate"):
            InputGate.load(tmp_path / name)


@needs_real_films
@pytest.mark.parametrize("path", originals(), ids=lambda p: p.name)
def test_real_films_are_accepted(path: Path) -> None:
    assert GATE.assess(open_image(path.read_bytes()).decode()).accepted


@needs_real_films
@pytest.mark.parametrize("path", not_films(), ids=lambda p: p.name)
def test_real_images_of_other_things_are_refused(path: Path) -> None:
    with pytest.raises(ImageError):
        file = open_image(path.read_bytes())
        GATE.check_header(file.header)
        GATE.assess(file.decode())


@needs_real_films
@pytest.mark.parametrize(
    ("side", "share"), [(Side.TOP, 0.75), (Side.LEFT, 0.75), (Side.RIGHT, 0.75), (Side.BOTTOM, 0.4)]
)
def test_real_films_that_are_cut_off_are_warned_about(side: Side, share: float) -> None:
    films = [open_image(path.read_bytes()).decode().pixels for path in originals()]
    assert sum(bool(warned_sides(cut(film, side, 0.3))) for film in films) >= share * len(films)


@needs_real_films
def test_real_films_that_are_whole_are_not_warned_about() -> None:
    films = [open_image(path.read_bytes()).decode().pixels for path in originals()]
    assert sum(bool(warned_sides(film)) for film in films) <= 2
