"""The numbers of this version for fixed films: `python -m tests.golden` writes them anew, when they may change.

Whoever changes the weights, the preprocessing, fusion or the rules on purpose writes this file anew, and its difference
shows a reviewer what changed for which film.
"""

import json
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from modules.images import open_image
from modules.pathologies import NAMES
from modules.pipeline import Pipeline
from modules.settings import PROJECT_ROOT, Settings
from tests.conftest import as_png

FILE = PROJECT_ROOT / "tests" / "data" / "golden.json"
SYMPTOMS = "Fever and productive cough for three days."
PASSING = ("timings_ms", "request_id")  # of one request, like the seconds of the reader


@cache
def films() -> dict[str, bytes]:
    """Return PNG files: the sample, and what whole numbers make of it, the same on every machine."""
    pixels = np.asarray(Image.open(PROJECT_ROOT / "assets" / "sample_xray.png").convert("L"))
    return {
        "sample": as_png(pixels),
        "sample, mirrored": as_png(pixels[:, ::-1]),
        "sample, half as bright": as_png(pixels // 2),
    }


def answer(pipeline: Pipeline, film: bytes) -> dict[str, Any]:
    """Return a whole answer, less what belongs to one request alone."""
    found = pipeline.analyze(film, SYMPTOMS, heatmaps="all").model_dump(mode="json")
    for key in PASSING:
        del found[key]
    del found["reader"]["seconds"]
    return found


def numbers(pipeline: Pipeline, film: bytes) -> dict[str, Any]:
    """Return what is said of a film: the network's logits, the gate's score, probabilities, confidences, risk."""
    found = answer(pipeline, film)
    logits = pipeline.cnn.predict(open_image(film).decode()).logits
    return {
        "logits": dict(zip(NAMES, (round(float(value), 5) for value in logits), strict=True)),
        "gate_score": found["quality"]["gate_score"],
        "visual_findings": found["visual_findings"],
        "detected": [entry["pathology"] for entry in found["findings"] if entry["detected"]],
        "confidence_scores": found["confidence_scores"],
        "risk_level": found["risk_level"],
        "needs_review": found["needs_review"],
        "heatmap_finding": found["heatmap_finding"]["pathology"],
    }


def main() -> None:
    """Write the file."""
    pipeline = Pipeline.from_settings(Settings(_env_file=None, medgemma_mode="dummy"))
    golden = {
        "weights": pipeline.cnn.info.sha256,
        "films": {name: numbers(pipeline, film) for name, film in films().items()},
    }
    FILE.write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n", "utf-8")


if __name__ == "__main__":
    main()
