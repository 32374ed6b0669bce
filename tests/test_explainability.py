import base64
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from modules import explainability
from modules.cnn_model import CnnModel, preprocess
from modules.engines.densenet import CLASSIFIER_BIAS, served_tensors
from modules.engines.pytorch import PytorchEngine
from modules.fusion import fuse
from modules.images import open_image
from modules.pathologies import NAMES
from modules.records import CnnPrediction, FloatArray, GridToImage, ImageHeader, Radiograph, Reading
from modules.settings import Colormap
from modules.weights import load_weights
from synthetic.phantom import make_film
from tests.real_films import originals

FILMS = ["phantom", *(path.name for path in originals()[:2])]


def load(name: str) -> Radiograph:
    if name == "phantom":
        pixels = make_film(seed=4, size=256, findings=["Effusion"]).pixels.astype(np.float32) / 255
        return Radiograph(pixels, ImageHeader("png", 256, 256))
    path = next(p for p in originals() if p.name == name)
    return open_image(path.read_bytes()).decode()


@pytest.fixture(scope="module", params=FILMS)
def film(request: pytest.FixtureRequest) -> Radiograph:
    return load(request.param)


@pytest.fixture(scope="module")
def cnn() -> CnnModel:
    """The network in PyTorch, as the oracle: what differs is then the way to the maps."""
    return CnnModel(load_weights("embedded"), "cpu")


@pytest.fixture(scope="module")
def oracle() -> nn.Module:
    """The same network as modules with nothing in place, so that hooks and backward passes see every tensor."""
    network = PytorchEngine(served_tensors(load_weights("embedded")), "cpu").network
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    plain = nn.Sequential(network.features, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), network.classifier)
    return plain.requires_grad_(True).eval()


def as_input(cnn: CnnModel, film: Radiograph) -> torch.Tensor:
    return torch.from_numpy(preprocess(film, cnn.card.preprocessing)[np.newaxis])


def logit_maps(prediction: CnnPrediction) -> FloatArray:
    return explainability.contribution_maps(prediction.features, prediction.classifier_weight)


def test_the_closed_form_equals_autograd_for_every_pathology(
    cnn: CnnModel, oracle: nn.Module, film: Radiograph
) -> None:
    maps = logit_maps(cnn.predict(film))
    entering_the_pooling = oracle[:2](as_input(cnn, film)).detach().requires_grad_(True)
    logits = oracle[2:](entering_the_pooling)[0]
    for k, name in enumerate(NAMES):
        (gradient,) = torch.autograd.grad(logits[k], entering_the_pooling, retain_graph=True)
        weights = gradient.mean(dim=(2, 3), keepdim=True)  # Grad-CAM's own definition
        expected = (weights * entering_the_pooling).sum(dim=1)[0].detach().numpy()
        assert np.abs(maps[k] - expected).max() <= 1e-5 * np.abs(expected).max(), name


def test_the_closed_form_equals_pytorch_grad_cam_unscaled(cnn: CnnModel, oracle: nn.Module, film: Radiograph) -> None:
    cam = np.maximum(logit_maps(cnn.predict(film)), 0)
    # a backward pass from the classifier to its layer: what lies before that has no part in the map
    image = oracle[0](as_input(cnn, film)).detach().requires_grad_(True)
    with GradCAM(model=oracle[1:], target_layers=[oracle[1]]) as grad_cam:
        for k, name in enumerate(NAMES):
            grad_cam(image, [ClassifierOutputTarget(k)])
            activations = grad_cam.activations_and_grads.activations[0].numpy()
            gradients = grad_cam.activations_and_grads.gradients[0].numpy()
            unscaled = grad_cam.get_cam_image(image, oracle[1], None, activations, gradients, eigen_smooth=False)
            expected = np.maximum(unscaled[0], 0)
            assert np.abs(cam[k] - expected).max() <= 1e-5 * max(expected.max(), np.abs(unscaled).max()), name


def test_a_map_sums_to_its_logit_less_the_bias(cnn: CnnModel, film: Radiograph) -> None:
    prediction = cnn.predict(film)
    bias = served_tensors(load_weights("embedded"))[CLASSIFIER_BIAS]
    np.testing.assert_allclose(logit_maps(prediction).sum(axis=(1, 2)) + bias, prediction.logits, atol=1e-4)


def test_maps_are_in_calibrated_log_odds(cnn: CnnModel, film: Radiograph) -> None:
    prediction = cnn.predict(film)
    scaled = logit_maps(prediction) * prediction.calibration_slope[:, None, None]
    np.testing.assert_array_equal(explainability.calibrated_maps(prediction), scaled)


def prediction_with_a_hot_cell(row: int, column: int, size: int = 7, place: GridToImage | None = None) -> CnnPrediction:
    """A prediction whose single channel is zero but for one cell; every pathology has weight 1."""
    features = np.zeros((1, size, size), np.float32)
    features[0, row, column] = size * size  # so that the cell contributes 1 log-odds
    k = len(NAMES)
    return CnnPrediction(
        logits=np.zeros(k, np.float32),
        log_odds=np.zeros(k, np.float32),
        thresholds=np.full(k, 0.4, np.float32),
        sufficient_data=(True,) * k,
        features=features,
        classifier_weight=np.ones((k, 1), np.float32),
        calibration_slope=np.ones(k, np.float32),
        grid_to_image=place or GridToImage(x_scale=100, x_offset=0, y_scale=50, y_offset=0),
    )


def finding_of(prediction: CnnPrediction) -> explainability.Finding:
    return fuse(prediction, Reading(reasoning="none", independent=False)).findings[0]


@pytest.mark.parametrize(
    ("row", "column", "zone"),
    [
        (0, 0, "upper third, left half of the image"),
        (6, 6, "lower third, right half of the image"),
        (3, 3, "middle third, centre of the image"),
        (6, 0, "lower third, left half of the image"),
    ],
)
def test_peak_and_zone_follow_the_hot_cell(row: int, column: int, zone: str) -> None:
    prediction = prediction_with_a_hot_cell(row, column)
    maps = explainability.calibrated_maps(prediction)
    described = explainability.heatmap(finding_of(prediction), maps[0], prediction, (350, 700))
    assert described.peak is not None
    assert (described.peak.x, described.peak.y) == (100 * column + 50, 50 * row + 25)
    assert described.peak.value == pytest.approx(1.0)
    assert described.zone == zone
    assert described.grid[row][column] == pytest.approx(1.0)
    assert sum(map(sum, described.grid)) == pytest.approx(1.0)


def test_a_coarse_grid_gets_no_box_and_a_fine_one_does() -> None:
    coarse = prediction_with_a_hot_cell(3, 3)
    maps = explainability.calibrated_maps(coarse)
    assert explainability.heatmap(finding_of(coarse), maps[0], coarse, (350, 700)).box is None
    fine = prediction_with_a_hot_cell(5, 9, size=14, place=GridToImage(x_scale=10, x_offset=3, y_scale=20, y_offset=7))
    maps = explainability.calibrated_maps(fine)
    box = explainability.heatmap(finding_of(fine), maps[0], fine, (300, 200)).box
    assert box is not None
    assert (box.x, box.y, box.width, box.height) == (3 + 90, 7 + 100, 10, 20)


def test_a_map_that_speaks_against_everywhere_has_no_peak() -> None:
    prediction = prediction_with_a_hot_cell(3, 3)
    against = -explainability.calibrated_maps(prediction)
    described = explainability.heatmap(finding_of(prediction), against[0], prediction, (350, 700))
    assert described.peak is None
    assert described.zone is None
    assert all(value == 0 for row in described.grid for value in row)


def painted(prediction: CnnPrediction, maps: FloatArray, height: int, width: int) -> FloatArray:
    """Decode the overlay on a black film: what is left are the colours."""
    film = Radiograph(np.zeros((height, width), np.float32), ImageHeader("png", width, height))
    png = explainability.overlay_png(film, maps, prediction, Colormap.INFERNO)
    return np.asarray(cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR), np.float32)


def test_the_overlay_paints_the_hot_cell_at_its_place() -> None:
    prediction = prediction_with_a_hot_cell(1, 5)
    below_full_scale = explainability.calibrated_maps(prediction)[0] * explainability.FULL_SCALE_LOG_ODDS
    colours = painted(prediction, below_full_scale, 350, 700).sum(axis=2)
    row, column = np.unravel_index(colours.argmax(), colours.shape)
    assert abs(row - 75) <= 25
    assert abs(column - 550) <= 50
    assert colours[:25].max() < colours.max() / 2
    assert colours[200:].max() == 0


def test_the_overlay_leaves_what_the_network_did_not_see_alone() -> None:
    place = GridToImage(x_scale=50, x_offset=175, y_scale=50, y_offset=0)
    prediction = replace(prediction_with_a_hot_cell(3, 0), grid_to_image=place)  # a centre crop of a wide film
    colours = painted(prediction, explainability.calibrated_maps(prediction)[0], 350, 700).sum(axis=2)
    assert colours[:, :174].max() == 0
    assert colours[:, 526:].max() == 0
    assert colours[175, 180] > 0


@pytest.mark.parametrize("x_offset", [2500, -50, 9000])  # a centre crop of a forced image; places that are not on it
def test_a_film_of_which_less_than_a_pixel_was_seen_stays_as_it_is(x_offset: float) -> None:
    place = GridToImage(x_scale=1 / 7, x_offset=x_offset, y_scale=1 / 7, y_offset=0)
    prediction = replace(prediction_with_a_hot_cell(3, 3), grid_to_image=place)
    colours = painted(prediction, explainability.calibrated_maps(prediction)[0], 1, 5000)
    assert colours.shape[:2] == (1, 1024)
    assert colours.max() == 0


def test_the_scale_is_absolute_so_weak_evidence_stays_pale() -> None:
    prediction = prediction_with_a_hot_cell(3, 3)
    strong = explainability.calibrated_maps(prediction)[0]
    weak = strong * 0.1 * explainability.FULL_SCALE_LOG_ODDS
    assert painted(prediction, weak, 350, 700).max() < 0.3 * painted(prediction, strong, 350, 700).max()
    assert painted(prediction, 0 * strong, 350, 700).max() == 0


@pytest.mark.parametrize(("height", "width", "shown"), [(3000, 1500, (1024, 512)), (90, 1000, (90, 1000))])
def test_the_overlay_is_never_larger_than_a_screen_and_never_enlarged(
    height: int, width: int, shown: tuple[int, int]
) -> None:
    prediction = prediction_with_a_hot_cell(3, 3)
    assert painted(prediction, explainability.calibrated_maps(prediction)[0], height, width).shape[:2] == shown


@pytest.mark.parametrize("colormap", list(Colormap))
def test_every_colormap_paints(colormap: Colormap) -> None:
    prediction = prediction_with_a_hot_cell(3, 3, place=GridToImage(x_scale=10, x_offset=0, y_scale=10, y_offset=0))
    film = Radiograph(np.full((70, 70), 0.5, np.float32), ImageHeader("png", 70, 70))
    png = explainability.overlay_png(film, explainability.calibrated_maps(prediction)[0], prediction, colormap)
    assert base64.b64decode(explainability.as_base64(png)) == png
    pixels = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None
    assert np.ptp(pixels[35, 35].astype(int)) > 0  # coloured at the peak
    assert np.ptp(pixels[0, 0].astype(int)) == 0  # grey where nothing speaks


@pytest.mark.parametrize("threshold", [0.4, 0.6])
def test_the_note_says_whether_the_shown_finding_is_one(threshold: float) -> None:
    prediction = replace(prediction_with_a_hot_cell(3, 3), thresholds=np.full(14, threshold, np.float32))
    maps = explainability.calibrated_maps(prediction)
    shown = explainability.heatmap_finding(finding_of(prediction), maps[0])
    assert "No region stands out" not in shown.note
    assert "No region stands out" in explainability.heatmap_finding(finding_of(prediction), 0.01 * maps[0]).note
    assert shown.detected == (threshold < 0.5)
    assert ("NOT detected" in shown.note) == (threshold > 0.5)
