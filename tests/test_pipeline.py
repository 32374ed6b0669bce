"""The six stages in a row on the synthetic sample: run by pytest, or as a script that says how each went."""

import base64
import io
import sys
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from modules import explainability, fusion, risk_module, uncertainty
from modules.answers import Analysis
from modules.errors import InvalidSymptoms, InvertedGreyscale, NotAChestRadiograph
from modules.images import open_image
from modules.multimodal_reasoning import SecondReader
from modules.pathologies import NAMES
from modules.pipeline import Pipeline
from modules.quality import InputGate
from modules.reasoners.base import FILM_SIDE
from modules.records import ReaderStatement, Reading
from modules.settings import Colormap, Settings
from tests.scripted import ScriptedReader

SAMPLE = ROOT / "assets" / "sample_xray.png"
SYMPTOMS = "Cough for three days, denies chest pain."


class Walk:
    """The stages on one film; each is run when it is first asked for."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline

    @cached_property
    def radiograph(self):
        return open_image(SAMPLE.read_bytes()).decode()

    @cached_property
    def quality(self):
        return InputGate.load().assess(self.radiograph)

    @cached_property
    def prediction(self):
        return self.pipeline.cnn.predict(self.radiograph)

    @cached_property
    def reader_answer(self):
        reader = SecondReader.from_settings(Settings(_env_file=None, medgemma_mode="dummy"))
        return reader.read(self.radiograph, SYMPTOMS, self.prediction)

    @cached_property
    def fused(self):
        return fusion.fuse(self.prediction, self.reader_answer[0])

    @cached_property
    def sureness(self):
        return uncertainty.assess(self.prediction, self.reader_answer[0], self.fused, self.quality)


def check_cnn(walk: Walk) -> str:
    prediction = walk.prediction
    assert prediction.probabilities.shape == (14,)
    assert ((prediction.probabilities > 0) & (prediction.probabilities < 1)).all()
    assert prediction.features.shape[0] == prediction.classifier_weight.shape[1]
    bias = prediction.logits - explainability.contribution_maps(prediction.features, prediction.classifier_weight).sum(
        axis=(1, 2)
    )
    other = walk.pipeline.cnn.forward(np.zeros((1, 1, 224, 224), np.float32))
    other_maps = explainability.contribution_maps(other[1][0], prediction.classifier_weight)
    np.testing.assert_allclose(bias, other[0][0] - other_maps.sum(axis=(1, 2)), atol=1e-4)  # one bias for all films
    top = prediction.ranking[0]
    return f"14 probabilities; {NAMES[top]} stands out most: {prediction.probabilities[top]:.3f}"


def check_reader(walk: Walk) -> str:
    reading, info = walk.reader_answer
    assert reading.reasoning.startswith("No second reader ran: ")
    assert not info.independent
    assert info.token_confidence is None
    detected = [NAMES[k] for k in walk.prediction.ranking if walk.prediction.detected[k]]
    assert list(reading.differential) == detected
    return "the template says that no second reader ran"


def check_fusion(walk: Walk) -> str:
    assert [f.pathology for f in walk.fused.findings] == list(NAMES)
    for finding in walk.fused.findings:
        assert finding.fused_probability == finding.cnn_probability  # a template moves nothing
    assert walk.fused.contradictions == ()
    said = Reading(reasoning="read", statements={"Effusion": ReaderStatement(status="absent", confidence=0.9)})
    denied = fusion.fuse(walk.prediction, said).findings[NAMES.index("Effusion")]
    assert denied.fused_probability < denied.cnn_probability
    assert denied.detected == walk.fused.findings[NAMES.index("Effusion")].detected
    return "14 findings; a template moves none, a denial lowers one and hides nothing"


def check_uncertainty(walk: Walk) -> str:
    sureness = walk.sureness
    p = walk.prediction.probabilities.astype(float)
    entropy = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    assert sureness.cnn == pytest.approx(1 - entropy.mean(), abs=1e-6)
    assert sureness.llm is None
    assert sureness.fused == pytest.approx(sureness.cnn)
    return f"CNN {sureness.cnn:.2f}, reader not measured, fused {sureness.fused:.2f}"


def check_risk(walk: Walk) -> str:
    risk = risk_module.assess(walk.fused, walk.sureness, walk.quality, SYMPTOMS)
    assert risk.level in ("Low", "Moderate", "High")
    assert risk.factors
    assert not any("Red-flag" in factor for factor in risk.factors)  # "denies chest pain" is none
    flagged = risk_module.assess(walk.fused, walk.sureness, walk.quality, "coughing up blood")
    assert any("coughing blood" in factor for factor in flagged.factors)
    order = ["Low", "Moderate", "High"]
    assert order.index(flagged.level) >= order.index(risk.level)
    return f"{risk.level}, {'needs' if risk.needs_review else 'no'} review"


def check_grad_cam(walk: Walk) -> str:
    maps = explainability.calibrated_maps(walk.prediction)
    assert maps.shape[0] == 14
    top = walk.prediction.ranking[0]
    png = explainability.overlay_png(walk.radiograph, maps[top], walk.prediction, Colormap.INFERNO)
    with Image.open(io.BytesIO(png)) as overlay:
        assert overlay.size == walk.radiograph.pixels.shape[::-1]
        assert np.ptp(np.asarray(overlay.convert("RGB"), int), axis=2).max() > 0  # something is painted
    return f"14 maps of {maps.shape[1]} × {maps.shape[2]} cells, the overlay of {NAMES[top]}"


STEPS = {
    "CNN prediction": check_cnn,
    "Second reader (dummy)": check_reader,
    "Fusion": check_fusion,
    "Uncertainty": check_uncertainty,
    "Risk": check_risk,
    "Grad-CAM": check_grad_cam,
}


@pytest.fixture(scope="module")
def walk(pipeline: Pipeline) -> Walk:
    return Walk(pipeline)


@pytest.mark.parametrize("step", STEPS)
def test_each_stage_does_its_part(walk: Walk, step: str) -> None:
    assert STEPS[step](walk)


def test_the_whole_pipeline_gives_what_the_stages_give(walk: Walk) -> None:
    answer = walk.pipeline.analyze(SAMPLE.read_bytes(), SYMPTOMS, heatmaps="all")
    assert answer.findings == walk.fused.findings
    assert answer.confidence_scores.llm == 0.0
    assert answer.quality == walk.quality
    assert list(answer.visual_findings) == list(NAMES)
    assert list(answer.heatmaps) == list(NAMES)
    assert set(answer.timings_ms) >= {"decode", "gate", "cnn", "reader", "fusion", "uncertainty", "risk", "total"}
    assert answer.heatmap_finding is not None
    with Image.open(io.BytesIO(base64.b64decode(answer.heatmap_base64))) as overlay:
        assert overlay.size == (answer.image.width, answer.image.height)


def test_the_answer_survives_json(walk: Walk) -> None:
    answer = walk.pipeline.analyze(SAMPLE.read_bytes())
    again = Analysis.model_validate_json(answer.model_dump_json())
    assert again.risk_level == answer.risk_level
    for name, probability in answer.visual_findings.items():
        assert again.visual_findings[name] == pytest.approx(probability, abs=1e-6)


@pytest.mark.parametrize(("choice", "count"), [("none", 0), ("top", 1), ("all", 14)])
def test_as_many_heatmaps_come_as_were_asked_for(walk: Walk, choice: str, count: int) -> None:
    answer = walk.pipeline.analyze(SAMPLE.read_bytes(), heatmaps=choice)
    assert len(answer.heatmaps) == count
    assert answer.heatmap_available == bool(answer.heatmap_base64) == (count > 0)
    assert (answer.heatmap_finding is None) == (count == 0)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_an_inverted_film_is_refused_and_read_when_told_so(walk: Walk) -> None:
    inverted = png(255 - np.asarray(Image.open(SAMPLE).convert("L")))
    with pytest.raises(InvertedGreyscale, match="invert=true"):
        walk.pipeline.analyze(inverted)
    answer = walk.pipeline.analyze(inverted, invert=True)
    assert answer.needs_review
    np.testing.assert_allclose(
        [f.cnn_probability for f in answer.findings], [f.cnn_probability for f in walk.fused.findings], rtol=1e-3
    )


def test_noise_is_refused_and_a_forced_answer_never_reassures(walk: Walk) -> None:
    noise = png(np.random.default_rng(0).integers(0, 256, (400, 400), dtype=np.uint8))
    with pytest.raises(NotAChestRadiograph):
        walk.pipeline.analyze(noise)
    answer = walk.pipeline.analyze(noise, force=True)
    assert answer.quality.forced
    assert not answer.quality.accepted
    assert answer.needs_review


def test_symptoms_have_a_limit(walk: Walk) -> None:
    with pytest.raises(InvalidSymptoms, match="4000"):
        walk.pipeline.analyze(SAMPLE.read_bytes(), "x" * 4001)


def test_the_film_is_made_ready_for_a_reader_that_looks_at_it_and_for_no_other(walk: Walk) -> None:
    second = ScriptedReader().enqueue(Reading(reasoning="", independent=True))
    looked_at = Pipeline(walk.pipeline.cnn, InputGate.load(), SecondReader("local", (second,)))
    looked_at.read(looked_at.see(looked_at.open(SAMPLE.read_bytes())))
    assert second.history[0].film.pixels.shape == (FILM_SIDE, FILM_SIDE)
    assert second.history[0].film.pixels.std() > 10
    unseen = walk.pipeline.see(walk.pipeline.open(SAMPLE.read_bytes()))
    assert unseen.film.pixels.size == 1


def main() -> int:
    """Walk through the stages and say how each went."""
    walk = Walk(Pipeline.from_settings(Settings(_env_file=None, medgemma_mode="dummy")))
    for name, check in STEPS.items():
        try:
            outcome = check(walk)
        except Exception as exc:
            sys.stdout.write(f"[TEST] {name} ✗ {type(exc).__name__}: {exc}\n")
            return 1
        sys.stdout.write(f"[TEST] {name} ✓ {outcome}\n")
    sys.stdout.write("ALL TESTS PASSED\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
