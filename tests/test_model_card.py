import json
from pathlib import Path

import pytest

from modules.pathologies import NAMES
from modules.quality import GATE_CARD, InputGate
from modules.settings import PROJECT_ROOT
from modules.weights import EMBEDDED_WEIGHTS, read_card, sha256_of, write_card
from training.card_summary import summary
from training.markdown import table, wrapped
from training.model_card import main, with_evaluation
from training.model_card_text import render

CARD = read_card(EMBEDDED_WEIGHTS)
TEXT = (PROJECT_ROOT / "MODEL_CARD.md").read_text("utf-8")
README = (PROJECT_ROOT / "README.md").read_text("utf-8")


def test_the_model_card_is_what_the_weights_card_says() -> None:
    assert render(CARD, InputGate.load().card) == TEXT


def test_the_gate_is_the_one_that_was_measured() -> None:
    assert CARD.gate_sha256 == sha256_of(GATE_CARD)


def test_every_part_that_a_reader_looks_for_is_there() -> None:
    for heading in (
        "Intended use", "Data", "Discrimination", "Operating points", "Calibration", "Subgroups", "Known shortcuts",
        "Localisation", "Robustness", "Input gate", "Limits",
    ):  # fmt: skip
        assert f"\n## {heading}" in TEXT
    for name in NAMES:
        assert TEXT.count(f"| {name}") >= 3


def test_figures_are_those_of_the_card() -> None:
    found = CARD.metrics["test"]["discrimination"]
    low, high = found["mean_auroc_interval"]
    assert f"**{found['mean_auroc']:.3f} ({low:.3f}–{high:.3f})**" in " ".join(TEXT.split())
    assert f"{found['mean_auroc']:.3f} (95 % interval {low:.3f} to {high:.3f})" in README
    assert f"{CARD.metrics['validation']['calibration']['mean_ece']:.3f}" in TEXT
    assert CARD.sha256 in TEXT


def test_the_card_keeps_no_file_name_of_a_film_and_no_path() -> None:
    text = json.dumps(CARD.metrics)
    assert ".png" not in text
    assert ".zip" not in text


def test_another_network_s_figures_are_not_taken() -> None:
    with pytest.raises(SystemExit, match="evaluate the card's"):
        with_evaluation(CARD, {"weights_sha256": "0" * 64}, "test", "")


def test_what_is_no_evaluation_is_refused(tmp_path: Path) -> None:
    write_card(CARD, tmp_path)
    for content in ("{", "[]", '{"schema_version": 0}'):
        (tmp_path / "metrics.json").write_text(content)
        with pytest.raises(SystemExit, match=r"metrics\.json"):
            main(["--weights", str(tmp_path), "--evaluation", str(tmp_path / "metrics.json")])
    assert read_card(tmp_path) == CARD


def test_a_card_without_an_evaluation_says_less_and_invents_nothing(tmp_path: Path) -> None:
    write_card(CARD.model_copy(update={"metrics": {}, "calibration": None}), tmp_path)
    main(["--weights", str(tmp_path), "--out", str(tmp_path / "MODEL_CARD.md")])
    text = (tmp_path / "MODEL_CARD.md").read_text("utf-8")
    assert "Intended use" in text
    assert "the outputs are no probabilities" in text
    assert "AUROC over" not in text
    assert "Operating points\n" not in text


def test_a_summary_rounds_and_leaves_out_lists_of_files() -> None:
    metrics = {
        "unreadable": [{"image": "a.png", "reason": "damaged"}],
        "options": {"images": ["somewhere"]},
        "counts": {"films": 3},
        "gate": {"films_refused": [{"image": "b.png"}], "films": 3},
        "localisation": {"all": {"boxes": 1}, "boxes": [{"image": "c.png"}]},
        "subgroups": {"sex": {"F": {"films": 2, "pathologies": {"Mass": {"positive_films": 1, "auroc": 0.123456789}}}}},
        "robustness": {"turned": {"largest": 0.25, "largest_on": {"image": "d.png"}}},
    }
    kept = summary(metrics)
    assert ".png" not in json.dumps(kept)
    assert kept["counts"] == {"films": 3, "unreadable": 1}
    assert kept["gate"] == {"films": 3, "films_refused": 1}
    assert kept["subgroups"]["sex"]["F"]["pathologies"]["Mass"]["auroc"] == 0.12346
    assert "somewhere" not in json.dumps(kept)
    assert metrics["gate"]["films_refused"] == [{"image": "b.png"}]  # the evaluation itself is left as it is


def test_prose_is_filled_and_the_rest_stays() -> None:
    lines = ["# Title", "", "one two", "three", "", *table(("a", "b"), [("x|y", 1)]), "- four", "five", "- six", "```"]
    assert list(wrapped([*lines, "code  code", "```"], width=9)) == [
        "# Title", "", "one two", "three", "", "| a | b |", "|---|---|", "| x\\|y | 1 |", "", "- four", "  five",
        "- six", "```", "code  code", "```", "",
    ]  # fmt: skip
