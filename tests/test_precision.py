"""Half precision: computed as it says, measured against fp32, and refused without a passing test in the card."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evaluation import precision as measuring
from evaluation.films import LabelledFilm
from evaluation.precision import Pairs, as_test, card_folder, compare, run_both, with_test
from evaluation.scoring import EvaluationError
from modules.cnn_model import CnnModel, preprocess
from modules.engines import choice, reference
from modules.engines.base import GpuOptions
from modules.engines.batching import BatchingEngine
from modules.engines.densenet import served_tensors
from modules.engines.precision import HALF_TOLERANCE, check_figures, check_options
from modules.engines.pytorch import PytorchEngine
from modules.errors import ConfigurationError, WeightsError
from modules.pathologies import NAMES
from modules.pipeline import Pipeline
from modules.records import FloatArray
from modules.settings import PROJECT_ROOT, Precision, Settings
from modules.weights import (
    CARD_FILE,
    EMBEDDED_WEIGHTS,
    MIN_PRECISION_FILMS,
    PrecisionTest,
    WeightsCard,
    card_text,
    load_weights,
    read_card,
)
from tests.conftest import as_png

Tensors = Mapping[str, FloatArray]
CARD = read_card(EMBEDDED_WEIGHTS)


def passing(**changes: Any) -> PrecisionTest:
    values: dict[str, Any] = {
        "dtype": "bf16",
        "device": "cuda",
        "device_name": "a GPU",
        "torch": "2.15.0",
        "weights_sha256": CARD.sha256,
        "cohort": "split val",
        "films": 1620,
        "patients": 524,
        "pathologies": 14,
        "auroc_difference": -0.0004,
        "mean_auroc_difference": 0.0,
        "detections_changed": 3,
        "passes": True,
    }
    return PrecisionTest(**values | changes)


def card_with(*tests: PrecisionTest) -> WeightsCard:
    return CARD.model_copy(update={"precision": tests})


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    return served_tensors(load_weights("embedded"))


@pytest.fixture(scope="module")
def films() -> FloatArray:
    return np.stack([preprocess(one, CARD.preprocessing) for one in reference.films()[-3:]])


@pytest.fixture(scope="module")
def plain(tensors: Tensors) -> PytorchEngine:
    return PytorchEngine(tensors, "cpu")


# ── The engine ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_near_fp32_and_is_not_fp32(
    tensors: Tensors, plain: PytorchEngine, films: FloatArray, precision: Precision
) -> None:
    engine = PytorchEngine(tensors, "cpu", precision=precision)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert engine.precision == precision
    kinds = {type(m).__name__: {p.dtype for p in m.parameters()} for m in engine.network.features.modules()}
    assert (kinds["Conv2d"], kinds["BatchNorm2d"]) == ({dtype}, {torch.float32})
    assert engine.network.classifier.weight.dtype == torch.float32
    (logits, features), (expected, expected_features) = engine.run(films), plain.run(films)
    assert logits.dtype == features.dtype == np.float32
    assert features.shape == expected_features.shape
    assert 0 < np.abs(logits - expected).max() < HALF_TOLERANCE
    # the closed form of the maps needs both to be of one pass
    bias = tensors["classifier.bias"]
    np.testing.assert_allclose(features.mean(axis=(2, 3)) @ tensors["classifier.weight"].T + bias, logits, atol=1e-4)


def test_a_compiled_network_gives_the_same(
    tensors: Tensors, plain: PytorchEngine, films: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def compile_(work: Any, **options: Any) -> Any:
        asked.append(options)
        return work

    monkeypatch.setattr(torch, "compile", compile_)
    engine = PytorchEngine(tensors, "cpu", compiled=True)
    assert asked == [{"dynamic": True}]  # one compilation for all sizes of a batch
    np.testing.assert_array_equal(engine.run(films)[0], plain.run(films)[0])
    PytorchEngine(tensors, "cpu")
    assert len(asked) == 1


# ── Who may serve in half precision ──────────────────────────────────────────────────────────────────────────────────


def test_a_passing_test_on_these_weights_and_this_device_lets_it_serve() -> None:
    check_options(GpuOptions("bf16"), "cuda", card_with(passing()))
    check_options(GpuOptions("fp16"), "mps", card_with(passing(), passing(dtype="fp16", device="mps")))
    check_options(GpuOptions("fp32", compiled=True), "cuda", CARD)


@pytest.mark.parametrize(
    ("card", "options", "device", "said"),
    [
        (CARD, GpuOptions("bf16"), "cuda", "bf16 has no test there. Set fp32, or measure it"),
        (card_with(passing()), GpuOptions("fp16"), "cuda", "fp16 has no test there"),
        (card_with(passing()), GpuOptions("bf16"), "mps", "CNN_PRECISION=bf16 on mps"),
        (card_with(passing(weights_sha256="0" * 64)), GpuOptions("bf16"), "cuda", "has no test there"),
        (
            card_with(passing(auroc_difference=-0.0031, passes=False)),
            GpuOptions("bf16"),
            "cuda",
            r"did not pass there: the AUROC moves by -0\.0031 on 1,620 films",
        ),
        (card_with(passing()), GpuOptions("bf16"), "cpu", "runs on the CPU, which has fp32 alone"),
        (CARD, GpuOptions(compiled=True), "cpu", "CNN_COMPILE=true is for CUDA, but the CNN runs on cpu"),
        (CARD, GpuOptions(compiled=True), "mps", "CNN_COMPILE=true is for CUDA"),
    ],
)
def test_without_one_the_start_is_refused(card: WeightsCard, options: GpuOptions, device: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        check_options(options, device, card)


@pytest.mark.parametrize("setting", [{"cnn_precision": "bf16"}, {"cnn_precision": "fp16"}, {"cnn_compile": True}])
@pytest.mark.parametrize("engine", ["auto", "pytorch", "onnxruntime"])
def test_the_settings_reach_that_check(setting: dict[str, Any], engine: str) -> None:
    settings = Settings(_env_file=None, medgemma_mode="dummy", cnn_device="cpu", cnn_engine=engine, **setting)
    with pytest.raises(ConfigurationError, match="the CNN runs on"):
        Pipeline.from_settings(settings)


@dataclass
class Served:
    """Stands for a GPU: the same code on the CPU, which calls itself cuda."""

    wrong: float = 1.0

    def __call__(self, tensors: Tensors, device: str, threads: int = 0, **options: Any) -> PytorchEngine:
        if self.wrong != 1.0 and options:
            tensors = {**tensors, "classifier.weight": tensors["classifier.weight"] * np.float32(self.wrong)}
        engine = PytorchEngine(tensors, "cpu", threads, **options)
        engine.device = "cuda"
        engine.placed = lambda batch: torch.from_numpy(np.ascontiguousarray(batch)).to(engine._dtype)  # type: ignore[method-assign]
        engine.fetched = lambda *found: tuple(one.numpy() for one in found)  # type: ignore[method-assign]
        return engine


def on_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, served: Served, *tests: PrecisionTest) -> CnnModel:
    monkeypatch.setattr(choice, "PytorchEngine", served)
    for name in ("card.json", CARD.file):
        shutil.copy(EMBEDDED_WEIGHTS / name, tmp_path)
    (tmp_path / CARD_FILE).write_text(card_text(card_with(*tests)), "utf-8")
    return CnnModel(load_weights(str(tmp_path)), "cuda", engine="auto", gpu=GpuOptions("bf16", 4))


def test_with_one_it_serves_and_the_answer_names_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cnn = on_a_gpu(monkeypatch, tmp_path, Served(), passing())
    assert (cnn.info.engine, cnn.info.device, cnn.info.precision) == ("pytorch", "cuda", "bf16")
    assert isinstance(cnn.engine, BatchingEngine)
    assert np.isfinite(cnn.predict(reference.films()[-1]).log_odds).all()
    cnn.close()


def test_without_one_it_does_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="has no test there"):
        on_a_gpu(monkeypatch, tmp_path, Served())


def test_a_gpu_that_computes_something_else_does_not_serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"in bf16 on cuda differs from plain fp32 by .* logits"):
        on_a_gpu(monkeypatch, tmp_path, Served(wrong=1.5), passing())


def test_a_type_that_a_device_cannot_run_is_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def breaks(*_: object) -> None:
        raise RuntimeError("expected scalar type Float but found BFloat16")

    monkeypatch.setattr(choice, "check_figures", breaks)
    with pytest.raises(ConfigurationError, match="does not run on cuda with CNN_PRECISION=bf16"):
        on_a_gpu(monkeypatch, tmp_path, Served(), passing())


def test_compiled_fp32_is_held_to_the_tolerance_of_fp32(
    tensors: Tensors, plain: PytorchEngine, films: FloatArray
) -> None:
    moved = {**tensors, "classifier.bias": tensors["classifier.bias"] + np.float32(0.01)}
    with pytest.raises(ConfigurationError, match=r"more than 0\.001"):
        check_figures(PytorchEngine(moved, "cpu"), plain, films, tensors)
    check_figures(plain, plain, films, tensors)


# ── The card ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_shipped_card_claims_nothing_that_no_gpu_has_measured() -> None:
    assert CARD.precision == ()
    assert (EMBEDDED_WEIGHTS / CARD_FILE).read_text("utf-8") == card_text(CARD)


@pytest.mark.parametrize(
    "changes",
    [
        {"auroc_difference": 0.002},
        {"auroc_difference": -0.002},
        {"films": MIN_PRECISION_FILMS - 1},
        {"pathologies": 13},
        {"passes": False},
    ],
)
def test_a_card_cannot_say_passed_where_its_figures_do_not(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="which its figures do not say"):
        passing(**changes)


def test_a_card_of_a_cpu_is_refused(tmp_path: Path) -> None:
    text = json.loads(card_text(card_with(passing())))
    text["precision"][0]["device"] = "cpu"
    (tmp_path / CARD_FILE).write_text(json.dumps(text), "utf-8")
    with pytest.raises(WeightsError, match=r"precision\.0\.device"):
        read_card(tmp_path)


def test_a_new_test_takes_the_place_of_the_old_one_of_its_kind() -> None:
    old, other, new = passing(), passing(dtype="fp16"), passing(films=2000)
    assert with_test(card_with(old, other), new).precision == (other, new)
    assert with_test(CARD, new).precision == (new,)


# ── The measurement ──────────────────────────────────────────────────────────────────────────────────────────────────


def pairs(count: int = 600, noise: float = 0.0, seed: int = 0) -> Pairs:
    random = np.random.default_rng(seed)
    labels = (random.random((count, 14)) < 0.3).astype(float)
    full = (random.standard_normal((count, 14)) + labels).astype(np.float32)
    half = (full + noise * random.standard_normal(full.shape)).astype(np.float32)
    rows = tuple(LabelledFilm(f"{i}.png", str(i // 2), "val", tuple(labels[i])) for i in range(count))
    return Pairs(rows, full, half)


def test_the_difference_is_that_of_the_same_films() -> None:
    from sklearn.metrics import roc_auc_score

    both = pairs(noise=0.5)
    found = compare(both, CARD, replicates=20, seed=0)
    labels = np.array([row.labels for row in both.rows])
    expected = [
        roc_auc_score(labels[:, k], both.half[:, k]) - roc_auc_score(labels[:, k], both.full[:, k]) for k in range(14)
    ]
    assert list(found["auroc_differences"].values()) == pytest.approx(expected)
    assert found["auroc_difference"] == pytest.approx(max(expected, key=abs))
    assert found["mean_auroc_difference"] == pytest.approx(np.mean(expected))
    assert found["moved_furthest"] == NAMES[int(np.argmax(np.abs(expected)))]
    assert (found["films"], found["patients"], found["pathologies"]) == (600, 300, 14)
    assert found["detections_changed"] > 0
    assert not found["passes"]
    low, high = found["mean_auroc_difference_interval"]
    assert low < found["mean_auroc_difference"] < high


def test_what_moves_nothing_passes_and_too_few_films_do_not() -> None:
    found = compare(pairs(), CARD, replicates=5, seed=0)
    assert (found["auroc_difference"], found["detections_changed"], found["passes"]) == (0.0, 0, True)
    assert not compare(pairs(count=400), CARD, replicates=5, seed=0)["passes"]


def test_films_of_one_label_alone_measure_nothing() -> None:
    both = pairs(count=20)
    rows = tuple(LabelledFilm(row.image, row.patient, "val", (0.0,) * 14) for row in both.rows)
    with pytest.raises(EvaluationError, match="no AUROC"):
        compare(Pairs(rows, both.full, both.half), CARD, replicates=2, seed=0)


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Four drawn films with labels, and one file that is no image."""
    from synthetic.phantom import make_film

    folder = tmp_path / "films"
    folder.mkdir()
    lines = ["image,patient,split," + ",".join(name.replace(" ", "_") for name in NAMES)]
    for number in range(4):
        (folder / f"{number}.png").write_bytes(as_png(make_film(number, size=128).pixels))
        lines.append(f"{number}.png,{number},val," + ",".join([str(number % 2)] * 14))
    (folder / "9.png").write_bytes(b"no image")
    lines.append("9.png,9,val," + ",".join("0" * 14))
    (folder / "labels.csv").write_text("\n".join(lines) + "\n", "utf-8")
    return folder


def test_on_the_cpu_there_is_a_report_and_the_card_stays_as_it_is(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (EMBEDDED_WEIGHTS / CARD_FILE).read_bytes()
    out = tmp_path / "report.json"
    measuring.main(["--images", str(labelled), "--device", "cpu", "--replicates", "3", "--out", str(out)])
    report = json.loads(out.read_text("utf-8"))
    assert json.loads(capsys.readouterr().out) == report
    assert (report["dtype"], report["device"], report["films"]) == ("bf16", "cpu", 4)
    assert report["torch"] == torch.__version__
    assert 0 < report["largest_logit_difference"] < HALF_TOLERANCE
    assert report["passes"] is False  # of four films
    assert report["written into"] is None
    assert (EMBEDDED_WEIGHTS / CARD_FILE).read_bytes() == before


def test_on_a_gpu_the_card_of_those_weights_gets_the_test(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    for name in (CARD_FILE, CARD.file):
        shutil.copy(EMBEDDED_WEIGHTS / name, folder)
    monkeypatch.setattr(measuring, "PytorchEngine", Served())
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    measuring.main(["--images", str(labelled), "--weights", str(folder), "--replicates", "3"])
    card = read_card(folder)
    (test,) = card.precision
    assert (test.dtype, test.device, test.device_name, test.films) == ("bf16", "cuda", "a GPU", 4)
    assert test.weights_sha256 == card.sha256
    assert not test.passes
    with pytest.raises(ConfigurationError, match="did not pass there"):
        check_options(GpuOptions("bf16"), "cuda", card)
    assert card.model_copy(update={"precision": ()}) == CARD


def test_logits_that_are_not_finite_make_no_test(labelled: Path, plain: PytorchEngine) -> None:
    class Overflows:
        name, device, precision = "pytorch", "cuda", "fp16"

        def run(self, batch: FloatArray) -> tuple[FloatArray, FloatArray]:
            logits, features = plain.run(batch)
            logits[1, 3] = np.inf
            return logits, features

        def close(self) -> None:
            """Hold nothing."""

    rows = {f"{i}.png": LabelledFilm(f"{i}.png", str(i), "val", (0.0,) * 14) for i in range(4)}
    with pytest.raises(EvaluationError, match="fp16 gives logits that are not finite on 1 films"):
        run_both(plain, Overflows(), CARD, rows, [labelled])  # type: ignore[arg-type]


def test_weights_without_a_card_on_disk_have_no_place_for_a_test() -> None:
    assert card_folder("embedded") == EMBEDDED_WEIGHTS
    assert card_folder("densenet121-res224-all") is None
    assert card_folder(str(PROJECT_ROOT / "assets")) == PROJECT_ROOT / "assets"


def test_a_report_holds_what_the_card_keeps() -> None:
    report = compare(pairs(), CARD, replicates=2, seed=0) | {
        "dtype": "fp16",
        "device": "mps",
        "device_name": "Apple GPU",
        "torch": "2.15.0",
        "weights_sha256": CARD.sha256,
        "cohort": "split val",
    }
    assert as_test(report).passes
