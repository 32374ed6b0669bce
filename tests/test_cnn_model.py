import cv2
import numpy as np
import pytest
import torch

from modules.cnn_model import CnnModel, grid_to_image, preprocess
from modules.engines.densenet import served_tensors
from modules.engines.pytorch import PytorchEngine
from modules.errors import ConfigurationError
from modules.pathologies import NAMES
from modules.pipeline import Pipeline
from modules.records import ImageHeader, Radiograph
from modules.weights import Preprocessing, load_weights


def radiograph(height: int = 300, width: int = 200, seed: int = 1) -> Radiograph:
    pixels = np.random.default_rng(seed).random((height, width), dtype=np.float32)
    return Radiograph(pixels, ImageHeader("png", width, height))


def recipe(aspect: str = "stretch", **changes: object) -> Preprocessing:
    values = {"aspect": aspect, "input_size": 64, "mean": 0.0, "std": 1.0, **changes}
    return Preprocessing.model_validate(values)


def test_a_prediction_holds_probabilities_of_the_calibrated_logits(pipeline: Pipeline) -> None:
    prediction = pipeline.cnn.predict(radiograph())
    outputs = [output for _, output in pipeline.cnn.card.served]
    expected = [o.slope * z + o.intercept for o, z in zip(outputs, prediction.logits, strict=True)]
    np.testing.assert_allclose(prediction.log_odds, expected, rtol=1e-5)
    np.testing.assert_allclose(prediction.probabilities, 1 / (1 + np.exp(-np.array(expected))), rtol=1e-5)
    assert prediction.features.shape == (1024, 7, 7)
    assert prediction.thresholds.shape == (len(NAMES),)


def test_the_same_film_gives_the_same_numbers_bit_for_bit(pipeline: Pipeline) -> None:
    first, second = (pipeline.cnn.predict(radiograph()) for _ in range(2))
    np.testing.assert_array_equal(first.logits, second.logits)
    np.testing.assert_array_equal(first.features, second.features)


def test_the_network_is_torchvisions_densenet_121(pipeline: Pipeline) -> None:
    """An independent forward pass with torchvision's own code gives the same logits."""
    cnn = pipeline.cnn
    batch = torch.from_numpy(preprocess(radiograph(), cnn.card.preprocessing)[np.newaxis])
    with torch.inference_mode():
        expected = PytorchEngine(served_tensors(load_weights("embedded")), "cpu").network(batch)[0].numpy()
    np.testing.assert_allclose(cnn.predict(radiograph()).logits, expected, atol=1e-4)


def test_the_mirrored_film_is_read_too_unless_switched_off(pipeline: Pipeline) -> None:
    film = radiograph()
    mirrored = Radiograph(np.ascontiguousarray(film.pixels[:, ::-1]), film.header)
    both = pipeline.cnn.predict(film)
    assert both.mirrored_log_odds is not None
    np.testing.assert_allclose(both.mirrored_log_odds, pipeline.cnn.predict(mirrored).log_odds, atol=1e-3)
    alone = CnnModel(load_weights("embedded"), "cpu", mirror_check=False).predict(film)
    assert alone.mirrored_log_odds is None
    np.testing.assert_allclose(alone.log_odds, both.log_odds, atol=1e-4)


def test_stretching_uses_the_whole_film_and_cropping_its_centre() -> None:
    pixels = np.zeros((100, 300), np.float32)
    pixels[:, 100:200] = 1.0
    wide = Radiograph(pixels, ImageHeader("png", 300, 100))
    assert preprocess(wide, recipe("crop")).min() == pytest.approx(1.0)
    stretched = preprocess(wide, recipe("stretch"))[0]
    assert stretched[:, :16].max() == 0.0
    assert stretched[:, 28:36].min() == pytest.approx(1.0)


def test_mean_and_std_are_applied_to_pixels_between_0_and_1() -> None:
    white = Radiograph(np.ones((80, 80), np.float32), ImageHeader("png", 80, 80))
    np.testing.assert_allclose(preprocess(white, recipe(mean=0.5, std=0.25)), 2.0)


def test_films_are_first_reduced_so_that_sharpness_does_not_depend_on_the_upload() -> None:
    sharp = radiograph(512, 512)
    reduced = preprocess(sharp, recipe(reduce_to=32))
    assert reduced.std() < 0.5 * preprocess(sharp, recipe()).std()


def test_a_degraded_film_tells_nothing_of_the_sharpness_of_its_upload() -> None:
    sharp = radiograph(512, 512)
    soft = Radiograph(np.asarray(cv2.resize(sharp.pixels, (64, 64), interpolation=cv2.INTER_AREA)), sharp.header)
    degraded = recipe(degrade_to=64, reduce_to=128, input_size=224)
    np.testing.assert_allclose(preprocess(sharp, degraded), preprocess(soft, degraded), atol=1e-5)
    kept = recipe(reduce_to=128, input_size=224)
    assert np.abs(preprocess(sharp, kept) - preprocess(soft, kept)).max() > 0.1


def test_enlarging_never_leaves_the_range_of_pixels() -> None:
    steps = Radiograph(np.indices((20, 20)).sum(axis=0).astype(np.float32) % 2, ImageHeader("png", 20, 20))
    enlarged = preprocess(steps, recipe(reduce_to=50))
    assert enlarged.min() >= 0.0
    assert enlarged.max() <= 1.0


@pytest.mark.parametrize(
    ("aspect", "corner", "centre"), [("stretch", (0.0, 0.0), (100.0, 150.0)), ("crop", (0.0, 50.0), (100.0, 150.0))]
)
def test_the_grid_lies_where_the_network_looked(
    aspect: str, corner: tuple[float, float], centre: tuple[float, float]
) -> None:
    place = grid_to_image(radiograph(height=300, width=200), recipe(aspect), 7, 7)
    assert (place.x_offset, place.y_offset) == corner
    assert (place.x_offset + 3.5 * place.x_scale, place.y_offset + 3.5 * place.y_scale) == pytest.approx(centre)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigurationError, match="CNN_DEVICE=cuda"):
        CnnModel(load_weights("embedded"), "cuda")
