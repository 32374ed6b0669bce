"""Stage 1: DenseNet-121 (Huang et al., CVPR 2017) over a radiograph, with calibrated outputs."""

import os
from typing import TYPE_CHECKING

import cv2
import numpy as np

from modules.errors import ConfigurationError, WeightsError
from modules.records import CnnPrediction, FloatArray, GridToImage, ModelInfo, Radiograph
from modules.weights import Preprocessing, Weights

if TYPE_CHECKING:
    import torch
    from torchvision.models import DenseNet


def preprocess(radiograph: Radiograph, recipe: Preprocessing) -> FloatArray:
    """Make the network's input (1, S, S) from a film as its weights card says."""
    pixels = radiograph.pixels
    if recipe.aspect == "crop":
        pixels = centre_square(pixels)
    for step in (recipe.degrade_to, recipe.reduce_to):
        if step is not None:
            pixels = resize_square(pixels, step)
    pixels = _resize(pixels, recipe.input_size, enlarge_by=cv2.INTER_LINEAR)
    return np.asarray((pixels[np.newaxis] - recipe.mean) / recipe.std, np.float32)


def centre_square(pixels: FloatArray) -> FloatArray:
    """Return the largest centred square of a film (H, W)."""
    top, left, side = _centre_square(*pixels.shape)
    return pixels[top : top + side, left : left + side]


def grid_to_image(radiograph: Radiograph, recipe: Preprocessing, rows: int, columns: int) -> GridToImage:
    """Return where the network's grid (rows, columns) lies on the film, undoing `preprocess`."""
    height, width = radiograph.pixels.shape
    if recipe.aspect == "crop":
        top, left, side = _centre_square(height, width)
        return GridToImage(x_scale=side / columns, x_offset=left, y_scale=side / rows, y_offset=top)
    return GridToImage(x_scale=width / columns, x_offset=0.0, y_scale=height / rows, y_offset=0.0)


def _centre_square(height: int, width: int) -> tuple[int, int, int]:
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side


def resize_square(pixels: FloatArray, side: int) -> FloatArray:
    """Bring a film (H, W) in [0, 1] to (side, side): by area when it shrinks, by cubic interpolation when it grows."""
    return np.clip(_resize(pixels, side, enlarge_by=cv2.INTER_CUBIC), 0.0, 1.0)


def _resize(pixels: FloatArray, side: int, enlarge_by: int) -> FloatArray:
    shrinks = max(pixels.shape) > side
    resized = cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA if shrinks else enlarge_by)
    return np.asarray(resized, np.float32)


class CnnModel:
    """The network, its card and its device. `predict` may be called from several threads at once."""

    def __init__(self, weights: Weights, device: str = "auto", *, mirror_check: bool = True) -> None:
        # Without this, OpenMP's waiting threads spin beside other load and one film can take seconds; it is read when
        # torch is first imported.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        import torch

        card = weights.card
        self.card = card
        self._mirror_check = mirror_check
        self._device = _choose_device(device)
        self._network = _build_network(weights).to(self._device).to(memory_format=torch.channels_last)
        outputs = [output for _, output in card.served]
        with np.errstate(over="ignore"):  # what float32 cannot hold is refused below
            self._slope = np.array([o.slope for o in outputs], np.float32)
            self._intercept = np.array([o.intercept for o in outputs], np.float32)
        # A label without an operating point is never detected.
        self._thresholds = np.array([1.0 if o.threshold is None else o.threshold for o in outputs], np.float32)
        self._sufficient = tuple(o.sufficient_data for o in outputs)
        self._classifier_weight = self._network.classifier.weight.float().cpu().numpy()
        self.info = ModelInfo(
            weights=card.name,
            sha256=card.sha256,
            architecture=card.architecture,
            engine="pytorch",
            device=self._device.type,
            calibrated=card.calibration is not None,
        )
        # The first pass is many times slower than the next ones: better at start-up than for the first film.
        recipe = card.preprocessing
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            black = (np.zeros((1, recipe.input_size, recipe.input_size), np.float32) - recipe.mean) / recipe.std
            batch = np.stack([np.asarray(black, np.float32)] * (2 if mirror_check else 1))
            log_odds = self._slope * self.forward(batch)[0] + self._intercept
        if not np.isfinite(log_odds).all():
            raise WeightsError(f"The weights {card.name} give log-odds that are not finite: they cannot serve.")

    def predict(self, radiograph: Radiograph) -> CnnPrediction:
        """Run one film through the network, and its mirror image beside it when the mirror check is on."""
        film = preprocess(radiograph, self.card.preprocessing)
        batch = np.stack([film, film[:, :, ::-1]]) if self._mirror_check else film[np.newaxis]
        logits, features = self.forward(batch)
        log_odds = self._slope * logits + self._intercept
        return CnnPrediction(
            logits=logits[0],
            log_odds=log_odds[0],
            thresholds=self._thresholds,
            sufficient_data=self._sufficient,
            features=features[0],
            classifier_weight=self._classifier_weight,
            calibration_slope=self._slope,
            grid_to_image=grid_to_image(radiograph, self.card.preprocessing, *features.shape[2:]),
            mirrored_log_odds=log_odds[1] if self._mirror_check else None,
        )

    def forward(self, batch: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Run a batch (B, 1, S, S): logits (B, 14) and the feature map (B, C, h, w) that enters the pooling."""
        import torch
        import torch.nn.functional as F

        with torch.inference_mode():
            images = torch.from_numpy(np.ascontiguousarray(batch)).to(self._device)
            images = images.contiguous(memory_format=torch.channels_last)
            features = F.relu(self._network.features(images), inplace=True)
            logits = self._network.classifier(features.mean(dim=(2, 3)))
            return logits.float().cpu().numpy(), features.float().cpu().numpy()


def _choose_device(wanted: str) -> "torch.device":
    import torch

    usable = {"mps": torch.backends.mps.is_available(), "cuda": torch.cuda.is_available(), "cpu": True}
    if wanted == "auto":
        return torch.device(next(name for name, available in usable.items() if available))
    if not usable[wanted]:
        raise ConfigurationError(f"CNN_DEVICE={wanted}, but PyTorch finds no such device here; set auto or cpu.")
    return torch.device(wanted)


def untrained_network(outputs: int) -> "DenseNet":
    """Return torchvision's DenseNet-121 with one input channel and random weights."""
    from torch import nn
    from torchvision.models import densenet121

    network = densenet121(weights=None, num_classes=outputs)
    network.features.conv0 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(network.features.conv0.weight)
    return network


def _build_network(weights: Weights) -> "DenseNet":
    """Build torchvision's DenseNet-121 with one input channel and the card's 14 outputs in our order."""
    import torch

    tensors = dict(weights.tensors)
    rows = [position for position, _ in weights.card.served]
    expected = len(weights.card.outputs)
    for key in ("classifier.weight", "classifier.bias"):
        if key not in tensors or tensors[key].shape[0] != expected:
            found = list(tensors[key].shape) if key in tensors else "no such tensor"
            raise WeightsError(f"The card of {weights.card.name} lists {expected} outputs, but {key} has {found}.")
        tensors[key] = tensors[key][rows]
    with torch.device("meta"):  # no time spent on random values that are about to be replaced
        network = untrained_network(len(rows))
    _check_shapes(network, tensors, weights.card.name)
    for key in [k for k in network.state_dict() if k.endswith("num_batches_tracked")]:
        tensors.setdefault(key, torch.zeros((), dtype=torch.long))  # unused in inference
    network.load_state_dict({k: t.float() if t.is_floating_point() else t for k, t in tensors.items()}, assign=True)
    return network.eval().requires_grad_(False)


def _check_shapes(network: "DenseNet", tensors: "dict[str, torch.Tensor]", name: str) -> None:
    expected = {k: v.shape for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    for key, shape in expected.items():
        if key not in tensors:
            raise WeightsError(f"The weights {name} lack {key}, which DenseNet-121 has with shape {list(shape)}.")
        if tensors[key].shape != shape:
            found = list(tensors[key].shape)
            raise WeightsError(f"{key} has shape {found} in the weights {name}; DenseNet-121 has {list(shape)}.")
    surplus = sorted(k for k in tensors if k not in expected and not k.endswith("num_batches_tracked"))
    if surplus:
        raise WeightsError(f"The weights {name} hold {surplus[0]}, which DenseNet-121 does not have.")
