"""What is flagged in a reader's text: a prescription or certainty; not a refusal, a size or a laboratory value."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.reasoners import safety
from modules.reasoners.safety import CERTAIN, PRESCRIBES

PRESCRIPTIONS = [
    "Start amoxicillin 500 mg",
    "Start amoxicillin.",
    "Consider antibiotics.",
    "consider broad-spectrum antibiotics while waiting",
    "Administer furosemide.",
    "The patient should receive diuretics.",
    "Treat with ceftriaxone.",
    "Recommend treatment with steroids.",
    "Recommended: azithromycin for five days.",
    "Begin anticoagulation.",
    "Initiate antimicrobial therapy.",
    "Prescribe doxycycline.",
    "I would suggest co-amoxiclav.",
    "Give supplemental oxygen.",
    "The patient should be started on antibiotics.",
    "He needs to be treated with prednisolone.",
    "Antibiotics are recommended.",
    "Antibiotic therapy should be started.",
    "Diuretics may be considered.",
    "Intubation is required.",
    "Needle decompression should be performed immediately.",
    "Insert a chest drain.",
    "Perform thoracentesis.",
    "The effusion requires drainage.",
    "CT-guided biopsy is recommended.",
    "5 mg",
    "Prednisone 40 mg daily",
    "furosemide 0.5mg/kg",
    "morphine 10 micrograms",
    "ceftriaxone 1 g iv",
    "two tablets three times a day",
    "No effusion. Start amoxicillin.",
    "There is no effusion, start amoxicillin.",
    "No change is recommended but start amoxicillin.",
    "Not for the faint: give heparin.",
    "**Start** _amoxicillin_ now",
    "START AMOXICILLIN",
]
CERTAINTIES = [
    "This confirms pneumonia.",
    "The findings confirm pneumonia.",
    "Confirmed tuberculosis.",
    "The diagnosis is pneumonia.",
    "Definitive diagnosis: pneumonia.",
    "This is diagnostic of tuberculosis.",
    "The sign is pathognomonic.",
    "This is definitely a pneumothorax.",
    "Certainly pneumonia.",
    "Undoubtedly an effusion.",
    "There is no doubt that this is a mass.",
    "A mass without any doubt.",
    "I am 100% certain.",
    "I am 100 % sure.",
    "It is certain that the lung is collapsed.",
    "It is pneumonia with certainty.",
    "This proves heart failure.",
    "This film rules out pneumothorax.",
    "Pneumothorax is ruled out.",
    "A normal film excludes pneumonia.",
    "There is no effusion. This confirms pneumonia.",
    "There is no effusion, which confirms pneumonia.",
]
NEITHER = [
    "",
    "No antibiotics were given.",
    "Antibiotics should not be given without review.",
    "Do not start antibiotics before a radiologist has read the film.",
    "It is not possible to recommend antibiotics on this film.",
    "I can't prescribe antibiotics.",
    "I can’t prescribe antibiotics.",
    "Avoid starting antibiotics.",
    "Antibiotics are not recommended.",
    "Recommend against steroids.",
    "A physician should decide whether to start antibiotics.",
    "Recommend no antibiotics.",
    "The findings give no reason for antibiotics.",
    "The patient was treated with antibiotics last month.",
    "The user reports that he takes warfarin and was given steroids.",
    "A chest tube is in place.",
    "The oxygen saturation is 100%.",
    "Consider the oxygen saturation of 88%.",
    "a 12 mm nodule",
    "A mass of 3.5 cm x 20 mm in the right upper lobe.",
    "CRP 120 mg/L, D-dimer 3 µg/mL, glucose 90 mg/dL",
    "CT is recommended to exclude a mass.",
    "CT is recommended to confirm.",
    "A radiologist should review the film.",
    "a specialist should be consulted for further evaluation",
    "The silhouette suggests cardiomegaly; consider heart failure.",
    "This cannot be confirmed on this film.",
    "This does not confirm pneumonia.",
    "This should be confirmed by CT.",
    "It needs to be confirmed.",
    "It can only be confirmed by CT.",
    "A lateral view would help to confirm this.",
    "If confirmed, a mass is likely.",
    "not diagnostic of pneumonia",
    "No definitive diagnosis can be made.",
    "A definitive diagnosis cannot be made on this film.",
    "A definitive diagnosis requires CT.",
    "Correlation is needed for definitive diagnosis.",
    "The diagnosis is uncertain.",
    "The diagnosis is most likely pneumonia.",
    "Pneumothorax cannot be ruled out with certainty.",
    "A small effusion should be ruled out.",
    "It is uncertain whether there is an effusion.",
    "Never certainly one or the other.",
    "This is not a confirmed finding.",
    "consistent with pneumonia; highly suggestive of consolidation",
    "No focal consolidation, effusion or pneumothorax.",
]


@pytest.mark.parametrize("text", PRESCRIPTIONS)
def test_a_prescription_is_flagged(text: str) -> None:
    assert safety.flags([text]) == (PRESCRIBES,)


@pytest.mark.parametrize("text", CERTAINTIES)
def test_certainty_is_flagged(text: str) -> None:
    assert safety.flags([text]) == (CERTAIN,)


@pytest.mark.parametrize("text", NEITHER)
def test_a_refusal_a_doubt_a_size_and_a_laboratory_value_are_not_flagged(text: str) -> None:
    assert safety.flags([text]) == ()


def test_each_rule_is_named_once_for_all_texts_of_a_reply() -> None:
    assert safety.flags(()) == ()
    assert safety.flags(["Start heparin.", "", "This confirms it.", "Give aspirin. Definitely."]) == (
        PRESCRIBES,
        CERTAIN,
    )
    assert safety.flags(iter(["A mass.", "This confirms it."])) == (CERTAIN,)


def test_what_takes_a_phrase_back_does_not_reach_into_another_text() -> None:
    assert safety.flags(["not", "confirmed pneumonia"]) == (CERTAIN,)


@pytest.mark.parametrize(
    "piece",
    [
        *("start ", "give ", "consider a ", "should be ", "antibiotics a a a ", "start aspirin ", "definitive ", "to "),
        *("no ", "not a ", "confirms ", "not confirmed ", "1", "1.", "1 ", "a", "cef", "\n", ". ", "tablets ", "treat"),
        *("the diagnosis is ", "cillin", "start\u00a0", "may x be ", "oxygen ", "no change start "),
    ],
)
def test_a_long_text_takes_no_long_time(piece: str) -> None:
    text = piece * (64_000 // len(piece))
    start = time.perf_counter()
    safety.flags([text])
    assert time.perf_counter() - start < 1.9


WORDS = ("no", "not", "to", "be", "start", "heparin", "5", "mg", "confirm", "the diagnosis is", ".", ",", "%")


@given(st.text(max_size=400) | st.lists(st.sampled_from(WORDS)).map(" ".join))
def test_any_text_is_judged(text: str) -> None:
    assert set(safety.flags([text])) <= {PRESCRIBES, CERTAIN}
