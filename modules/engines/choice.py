"""Which engine serves: the one that is asked for, or the fastest for this machine's device."""

import ctypes
import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from modules.engines import reference
from modules.engines.base import NO_GPU_OPTIONS, Engine, EngineChoice, GpuOptions
from modules.engines.batching import owned
from modules.engines.densenet import served_tensors
from modules.engines.onnxruntime import INSTALL, OnnxRuntimeEngine
from modules.engines.precision import check_figures, check_options
from modules.engines.pytorch import PytorchEngine, best_device
from modules.errors import ConfigurationError
from modules.records import FloatArray, Radiograph
from modules.weights import Weights

logger = logging.getLogger(__name__)


def make_engine(
    weights: Weights,
    engine: EngineChoice,
    device: str,
    cache: Path | None,
    prepare: Callable[[Radiograph], FloatArray],
    threads: int = 0,
    gpu: GpuOptions = NO_GPU_OPTIONS,
    images_a_film: int = 1,
) -> Engine:
    """Build the engine of the weights; `prepare` makes the network's input (1, S, S) of a film.

    On the CPU it takes that many `threads`, 0 for all cores; on a GPU what `gpu` says. Raises WeightsError for tensors
    that do not fit, ConfigurationError for an engine or a device that is not there, and for a precision that the card
    has no passing test of.
    """
    if engine == "onnxruntime" and device not in ("auto", "cpu"):
        raise ConfigurationError(f"CNN_ENGINE=onnxruntime runs on the CPU, but CNN_DEVICE={device}; set one to auto.")
    tensors = served_tensors(weights)
    on_cpu = engine == "onnxruntime" or _runs_on_cpu(device)
    check_options(gpu, "cpu" if on_cpu else best_device() if device == "auto" else device, weights.card)

    def films() -> FloatArray:
        with np.errstate(all="ignore"):  # a card's numbers may run away; then no engine agrees, and nothing serves
            return np.stack([prepare(film) for film in reference.films()])

    if engine == "pytorch" or not on_cpu:
        return owned(_in_pytorch(tensors, device, threads, gpu, films), gpu.films_a_pass * images_a_film)
    batch = films()
    try:
        fast = OnnxRuntimeEngine(tensors, threads)
        return reference.checked(
            fast, batch, tensors, reference.References(cache), lambda: PytorchEngine(tensors, "cpu", threads)
        )
    except ImportError as exc:
        if engine == "onnxruntime":
            raise ConfigurationError(f"CNN_ENGINE=onnxruntime, but it cannot be loaded ({exc}): {INSTALL}") from exc
        reason = f"{exc}; faster with: {INSTALL}"
    except Exception as exc:  # whatever a library raises that cannot run here
        reason = f"{type(exc).__name__}: {exc}"
    logger.warning("engine_refused", extra={"fields": {"engine": OnnxRuntimeEngine.name, "reason": reason}})
    return PytorchEngine(tensors, "cpu", threads)


def _in_pytorch(
    tensors: Mapping[str, FloatArray], device: str, threads: int, gpu: GpuOptions, films: Callable[[], FloatArray]
) -> PytorchEngine:
    if gpu.precision == "fp32" and not gpu.compiled:
        return PytorchEngine(tensors, device, threads)
    engine = PytorchEngine(tensors, device, threads, precision=gpu.precision, compiled=gpu.compiled)
    try:
        check_figures(engine, PytorchEngine(tensors, device, threads), films(), tensors)
    except ConfigurationError:
        raise
    except Exception as exc:  # whatever a device raises that cannot run it
        asked = f"CNN_PRECISION={gpu.precision} and CNN_COMPILE={str(gpu.compiled).lower()}"
        raise ConfigurationError(
            f"The CNN does not run on {engine.device} with {asked} ({type(exc).__name__}: {exc}). Set fp32 and false."
        ) from exc
    return engine


def _runs_on_cpu(device: str) -> bool:
    if device != "auto":
        return device == "cpu"
    return not _may_have_gpu() or best_device() == "cpu"


def _may_have_gpu() -> bool:
    """Whether it is worth importing torch to ask it: on Apple, and where the driver of a GPU lies."""
    if sys.platform == "darwin" or Path("/dev/kfd").exists():  # the latter: AMD's
        return True
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True
