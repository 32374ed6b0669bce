import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from modules.cnn_model import CnnModel
from modules.errors import WeightsError
from modules.pathologies import NAMES
from modules.records import ImageHeader, Radiograph
from modules.weights import EMBEDDED_WEIGHTS, MIN_POSITIVE_PATIENTS, load_weights, read_card, sha256_of, write_card


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the embedded weights to be damaged."""
    card = read_card(EMBEDDED_WEIGHTS)
    shutil.copy(EMBEDDED_WEIGHTS / "card.json", tmp_path)
    shutil.copy(EMBEDDED_WEIGHTS / card.file, tmp_path)
    return tmp_path


def edit_card(folder: Path, **changes: object) -> None:
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps({**card, **changes}))


def rewrite_tensors(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Replace the tensors and make the card's hash fit, so that only what is inside is wrong."""
    file = folder / read_card(folder).file
    save_file(tensors, file)
    edit_card(folder, sha256=sha256_of(file))


def edit_tensor(folder: Path, key: str, value: float) -> None:
    tensors = load_file(folder / read_card(folder).file)
    tensors[key] = torch.full_like(tensors[key], value)
    rewrite_tensors(folder, tensors)


def edit_output(folder: Path, **changes: object) -> None:
    """Change the first output of the card."""
    first, *others = (output.model_dump() for output in read_card(folder).outputs)
    edit_card(folder, outputs=[{**first, **changes}, *others])


def film() -> Radiograph:
    pixels = np.random.default_rng(3).random((160, 128), dtype=np.float32)
    return Radiograph(pixels, ImageHeader("png", 128, 160))


def test_the_embedded_card_describes_its_file_and_all_14_pathologies() -> None:
    weights = load_weights("embedded")
    assert [output.label for _, output in weights.card.served] == list(NAMES)
    assert weights.card.sha256 == sha256_of(EMBEDDED_WEIGHTS / weights.card.file)
    assert (EMBEDDED_WEIGHTS / weights.card.file).stat().st_size < 16_000_000


def test_labels_with_few_positive_patients_are_marked() -> None:
    for _, output in load_weights("embedded").card.served:
        assert output.validation_positive_patients is not None
        assert output.sufficient_data == (output.validation_positive_patients >= MIN_POSITIVE_PATIENTS)
    insufficient = {o.label for o in load_weights("embedded").card.outputs if not o.sufficient_data}
    assert insufficient == {"Cardiomegaly", "Edema", "Hernia"}


def test_a_folder_serves_like_the_embedded_weights(folder: Path) -> None:
    assert load_weights(str(folder)).card == load_weights("embedded").card


def test_a_card_survives_writing_and_reading(tmp_path: Path) -> None:
    card = read_card(EMBEDDED_WEIGHTS)
    write_card(card, tmp_path)
    assert read_card(tmp_path) == card


def test_labels_are_mapped_by_name_not_by_position(folder: Path) -> None:
    card = read_card(folder)
    order = list(reversed(range(14)))
    tensors = load_file(folder / card.file)
    for key in ("classifier.weight", "classifier.bias"):
        tensors[key] = tensors[key][order].contiguous()
    rewrite_tensors(folder, tensors)
    reversed_outputs = [output.model_dump() for output in reversed(card.outputs)]
    edit_card(folder, outputs=[{**o, "label": o["label"].replace(" ", "_")} for o in reversed_outputs])
    straight, reordered = (CnnModel(load_weights(w)).predict(film()) for w in ("embedded", str(folder)))
    np.testing.assert_array_equal(straight.log_odds, reordered.log_odds)
    np.testing.assert_array_equal(straight.thresholds, reordered.thresholds)


def test_another_hash_names_both(folder: Path) -> None:
    card = read_card(folder)
    edit_card(folder, sha256="0" * 64)
    with pytest.raises(WeightsError, match=f"{'0' * 64}.*{card.sha256}"):
        load_weights(str(folder))


def test_a_pinned_hash_that_does_not_fit_names_both() -> None:
    found = read_card(EMBEDDED_WEIGHTS).sha256
    with pytest.raises(WeightsError, match=f"CXR_WEIGHTS_SHA256.*{'1' * 64}.*{found}"):
        load_weights("embedded", "1" * 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("features.conv0.weight"), r"lack features\.conv0\.weight.*\[64, 1, 7, 7\]"),
        (lambda t: t.update({"features.conv0.weight": torch.zeros(64, 3, 7, 7)}), r"\[64, 3, 7, 7\].*\[64, 1, 7, 7\]"),
        (lambda t: t.update({"classifier.weight": torch.zeros(13, 1024)}), r"lists 14 outputs.*\[13, 1024\]"),
        (lambda t: t.update({"classifier.bias": torch.full((14,), torch.nan)}), "not finite"),
        (lambda t: t.update({"extra.weight": torch.zeros(1)}), r"hold extra\.weight"),
    ],
)
def test_tensors_that_do_not_fit_name_both_sides(folder: Path, change: object, message: str) -> None:
    tensors = load_file(folder / read_card(folder).file)
    change(tensors)  # type: ignore[operator]
    rewrite_tensors(folder, tensors)
    with pytest.raises(WeightsError, match=message):
        CnnModel(load_weights(str(folder)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_a_tensor_that_is_not_finite_is_named_before_any_network_is_built(folder: Path, value: float) -> None:
    tensors = load_file(folder / read_card(folder).file)
    key = "features.norm5.running_mean"
    tensors[key] = tensors[key].double()
    tensors[key][3] = value
    rewrite_tensors(folder, tensors)
    with pytest.raises(WeightsError, match=rf"{key} of the weights cxr14-densenet121 holds values that are not finite"):
        load_weights(str(folder))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: edit_tensor(folder, "features.norm0.running_var", -1.0),
        lambda folder: edit_output(folder, slope=1e300),
        lambda folder: edit_card(folder, preprocessing={**read_card(folder).preprocessing.model_dump(), "std": 1e-320}),
    ],
    ids=["a negative variance", "a slope beyond float32", "a deviation beyond float32"],
)
def test_weights_whose_numbers_run_away_do_not_serve(folder: Path, spoil: Callable[[Path], None]) -> None:
    spoil(folder)
    with pytest.raises(WeightsError, match="log-odds that are not finite"):
        CnnModel(load_weights(str(folder)), "cpu")


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floating_point_tensors_of_any_size_serve_in_float32(folder: Path, kind: torch.dtype) -> None:
    tensors = {
        key: t.to(kind) for key, t in load_file(folder / read_card(folder).file).items() if t.is_floating_point()
    }
    rewrite_tensors(folder, tensors)
    loaded = load_weights(str(folder)).tensors
    assert loaded.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert loaded[key].dtype == np.float32
        np.testing.assert_array_equal(loaded[key], tensor.float().numpy())


def test_a_type_that_is_not_read_is_named(folder: Path) -> None:
    tensors = load_file(folder / read_card(folder).file)
    tensors["classifier.bias"] = tensors["classifier.bias"].to(torch.float8_e4m3fn)
    rewrite_tensors(folder, tensors)
    with pytest.raises(WeightsError, match=r"classifier\.bias of the weights .* is of type F8_E4M3; F64, F32"):
        load_weights(str(folder))


def test_a_truncated_file_is_refused_even_when_its_hash_is_right(folder: Path) -> None:
    file = folder / read_card(folder).file
    file.write_bytes(file.read_bytes()[:100_000])
    edit_card(folder, sha256=sha256_of(file))
    with pytest.raises(WeightsError, match="not a whole safetensors file"):
        load_weights(str(folder))


def test_a_missing_label_is_named(folder: Path) -> None:
    outputs = [o.model_dump() for o in read_card(folder).outputs if o.label != "Mass"]
    edit_card(folder, outputs=outputs)
    with pytest.raises(WeightsError, match="no output for Mass"):
        load_weights(str(folder))


def test_a_label_that_stands_twice_is_named(folder: Path) -> None:
    outputs = [o.model_dump() for o in read_card(folder).outputs]
    edit_card(folder, outputs=[*outputs, {**outputs[0], "label": "atelectasis"}])
    with pytest.raises(WeightsError, match="two outputs for Atelectasis"):
        load_weights(str(folder))


@pytest.mark.parametrize("file", ["../card.json", "/etc/passwd", "a\\b"])
def test_a_card_names_no_file_outside_of_its_folder(folder: Path, file: str) -> None:
    edit_card(folder, file=file)
    with pytest.raises(WeightsError, match="file"):
        load_weights(str(folder))


def test_a_card_that_is_no_json_is_refused(folder: Path) -> None:
    (folder / "card.json").write_text("{")
    with pytest.raises(WeightsError, match="card.json"):
        load_weights(str(folder))


@pytest.mark.parametrize("field", ["slope", "intercept", "threshold", "validation_prevalence", "sensitivity"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_card_holds_finite_numbers_of_its_outputs(folder: Path, field: str, value: float) -> None:
    edit_output(folder, **{field: value})
    with pytest.raises(WeightsError, match=rf"card\.json: outputs\.0\.{field}: Input should be"):
        load_weights(str(folder))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mean", math.nan), ("std", math.inf), ("mean", -math.inf), ("degrade_to", 10**9), ("reduce_to", 4097),
    ],
)  # fmt: skip
def test_a_card_brings_films_to_finite_numbers_and_sides(folder: Path, field: str, value: float) -> None:
    edit_card(folder, preprocessing={**read_card(folder).preprocessing.model_dump(), field: value})
    with pytest.raises(WeightsError, match=rf"preprocessing\.{field}: Input should be"):
        load_weights(str(folder))


@pytest.mark.parametrize("metrics", [{"test": {"auroc": math.nan}}, {"a": [[{"b": math.inf}]]}])
def test_figures_on_a_card_are_finite_or_null(folder: Path, metrics: dict[str, object]) -> None:
    card = read_card(folder)
    edit_card(folder, metrics=metrics)
    with pytest.raises(WeightsError, match=r"is not finite; what was not measured is null"):
        load_weights(str(folder))
    with pytest.raises(WeightsError, match="cannot be written: metrics: .*is not finite"):
        write_card(card.model_copy(update={"metrics": metrics}), folder)


def test_a_choice_that_is_nothing_known_says_what_is() -> None:
    with pytest.raises(WeightsError, match="'no/such/folder'.*embedded.*TorchXRayVision.*folder"):
        load_weights("no/such/folder")


class TestTorchXRayVision:
    """Its real package, with a file of its own making in place of the published weights."""

    @pytest.fixture(autouse=True)
    def cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / ".torchxrayvision" / "models_data").mkdir(parents=True)
        return tmp_path / ".torchxrayvision" / "models_data"

    @staticmethod
    def put_file(cache: Path, name: str) -> torch.nn.Module:
        from torchxrayvision import models

        torch.manual_seed(5)
        model = models.DenseNet(num_classes=18).eval()
        torch.save(model, TestTorchXRayVision.file(cache, name))
        return model

    @staticmethod
    def file(cache: Path, name: str) -> Path:
        from torchxrayvision import models

        return cache / Path(models.model_urls[name]["weights_url"]).name

    def test_the_logits_are_those_of_its_own_network_by_label(self, cache: Path) -> None:
        from torchxrayvision import models

        name = "densenet121-res224-nih"
        original = self.put_file(cache, name)
        ours = CnnModel(load_weights(name, sha256_of(self.file(cache, name))), mirror_check=False)
        radiograph = film()
        square = radiograph.pixels[16:144]  # a centre crop, as its own pipeline makes it
        import cv2

        image = (2 * cv2.resize(square, (224, 224), interpolation=cv2.INTER_LINEAR) - 1) * 1024
        with torch.inference_mode():
            theirs = original(torch.from_numpy(image)[None, None])[0].numpy()
        labels = models.model_urls[name]["labels"]
        expected = [theirs[labels.index(n.replace(" ", "_"))] for n in NAMES]
        np.testing.assert_allclose(ours.predict(radiograph).logits, expected, rtol=1e-5, atol=1e-4)
        assert not ours.info.calibrated

    def test_a_set_without_all_14_labels_is_refused_by_name(self, cache: Path) -> None:
        name = "densenet121-res224-chex"
        self.put_file(cache, name)
        with pytest.raises(WeightsError, match=f"{name}.*no output for Infiltration, Mass"):
            load_weights(name, sha256_of(self.file(cache, name)))

    def test_weights_that_are_not_there_are_not_downloaded(self, cache: Path) -> None:
        with pytest.raises(WeightsError, match="downloads nothing"):
            load_weights("densenet121-res224-all")
        assert list(cache.iterdir()) == []

    @pytest.mark.parametrize("pinned", [None, "2" * 64])
    def test_a_file_is_not_opened_unless_its_hash_was_given(
        self, cache: Path, tmp_path: Path, pinned: str | None
    ) -> None:
        ran = tmp_path / "ran"

        class Hostile:
            def __reduce__(self) -> tuple[Any, ...]:
                return Path.touch, (ran,)

        name = "densenet121-res224-all"
        file = self.file(cache, name)
        torch.save(Hostile(), file)
        with pytest.raises(WeightsError, match=f"CXR_WEIGHTS_SHA256.*{sha256_of(file)}"):
            load_weights(name, pinned)
        assert not ran.exists()
        with pytest.raises(WeightsError, match="cannot load"):
            load_weights(name, sha256_of(file))
        assert ran.exists(), "nothing else kept it from running"

    def test_an_unknown_name_lists_the_known_ones(self) -> None:
        with pytest.raises(WeightsError, match="densenet121-res224-all"):
            load_weights("densenet121-res224-moon")
