"""Whether a network may serve in half precision, and as torch.compile makes it: what was tested, on which weights.

Nothing falls back in silence here: whoever asks for a precision gets it, or a sentence at the start that says why not.
"""

import logging
from collections.abc import Mapping

import numpy as np

from modules.engines.base import Engine, GpuOptions
from modules.engines.densenet import CLASSIFIER_WEIGHT
from modules.engines.reference import TOLERANCE, disagreement, figures
from modules.errors import ConfigurationError
from modules.records import FloatArray
from modules.weights import WeightsCard

logger = logging.getLogger(__name__)

# Logits, and logits per cell, by which half precision may differ on the films of the start's check. Chosen: on a CPU
# bfloat16 differs by at most 0.019 on 64 validation films; a kernel that computes something else, by whole logits.
HALF_TOLERANCE = 0.25


def check_options(options: GpuOptions, device: str, card: WeightsCard) -> None:
    """Raise ConfigurationError for a precision without a passing test, or for what this device does not have."""
    if options.compiled and device != "cuda":
        raise ConfigurationError(f"CNN_COMPILE=true is for CUDA, but the CNN runs on {device}; set it to false.")
    if options.precision == "fp32":
        return
    asked = f"CNN_PRECISION={options.precision}"
    if device == "cpu":
        raise ConfigurationError(f"{asked}, but the CNN runs on the CPU, which has fp32 alone; set fp32.")
    tests = [
        test
        for test in card.precision
        if (test.dtype, test.device, test.weights_sha256) == (options.precision, device, card.sha256)
    ]
    passed = [test for test in tests if test.passes]
    if not passed:
        why = (
            f"did not pass there: the AUROC moves by {tests[0].auroc_difference:+.4f} on {tests[0].films:,} films"
            if tests
            else "has no test there"
        )
        raise ConfigurationError(
            f"{asked} on {device}, but the card of {card.name} says that {options.precision} {why}. Set fp32, or "
            "measure it with: python -m evaluation.precision"
        )
    logger.info("precision_tested", extra={"fields": passed[0].model_dump()})


def check_figures(engine: Engine, plain: Engine, batch: FloatArray, tensors: Mapping[str, FloatArray]) -> None:
    """Hold an engine against float32 without compilation on the same device; raises ConfigurationError."""
    limit = TOLERANCE if engine.precision == "fp32" else HALF_TOLERANCE
    weight = tensors[CLASSIFIER_WEIGHT]
    with np.errstate(all="ignore"):
        difference = disagreement(figures(engine, batch, weight), figures(plain, batch, weight))
    if difference > limit:
        raise ConfigurationError(
            f"The CNN in {engine.precision} on {engine.device} differs from plain fp32 by {difference:.3g} logits on "
            f"{len(batch)} films, more than {limit:g}: set CNN_PRECISION=fp32 and CNN_COMPILE=false."
        )
    fields = {"precision": engine.precision, "films": len(batch), "largest_difference": difference}
    logger.info("engine_checked", extra={"fields": fields})
