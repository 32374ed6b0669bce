"""The whole command on a dozen synthetic films: what it writes, what it names, what it never does twice."""

import csv
import errno
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from evaluation.__main__ import main
from evaluation.cohort import as_json
from evaluation.likelihood import ReadingsError, read_readings
from evaluation.localisation import Area, BoxesError, FindingBox, PlacedMap, area_of, compare, read_boxes, summary
from evaluation.metrics import Interval
from evaluation.output import OutputError, write, write_text
from evaluation.page import table, text
from evaluation.robustness import changed_films
from evaluation.scoring import LOG_FILE, EvaluationError, ScoredFilm, ScoreLog
from modules.cnn_model import CnnModel
from modules.curves import served_digest
from modules.pathologies import NAMES
from modules.quality import GATE_CARD, InputGate
from modules.records import ImageHeader, Radiograph
from modules.settings import PROJECT_ROOT
from modules.weights import EMBEDDED_WEIGHTS, read_card, sha256_of, write_card
from synthetic.__main__ import main as draw
from tests.image_files import dicom
from training.model_card import with_evaluation
from training.model_card_text import render

HOSTILE = "<img src=x onerror=alert(1)>.png"
BROKEN = "broken<b>.png"
ABSENT = "absent.png"
SCRIPT = "<script>alert(1)</script>"
FILMS = 12


def rewrite(path: Path, change: Any) -> None:
    """Apply a change to the rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = list(rows[0])
    rows = change(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def spoil(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Give a hostile name and view to one film, no known label of Mass to all, and name two files without a film."""
    for row in rows:
        row["Mass"] = ""
        row["split"] = "val"
    # all findings at once: some of them are missed, and the worst errors name the film
    rows[0] |= {
        "image": HOSTILE,
        "view": SCRIPT,
        **dict.fromkeys((n.replace(" ", "_") for n in NAMES if n != "Mass"), "1"),
    }
    return [*rows, rows[1] | {"image": BROKEN}, rows[1] | {"image": ABSENT}]


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films") / "set"
    draw(["--out", str(folder), "--count", str(FILMS), "--size", "128", "--findings-rate", "0.7"])
    first = sorted(folder.glob("*.png"))[0]
    rewrite(folder / "labels.csv", lambda rows: spoil(sorted(rows, key=lambda row: row["image"])))
    first.rename(folder / HOSTILE)
    (folder / BROKEN).write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return folder


@pytest.fixture(scope="module")
def out(films: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run with everything that can be asked for."""
    folder = tmp_path_factory.mktemp("out")
    others, readings = folder / "others", folder / "readings.jsonl"
    others.mkdir()
    (others / "chart__<i>.png").write_bytes((films / BROKEN).read_bytes())
    names = sorted(path.name for path in films.glob("*.png"))
    statements = {"Effusion": {"status": "present", "confidence": 0.8}, "Edema": {"status": "absent"}}
    readings.write_text("".join(json.dumps({"image": name, "statements": statements}) + "\n" for name in names))
    main(
        [
            *("--images", str(films), "--split", "val", "--out", str(folder), "--replicates", "20"),
            *("--boxes", str(films / "boxes.csv"), "--robustness", "1", "--others", str(others)),
            *("--readings", str(readings)),
        ]
    )
    return folder


@pytest.fixture(scope="module")
def metrics(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "metrics.json").read_text("utf-8"), parse_constant=pytest.fail)
    return found


def logged(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / LOG_FILE).read_text("utf-8").splitlines()]


# ── What is written ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_films_are_counted_and_no_file_is_lost(metrics: dict[str, Any]) -> None:
    assert metrics["schema_version"] == 1
    assert metrics["counts"]["films"] == FILMS
    assert metrics["counts"]["unreadable"] == 2
    reasons = {entry["image"]: entry["reason"] for entry in metrics["unreadable"]}
    assert set(reasons) == {BROKEN, ABSENT}
    assert "damaged" in reasons[BROKEN]
    assert reasons[ABSENT] == "no such file in the images"
    assert len(metrics["weights_sha256"]) == 64


def test_unknown_labels_are_masked_and_undefined_measures_are_null(metrics: dict[str, Any]) -> None:
    mass = metrics["discrimination"]["pathologies"]["Mass"]
    assert mass["films"] == 0
    assert mass["auroc"] is mass["auroc_interval"] is mass["auprc"] is mass["prevalence"] is None
    assert metrics["operating_points"]["Mass"]["sensitivity"] is None
    assert metrics["films_without_a_finding"]["films"] == 0  # nobody knows whether there is a mass
    assert metrics["calibration"]["pathologies"]["Mass"]["as_served"]["slope"] is None


def test_an_evaluation_says_what_it_is_of_and_goes_onto_the_card_of_these_weights(metrics: dict[str, Any]) -> None:
    card, gate = read_card(EMBEDDED_WEIGHTS), InputGate.load().card
    assert metrics["served_sha256"] == served_digest(card)
    assert metrics["gate_sha256"] == sha256_of(GATE_CARD)
    assert metrics["cohort"] == "films of split val"
    text = " ".join(render(with_evaluation(card, metrics, "test", "a trial", metrics["gate_sha256"]), gate).split())
    assert f"Test: {FILMS} films of {metrics['counts']['patients']} patients (films of split val), a trial." in text


def test_every_known_film_is_at_one_place_of_the_confusion_matrix(metrics: dict[str, Any]) -> None:
    for name, point in metrics["operating_points"].items():
        if point is not None:
            assert sum(point["confusion"].values()) == metrics["discrimination"]["pathologies"][name]["films"]


def test_each_part_that_was_asked_for_is_there(metrics: dict[str, Any]) -> None:
    assert metrics["localisation"]["all"]["boxes"] > 0
    assert set(metrics["baselines"]) == {"native_px", "native_px is 1024", "view is AP"}
    assert metrics["gate"]["others"]["by_category"] == {"chart": {"images": 1, "refused": 1}}
    assert {change["films"] for change in metrics["robustness"].values()} == {1}
    assert metrics["likelihood_ratios"]["ratios"]["present"]["statements"] == FILMS
    assert metrics["likelihood_ratios"]["readings_without_a_film"] == 1  # that of the broken file
    assert set(metrics["confidence"]) == {"without_a_reader", "with_the_reader"}
    assert set(metrics["subgroups"]) == {"sex", "age", "view"}


def test_the_report_runs_nothing_and_loads_nothing(out: Path) -> None:
    report = (out / "report.html").read_text("utf-8")
    assert "<script" not in report.casefold()
    assert "<img src=x" not in report
    assert "&lt;img src=x onerror=alert(1)&gt;.png" in report
    assert "&lt;script&gt;alert(1)" in report  # the view of a film
    assert "broken&lt;b&gt;.png" in report
    assert "http-equiv" in report
    assert 'src="http' not in report
    assert report.count("data:image/svg+xml;base64,") >= 4


def test_cells_are_escaped() -> None:
    assert text("a<b>&\"'") == "a&lt;b&gt;&amp;&quot;&#x27;"
    assert "<i>" not in table(("<i>",), [("<i>",)])


def test_json_holds_no_nan() -> None:
    value = {"a": math.nan, "b": [np.float64(1.5), math.inf], "c": Interval(0.1, 0.2), "d": Interval(math.nan, 1.0)}
    assert as_json(value) == {"a": None, "b": [1.5, None], "c": [0.1, 0.2], "d": None}


# ── Going on ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_stopped_run_goes_on_and_scores_nothing_twice(
    films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["--images", str(films), "--split", "val", "--out", str(tmp_path), "--replicates", "5", "--limit", "6"]
    calls: list[int] = []
    honest = CnnModel.predict

    def stops_at_the_third(self: CnnModel, film: Radiograph) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return honest(self, film)

    monkeypatch.setattr(CnnModel, "predict", stops_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        main(command)
    with (tmp_path / LOG_FILE).open("a") as file:
        file.write('{"kind": "film", "ima')  # as if it had been killed while writing
    main(command)
    first = json.loads((tmp_path / "metrics.json").read_text("utf-8"))
    scored = [entry["image"] for entry in logged(tmp_path) if entry["kind"] == "film"]
    assert len(scored) == len(set(scored)) == first["counts"]["films"]
    assert len(calls) == len(scored) + 1  # the one that was stopped
    main(command)
    assert len(calls) == len(scored) + 1
    assert json.loads((tmp_path / "metrics.json").read_text("utf-8")) == first
    with pytest.raises(SystemExit, match="was made with reduce_to None, this run has 64"):
        main([*command, "--reduce-to", "64"])


# ── Other weights, other files ───────────────────────────────────────────────────────────────────────────────────────


def test_weights_with_their_labels_in_another_order_give_the_same_numbers(
    films: Path, out: Path, tmp_path: Path
) -> None:
    embedded = PROJECT_ROOT / "assets" / "weights"
    card = read_card(embedded)
    order = list(reversed(range(len(card.outputs))))
    tensors = load_file(embedded / card.file)
    tensors |= {key: tensors[key][order].contiguous() for key in ("classifier.weight", "classifier.bias")}
    folder = tmp_path / "weights"
    folder.mkdir()
    save_file(tensors, folder / "other.safetensors")
    outputs = tuple(card.outputs[i] for i in order)
    found = {"name": "other", "file": "other.safetensors", "sha256": sha256_of(folder / "other.safetensors")}
    write_card(card.model_copy(update={**found, "outputs": outputs}), folder)
    main(
        [
            *("--weights", str(folder), "--images", str(films), "--split", "val", "--limit", "3"),
            *("--out", str(tmp_path / "out"), "--replicates", "2"),
        ]
    )
    expected = {entry["image"]: entry["log_odds"] for entry in logged(out) if entry["kind"] == "film"}
    scored = [entry for entry in logged(tmp_path / "out") if entry["kind"] == "film"]
    assert scored
    for entry in scored:
        assert entry["log_odds"] == pytest.approx(expected[entry["image"]], abs=1e-4)
        assert entry["log_odds"] != pytest.approx(entry["log_odds"][::-1], abs=1e-2)  # a wrong order would show


def test_a_densenet_of_torchxrayvision_goes_through_the_same_door(
    films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own package and its own label order; the file is of our making, with random values."""
    import torch
    from torchxrayvision import models

    monkeypatch.setenv("HOME", str(tmp_path))
    name = "densenet121-res224-nih"
    cache = tmp_path / ".torchxrayvision" / "models_data"
    cache.mkdir(parents=True)
    torch.manual_seed(5)
    file = cache / Path(models.model_urls[name]["weights_url"]).name
    torch.save(models.DenseNet(num_classes=18).eval(), file)
    asked = ["--weights", name, "--images", str(films), "--limit", "4", "--replicates", "5"]
    asked += ["--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match=f"--weights-sha256.*{sha256_of(file)}"):
        main(asked)
    main([*asked, "--weights-sha256", sha256_of(file)])
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text("utf-8"))
    assert metrics["weights"] == f"torchxrayvision-{name}"
    assert not metrics["calibrated"]
    assert "uncalibrated" in metrics["calibration"]["of"]
    assert list(metrics["discrimination"]["pathologies"]) == list(NAMES)
    assert all(entry["prior_corrected"] is None for entry in metrics["calibration"]["pathologies"].values())


def test_a_folder_of_dicom_files(tmp_path: Path, film_pixels: np.ndarray) -> None:
    folder = tmp_path / "films"
    folder.mkdir()
    (folder / "one.dcm").write_bytes(dicom(film_pixels))
    (folder / "two.dcm").write_bytes(dicom(film_pixels[:, ::-1].copy()))
    (folder / "labels.csv").write_text("image,Pleural_Thickening\none.dcm,1\ntwo.dcm,0\n")
    main(["--images", str(folder), "--out", str(tmp_path / "out"), "--replicates", "2"])
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text("utf-8"))
    assert metrics["counts"]["films"] == metrics["counts"]["patients"] == 2
    assert metrics["discrimination"]["pathologies"]["Pleural Thickening"]["auroc"] in (0.0, 1.0)


# ── What cannot be ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_split_without_films_is_named_beside_those_there_are(films: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no film of the split 'test'; its splits: val"):
        main(["--images", str(films), "--split", "test", "--out", str(tmp_path)])


def test_wrong_tables_are_explained(films: Path, tmp_path: Path) -> None:
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("image,finding,x,y,width\n")
    with pytest.raises(SystemExit, match="it lacks height"):
        main(["--images", str(films), "--boxes", str(boxes), "--out", str(tmp_path / "out")])
    boxes.write_text("image,finding,x,y,width,height\na.png,Fracture,1,2,3,4\n")
    with pytest.raises(BoxesError, match="line 2: 'Fracture' is none"):
        read_boxes(boxes)
    readings = tmp_path / "readings.jsonl"
    readings.write_text('{"image": "a.png", "statements": {"Effusion": {"status": "maybe"}}}\n')
    with pytest.raises(SystemExit, match="line 1"):
        main(["--images", str(films), "--readings", str(readings), "--out", str(tmp_path / "out")])


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--images", "nowhere", "nowhere does not exist"),
        ("--others", "nowhere", "nowhere does not exist"),
        ("--labels", ".", "cannot be read as a CSV file"),
        ("--out", "file", "file is no folder"),
        ("--weights", ".", r"No readable card\.json"),
    ],
)
def test_what_is_not_there_is_said_before_anything_is_written(
    films: Path, tmp_path: Path, option: str, value: str, message: str
) -> None:
    (tmp_path / "file").write_text("")
    options = {"--images": films, "--labels": films / "labels.csv", "--out": tmp_path / "out"}
    options[option] = tmp_path / value
    with pytest.raises(SystemExit, match=message):
        main([str(part) for pair in options.items() for part in pair])
    assert not (tmp_path / "out").exists()


def test_a_side_that_no_film_has_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--images", "films", "--out", "out", "--reduce-to", "1000000000"])
    assert "at most 4096" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change", [lambda log: log + b"\xff\xfe\n", lambda log: b"7\n", lambda log: log + b"[" * 99999 + b"\n"]
)
def test_a_log_that_is_damaged_is_named(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    ScoreLog(tmp_path, {"weights": "some"})
    (tmp_path / LOG_FILE).write_bytes(change((tmp_path / LOG_FILE).read_bytes()))
    with pytest.raises(EvaluationError, match=rf"{LOG_FILE} is damaged"):
        ScoreLog(tmp_path, {"weights": "some"})


def test_a_logged_film_has_finite_log_odds(tmp_path: Path) -> None:
    film = ScoredFilm("a.png", (0.5,) * len(NAMES), (0.5,) * len(NAMES), 0.9, "", 64, 64)
    ScoreLog(tmp_path, {}).add(film)
    assert ScoreLog(tmp_path, {}).films == {"a.png": film}
    (tmp_path / LOG_FILE).write_text((tmp_path / LOG_FILE).read_text().replace("[0.5,", "[NaN,"))
    with pytest.raises(EvaluationError, match="is damaged"):
        ScoreLog(tmp_path, {})


def test_an_archive_that_cannot_be_opened_is_named_with_the_films_that_are_missing(
    tmp_path: Path, film_pixels: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "films"
    folder.mkdir()
    for name, pixels in (("one.dcm", film_pixels), ("two.dcm", film_pixels[::-1].copy())):
        (folder / name).write_bytes(dicom(pixels))
    (folder / "more.zip").write_bytes(b"PK\x03\x04 and no more")
    (folder / "labels.csv").write_text("image,Mass\none.dcm,1\ntwo.dcm,0\nthree.dcm,1\n")
    main(["--images", str(folder), "--out", str(tmp_path / "out"), "--replicates", "2"])
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text("utf-8"))
    assert metrics["counts"]["films"] == 2
    reason = "no such file in the images; more.zip could not be opened"
    assert metrics["unreadable"] == [{"image": "three.dcm", "reason": reason}]
    assert "more.zip is a damaged zip archive" in capsys.readouterr().err
    assert metrics["discrimination"]["pathologies_measured"] == ["Mass"]  # what has no column is absent, not wrong


def test_a_full_disk_is_said(films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(ScoreLog, "add", full)
    with pytest.raises(SystemExit, match=r"python -m evaluation: No space left on device\."):
        main(["--images", str(films), "--limit", "1", "--out", str(tmp_path / "out")])


def test_results_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "below" / "metrics.json"
    write_text(path, "first")

    def full(unfinished: Path) -> None:
        unfinished.write_text("sec")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OutputError, match=r"metrics\.json cannot be written: No space left"):
        write(path, full)
    assert path.read_text() == "first"
    assert list(path.parent.iterdir()) == [path]


# ── Readings ─────────────────────────────────────────────────────────────────────────────────────────────────────────

READING = '{"image": "a.png", "statements": {"Effusion": {"status": "present"}}}'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[]", "a reading is an object"),
        ("7", "a reading is an object"),
        ('{"statements": {}}', "a reading is an object"),
        ('{"image": 7, "statements": {}}', "a reading is an object"),
        ('{"image": "b.png"}', "statements: Input should be a valid dictionary"),
        ('{"image": "b.png", "statements": [1]}', "statements: Input should be a valid dictionary"),
        (READING, "has a reading already"),
        (READING.replace("a.png", "b.png").replace("present", "maybe"), "statements.Effusion.status: "),
        (READING.replace("a.png", "b.png").replace("Effusion", "Fracture"), "unknown pathologies: Fracture"),
        (READING.replace("a.png", "b.png").replace("Effusion", "\\u001b[2J"), r"unknown pathologies: \?\[2J"),
        (READING.replace("a.png", "b.png").replace('"present"', '"present", "confidence": NaN'), "confidence: "),
        (READING.replace("a.png", "b.png").replace('"present"', '"present", "confidence": 1e999'), "confidence: "),
        (READING.replace("a.png", "b.png").replace('"present"', f'"present", "confidence": {"9" * 5000}'), "no JSON: "),
        (READING.replace("a.png", "b.png").replace('"present"', '"present", "status": "absent"'), "a key stands twice"),
        ('{"image": "b.png", "statements": ' + "[" * 99999, "nested too deeply"),
        ('{"image": ', "no JSON: "),
    ],
)
def test_a_line_that_is_no_reading_is_named_with_its_number(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "readings.jsonl"
    path.write_text(f"{READING}\n\n{line}\n", "utf-8")
    with pytest.raises(ReadingsError, match=rf"readings\.jsonl, line 3: .*{message}") as caught:
        read_readings(path)
    assert str(caught.value).isprintable()


def test_readings_may_begin_with_a_mark_and_hold_any_character(tmp_path: Path) -> None:
    path = tmp_path / "readings.jsonl"
    path.write_text(f"\ufeff{READING}\r\n" + READING.replace("a.png", "b\u2028.png"), "utf-8")
    assert list(read_readings(path)) == ["a.png", "b\u2028.png"]


# ── Localisation ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_map_is_compared_with_its_box_and_with_guesses() -> None:
    def quarter(image: str, x: float, y: float) -> tuple[FindingBox, Area]:
        box = FindingBox(image, "Mass", x, y, 50, 50)
        return box, area_of(box, 100, 100)

    boxes = [quarter("a", 0, 0), quarter("b", 50, 50), quarter("c", 50, 50)]
    whole = Area(0.0, 0.0, 1.0, 1.0)
    top_left = PlacedMap(((1.0, -5.0), (-5.0, -5.0)), whole)
    nothing = PlacedMap(((-1.0, -1.0), (-1.0, -1.0)), whole)
    keys = [(box.image, "Mass") for box, _ in boxes]
    found = compare(
        boxes,
        dict(zip(keys, (top_left, top_left, nothing), strict=True)),
        dict.fromkeys(keys, 0.5),
        dict(zip(keys, (True, True, False), strict=True)),
    )
    assert [c.pointed for c in found] == [True, False, False]
    assert [c.overlap > 0.5 for c in found] == [True, False, False]
    assert found[2].overlap == 0.0
    # the mean box of the others: both at the lower right for a; one at each corner, so in the middle, for the rest
    assert [c.mean_box_overlap for c in found] == [0.0, pytest.approx(1 / 7, abs=0.01), pytest.approx(1 / 7, abs=0.01)]
    counts = summary(found)["all"]
    assert (counts["boxes"], counts["pointed"], counts["pointed_and_detected"]) == (3, 1, 1)
    assert counts["overlap_at_least"]["0.5"] == {"map": 1, "map_and_detected": 1, "mean_box_guess": 0}


def test_a_map_of_the_centre_crop_lies_in_the_middle() -> None:
    placed = PlacedMap(((1.0,),), Area(0.25, 0.0, 0.75, 1.0))
    assert placed.peak == (0.5, 0.5)
    assert placed.mask.mean() == pytest.approx(0.5, abs=0.01)
    assert not placed.mask[:, 0].any()


# ── Robustness ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("side", "changes"), [(64, 5), (1024, 6)])
def test_changes_keep_a_film_a_film(side: int, changes: int) -> None:
    pixels = np.linspace(0, 1, side * side, dtype=np.float32).reshape(side, side)
    film = Radiograph(pixels, ImageHeader("png", side, side))
    found = changed_films(film)
    assert len(found) == changes
    for name, other in found.items():
        assert not np.array_equal(other.pixels, pixels), name
    assert np.allclose(found["brightness -20%"].pixels, pixels * 0.8)
    assert found["brightness +20%"].pixels.max() == 1.0


def test_the_14_are_in_every_part(metrics: dict[str, Any]) -> None:
    for part in (metrics["discrimination"]["pathologies"], metrics["worst_errors"], metrics["operating_points"]):
        assert tuple(part) == NAMES
