"""What PyTorch computes on a few films: another engine serves only if it computes the same, asked at every start.

The network of an engine is built from the weights each time; what is kept between starts are these figures alone, so
that a start need not import torch. No file of the cache is ever run or served: a damaged one is noticed because the
engine differs from it, and PyTorch is then asked again.
"""

import hashlib
import io
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path

import cv2
import numpy as np

from modules.engines.base import Engine
from modules.engines.densenet import CLASSIFIER_WEIGHT
from modules.errors import ImageError
from modules.images import open_image
from modules.records import FloatArray, ImageHeader, Radiograph
from modules.settings import PROJECT_ROOT

logger = logging.getLogger(__name__)

TOLERANCE = 1e-3  # logits, and logits per cell; chosen: far above rounding, far below what a reader could notice
SAMPLE = PROJECT_ROOT / "assets" / "sample_xray.png"
SERVED_BATCH = 2  # a film and its mirror image
CACHE_NAME = "cxr-assistant"


def films() -> tuple[Radiograph, ...]:
    """Return an odd number of films, so that batches of two and of one are tried; the sample only where it lies."""
    drawn = (_drawn(rows=6, seed=1), _drawn(rows=12, seed=2), _drawn(rows=96, seed=3))
    try:
        sample = open_image(SAMPLE.read_bytes()).decode().pixels
    except (OSError, ImageError):  # the check does not depend on it
        return drawn
    height, width = sample.shape
    shifted = np.roll(sample, (height // 9, -width // 7), axis=(0, 1))
    return (*(_film(pixels) for pixels in (sample, sample[:, ::-1], shifted, 1.0 - sample)), *drawn)


def _drawn(rows: int, seed: int) -> Radiograph:
    """Draw soft shapes of a chosen coarseness."""
    values = np.random.default_rng(seed).random((rows, rows), dtype=np.float32)
    grown = cv2.resize(values, (288, 320), interpolation=cv2.INTER_CUBIC)
    return _film(np.clip(np.asarray(grown, np.float32), 0.0, 1.0))


def _film(pixels: FloatArray) -> Radiograph:
    height, width = pixels.shape
    return Radiograph(np.ascontiguousarray(pixels), ImageHeader("png", width, height))


def figures(engine: Engine, batch: FloatArray, classifier_weight: FloatArray) -> FloatArray:
    """Return what answers are made of, (N, 14, 1 + h·w): of each film each logit, then its map in logits per cell."""
    found = []
    with np.errstate(all="ignore"):  # of weights whose numbers run away; NaN agrees with nothing
        for start in range(0, len(batch), SERVED_BATCH):
            logits, features = engine.run(batch[start : start + SERVED_BATCH])
            cells = features.reshape(*features.shape[:2], -1)
            found.append(np.concatenate([logits[:, :, np.newaxis], classifier_weight @ cells / cells.shape[2]], axis=2))
    return np.concatenate(found).astype(np.float32)


def disagreement(found: FloatArray, expected: FloatArray) -> float:
    """Return the largest difference; infinite where a value is not finite or the shapes differ."""
    if found.shape != expected.shape:
        return float("inf")
    with np.errstate(all="ignore"):
        largest = float(np.abs(found - expected).max())
    return largest if np.isfinite(largest) else float("inf")


class References:
    """PyTorch's figures in a folder, one file for each set of weights; safe for several processes at once."""

    def __init__(self, folder: Path | None) -> None:
        """Take a folder, or None for the user's cache folder."""
        self._folder = folder or _users_folder()

    def path(self, tensors: Mapping[str, FloatArray], batch: FloatArray) -> Path | None:
        """Return where the figures of these tensors on these films lie, or would; None: there is no folder."""
        if self._folder is None:
            return None
        digest = hashlib.sha256(metadata.version("torch").encode())
        for name, array in sorted({**tensors, "": batch}.items()):
            digest.update(f"{name}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return self._folder / f"pytorch-{digest.hexdigest()}.npy"

    def read(self, path: Path | None) -> FloatArray | None:
        """Return the figures, or None when they are not there or unreadable."""
        if path is None:
            return None
        try:
            with path.open("rb") as file:  # NumPy leaves what it opened open when it is a damaged archive
                return np.asarray(np.load(file, allow_pickle=False), np.float32)
        except Exception:  # a damaged file fails as an archive, by its header, or for the memory that it asks for
            return None

    def write(self, path: Path | None, values: FloatArray) -> None:
        """Keep the figures, whole or not at all; where that is not possible, say so in the log and go on."""
        if path is None:
            logger.warning("engine_cache_unavailable", extra={"fields": {"reason": "there is no home folder"}})
            return
        out = io.BytesIO()
        np.save(out, values, allow_pickle=False)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _replace(path, out.getvalue())
        except OSError as exc:
            reason = f"CNN_CACHE cannot be written: {exc.strerror}; each start takes longer"
            logger.warning("engine_cache_unavailable", extra={"fields": {"reason": reason}})


def _replace(path: Path, data: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _users_folder() -> Path | None:
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:
        base = Path(given) if Path(given).is_absolute() else Path.home() / ".cache"
    except RuntimeError:  # no home is known
        return None
    return base / CACHE_NAME


def checked(
    engine: Engine,
    batch: FloatArray,
    tensors: Mapping[str, FloatArray],
    references: References,
    make_pytorch: Callable[[], Engine],
) -> Engine:
    """Return the engine if it computes what PyTorch does on a batch of films; else PyTorch, and why in the log."""
    found = figures(engine, batch, tensors[CLASSIFIER_WEIGHT])
    path = references.path(tensors, batch)
    kept = references.read(path)
    difference = float("inf") if kept is None else disagreement(found, kept)
    if difference > TOLERANCE:
        pytorch = make_pytorch()
        expected = figures(pytorch, batch, tensors[CLASSIFIER_WEIGHT])
        difference = disagreement(found, expected)
        if difference > TOLERANCE:
            reason = f"{engine.name} differs from PyTorch by {difference:.3g} logits on {len(batch)} films"
            logger.warning("engine_refused", extra={"fields": {"engine": engine.name, "reason": reason}})
            return pytorch
        references.write(path, expected)
    fields = {"engine": engine.name, "films": len(batch), "largest_difference": difference, "kept": kept is not None}
    logger.info("engine_checked", extra={"fields": fields})
    return engine
