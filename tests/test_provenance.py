"""What a card says of the films behind weights, and which films they may be trained on."""

import math
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.films import LabelledFilm, LabelsError, read_labels
from modules.cnn_model import preprocess
from modules.pathologies import NAMES
from modules.records import ImageHeader, Radiograph
from modules.settings import PROJECT_ROOT
from modules.weights import WeightsCard, load_weights, read_card
from tests.conftest import as_png
from training.config import RECIPE, Recipe, read_recipe
from training.export import export
from training.film_store import FilmStore, load_stores
from training.network import as_input, make_network
from training.provenance import NIH, UNSTATED, Provenance, of_start, stated, together

SCRATCH = read_recipe(RECIPE).model_copy(update={"name": "trial", "initial_weights": None})


def store(labels: dict[str, float] | None = None, *, patients: bool = True) -> FilmStore:
    """Return four films of two patients; all labels are 0 but those given."""
    values = tuple((labels or {}).get(name, 0.0) for name in NAMES)
    rows = tuple(LabelledFilm(f"{i}.png", str(i // 2) if patients else f"{i}.png", "train", values) for i in range(4))
    blank = np.zeros((4, 32, 32), np.uint8)
    return FilmStore(blank, blank, np.array([row.labels for row in rows], np.float32), rows)


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "best.pt"
    torch.manual_seed(0)
    torch.save(make_network(None).state_dict(), path)
    return path


def card_of(
    best: Path, folder: Path, recipe: Recipe = SCRATCH, films: FilmStore | None = None, **kwargs
) -> WeightsCard:
    films = films or store()
    export(best, recipe, {"train": films, "val": films}, folder, **kwargs)
    return read_card(folder)


def test_a_card_claims_nothing_of_films_that_nobody_named(best: Path, tmp_path: Path) -> None:
    card = card_of(best, tmp_path)
    assert load_weights(str(tmp_path)).card == card
    assert card.data.startswith(f"{UNSTATED.data}: 4 training films of 2 patients")
    assert (card.licence, card.citation) == (UNSTATED.licence, UNSTATED.citation)
    assert "NIH" not in card.model_dump_json()


def test_a_card_says_what_was_stated(best: Path, tmp_path: Path) -> None:
    films = Provenance("Films of our clinic", "CC BY 4.0", "Us, 2026.")
    card = card_of(best, tmp_path, provenance=films)
    assert card.data == "Films of our clinic: 4 training films of 2 patients, 4 validation films of 2 others"
    assert (card.licence, card.citation) == ("CC BY 4.0", "Us, 2026.")
    assert stated("Films of our clinic", None, "Us, 2026.") == replace(films, licence=UNSTATED.licence)


def test_the_data_and_the_terms_of_the_weights_at_the_start_count_too(best: Path, tmp_path: Path) -> None:
    recipe = SCRATCH.model_copy(update={"initial_weights": "assets/weights/first"})
    first = read_card(PROJECT_ROOT / "assets" / "weights" / "first")
    card = card_of(best, tmp_path, recipe)
    assert not card.data.startswith(NIH.data)
    assert first.data in card.data
    assert "not stated" in card.licence
    assert "of the weights it started from: MIT" in card.licence
    assert first.citation in card.citation
    own = card_of(best, tmp_path, recipe, provenance=stated(licence="MIT", is_nih=True))
    assert own.data.startswith("NIH ChestX-ray14: 4 training films of 2 patients")
    assert (own.licence, own.citation) == ("MIT", NIH.citation)  # once, where both are the same


def test_a_start_that_is_no_folder_of_weights_claims_nothing() -> None:
    assert of_start(None) is None
    assert of_start("no/such/folder") == UNSTATED
    imagenet = together(UNSTATED, of_start("imagenet"))
    assert "ImageNet" in imagenet.data
    assert "NIH" not in imagenet.data


def test_the_shipped_card_says_what_the_constant_says() -> None:
    card = load_weights("embedded").card
    assert card.data.startswith(f"{NIH.data}: ")
    assert (card.licence, card.citation) == ("MIT", NIH.citation)


def test_outputs_without_a_label_and_patients_that_nobody_told_apart_are_said(best: Path, tmp_path: Path) -> None:
    card = card_of(best, tmp_path, films=store({"Mass": math.nan, "Hernia": math.nan}, patients=False))
    assert "4 training films, 4 validation films, whose patients were not told apart" in card.data
    assert card.data.endswith("these outputs mean nothing: Mass, Hernia")


# ── Which films ──────────────────────────────────────────────────────────────────────────────────────────────────────


def written(folder: Path, rows: str) -> dict[str, LabelledFilm]:
    pixels = np.random.default_rng(0).random((40, 60), dtype=np.float32)
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(as_png(np.round(pixels * 255).astype(np.uint8)))
    (folder / "labels.csv").write_text(f"image,patient,split,Mass\n{rows}")
    return read_labels(folder / "labels.csv")


def test_films_are_cropped_where_they_are_served_cropped(tmp_path: Path) -> None:
    table = written(tmp_path, "a.png,1,train,1\nb.png,2,val,0\n")
    recipe = SCRATCH.preprocessing.model_copy(
        update={"aspect": "crop", "degrade_to": None, "reduce_to": 32, "input_size": 48}
    )
    pixels = np.round(np.random.default_rng(0).random((40, 60), dtype=np.float32) * 255) / 255
    served = preprocess(Radiograph(pixels.astype(np.float32), ImageHeader("png", 60, 40)), recipe)[0]
    for aspect, fits in (("crop", True), ("stretch", False)):
        stored = load_stores([tmp_path], table, ("train",), 32, 16, aspect)["train"].films  # type: ignore[arg-type]
        trained_on = (as_input(stored, 48)[0] - recipe.mean) / recipe.std
        assert np.allclose(trained_on, served, atol=1.01 / 255 / recipe.std) == fits


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a.png,1,train,1\nb.png,1,val,0\n", "Patient '1' is in train and in val"),
        ("a.png,1,train,1\nb.png,2,val,\n", "'val' of the table has no film with a known label"),
        ("a.png,1,train,1\nb.png,2,test,1\n", "'val' of the table has no film"),
    ],
)
def test_a_table_that_nothing_can_be_learnt_from_is_refused(tmp_path: Path, rows: str, message: str) -> None:
    with pytest.raises(LabelsError, match=message):
        load_stores([tmp_path], written(tmp_path, rows), ("train", "val"), 32, 16)


def test_an_archive_that_cannot_be_opened_is_named_and_counted_as_no_film(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = written(tmp_path, "a.png,1,train,1\nb.png,2,val,0\nc.png,3,train,1\n")
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        archive.writestr("c.png", (tmp_path / "a.png").read_bytes())
    (tmp_path / "more.zip").write_bytes((tmp_path / "more.zip").read_bytes()[:-30])
    stores = load_stores([tmp_path], table, ("train", "val"), 32, 16)
    assert [len(stores[split]) for split in ("train", "val")] == [1, 1]
    told = capsys.readouterr().err
    assert "more.zip is a damaged zip archive" in told
    assert "1 of 3 films of the table are in no source" in told
