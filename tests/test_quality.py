import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from modules.errors import ConfigurationError, ImageError, InvertedGreyscale, NotAChestRadiograph, RotatedFilm
from modules.images import open_image
from modules.quality import GATE_CARD, InputGate, Kind
from modules.records import FloatArray, ImageHeader, Radiograph
from synthetic.not_radiographs import make_not_radiograph
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


@pytest.mark.parametrize(("age", "under_18"), [(None, None), (17.9, True), (18.0, False)])
def test_children_are_marked(age: float | None, under_18: bool | None) -> None:
    assert GATE.assess(radiograph(phantom(), age_years=age)).under_18 is under_18


def test_probabilities_of_the_kinds_sum_to_one() -> None:
    kinds = GATE.kind_probabilities(phantom())
    assert list(kinds) == list(Kind)
    assert sum(kinds.values()) == pytest.approx(1.0)


def test_a_damaged_gate_stops_start_up(tmp_path: Path) -> None:
    card = json.loads(GATE_CARD.read_text("utf-8"))
    card["mean"] = card["mean"][:-1]
    (tmp_path / "gate.json").write_text(json.dumps(card))
    for path in (tmp_path / "gate.json", tmp_path / "missing.json"):
        with pytest.raises(ConfigurationError, match="input gate"):
            InputGate.load(path)


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
