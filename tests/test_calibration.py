import csv
import errno
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from evaluation.films import LabelledFilm
from modules.cnn_model import CnnModel
from modules.pathologies import NAMES
from modules.weights import EMBEDDED_WEIGHTS, load_weights, read_card
from synthetic.__main__ import main as draw
from training import calibration, platt
from training.calibration import Scored, calibrate, main

K = len(NAMES)
FILMS = 600


@pytest.fixture(scope="module")
def scored() -> Scored:
    """Films of 300 patients whose logits are twice too large and shifted, with one pathology in few of them."""
    rng = np.random.default_rng(0)
    truth = rng.normal(-2.5, 1.2, (FILMS, K))
    truth[:, NAMES.index("Hernia")] -= 2.5
    labels = (rng.random((FILMS, K)) < 1 / (1 + np.exp(-truth))).astype(float)
    labels[::50, NAMES.index("Mass")] = math.nan
    logits = (2 * truth + 1).astype(np.float32)
    mirrored = logits + rng.normal(0, 0.2, logits.shape).astype(np.float32)
    rows = tuple(LabelledFilm(f"{i}.png", str(i // 2), "val", tuple(labels[i])) for i in range(FILMS))
    return Scored(logits, mirrored, rows)


@pytest.fixture(scope="module")
def card(scored: Scored):
    return calibrate(read_card(EMBEDDED_WEIGHTS), scored, 0.25)


def test_too_large_logits_are_brought_back(card) -> None:
    slopes = [output.slope for output in card.outputs if output.label != "Hernia"]
    np.testing.assert_allclose(slopes, 0.5, atol=0.15)
    assert card.metrics["validation"]["common_slope_and_intercept"] == pytest.approx([0.5, -0.5], abs=0.1)
    assert card.metrics["validation"]["calibration"]["mean_ece"] < 0.05


def test_each_output_says_what_its_numbers_stand_on(card, scored: Scored) -> None:
    for k, output in enumerate(card.outputs):
        labels = scored.labels[:, k]
        assert output.validation_prevalence == pytest.approx(float(np.nanmean(labels)))
        patients = {row.patient for row, label in zip(scored.rows, labels, strict=True) if label == 1}
        assert output.validation_positive_patients == len(patients)
        assert output.sufficient_data == (len(patients) >= 20)
        values = card.metrics["validation"]["pathologies"][output.label]
        assert output.sensitivity == values["sensitivity"]
        low, high = values["sensitivity_95ci"]
        assert low <= values["sensitivity"] <= high
        assert values["ppv_at_1%"] < values["ppv_at_5%"] < values["ppv_at_20%"]
    assert not next(output for output in card.outputs if output.label == "Hernia").sufficient_data


def test_alarms_on_films_that_set_no_threshold_are_near_to_what_was_allowed(card) -> None:
    met = card.metrics["validation"]["at_the_served_points"]
    assert 0.1 < met["films_without_a_finding_with_any_detection"] < 0.4
    assert sum(met["films_without_a_finding_rated"].values()) == pytest.approx(1)
    dial = card.metrics["validation"]["dial"]
    shares = [row["films_without_a_finding_with_any_detection"] for row in dial]
    assert shares == sorted(shares)
    found = [row["films_with_a_finding_of_which_one_is_detected"] for row in dial]
    assert found == sorted(found)


def test_a_film_is_judged_by_other_patients(scored: Scored) -> None:
    """What one fold's films look like changes nothing of how they are judged."""
    fold = platt.folds(scored.patients)
    inside = fold == 0
    shuffled = tuple(
        LabelledFilm(row.image, row.patient, "val", tuple(1.0 for _ in NAMES)) if is_inside else row
        for row, is_inside in zip(scored.rows, inside, strict=True)
    )
    one = calibration.cross_fit(scored, [True] * K, (0.2,))
    other = calibration.cross_fit(Scored(scored.logits, scored.mirrored, shuffled), [True] * K, (0.2,))
    np.testing.assert_array_equal(one.log_odds[inside], other.log_odds[inside])
    np.testing.assert_array_equal(one.outcomes[0].detected[inside], other.outcomes[0].detected[inside])
    assert (one.log_odds[~inside] != other.log_odds[~inside]).any()


def test_a_calibrated_card_is_json_and_can_be_read_again(card, tmp_path: Path) -> None:
    from modules.weights import write_card

    write_card(card, tmp_path)
    assert read_card(tmp_path) == card


def test_the_command_writes_a_card_that_is_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    films, out = tmp_path / "films", tmp_path / "calibrated"
    draw(["--out", str(films), "--count", "12", "--size", "128", "--findings-rate", "0.6"])
    (films / "broken.png").write_bytes(b"no image")
    with (films / "labels.csv").open("a", newline="") as file:
        csv.writer(file).writerow(["broken.png", "99", "val", "PA", 50, "F", 0, 128, *[0] * K])
    command = ["--images", str(films), "--labels", str(films / "labels.csv"), "--split", "all", "--out", str(out)]
    main([*command, "--name", "mine"])
    assert "left out: broken.png" in capsys.readouterr().err
    weights = load_weights(str(out))
    assert weights.card.sha256 == load_weights("embedded").card.sha256
    assert weights.card.name == "mine"
    assert weights.card.metrics["validation"]["films"] == 12
    assert weights.card.metrics["validation"]["cohort"] == "films of a table"
    assert "test" not in weights.card.metrics  # what was measured at other thresholds does not follow
    assert weights.card.outputs != load_weights("embedded").card.outputs
    CnnModel(weights, "cpu")


def rewritten(table: Path, change: Callable[[dict[str, str]], dict[str, str]]) -> Path:
    """Change every row of a table."""
    with table.open(newline="", encoding="utf-8") as file:
        rows = [change(row) for row in csv.DictReader(file)]
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return table


def without(row: dict[str, str], *columns: str) -> dict[str, str]:
    return {key: value for key, value in row.items() if key not in columns}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: without(row, "Mass", "Hernia"), "has no label of Mass, Hernia"),
        (lambda row: row | {"Mass": ""}, "has no label of Mass"),
        (lambda row: row | {"Mass": "1"}, "0 of its patients have a film that is known to show none"),
        (lambda row: row | dict.fromkeys((n.replace(" ", "_") for n in NAMES), "0"), "0 of its patients.*shows any"),
        (lambda row: row | {"patient": "the same"}, "1 of its patients"),
    ],
)
def test_labels_that_nothing_can_be_calibrated_on_are_refused_before_films_are_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, str]], dict[str, str]], message: str
) -> None:
    draw(["--out", str(tmp_path / "films"), "--count", "12", "--size", "64", "--findings-rate", "0.6"])
    table = rewritten(tmp_path / "films" / "labels.csv", change)
    monkeypatch.setattr(calibration, "score", lambda *_: pytest.fail("films were scored"))
    with pytest.raises(SystemExit, match=message):
        main(["--images", str(table.parent), "--labels", str(table), "--split", "all", "--out", str(tmp_path / "out")])


def test_a_full_disk_is_said_and_leaves_no_half_of_a_card(
    scored: Scored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(["--out", str(tmp_path / "films"), "--count", "8", "--size", "64", "--findings-rate", "0.6"])

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(calibration, "score", lambda *_: scored)
    monkeypatch.setattr(calibration, "calibrate", lambda card, *_: card)
    monkeypatch.setattr(calibration.shutil, "copyfile", full)
    table = tmp_path / "films" / "labels.csv"
    with pytest.raises(SystemExit, match="cannot be written: No space left on device"):
        main(["--images", str(table.parent), "--labels", str(table), "--split", "all", "--out", str(tmp_path / "out")])
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "holdout"], "No film of the split 'holdout'"),
        (["--weights", "no/such/folder"], "no/such/folder is no folder"),
        (["--weights", "tests"], r"No readable card\.json in .*/tests"),
        (["--images", "no/such/films"], "no/such/films does not exist"),
        (["--labels", "tests"], "tests cannot be read as a CSV"),
        (["--out", "README.md"], r"README\.md is no folder"),
        (["--out", "README.md/below"], r"README\.md is no folder"),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path: Path, arguments: list[str], message: str) -> None:
    draw(["--out", str(tmp_path / "films"), "--count", "2", "--size", "64"])
    table = tmp_path / "films" / "labels.csv"
    with pytest.raises(SystemExit, match=message):
        main(["--images", str(table.parent), "--labels", str(table), "--out", str(tmp_path / "out"), *arguments])
    assert not (tmp_path / "out").exists()


def test_alarms_are_a_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--images", ".", "--labels", "x.csv", "--out", str(tmp_path), "--alarms", "1.5"])
    assert "between 0 and 1" in capsys.readouterr().err
