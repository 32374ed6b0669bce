"""`python -m benchmarks.pipeline`: what an answer costs beside the bare network, and whether the server keeps its size.

Each ratio is taken round by round, both sides in turn, and its median is printed: absolute times differ from machine to
machine and from minute to minute. Needs the packages of `requirements-dev.txt`.
"""

import argparse
import base64
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from benchmarks.measuring import machine
from benchmarks.measuring import ratio as _ratio
from benchmarks.measuring import resident_mib as _resident_mib
from benchmarks.measuring import seconds as _seconds
from benchmarks.servers import api_server, free_port
from modules import explainability
from modules.cnn_model import CnnModel, preprocess
from modules.engines.densenet import served_tensors
from modules.engines.pytorch import PytorchEngine
from modules.images import display_pixels, open_image
from modules.pathologies import NAMES
from modules.png import encode_png
from modules.records import Radiograph
from modules.settings import PROJECT_ROOT, Colormap
from modules.weights import load_weights

PACKAGES = ("torch", "onnxruntime", "numpy", "opencv-python-headless")
SAMPLE = PROJECT_ROOT / "assets" / "sample_xray.png"


def main(argv: list[str] | None = None) -> None:
    """Measure, print a table, and write JSON where asked."""
    args = _arguments(argv)
    data = args.film.read_bytes()
    radiograph = open_image(data).decode()
    results = {
        "machine": _machine(),
        "ratios": _cnn_ratios(radiograph, args.rounds),
        "request": _request_ratios(data, radiograph, args.rounds),
        "server": _server(data, args.requests),
    }
    sys.stdout.write(json.dumps(results, indent=1) + "\n")
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


def _cnn_ratios(radiograph: Radiograph, rounds: int) -> dict[str, Any]:
    weights = load_weights("embedded")
    single = CnnModel(weights, mirror_check=False)
    mirrored = CnnModel(weights)
    served = CnnModel(weights, engine="auto", mirror_check=False)
    served_mirrored = CnnModel(weights, engine="auto")
    network = PytorchEngine(served_tensors(weights), single.engine.device).network
    plain = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
    plain_image = torch.from_numpy(preprocess(radiograph, single.card.preprocessing)[np.newaxis])
    plain_image = plain_image.to(single.engine.device)
    image = plain_image.contiguous(memory_format=torch.channels_last)

    def eager() -> None:
        with torch.inference_mode():
            plain(plain_image)

    def bare() -> None:
        with torch.inference_mode():
            network(image)

    def findings_and_maps(cnn: CnnModel) -> Callable[[], None]:
        def work() -> None:
            prediction = cnn.predict(radiograph)
            _ = prediction.probabilities
            explainability.calibrated_maps(prediction)

        return work

    grad_cam = _PytorchGradCam(network, image)
    hooked = _DeepCopyGradCam(network, image)
    both = findings_and_maps(single)
    engine = f"findings + 14 maps, served by {served.engine.name}"
    return {
        f"{engine} / PyTorch eager's bare forward pass": _ratio(findings_and_maps(served), eager, rounds),
        f"{engine} / the same pass, channels last": _ratio(findings_and_maps(served), bare, rounds),
        f"{engine}, with the mirror check / PyTorch's, with the mirror check": _ratio(
            findings_and_maps(served_mirrored), findings_and_maps(mirrored), rounds
        ),
        "probabilities + 14 maps / bare forward pass": _ratio(both, bare, rounds),
        "the same with the mirror check / bare forward pass": _ratio(findings_and_maps(mirrored), bare, rounds),
        "14 maps by pytorch-grad-cam / probabilities + 14 maps": _ratio(grad_cam.all_maps, both, rounds // 3),
        "1 map by deep copy and hooks / probabilities + 14 maps": _ratio(hooked.one_map, both, rounds),
    }


def _request_ratios(data: bytes, radiograph: Radiograph, rounds: int) -> dict[str, Any]:
    """Compare a request to the server with its unavoidable parts alone, and with the original design's work."""
    original = _OriginalRequest(data)
    found: dict[str, Any] = {"OpenCV's PNG, level 1 / the overlay's encoder": _encoders(radiograph, rounds)}
    for mirror in (True, False):
        parts = _Parts(data, radiograph, mirror=mirror)
        way = f"/analyze, mirror check {'on' if mirror else 'off'}"
        server = api_server(free_port(), CNN_MIRROR_CHECK=str(mirror))
        try:
            server.start()
            server.wait()
            with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:

                def analyze(client: httpx.Client = client) -> None:
                    client.post("/analyze", files={"image": ("film", data)}).raise_for_status()

                found[f"{way} / decode + forward pass + overlay encoding"] = _ratio(analyze, parts.all, rounds)
                found[f"{way}: its parts, ms"] = parts.milliseconds(rounds)
                found[f"predict + deep-copied Grad-CAM + full-size overlay / {way}"] = _ratio(
                    original.answer, analyze, rounds
                )
        finally:
            server.kill()
    return found


class _Parts:
    """What no answer can do without, each by itself: decoding, the network's pass, and encoding the overlay."""

    def __init__(self, data: bytes, radiograph: Radiograph, *, mirror: bool) -> None:
        cnn = CnnModel(load_weights("embedded"), engine="auto", mirror_check=mirror)
        prediction = cnn.predict(radiograph)
        overlay = explainability.overlay_png(
            radiograph,
            explainability.calibrated_maps(prediction)[prediction.ranking[0]],
            prediction,
            Colormap.INFERNO,
        )
        pixels = np.asarray(cv2.imdecode(np.frombuffer(overlay, np.uint8), cv2.IMREAD_COLOR), np.uint8)
        film = preprocess(radiograph, cnn.card.preprocessing)
        batch = np.stack([film, film[:, :, ::-1]] if mirror else [film])
        self._parts: dict[str, Callable[[], object]] = {
            "decode": lambda: open_image(data).decode(),
            "forward pass": lambda: cnn.forward(batch),
            "overlay encoding": lambda: encode_png(pixels),
        }

    def all(self) -> None:
        for part in self._parts.values():
            part()

    def milliseconds(self, rounds: int) -> dict[str, float]:
        """Return the median of each."""
        times = {name: [_seconds(part) for _ in range(max(3, rounds))] for name, part in self._parts.items()}
        return {name: round(1000 * statistics.median(found), 1) for name, found in times.items()}


class _OriginalRequest:
    """What the original design did for a film: predict in eager PyTorch, copy the network, paint in full size."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        weights = load_weights("embedded")
        self._recipe = weights.card.preprocessing
        self._network = PytorchEngine(served_tensors(weights), "cpu").network.to(memory_format=torch.contiguous_format)

    def answer(self) -> str:
        radiograph = open_image(self._data).decode()
        cam = _DeepCopyGradCam(
            self._network, torch.from_numpy(preprocess(radiograph, self._recipe)[np.newaxis])
        ).one_map()
        height, width = radiograph.pixels.shape
        heat = cv2.applyColorMap((255 * cv2.resize(cam / max(cam.max(), 1e-8), (width, height))).astype(np.uint8), 2)
        film = cv2.cvtColor((255 * radiograph.pixels).astype(np.uint8), cv2.COLOR_GRAY2BGR)
        _, png = cv2.imencode(".png", cv2.addWeighted(film, 0.6, heat, 0.4, 0.0))
        return base64.b64encode(png.tobytes()).decode()


def _encoders(radiograph: Radiograph, rounds: int) -> dict[str, float]:
    grey = display_pixels(radiograph.pixels, explainability.MAX_OVERLAY_SIDE)
    pixels = np.asarray(cv2.applyColorMap(grey, cv2.COLORMAP_INFERNO), np.uint8)
    return _ratio(
        lambda: cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1]), lambda: encode_png(pixels), rounds
    )


class _PytorchGradCam:
    """The reference library on the same network, with its in-place ReLUs replaced as its hooks need."""

    def __init__(self, network: nn.Module, image: torch.Tensor) -> None:
        self._model = _copy_for_hooks(network)
        self._image = image

    def all_maps(self) -> None:
        with GradCAM(model=self._model, target_layers=[self._model[1]]) as cam:
            for k in range(len(NAMES)):
                cam(self._image, [ClassifierOutputTarget(k)])


class _DeepCopyGradCam:
    """The way of the original design: probabilities, then a deep copy of the network with hooks for one map."""

    def __init__(self, network: nn.Module, image: torch.Tensor) -> None:
        self._network = network
        self._image = image

    def one_map(self) -> Any:
        with torch.inference_mode():
            top = int(self._network(self._image)[0].argmax())
        clone = _copy_for_hooks(self._network)
        kept: dict[str, torch.Tensor] = {}
        clone[1].register_forward_hook(lambda _module, _inputs, out: kept.update(activation=out))

        def keep_gradient(_module: nn.Module, _inputs: object, out: Any) -> None:
            kept["gradient"] = out[0]

        clone[1].register_full_backward_hook(keep_gradient)
        clone(self._image)[0, top].backward()
        weights = kept["gradient"].mean(dim=(2, 3), keepdim=True)
        return torch.relu((weights * kept["activation"]).sum(dim=1))[0].detach().cpu().numpy()


def _copy_for_hooks(network: Any) -> nn.Sequential:
    """Copy a DenseNet as a row of modules with nothing in place, so that hooks see every tensor and its gradient."""
    clone = copy.deepcopy(network)
    for module in clone.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return nn.Sequential(
        clone.features, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), clone.classifier
    ).requires_grad_(True)


def _server(data: bytes, requests: int) -> dict[str, Any]:
    """Start the API as the README does; time its first health answer, and watch its memory over many films."""
    server = api_server(free_port())
    milliseconds, memory = [], {}
    try:
        start = time.perf_counter()
        server.start()
        server.wait()
        ready = time.perf_counter() - start
        with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
            for number in range(1, requests + 1):
                seconds = _seconds(lambda: client.post("/analyze", files={"image": ("film", data)}).raise_for_status())
                milliseconds.append(1000 * seconds)
                if number in (20, requests):
                    memory[number] = _resident_mib(server.pid)
    finally:
        server.kill()
    return {
        "first 200 from /health after seconds": round(ready, 2),
        "analyze p50 ms": round(statistics.median(milliseconds), 1),
        "analyze p95 ms": round(statistics.quantiles(milliseconds, n=20)[-1], 1),
        "resident MiB after requests": memory,
        f"memory after {requests} / after 20": round(memory[requests] / memory[20], 4),
    }


def _machine() -> dict[str, Any]:
    return machine(PACKAGES) | {"threads": torch.get_num_threads()}


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipeline", description=__doc__)
    parser.add_argument("--film", type=Path, default=SAMPLE, help="a chest radiograph (default: the synthetic sample)")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of each ratio (default: 15)")
    parser.add_argument(
        "--requests", type=int, default=200, help="films sent to the server, at least 21 (default: 200)"
    )
    parser.add_argument("--out", type=Path, help="also write the result as JSON")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
