import csv
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evaluation.films import LabelsError, read_labels
from modules.cnn_model import CnnModel, preprocess, resize_square
from modules.errors import WeightsError
from modules.pathologies import NAMES
from modules.records import ImageHeader, Radiograph
from modules.settings import PROJECT_ROOT
from modules.weights import load_weights
from synthetic.__main__ import main as draw
from training import network as network_module
from training import trainer
from training.__main__ import main
from training.augmentation import augment, enlarge
from training.config import IMAGENET, RECIPE, Recipe, RecipeError, read_recipe
from training.film_store import load_stores
from training.network import as_input, half_precision, make_network
from training.trainer import Run, learning_rate, masked_loss, mean_auroc

SHIPPED = read_recipe(RECIPE)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    draw(["--out", str(folder), "--count", "40", "--size", "128", "--seed", "4"])
    return folder


def cycles(*epochs: int, side: int = 32) -> list[dict[str, object]]:
    """Return one cycle for each number of epochs."""
    return [{**SHIPPED.cycles[-1].model_dump(), "phases": [{"side": side, "epochs": number}]} for number in epochs]


def tiny(**changes: object) -> Recipe:
    """Return a recipe that runs in seconds."""
    values = SHIPPED.model_dump()
    values["preprocessing"] |= {"reduce_to": 32, "input_size": 32}
    values["optimisation"] |= {"batch": 8}
    values["augmentation"] |= {"reduce_to": 16}
    return Recipe.model_validate({**values, "cycles": cycles(2), "processes": 1, **changes})


def written(recipe: Recipe, folder: Path) -> Path:
    """Write a recipe as TOML."""
    data = recipe.model_dump(exclude_none=True)
    lines = [f"{key} = {value!r}" for key, value in data.items() if isinstance(value, str | int)]
    lines.append(f"left_out_of_mean = {list(data['left_out_of_mean'])!r}")
    for table in ("preprocessing", "optimisation", "augmentation"):
        lines += [f"[{table}]", *(f"{key} = {value!r}" for key, value in data[table].items())]
    for cycle in data["cycles"]:
        phases = ", ".join(f"{{ side = {phase['side']}, epochs = {phase['epochs']} }}" for phase in cycle.pop("phases"))
        lines += ["[[cycles]]", *(f"{key} = {value!r}" for key, value in cycle.items()), f"phases = [{phases}]"]
    path = folder / "recipe.toml"
    path.write_text("\n".join(lines), "utf-8")
    return path


# ── The recipe ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_shipped_recipe_serves_what_the_card_says() -> None:
    assert SHIPPED.preprocessing == load_weights("embedded").card.preprocessing
    assert SHIPPED.initial_weights is not None
    assert (PROJECT_ROOT / SHIPPED.initial_weights / "card.json").is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("batch = 0", "optimisation.batch"),
        ("batch = 32\nbatches = 3", "optimisation.batches"),
        ("batch = ", "no TOML"),
    ],
)
def test_a_recipe_that_cannot_be_used_says_where(tmp_path: Path, change: str, message: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.read_text("utf-8").replace("batch = 32", change), "utf-8")
    with pytest.raises(RecipeError, match=message):
        read_recipe(path)


def test_the_last_phase_is_at_the_serving_size() -> None:
    with pytest.raises(ValueError, match="serving size, 32 pixels"):
        tiny(cycles=cycles(1, side=64))


def test_the_learning_rate_rises_then_falls_to_nothing() -> None:
    cycle = SHIPPED.cycles[0]
    rates = [learning_rate(cycle, done) for done in np.linspace(0, 1, 101)]
    top = int(np.argmax(rates))
    assert rates[top] == pytest.approx(cycle.peak_learning_rate)
    assert top == pytest.approx(100 * cycle.warm_up, abs=1)
    assert rates[0] > 0
    assert rates[-1] == pytest.approx(0, abs=1e-12)
    assert (np.diff(rates[top:]) < 0).all()


# ── Films ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_films_are_stored_as_they_are_served(films: Path) -> None:
    table = read_labels(films / "labels.csv")
    stores = load_stores([films], table, ("train", "val"), 64, 32)
    train = stores["train"]
    assert train.films.shape[1:] == (64, 64)
    assert train.reduced.shape[1:] == (32, 32)
    assert len(train) + len(stores["val"]) == sum(row.split != "test" for row in table.values())
    np.testing.assert_array_equal(train.labels, [table[row.image].labels for row in train.rows])
    recipe = SHIPPED.preprocessing.model_copy(update={"reduce_to": 64, "input_size": 96})
    import cv2

    pixels = cv2.imread(str(films / train.rows[0].image), cv2.IMREAD_GRAYSCALE).astype(np.float32) / 255
    served = preprocess(Radiograph(pixels, ImageHeader("png", 128, 128)), recipe)[0]
    trained_on = (as_input(train.films[:1], 96)[0] - recipe.mean) / recipe.std
    np.testing.assert_allclose(trained_on, served, atol=1.01 / 255 / recipe.std)  # 8 bits between the two


def test_unreadable_films_are_named_and_a_split_without_films_stops(
    films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = read_labels(films / "labels.csv")
    for path in films.glob("*.png"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    broken = next(name for name, row in table.items() if row.split == "train")
    (tmp_path / broken).write_bytes(b"no image")
    load_stores([tmp_path], table, ("train",), 32, 16)
    assert f"left out: {broken}" in capsys.readouterr().err
    with pytest.raises(LabelsError, match="'holdout'"):
        load_stores([tmp_path], table, ("holdout",), 32, 16)


# ── Augmentation ─────────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.integers(0, 2**32 - 1), st.sampled_from([48, 64, 96]))
def test_an_augmented_film_stays_a_film(seed: int, side: int) -> None:
    film = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    changed = augment(film, side, SHIPPED.augmentation, np.random.default_rng(seed))
    assert changed.shape == (side, side)
    assert changed.dtype == np.float32
    assert changed.min() >= 0
    assert changed.max() <= 1


def unchanging() -> dict[str, float]:
    return {
        **dict.fromkeys(
            ("reduced", "mirror", "rotation_degrees", "scale", "stretch", "shift", "gamma", "contrast", "brightness"), 0
        ),
        "noise": 0,
        "erased": 0,
        "mixed": 0,
    }


def test_without_any_change_the_film_comes_back() -> None:
    film = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    still = SHIPPED.augmentation.model_copy(update=unchanging())
    np.testing.assert_allclose(augment(film, 64, still, np.random.default_rng(1)), film / 255, atol=1e-6)
    mirrored = still.model_copy(update={"mirror": 1.0})
    np.testing.assert_allclose(augment(film, 64, mirrored, np.random.default_rng(1)), film[:, ::-1] / 255, atol=1e-6)


def test_a_reduced_film_is_enlarged_as_the_server_enlarges_a_small_one() -> None:
    film = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    served = resize_square(film.astype(np.float32) / 255, 64)
    np.testing.assert_allclose(enlarge(film, 64) / 255, served, atol=0.51 / 255)


# ── The loss and the choice ──────────────────────────────────────────────────────────────────────────────────────────


def test_labels_that_are_not_known_move_nothing() -> None:
    logits = torch.tensor([[0.3, -1.2], [2.0, 0.1]], requires_grad=True)
    labels = torch.tensor([[1.0, math.nan], [0.0, 1.0]])
    loss = masked_loss(logits, labels)
    loss.backward()
    expected = (math.log1p(math.exp(-0.3)) + math.log1p(math.exp(2.0)) + math.log1p(math.exp(-0.1))) / 3
    assert float(loss.detach()) == pytest.approx(expected)
    assert logits.grad is not None
    assert float(logits.grad[0, 1]) == 0.0
    assert float(masked_loss(logits.detach(), torch.full((2, 2), math.nan))) == 0.0


def test_pathologies_that_are_left_out_do_not_choose() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((60, 14)) < 0.4).astype(np.float32)
    logits = rng.normal(size=(60, 14)).astype(np.float32)
    other = logits.copy()
    other[:, NAMES.index("Pneumonia")] = labels[:, NAMES.index("Pneumonia")]
    left_out = ("Pneumonia", "Hernia")
    assert mean_auroc(labels, logits, left_out) == mean_auroc(labels, other, left_out)
    assert mean_auroc(labels, logits, ()) != mean_auroc(labels, other, ())
    assert math.isnan(mean_auroc(np.zeros((3, 14), np.float32), np.zeros((3, 14), np.float32), ()))


# ── Whole runs ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_network_starts_where_the_initial_weights_are() -> None:
    folder = PROJECT_ROOT / "assets" / "weights" / "first"
    network = make_network(folder).eval()
    served = CnnModel(load_weights(str(folder)), "cpu", mirror_check=False)
    image = np.random.default_rng(0).normal(size=(1, 1, 224, 224)).astype(np.float32)
    with torch.inference_mode():
        np.testing.assert_allclose(network(torch.from_numpy(image)).numpy(), served.forward(image)[0], atol=1e-3)


def test_imagenet_weights_are_taken_for_one_grey_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published file is not here: a network of the same form, with random numbers, stands for it."""
    from torchvision.models import DenseNet121_Weights, densenet121

    torch.manual_seed(3)
    colour = densenet121().eval()
    monkeypatch.setattr(
        DenseNet121_Weights.IMAGENET1K_V1.__class__, "get_state_dict", lambda *_args, **_kwargs: colour.state_dict()
    )
    network = make_network(IMAGENET).eval()
    grey = torch.rand(1, 1, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(network.features(grey), colour.features(grey.expand(-1, 3, -1, -1)))
    assert network.classifier.out_features == len(NAMES)


def test_imagenet_weights_that_cannot_be_had_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from urllib.error import URLError

    from torchvision.models import DenseNet121_Weights

    def fails(*_args: object, **_kwargs: object) -> None:
        raise URLError("no route")

    monkeypatch.setattr(DenseNet121_Weights.IMAGENET1K_V1.__class__, "get_state_dict", fails)
    with pytest.raises(WeightsError, match="ImageNet weights .* no route"):
        make_network(IMAGENET)


@pytest.mark.parametrize(("is_supported", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_gpus_that_only_imitate_bfloat16_train_in_float16(
    monkeypatch: pytest.MonkeyPatch, is_supported: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: is_supported)
    assert half_precision(torch.device("cuda")) is dtype
    assert half_precision(torch.device("cpu")) is torch.bfloat16
    assert half_precision(torch.device("mps")) is None


def test_float16_trains_with_scaled_gradients(films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's path, on the CPU: the scale of the gradients is kept with the checkpoint, and the losses stay alike."""
    stores = load_stores([films], read_labels(films / "labels.csv"), ("train", "val"), 32, 16)
    recipe = tiny(initial_weights=None, cycles=cycles(1))
    trainer.train(Run(recipe, tmp_path / "bfloat16", "cpu", 1), stores)
    for module in (network_module, trainer):
        monkeypatch.setattr(module, "half_precision", lambda _device: torch.float16)
    trainer.train(Run(recipe, tmp_path / "float16", "cpu", 1), stores)
    wide, scaled = (
        torch.load(tmp_path / run / trainer.CHECKPOINT, weights_only=True) for run in ("bfloat16", "float16")
    )
    assert wide["scaler"] == {}
    assert scaled["scaler"]["scale"] > 1
    first, second = (run["progress"]["log"][0]["train_loss"] for run in (wide, scaled))
    assert second == pytest.approx(first, abs=0.05)
    for key, value in torch.load(tmp_path / "float16" / trainer.BEST, weights_only=True).items():
        assert torch.isfinite(value).all(), key


def test_the_command_trains_and_what_it_writes_can_be_served(films: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    recipe = written(tiny(name="tiny-trial"), tmp_path)
    main(["--data", str(films), "--out", str(out), "--recipe", str(recipe), "--device", "cpu", "--start", "scratch"])
    weights = load_weights(str(out))
    assert weights.card.name == "tiny-trial"
    assert weights.card.calibration is None
    assert not any(output.sufficient_data for output in weights.card.outputs)
    assert (out / weights.card.file).stat().st_size < 16_000_000
    CnnModel(weights, "cpu").predict(Radiograph(np.full((80, 80), 0.5, np.float32), ImageHeader("png", 80, 80)))
    with (out / trainer.LOG).open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(float(row["train_loss"]) > 0 and float(row["seconds"]) > 0 for row in rows)


class Stopped(Exception):
    """The machine went away."""


@pytest.fixture(scope="module")
def whole(films: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that nothing stopped."""
    run = Run(tiny(initial_weights=None, cycles=cycles(1, 1)), tmp_path_factory.mktemp("whole"), "cpu", 1)
    trainer.train(run, load_stores([films], read_labels(films / "labels.csv"), ("train", "val"), 32, 16))
    return run


@pytest.mark.parametrize("stop_at", ["between cycles", "within an epoch"])
def test_a_run_that_was_stopped_ends_like_one_that_was_not(
    whole: Run, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: str
) -> None:
    stores = load_stores([films], read_labels(films / "labels.csv"), ("train", "val"), 32, 16)
    monkeypatch.setattr(trainer, "STEPS_BETWEEN_CHECKPOINTS", 1)
    stopped = replace(whole, folder=tmp_path)
    calls = []
    with monkeypatch.context() as patch:
        place = "_finish_epoch" if stop_at == "between cycles" else "_step"
        original = getattr(trainer._Worker, place)
        allowed = 1 if stop_at == "between cycles" else 2

        def stop_after_some(self: object, *args: object, **kwargs: object) -> object:
            if len(calls) == allowed:
                raise Stopped
            calls.append(1)
            return original(self, *args, **kwargs)

        patch.setattr(trainer._Worker, place, stop_after_some)
        with pytest.raises(Stopped):
            trainer.train(stopped, stores)
    trainer.train(stopped, stores)
    one, other = (torch.load(run.folder / trainer.BEST, weights_only=True) for run in (whole, stopped))
    for key, value in one.items():
        torch.testing.assert_close(other[key], value, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_of_another_recipe_is_not_continued(whole: Run, films: Path) -> None:
    stores = load_stores([films], read_labels(films / "labels.csv"), ("train", "val"), 32, 16)
    other = whole.recipe.model_copy(update={"seed": 1})
    with pytest.raises(SystemExit, match="another recipe"):
        trainer.train(replace(whole, recipe=other), stores)


def test_a_checkpoint_of_other_films_is_not_continued(whole: Run, films: Path) -> None:
    table = read_labels(films / "labels.csv")
    dropped = next(name for name, row in table.items() if row.split == "train")
    changed = {name: row for name, row in table.items() if name != dropped}
    with pytest.raises(SystemExit, match="other films"):
        trainer.train(whole, load_stores([films], changed, ("train", "val"), 32, 16))


def test_patience_ends_a_run_that_no_longer_improves(
    films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = load_stores([films], read_labels(films / "labels.csv"), ("train", "val"), 32, 16)
    recipe = tiny(initial_weights=None, cycles=cycles(6))
    recipe = recipe.model_copy(update={"optimisation": recipe.optimisation.model_copy(update={"patience": 2})})
    figures = iter([0.5, 0.5, 0.7, 0.7, 0.6, 0.6, 0.6, 0.6])  # two an epoch: films as they are, films reduced
    monkeypatch.setattr(trainer, "mean_auroc", lambda *_: next(figures))
    trainer.train(Run(recipe, tmp_path, "cpu", 1), stores)
    assert len((tmp_path / trainer.LOG).read_text().splitlines()) == 1 + 4  # the second epoch was best, two more came


def test_two_processes_share_the_work(films: Path, tmp_path: Path) -> None:
    """As a command: processes are started anew, and find each other."""
    recipe = written(tiny(cycles=cycles(1), processes=2), tmp_path)
    command = [sys.executable, "-m", "training", "--data", films, "--out", tmp_path / "run", "--recipe", recipe]
    done = subprocess.run(
        [*map(str, command), "--device", "cpu", "--start", "scratch"],
        cwd=PROJECT_ROOT,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert load_weights(str(tmp_path / "run")).card.name == SHIPPED.name


def test_the_command_says_what_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path)])
    assert "--data" in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"labels\.csv"):
        main(["--data", str(tmp_path), "--out", str(tmp_path / "run")])


def test_the_full_download_is_not_trained_on_from_weights_that_know_its_validation_patients(tmp_path: Path) -> None:
    (tmp_path / "Data_Entry_2017.csv").write_text("Image Index,Finding Labels\n")
    with pytest.raises(SystemExit, match="--start scratch"):
        main(["--data", str(tmp_path), "--out", str(tmp_path / "run")])
