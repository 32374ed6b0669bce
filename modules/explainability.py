"""Stage 6: Grad-CAM of every pathology in closed form, and the overlay that shows one of them.

DenseNet ends in ReLU → global average pooling → linear. With R (C, h, w) the tensor that enters the pooling and W the
classifier's weights (K, C), the gradient of logit k with respect to R is W[k, c] / (h·w) everywhere, so Grad-CAM
(Selvaraju et al., ICCV 2017) is ReLU(M_k) with M_k = Σ_c W[k, c] · R[c] / (h·w). M_k is exact and additive: its sum is
logit k less its bias. No backward pass, no hooks, no second forward pass.
"""

import base64

import cv2
import numpy as np

from modules.images import display_pixels
from modules.png import encode_png
from modules.records import Box, CnnPrediction, Finding, FloatArray, Heatmap, HeatmapFinding, Peak, Radiograph
from modules.settings import Colormap

# Log-odds per cell that get the full colour; chosen, not fitted: near the 95th percentile of the largest cell of what
# the embedded weights detect on validation films.
FULL_SCALE_LOG_ODDS = 0.18
FAINT_SHARE = 0.2  # of the full colour; below it nothing stands out
MAX_OPACITY = 0.65
MAX_OVERLAY_SIDE = 1024  # pixels; a screen shows no more
MIN_CELLS_FOR_A_BOX = 14  # on the shorter side; a 7 × 7 cell is a seventh of the chest, which outlines nothing
BOX_LEVEL = 0.5  # share of the peak's value above which cells belong to the box

# Each with the place on it that stands for nothing: inferno's black would darken lung, as air does.
_COLORMAPS = {
    Colormap.INFERNO: (cv2.COLORMAP_INFERNO, 80),
    Colormap.VIRIDIS: (cv2.COLORMAP_VIRIDIS, 80),
    Colormap.JET: (cv2.COLORMAP_JET, 0),
}


def contribution_maps(features: FloatArray, classifier_weight: FloatArray) -> FloatArray:
    """Return M (K, h, w) in logits per cell, from features (C, h, w) and weights (K, C)."""
    cells = features.shape[1] * features.shape[2]
    return np.asarray(np.tensordot(classifier_weight, features, axes=1) / cells, np.float32)


def calibrated_maps(prediction: CnnPrediction) -> FloatArray:
    """Return the maps (14, h, w) in calibrated log-odds per cell: a colour then means the same on every film."""
    maps = contribution_maps(prediction.features, prediction.classifier_weight)
    return np.asarray(maps * prediction.calibration_slope[:, np.newaxis, np.newaxis], np.float32)


def heatmap(finding: Finding, contributions: FloatArray, prediction: CnnPrediction, film: tuple[int, int]) -> Heatmap:
    """Describe the Grad-CAM of one finding from its contributions (h, w); `film` is (height, width) in pixels."""
    cam = np.maximum(contributions, 0.0)
    peak = _peak(cam, prediction)
    return Heatmap(
        pathology=finding.pathology,
        detected=finding.detected,
        probability=finding.cnn_probability,
        grid=tuple(tuple(float(value) for value in row) for row in cam),
        full_scale=FULL_SCALE_LOG_ODDS,
        peak=peak,
        zone=None if peak is None else _zone(peak, *film),
        box=_box(cam, prediction),
        grid_to_image=prediction.grid_to_image,
    )


def heatmap_finding(finding: Finding, contributions: FloatArray) -> HeatmapFinding:
    """Say which finding the overlay shows, whether it is one, and how little a map proves."""
    name = finding.pathology
    if finding.detected:
        note = f"What raised the CNN's score for {name}, which it detected."
    else:
        note = f"{name} was NOT detected: of those with sufficient data, only the one closest to its threshold."
    if float(contributions.max()) < FAINT_SHARE * FULL_SCALE_LOG_ODDS:
        note += " No region stands out."
    note += " A coarse map: it does not locate the finding or its side."
    return HeatmapFinding(
        pathology=finding.pathology, detected=finding.detected, probability=finding.cnn_probability, note=note
    )


def overlay_png(
    radiograph: Radiograph, contributions: FloatArray, prediction: CnnPrediction, colormap: Colormap
) -> bytes:
    """Paint one Grad-CAM (h, w) over the film on the absolute scale: a PNG of at most 1024 px on its longest side."""
    grey = display_pixels(radiograph.pixels, MAX_OVERLAY_SIDE)
    height, width = radiograph.pixels.shape
    cam = _on_film(np.maximum(contributions, 0.0), prediction, (height, width), grey.shape)
    strength = cv2.convertScaleAbs(cam, alpha=255 / FULL_SCALE_LOG_ODDS)  # stops at 255
    opacity = MAX_OPACITY * np.arange(256) / 255
    kind, first = _COLORMAPS[colormap]
    colours = cv2.applyColorMap(np.linspace(first, 255, 256).astype(np.uint8)[np.newaxis], kind)[:, :, ::-1]  # to RGB
    paint = np.rint(colours * opacity[:, np.newaxis]).astype(np.uint8)
    share_of_film = np.rint(255 * (1.0 - opacity)).astype(np.uint8)
    film = cv2.multiply(grey, cv2.LUT(strength, share_of_film), scale=1 / 255)
    painted = cv2.add(cv2.merge([film] * 3), cv2.applyColorMap(strength, paint.reshape(256, 1, 3)))
    return encode_png(np.asarray(painted, np.uint8))


def as_base64(data: bytes) -> str:
    """Return bytes as base64 text."""
    return base64.b64encode(data).decode("ascii")


def _peak(cam: FloatArray, prediction: CnnPrediction) -> Peak | None:
    row, column = np.unravel_index(int(cam.argmax()), cam.shape)
    value = float(cam[row, column])
    if value <= 0.0:
        return None
    place = prediction.grid_to_image
    return Peak(
        x=place.x_offset + place.x_scale * (float(column) + 0.5),
        y=place.y_offset + place.y_scale * (float(row) + 0.5),
        value=value,
    )


def _zone(peak: Peak, height: int, width: int) -> str:
    """Name the third and the half of the image; not the patient's side, which a grid this coarse often misses."""
    third = ("upper", "middle", "lower")[min(2, int(3 * peak.y / height))]
    across = peak.x / width
    side = "centre" if 0.42 <= across <= 0.58 else "left half" if across < 0.5 else "right half"
    return f"{third} third, {side} of the image"


def _box(cam: FloatArray, prediction: CnnPrediction) -> Box | None:
    if min(cam.shape) < MIN_CELLS_FOR_A_BOX or float(cam.max()) <= 0.0:
        return None
    mask = (cam >= BOX_LEVEL * cam.max()).astype(np.uint8)
    _, regions = cv2.connectedComponents(mask)
    region = regions == regions[np.unravel_index(int(cam.argmax()), cam.shape)]
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    place = prediction.grid_to_image
    return Box(
        x=place.x_offset + place.x_scale * float(columns[0]),
        y=place.y_offset + place.y_scale * float(rows[0]),
        width=place.x_scale * float(columns[-1] + 1 - columns[0]),
        height=place.y_scale * float(rows[-1] + 1 - rows[0]),
    )


def _on_film(cam: FloatArray, prediction: CnnPrediction, film: tuple[int, int], shown: tuple[int, ...]) -> FloatArray:
    """Interpolate a grid over the film as it is shown (H, W); outside of what the network saw it is zero."""
    place = prediction.grid_to_image
    y_shrink, x_shrink = shown[0] / film[0], shown[1] / film[1]
    top, bottom = (round(y_shrink * (place.y_offset + place.y_scale * row)) for row in (0, cam.shape[0]))
    left, right = (round(x_shrink * (place.x_offset + place.x_scale * column)) for column in (0, cam.shape[1]))
    size = max(1, right - left), max(1, bottom - top)  # of a thin strip, less than a pixel may be left
    whole = cv2.resize(cam, size, interpolation=cv2.INTER_LINEAR)
    rows = slice(max(0, top), max(0, min(bottom, shown[0])))
    columns = slice(max(0, left), max(0, min(right, shown[1])))
    grown = np.zeros(shown[:2], np.float32)
    grown[rows, columns] = whole[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    return grown
