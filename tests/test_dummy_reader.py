"""The template that answers when no second reader can: it repeats the CNN, and claims nothing else."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from pydantic import ValidationError

from modules.multimodal_reasoning import SecondReader
from modules.pathologies import NAMES
from modules.reasoners.base import ReaderFilm, ReaderTask
from modules.reasoners.dummy import DummyReader
from modules.records import CnnPrediction, Reading
from tests.stages import TEMPLATE, film, predict, predictions


def reader_film() -> ReaderFilm:
    return ReaderFilm.of(film())


@given(predictions())
def test_the_template_repeats_the_cnn_in_its_order_and_states_nothing(prediction: CnnPrediction) -> None:
    reading, info = SecondReader("dummy", (DummyReader(),)).read(reader_film(), "cough", prediction)
    detected = [NAMES[k] for k in prediction.ranking if prediction.detected[k]]
    assert list(reading.differential) == detected
    assert reading.reasoning.startswith("No second reader ran: ")
    assert (reading.statements, reading.token_confidence, reading.independent) == ({}, None, False)
    assert all(reading.statement(name).status == "not_mentioned" for name in NAMES)
    assert (info.film_sent_to.split(":")[0], info.independent, info.token_confidence) == ("nowhere", False, None)
    assert (info.form, info.flags, info.prompt, info.saw_cnn) == (None, (), None, False)
    assert all(name in reading.reasoning for name in detected)


def test_the_template_ranks_by_distance_from_the_threshold_with_sufficient_data_first() -> None:
    prediction = predict(
        {"Mass": 0.9, "Hernia": 0.2, "Edema": 0.6, "Fibrosis": 0.99, "Nodule": 0.4},
        {"Hernia": 0.01},
        insufficient=frozenset({"Fibrosis"}),
    )
    # margins in log-odds: Hernia 3.2, Mass 2.2, Edema 0.4; Fibrosis 4.6, on insufficient data
    assert DummyReader().read(ReaderTask(reader_film(), "", prediction)).differential == (
        "Hernia",
        "Mass",
        "Edema",
        "Fibrosis",
    )


def test_the_template_does_not_reassure_when_nothing_was_detected() -> None:
    reading = DummyReader().read(ReaderTask(reader_film(), "", predict()))
    assert reading.differential == ()
    assert "this does not exclude disease" in reading.reasoning


class FilmNobodyMayOpen:
    """Fails the test when anything of the film is asked."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the template looked at {name} of the film")


def test_the_template_does_not_look_at_the_film() -> None:
    reading, info = SecondReader("dummy", (DummyReader(),)).read(FilmNobodyMayOpen(), "cough", predict())  # type: ignore[arg-type]
    assert reading.reasoning.startswith("No second reader ran: MEDGEMMA_MODE")
    assert info.film_sent_to == "nowhere: no second reader ran"


@pytest.mark.parametrize("claim", [{"statements": {"Mass": {"status": "present"}}}, {"token_confidence": 0.7}])
def test_a_template_that_claims_to_have_read_the_film_is_refused(claim: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="not independent"):
        Reading.model_validate({**TEMPLATE.model_dump(), **claim})


def test_reading_leaves_the_prediction_and_the_film_as_they_were() -> None:
    prediction, shown = predict({"Mass": 0.9}), reader_film()
    before = prediction.log_odds.copy(), shown.pixels.copy()
    SecondReader("dummy", (DummyReader(),)).read(shown, "cough", prediction)
    np.testing.assert_array_equal(prediction.log_odds, before[0])
    np.testing.assert_array_equal(shown.pixels, before[1])
