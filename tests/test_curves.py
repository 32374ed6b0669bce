"""Curves: thinned without losing their shape, measured as metrics.json says, served only with their own weights."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from starlette.testclient import TestClient

from evaluation.__main__ import main
from evaluation.curves import thinned
from evaluation.metrics import auroc, roc_curve
from modules.curves import (
    CURVES_FILE,
    MAX_ROC_POINTS,
    CurveBin,
    CurvePoint,
    Curves,
    PathologyCurves,
    load_curves,
    served_digest,
)
from modules.pathologies import NAMES
from modules.pipeline import Pipeline
from modules.weights import EMBEDDED_WEIGHTS, WeightsCard, read_card
from synthetic.__main__ import main as draw
from tests.api_requests import assert_problem
from tests.conftest import MakeClient

MAX_BYTES = 60_000
FILMS = 6


@pytest.fixture(scope="module")
def card() -> WeightsCard:
    return read_card(EMBEDDED_WEIGHTS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the shipped curves."""
    (tmp_path / CURVES_FILE).write_bytes((EMBEDDED_WEIGHTS / CURVES_FILE).read_bytes())
    return tmp_path


def area(points: Any) -> float:
    x, y = np.array(points).T
    return float(np.trapezoid(y, x))


# ── Thinning ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_corners_stay_and_what_lies_between_them_goes() -> None:
    x = np.concatenate([np.zeros(50), np.linspace(0, 0.2, 50), np.linspace(0.2, 1, 50)])
    y = np.concatenate([np.linspace(0, 0.5, 50), np.linspace(0.5, 0.9, 50), np.linspace(0.9, 1, 50)])
    kept = thinned(x, y, 100)
    assert {(x[i], y[i]) for i in kept} == {(0.0, 0.0), (0.0, 0.5), (0.2, 0.9), (1.0, 1.0)}


@given(st.integers(0, 1000), st.integers(2, 600), st.integers(2, 120))
def test_at_most_so_many_points_in_order_with_both_ends(seed: int, films: int, most: int) -> None:
    random = np.random.default_rng(seed)
    labels = np.append([0.0, 1.0], random.integers(0, 2, films)).astype(float)
    curve = roc_curve(labels, labels + random.normal(0, 1, labels.size).round(1))
    kept = thinned(curve.x, curve.y, most)
    assert kept.size <= most
    assert (kept[0], kept[-1]) == (0, curve.x.size - 1)
    assert (np.diff(kept) > 0).all()


def test_a_thinned_curve_keeps_its_area() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 5000).astype(float)
    scores = labels + random.normal(0, 1, labels.size)
    curve = roc_curve(labels, scores)
    kept = thinned(curve.x, curve.y, MAX_ROC_POINTS)
    assert kept.size == MAX_ROC_POINTS < curve.x.size
    assert area(np.column_stack([curve.x[kept], curve.y[kept]])) == pytest.approx(auroc(labels, scores), abs=0.003)


# ── The record ───────────────────────────────────────────────────────────────────────────────────────────────────────


def pathology(**other: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "films": 20,
        "positive_films": 5,
        "positive_patients": 4,
        "auroc": 0.7,
        "auroc_interval": (0.6, 0.8),
        "roc": ((0.0, 0.0), (0.2, 0.6), (1.0, 1.0)),
        "operating_point": CurvePoint(threshold=0.1, false_positive_rate=0.2, sensitivity=0.6),
        "reliability": (CurveBin(mean_probability=0.2, observed=0.25, films=20),),
    }
    return values | other


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"roc": ((0.1, 0.0), (1.0, 1.0))}, "from"),
        ({"roc": ((0.0, 0.0), (1.0, 0.9))}, "from"),
        ({"roc": ((0.0, 0.0), (0.5, 0.7), (0.6, 0.6), (1.0, 1.0))}, "never falls"),
        ({"roc": ((0.0, 0.0), *((0.5, 0.5),) * MAX_ROC_POINTS, (1.0, 1.0))}, "at most 100"),
        ({"roc": ((0.0, 0.0), (0.5, 1.2), (1.0, 1.0))}, "less than or equal to 1"),
        ({"films": -1}, "greater than"),
        ({"remark": "x"}, "Extra inputs"),
    ],
)
def test_what_is_no_curve_is_refused(wrong: dict[str, Any], says: str) -> None:
    PathologyCurves(**pathology())
    with pytest.raises(ValidationError, match=says):
        PathologyCurves(**pathology(**wrong))


def test_a_pathology_that_is_none_of_the_14_is_refused() -> None:
    content = json.loads((EMBEDDED_WEIGHTS / CURVES_FILE).read_text("utf-8"))
    content["pathologies"]["Fracture"] = content["pathologies"]["Mass"]
    with pytest.raises(ValidationError, match="Fracture"):
        Curves.model_validate(content)


# ── What an evaluation writes ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation of a few synthetic films, of which none has a known label of Mass."""
    films, folder = tmp_path_factory.mktemp("films") / "set", tmp_path_factory.mktemp("out")
    draw(["--out", str(films), "--count", str(FILMS), "--size", "128", "--findings-rate", "0.7"])
    lines = (films / "labels.csv").read_text("utf-8").splitlines()
    column = lines[0].split(",").index("Mass")
    rows = [line.split(",") for line in lines[1:]]
    for row in rows:
        row[column] = ""
    (films / "labels.csv").write_text("\n".join([lines[0], *map(",".join, rows)]) + "\n", "utf-8")
    main(["--images", str(films), "--out", str(folder), "--replicates", "5", "--cohort", "Drawn films\udcff"])
    return folder


def test_an_evaluation_writes_the_curves_of_its_figures(out: Path, card: WeightsCard) -> None:
    curves = Curves.model_validate_json((out / CURVES_FILE).read_bytes())
    metrics = json.loads((out / "metrics.json").read_text("utf-8"))
    assert (curves.weights, curves.weights_sha256) == (card.name, card.sha256)
    assert curves.served_sha256 == served_digest(card)
    assert (curves.films, curves.cohort, curves.split) == (FILMS, "Drawn films\\udcff", None)
    assert "5 replicates, seed 0" in curves.made_by
    assert list(curves.pathologies) == metrics["discrimination"]["pathologies_measured"]
    assert "Mass" not in curves.pathologies
    assert curves.pathologies
    for name, found in curves.pathologies.items():
        point = metrics["operating_points"][name]
        assert found.auroc == pytest.approx(metrics["discrimination"]["pathologies"][name]["auroc"], abs=1e-5)
        assert area(found.roc) == pytest.approx(found.auroc, abs=1e-4)
        assert sum(part.films for part in found.reliability) == found.films == FILMS
        assert found.operating_point is not None
        assert found.operating_point.sensitivity == pytest.approx(point["sensitivity"], abs=1e-5)
        assert found.operating_point.false_positive_rate == pytest.approx(1 - point["specificity"], abs=1e-5)


def test_the_curves_say_neither_when_nor_where_they_were_made(out: Path) -> None:
    text = (out / CURVES_FILE).read_text("utf-8")
    assert str(out) not in text
    assert ".png" not in text
    assert set(json.loads(text)) == set(Curves.model_fields)


# ── The shipped curves ───────────────────────────────────────────────────────────────────────────────────────────────


def test_the_shipped_curves_are_those_of_the_card(card: WeightsCard) -> None:
    assert (EMBEDDED_WEIGHTS / CURVES_FILE).stat().st_size <= MAX_BYTES
    curves = load_curves("embedded", card)
    assert curves is not None
    test = card.metrics["test"]
    assert (curves.films, curves.patients) == (test["counts"]["films"], test["counts"]["patients"])
    assert tuple(curves.pathologies) == NAMES
    for name, found in curves.pathologies.items():
        expected, point = test["discrimination"]["pathologies"][name], test["operating_points"][name]
        assert found.auroc == pytest.approx(expected["auroc"], abs=2e-5)
        assert found.auroc_interval == pytest.approx(expected["auroc_interval"], abs=2e-5)
        assert found.positive_films == expected["positive_films"]
        assert area(found.roc) == pytest.approx(found.auroc, abs=0.005)
        assert found.operating_point is not None
        assert found.operating_point.sensitivity == pytest.approx(point["sensitivity"], abs=2e-5)
        assert found.operating_point.false_positive_rate == pytest.approx(1 - point["specificity"], abs=2e-5)
        served = test["calibration"]["pathologies"][name]["as_served"]
        error = sum(part.films * abs(part.observed - part.mean_probability) for part in found.reliability) / found.films
        assert error == pytest.approx(served["ece"], abs=2e-5)
    averaged = [curves.pathologies[name].auroc for name in test["discrimination"]["pathologies_in_mean"]]
    assert np.mean(averaged) == pytest.approx(test["discrimination"]["mean_auroc"], abs=2e-5)


# ── Which file is refused ────────────────────────────────────────────────────────────────────────────────────────────


def recalibrated(card: WeightsCard) -> WeightsCard:
    first = card.outputs[0].model_copy(update={"slope": 0.5})
    return card.model_copy(update={"outputs": (first, *card.outputs[1:])})


def test_curves_lie_beside_any_weights(folder: Path, card: WeightsCard) -> None:
    assert load_curves(str(folder), card) == load_curves("embedded", card) is not None
    # other words and figures on the card change nothing of what is served
    assert load_curves(str(folder), card.model_copy(update={"name": "other", "metrics": {}})) is not None


def test_curves_of_other_weights_are_absent(folder: Path, card: WeightsCard, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "modules.curves"):
        assert load_curves(str(folder), card.model_copy(update={"sha256": "0" * 64})) is None
        assert load_curves(str(folder), recalibrated(card)) is None
    assert [record.getMessage() for record in caplog.records] == ["curves_refused"] * 2


@pytest.mark.parametrize("content", [b"", b"{}", b"[1", b'{"weights": NaN}', b"\xff"])
def test_a_damaged_file_is_absent(folder: Path, card: WeightsCard, content: bytes) -> None:
    (folder / CURVES_FILE).write_bytes(content)
    assert load_curves(str(folder), card) is None


def test_no_file_is_no_curves(tmp_path: Path, card: WeightsCard) -> None:
    assert load_curves(str(tmp_path), card) is None
    assert load_curves("densenet121-res224-all", card) is None


# ── The API ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_server_gives_the_curves_of_its_weights(client: TestClient, card: WeightsCard) -> None:
    answer = client.get("/model/curves")
    assert answer.status_code == 200
    assert Curves.model_validate_json(answer.content) == load_curves("embedded", card)
    assert answer.json()["weights_sha256"] == client.get("/model").json()["sha256"]


def test_weights_without_curves_are_answered_with_a_problem(make_client: MakeClient, tmp_path: Path) -> None:
    problem = assert_problem(make_client(cxr_weights=str(tmp_path)).get("/model/curves"), 404, "not_found")
    assert "python -m evaluation" in problem.detail


def test_a_recalibrated_card_has_no_curves(make_client: MakeClient, pipeline: Pipeline, card: WeightsCard) -> None:
    other = SimpleNamespace(reader=pipeline.reader, cnn=SimpleNamespace(card=recalibrated(card)))
    assert_problem(make_client(other).get("/model/curves"), 404, "not_found")


def test_the_documentation_names_both_answers(client: TestClient) -> None:
    answers = client.get("/openapi.json").json()["paths"]["/model/curves"]["get"]["responses"]
    assert {"200", "404"} <= set(answers)
    assert answers["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/Curves")
    assert "application/problem+json" in answers["404"]["content"]
