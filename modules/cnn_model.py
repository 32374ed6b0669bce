"""Stage 1: DenseNet-121 (Huang et al., CVPR 2017) over a radiograph, with calibrated outputs."""

import functools
from pathlib import Path

import cv2
import numpy as np

from modules.engines.base import NO_GPU_OPTIONS, EngineChoice, GpuOptions
from modules.engines.choice import make_engine
from modules.engines.densenet import CLASSIFIER_WEIGHT
from modules.errors import WeightsError
from modules.records import CnnPrediction, FloatArray, GridToImage, ModelInfo, Radiograph
from modules.weights import Preprocessing, Weights


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
    """The network, its card and its engine. `predict` may be called from several threads at once."""

    def __init__(
        self,
        weights: Weights,
        device: str = "auto",
        *,
        engine: EngineChoice = "pytorch",
        cache: Path | None = None,
        threads: int = 0,
        mirror_check: bool = True,
        gpu: GpuOptions = NO_GPU_OPTIONS,
    ) -> None:
        """Build the network; what is measured runs in PyTorch, the server asks for the engine of its settings."""
        card = weights.card
        self.card = card
        self._mirror_check = mirror_check
        prepare = functools.partial(preprocess, recipe=card.preprocessing)
        images_a_film = 2 if mirror_check else 1
        self.engine = make_engine(weights, engine, device, cache, prepare, threads, gpu, images_a_film)
        outputs = [output for _, output in card.served]
        with np.errstate(over="ignore"):  # what float32 cannot hold is refused below
            self._slope = np.array([o.slope for o in outputs], np.float32)
            self._intercept = np.array([o.intercept for o in outputs], np.float32)
        # A label without an operating point is never detected.
        self._thresholds = np.array([1.0 if o.threshold is None else o.threshold for o in outputs], np.float32)
        self._sufficient = tuple(o.sufficient_data for o in outputs)
        rows = [position for position, _ in card.served]
        self._classifier_weight = np.asarray(weights.tensors[CLASSIFIER_WEIGHT][rows], np.float32)
        self.info = ModelInfo(
            weights=card.name,
            sha256=card.sha256,
            architecture=card.architecture,
            engine=self.engine.name,
            device=self.engine.device,
            precision=self.engine.precision,
            calibrated=card.calibration is not None,
        )
        # The first pass is many times slower than the next ones: better at start-up than for the first film.
        recipe = card.preprocessing
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            black = (np.zeros((1, recipe.input_size, recipe.input_size), np.float32) - recipe.mean) / recipe.std
            batch = np.stack([np.asarray(black, np.float32)] * images_a_film)
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
        return self.engine.run(batch)

    def close(self) -> None:
        """Release what the engine holds; films that still wait for it get Busy."""
        self.engine.close()
