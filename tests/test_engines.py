"""The CNN's engines: the same numbers from each, a check before one serves, and a start that needs no torch."""

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

from modules.cnn_model import CnnModel, preprocess
from modules.engines import choice, reference
from modules.engines.base import Engine
from modules.engines.densenet import CLASSIFIER_BIAS, CLASSIFIER_WEIGHT, UNUSED, served_tensors, shapes
from modules.engines.onnxruntime import OnnxRuntimeEngine, usable_cores
from modules.engines.pytorch import PytorchEngine, untrained_network
from modules.engines.reference import TOLERANCE, References, checked, disagreement, figures
from modules.errors import ConfigurationError
from modules.images import open_image
from modules.pathologies import NAMES
from modules.pipeline import Pipeline
from modules.records import FloatArray, ImageHeader, Radiograph
from modules.settings import PROJECT_ROOT, Settings
from modules.weights import load_weights
from synthetic.phantom import make_film
from tests.real_films import originals

SAMPLE = PROJECT_ROOT / "assets" / "sample_xray.png"
FILMS = ["sample", "drawn 3", "drawn 8", *(path.name for path in originals()[:3])]

Tensors = Mapping[str, FloatArray]


def load(name: str) -> Radiograph:
    if name.startswith("drawn"):
        pixels = make_film(seed=int(name.split()[1]), size=256, findings=["Effusion"]).pixels
        return Radiograph(pixels.astype(np.float32) / 255, ImageHeader("png", 256, 256))
    path = SAMPLE if name == "sample" else next(p for p in originals() if p.name == name)
    return open_image(path.read_bytes()).decode()


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    return served_tensors(load_weights("embedded"))


@pytest.fixture(scope="module")
def pytorch(tensors: Tensors) -> Engine:
    return PytorchEngine(tensors, "cpu")


@pytest.fixture(scope="module")
def fast(tensors: Tensors) -> Engine:
    return OnnxRuntimeEngine(tensors)


@pytest.fixture(scope="module")
def in_pytorch() -> CnnModel:
    return CnnModel(load_weights("embedded"), "cpu")


@pytest.fixture(scope="module")
def batch() -> FloatArray:
    recipe = load_weights("embedded").card.preprocessing
    return np.stack([preprocess(film, recipe) for film in reference.films()])


def not_asked() -> NoReturn:
    raise AssertionError("PyTorch was asked although its figures were at hand")


def fields_of(caplog: pytest.LogCaptureFixture, event: str) -> dict[str, object]:
    """Return what was logged with the only event of that name."""
    (record,) = [record for record in caplog.records if record.getMessage() == event]
    return dict(record.fields)  # type: ignore[attr-defined]


def changed(tensors: Tensors, key: str, factor: float) -> Tensors:
    return {**tensors, key: tensors[key] * np.float32(factor)}


# ── The same numbers ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_tensors_are_those_of_torchvisions_network() -> None:
    theirs = {k: tuple(v.shape) for k, v in untrained_network(14).state_dict().items() if not k.endswith(UNUSED)}
    assert shapes(14) == theirs


@pytest.mark.parametrize("size", [1, 2, 5])
def test_logits_and_features_are_pytorchs_in_any_batch(
    fast: Engine, pytorch: Engine, batch: FloatArray, size: int
) -> None:
    logits, features = fast.run(batch[:size])
    expected_logits, expected_features = pytorch.run(batch[:size])
    assert logits.shape == (size, len(NAMES))
    assert features.shape == expected_features.shape
    assert logits.dtype == features.dtype == np.float32
    np.testing.assert_allclose(logits, expected_logits, atol=1e-4)
    np.testing.assert_allclose(features, expected_features, atol=1e-4)


def test_any_layout_of_the_batch_is_read_right(fast: Engine, batch: FloatArray) -> None:
    mirrored = batch[:2, :, :, ::-1]
    np.testing.assert_array_equal(fast.run(mirrored)[0], fast.run(np.ascontiguousarray(mirrored))[0])


@pytest.mark.parametrize("name", FILMS)
def test_an_answer_has_the_numbers_that_pytorch_gives(pipeline: Pipeline, in_pytorch: CnnModel, name: str) -> None:
    served, expected = pipeline.cnn.predict(load(name)), in_pytorch.predict(load(name))
    assert (pipeline.cnn.info.engine, in_pytorch.info.engine) == ("onnxruntime", "pytorch")
    np.testing.assert_allclose(served.logits, expected.logits, atol=TOLERANCE)
    np.testing.assert_allclose(served.probabilities, expected.probabilities, atol=TOLERANCE)
    assert served.mirrored_log_odds is not None
    assert expected.mirrored_log_odds is not None
    np.testing.assert_allclose(served.mirrored_log_odds, expected.mirrored_log_odds, atol=TOLERANCE)
    np.testing.assert_array_equal(served.detected, expected.detected)


@pytest.mark.parametrize(("asked", "given"), [(1, 1), (3, 3), (0, usable_cores())])
def test_the_cnn_takes_the_threads_it_was_given(tensors: Tensors, asked: int, given: int) -> None:
    engine = OnnxRuntimeEngine(tensors, asked)
    assert engine._session.get_session_options().intra_op_num_threads == given


def test_the_settings_threads_reach_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def remember(tensors: Tensors, threads: int = 0) -> OnnxRuntimeEngine:
        asked.append(threads)
        return OnnxRuntimeEngine(tensors, threads)

    monkeypatch.setattr(choice, "OnnxRuntimeEngine", remember)
    monkeypatch.setattr(remember, "name", OnnxRuntimeEngine.name, raising=False)
    Pipeline.from_settings(Settings(medgemma_mode="dummy", cnn_threads=1)).close()
    assert asked == [1]


def test_several_threads_get_what_one_gets(fast: Engine, batch: FloatArray) -> None:
    alone = [fast.run(film[np.newaxis])[0] for film in batch]
    ready = threading.Barrier(len(batch))

    def run(film: FloatArray) -> list[FloatArray]:
        ready.wait(10)
        return [fast.run(film[np.newaxis])[0] for _ in range(3)]

    with ThreadPoolExecutor(len(batch)) as pool:
        for expected, found in zip(alone, pool.map(run, batch), strict=True):
            for logits in found:
                np.testing.assert_array_equal(logits, expected)


# ── The check before one serves ──────────────────────────────────────────────────────────────────────────────────────


def test_the_films_of_the_check_differ_and_make_pairs_and_one_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    films = reference.films()
    assert len(films) % reference.SERVED_BATCH == 1
    assert len({film.pixels.tobytes() for film in films}) == len(films)
    monkeypatch.setattr(reference, "SAMPLE", Path("nowhere"))
    drawn = reference.films()
    assert len(drawn) % reference.SERVED_BATCH == 1
    assert 1 < len(drawn) < len(films)


def test_pytorch_is_asked_once_for_each_set_of_weights(
    fast: Engine, pytorch: Engine, tensors: Tensors, batch: FloatArray, tmp_path: Path
) -> None:
    references = References(tmp_path / "made" / "by it")
    assert checked(fast, batch, tensors, references, lambda: pytorch) is fast
    assert checked(fast, batch, tensors, references, not_asked) is fast
    (kept,) = (tmp_path / "made" / "by it").iterdir()
    assert kept == references.path(tensors, batch)


def test_other_weights_rows_or_films_have_figures_of_their_own(tensors: Tensors, batch: FloatArray) -> None:
    references = References(Path("any"))
    rows = [1, 0, *range(2, len(NAMES))]
    swapped = {**tensors, **{key: tensors[key][rows] for key in (CLASSIFIER_WEIGHT, CLASSIFIER_BIAS)}}
    cases = [
        (tensors, batch),
        (changed(tensors, "features.conv0.weight", 1.0001), batch),
        (swapped, batch),
        (tensors, batch[:3]),
        (tensors, batch + np.float32(0.001)),
    ]
    assert len({references.path(*case) for case in cases}) == len(cases)
    assert references.path(dict(reversed(tensors.items())), batch.copy()) == references.path(tensors, batch)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:500]),
        lambda path: path.write_bytes(b"\x80\x04pickle"),
        lambda path: np.save(path, np.load(path) + np.float32(0.01)),
        lambda path: np.save(path, np.full_like(np.load(path), np.nan)),
        lambda path: np.save(path, np.load(path)[:1]),
        lambda path: np.save(path, np.array({"an": "object"}), allow_pickle=True),
    ],
    ids=["empty", "cut off", "a pickle", "other figures", "not a number", "another shape", "an object"],
)
def test_a_damaged_file_is_noticed_and_replaced(
    fast: Engine,
    pytorch: Engine,
    tensors: Tensors,
    batch: FloatArray,
    tmp_path: Path,
    damage: Callable[[Path], object],
) -> None:
    references, batch = References(tmp_path), batch[:2]
    path = references.path(tensors, batch)
    assert path is not None
    checked(fast, batch, tensors, references, lambda: pytorch)
    whole = path.read_bytes()
    damage(path)
    assert path.read_bytes() != whole
    assert checked(fast, batch, tensors, references, lambda: pytorch) is fast
    assert path.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("key", ["features.conv0.weight", "features.transition2.conv.weight", "classifier.bias"])
def test_an_engine_that_computes_something_else_does_not_serve(
    pytorch: Engine,
    tensors: Tensors,
    batch: FloatArray,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    key: str,
) -> None:
    wrong = OnnxRuntimeEngine(changed(tensors, key, 1.01))
    served = checked(wrong, batch, tensors, References(tmp_path), lambda: pytorch)
    assert served is pytorch
    assert "onnxruntime differs from PyTorch by" in str(fields_of(caplog, "engine_refused")["reason"])
    assert list(tmp_path.iterdir()) == []


def test_right_logits_with_a_map_in_the_wrong_place_do_not_agree(fast: Engine, batch: FloatArray) -> None:
    weight = np.asarray(load_weights("embedded").tensors[CLASSIFIER_WEIGHT])
    right = figures(fast, batch[:2], weight)
    turned = right.copy()
    turned[:, :, 1:] = right[:, :, :0:-1]
    assert disagreement(right, right) == 0.0
    assert disagreement(turned, right) > TOLERANCE


def test_numbers_that_are_not_finite_agree_with_nothing() -> None:
    for value in (np.nan, np.inf):
        array = np.full((1, 2, 3), value, np.float32)
        assert disagreement(array, array) == float("inf")


def test_several_processes_at_once_leave_one_whole_file(tensors: Tensors, batch: FloatArray, tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
import numpy as np
from modules.engines.reference import References
references, path = References(Path(sys.argv[1])), Path(sys.argv[1]) / "kept.npy"
values = np.full((7, 14, 50), float(sys.argv[2]), np.float32)
for _ in range(300):
    references.write(path, values)
    found = references.read(path)
    assert found is not None and found.shape == values.shape and len(set(found.ravel().tolist())) == 1
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    writers = [subprocess.Popen([*command, str(value)], cwd=PROJECT_ROOT, stderr=subprocess.PIPE) for value in (1, 2)]
    for writer in writers:
        _, error = writer.communicate(timeout=60)
        assert writer.returncode == 0, error
    assert [path.name for path in tmp_path.iterdir()] == ["kept.npy"]


def test_a_folder_that_cannot_be_written_costs_time_alone(
    fast: Engine,
    pytorch: Engine,
    tensors: Tensors,
    batch: FloatArray,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "a file").write_text("")
    assert checked(fast, batch, tensors, References(tmp_path / "a file"), lambda: pytorch) is fast
    assert "CNN_CACHE cannot be written" in str(fields_of(caplog, "engine_cache_unavailable")["reason"])


@pytest.mark.parametrize(
    ("given", "folder"), [("/of/mine", "/of/mine"), ("", "/home/me/.cache"), ("not/absolute", "/home/me/.cache")]
)
def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tensors: Tensors, given: str, folder: str) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_CACHE_HOME", given)
    path = References(None).path(tensors, np.zeros((1, 1, 4, 4), np.float32))
    assert path is not None
    assert path.parent == Path(folder) / "cxr-assistant"


def test_without_a_home_the_check_goes_on(
    fast: Engine,
    pytorch: Engine,
    tensors: Tensors,
    batch: FloatArray,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def no_home() -> NoReturn:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert checked(fast, batch, tensors, References(None), lambda: pytorch) is fast
    assert "no home" in str(fields_of(caplog, "engine_cache_unavailable")["reason"])


# ── Which engine serves ──────────────────────────────────────────────────────────────────────────────────────────────


def made(engine: str, device: str = "cpu", cache: Path | None = None) -> CnnModel:
    settings = Settings(_env_file=None, cnn_engine=engine, cnn_device=device)
    return CnnModel(
        load_weights("embedded"), settings.cnn_device, engine=settings.cnn_engine, cache=cache or settings.cnn_cache
    )


@pytest.mark.parametrize(
    ("engine", "served"), [("auto", "onnxruntime"), ("onnxruntime", "onnxruntime"), ("pytorch", "pytorch")]
)
def test_the_setting_decides_on_the_cpu(engine: str, served: str) -> None:
    info = made(engine).info
    assert (info.engine, info.device) == (served, "cpu")


def test_a_gpu_is_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_may_have_gpu", lambda: True)
    monkeypatch.setattr(choice, "best_device", lambda: "cuda")
    assert made("auto", "auto").info.engine == "pytorch"
    monkeypatch.setattr(choice, "best_device", lambda: "cpu")  # a driver without a card
    assert made("auto", "auto").info.engine == "onnxruntime"


def test_pytorch_is_asked_for_a_gpu_only_where_one_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_may_have_gpu", lambda: False)
    monkeypatch.setattr(choice, "best_device", not_asked)
    assert made("auto", "auto").info.engine == "onnxruntime"


def test_an_engine_and_a_device_that_do_not_go_together_are_named() -> None:
    with pytest.raises(ConfigurationError, match=r"CNN_ENGINE=onnxruntime runs on the CPU, but CNN_DEVICE=cuda"):
        made("onnxruntime", "cuda")


@pytest.mark.parametrize("package", ["onnxruntime", "onnx"])
def test_without_its_packages_pytorch_serves_unless_they_were_asked_for(
    package: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert made("auto").info.engine == "pytorch"
    assert "pip install onnxruntime onnx" in str(fields_of(caplog, "engine_refused")["reason"])
    with pytest.raises(ConfigurationError, match=r"CNN_ENGINE=onnxruntime, but .* pip install onnxruntime onnx"):
        made("onnxruntime")


def test_an_engine_that_breaks_leaves_the_film_to_pytorch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def breaks(self: OnnxRuntimeEngine, batch: FloatArray) -> NoReturn:
        raise RuntimeError("illegal instruction")

    monkeypatch.setattr(OnnxRuntimeEngine, "run", breaks)
    assert made("auto").info.engine == "pytorch"
    assert fields_of(caplog, "engine_refused")["reason"] == "RuntimeError: illegal instruction"


def test_the_server_says_which_engine_answers(pipeline: Pipeline) -> None:
    answer = pipeline.analyze(SAMPLE.read_bytes())
    assert answer.model.engine == pipeline.cnn.engine.name == "onnxruntime"
    assert answer.model.device == "cpu"


# ── What a start loads, and what it leaves behind ────────────────────────────────────────────────────────────────────

START = """
import json, sys
from starlette.testclient import TestClient
from main import create_app
from modules.settings import PROJECT_ROOT, Settings
app = create_app(Settings(_env_file=None, medgemma_mode="dummy", cnn_device="cpu"))
with TestClient(app, "http://localhost", client=("::1", 1)) as client:
    health = client.get("/health").json()
    film = (PROJECT_ROOT / "assets" / "sample_xray.png").read_bytes()
    assert client.post("/analyze?", files={"image": ("film", film)}).status_code == 200
print(json.dumps({"engine": health["model"]["engine"], "torch": "torch" in sys.modules}))
"""
RUN = """
import numpy as np
from modules.engines.densenet import served_tensors
from modules.engines.onnxruntime import OnnxRuntimeEngine
from modules.weights import load_weights
OnnxRuntimeEngine(served_tensors(load_weights("embedded"))).run(np.zeros((1, 1, 224, 224), np.float32))
"""


def fresh(code: str, **environment: str) -> str:
    """Run code in an interpreter of its own, and return what it wrote."""
    ours = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(
        command, cwd=PROJECT_ROOT, env=ours | environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.usefixtures("pipeline")  # whose start left the figures in the cache
def test_a_server_that_was_started_before_imports_no_torch() -> None:
    assert json.loads(fresh(START)) == {"engine": "onnxruntime", "torch": False}


def test_an_import_of_torch_would_be_noticed(tmp_path: Path) -> None:
    assert json.loads(fresh(START, CNN_CACHE=str(tmp_path))) == {"engine": "onnxruntime", "torch": True}


def test_onnx_runtime_keeps_no_identifier_and_no_log_of_its_use(tmp_path: Path) -> None:
    fresh(RUN, HOME=str(tmp_path), XDG_CACHE_HOME=str(tmp_path / "cache"), XDG_DATA_HOME=str(tmp_path / "data"))
    assert list(tmp_path.rglob("*")) == []


def test_the_check_is_logged(
    fast: Engine,
    pytorch: Engine,
    tensors: Tensors,
    batch: FloatArray,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        checked(fast, batch, tensors, References(tmp_path), lambda: pytorch)
    fields = fields_of(caplog, "engine_checked")
    assert (fields["engine"], fields["films"], fields["kept"]) == ("onnxruntime", len(batch), False)
    difference = fields["largest_difference"]
    assert isinstance(difference, float)
    assert difference <= TOLERANCE
