import json
from collections.abc import Callable
from pathlib import Path

import pytest

from evaluation.measure import SCHEMA_VERSION
from modules.curves import served_digest
from modules.pathologies import NAMES
from modules.quality import GATE_CARD, InputGate
from modules.settings import PROJECT_ROOT
from modules.weights import EMBEDDED_WEIGHTS, WeightsCard, read_card, sha256_of, write_card
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


def of_card(card: WeightsCard, **changes: object) -> dict[str, object]:
    """Return what a metrics.json says of the weights that it was measured with, and no figures."""
    known = {"weights_sha256": card.sha256, "served_sha256": served_digest(card), "gate_sha256": sha256_of(GATE_CARD)}
    return {"schema_version": SCHEMA_VERSION, **known, **changes}


@pytest.mark.parametrize(
    "change",
    [
        lambda card: {"outputs": (card.outputs[0].model_copy(update={"threshold": 0.5}), *card.outputs[1:])},
        lambda card: {"outputs": (card.outputs[0].model_copy(update={"intercept": 0.5}), *card.outputs[1:])},
        lambda card: {"preprocessing": card.preprocessing.model_copy(update={"degrade_to": None})},
    ],
)
def test_figures_of_another_calibration_or_other_points_are_not_taken(
    change: Callable[[WeightsCard], dict[str, object]],
) -> None:
    evaluated = CARD.model_copy(update=change(CARD))
    with pytest.raises(SystemExit, match="another calibration, other operating points or another preprocessing"):
        with_evaluation(CARD, of_card(evaluated), "test", "")
    with pytest.raises(SystemExit, match="evaluate again"):
        with_evaluation(CARD, of_card(CARD, served_sha256=None), "test", "")
    with pytest.raises(SystemExit, match="another input gate"):
        with_evaluation(CARD, of_card(CARD), "test", "", "0" * 64)
    with pytest.raises(SystemExit, match="lacks figures"):  # what is compared fits, so the figures are looked at
        with_evaluation(CARD, of_card(CARD), "test", "", sha256_of(GATE_CARD))


def test_the_committed_figures_are_of_what_the_card_serves() -> None:
    curves = json.loads((EMBEDDED_WEIGHTS / "curves.json").read_text("utf-8"))
    assert curves["served_sha256"] == served_digest(CARD)


def test_what_is_no_evaluation_is_refused(tmp_path: Path) -> None:
    write_card(CARD, tmp_path)
    for content in ("{", "[]", '{"schema_version": 0}', '{"schema_version": NaN}', "[" * 100_000):
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


def test_a_model_card_of_other_films_says_nothing_of_chestxray14(tmp_path: Path) -> None:
    test = {**CARD.metrics["test"], "cohort": "films of split test", "how": ""}
    validation = {**CARD.metrics["validation"], "cohort": "films of split val"}
    words = {
        "data": "Films of one clinic: 300 training films",
        "training": "by hand",
        "licence": "ours",
        "citation": "-",
    }
    card = CARD.model_copy(update={**words, "metrics": {"test": test, "validation": validation}})
    text = " ".join(render(card, InputGate.load().card).split())
    own, gate = text.split("## Input gate")
    for claim in (
        "NIH",
        "ChestX-ray14",
        "Wang",
        "official",
        "one hospital",
        "films of 1024 px",
        "radiologists",
        "confounded",
        "64 px at",
    ):
        assert claim not in own + gate.split("## Limits")[1], claim
    assert "Test: 1,085 films of 100 patients (films of split test)." in text
    shipped = " ".join(TEXT.split())
    for claim in ("official test list", "one hospital", "boxes of radiologists", "which is confounded"):
        assert claim in shipped, claim


def test_shipped_weights_on_other_films_keep_what_is_true_of_their_training() -> None:
    test = {**CARD.metrics["test"], "cohort": "films of our clinic"}
    card = CARD.model_copy(update={"metrics": {**CARD.metrics, "test": test}})
    text = " ".join(render(card, InputGate.load().card).split())
    assert "mined from reports by text" in text
    assert "(films of our clinic)" in text
    assert "official test list" not in text
    assert "No other hospital was tried" not in text


def test_outputs_may_be_labelled_as_data_files_write_them() -> None:
    outputs = tuple(o.model_copy(update={"label": o.label.replace(" ", "_")}) for o in CARD.outputs)
    assert render(CARD.model_copy(update={"outputs": outputs}), InputGate.load().card) == TEXT


def test_a_card_whose_figures_have_another_form_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    card = CARD.model_copy(update={"metrics": {"validation": {"how": "?"}}, "gate_sha256": None})
    write_card(card, tmp_path)
    with pytest.raises(SystemExit, match="calibrate and evaluate again"):
        main(["--weights", str(tmp_path), "--out", str(tmp_path / "MODEL_CARD.md")])
    assert read_card(tmp_path) == card
    assert not (tmp_path / "MODEL_CARD.md").exists()


def test_where_nothing_can_be_written_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_card(CARD, tmp_path)
    with pytest.raises(SystemExit, match="is a folder"):
        main(["--weights", str(tmp_path), "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="is no folder"):
        main(["--weights", str(tmp_path), "--out", str(tmp_path / "card.json" / "MODEL_CARD.md")])
    with pytest.raises(SystemExit, match=r"No readable card\.json"):
        main(["--weights", str(tmp_path / "nowhere"), "--out", str(tmp_path / "MODEL_CARD.md")])
    with pytest.raises(SystemExit):
        main(["--name", "validation"])
    assert "any name but validation" in capsys.readouterr().err


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
