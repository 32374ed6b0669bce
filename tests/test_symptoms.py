"""Red flags in sentences as patients and clinicians write them, and in text that nobody would."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from modules.records import MAX_SYMPTOMS
from modules.symptoms import LOW_SATURATION, red_flags

BLOOD = "coughing blood"
PAIN = "chest pain"
BREATH = "shortness of breath"
OXYGEN = "low oxygen"
FAINT = "fainting"
CONFUSED = "confusion"
SHOCK = "low blood pressure or shock"
INJURY = "chest injury"
WEIGHT = "weight loss"
ALL_FLAGS = (BLOOD, PAIN, BREATH, OXYGEN, FAINT, CONFUSED, SHOCK, INJURY, WEIGHT)

SENTENCES: dict[str, set[str]] = {
    # ── each flag in its usual words ──
    "chest pain": {PAIN},
    "CHEST PAIN AND SHORTNESS OF BREATH": {PAIN, BREATH},
    "chest pain x3 days, non-radiating, no SOB": {PAIN},
    "worried about chest tightness and wheeze, not relieved by inhaler": {PAIN},
    "central crushing chest pain radiating to the left arm": {PAIN},
    "pleuritic pain on the left": {PAIN},
    "My chest hurts when I breathe in.": {PAIN},
    "my chest feels tight": {PAIN},
    "pressure in my chest since this morning": {PAIN},
    "pain on the left side of my chest": {PAIN},
    "chest and abdominal pain": {PAIN},
    "left-sided chest discomfort": {PAIN},
    "67F c/o CP x 2 days": {PAIN},
    "chest wall pain after lifting": {PAIN},
    "non-productive cough and chest pain": {PAIN},
    "stabbing chest pain": {PAIN},
    "stable, blunting of the left CP angle": set(),
    "short of breath on exertion": {BREATH},
    "SOB for 3/7": {BREATH},
    "SOBOE, 2 pillows": {BREATH},
    "she was sobbing all night": set(),
    "progressive dyspnoea": {BREATH},
    "dyspneic at rest": {BREATH},
    "I get out of breath on the stairs": {BREATH},
    "I can’t catch my breath": {BREATH},
    "can't breathe lying flat": {BREATH},
    "He cannot breathe through it, and can not breathe at night": {BREATH},
    "unable to breathe deeply": {BREATH},
    "can hardly breathe": {BREATH},
    "difficulty breathing": {BREATH},
    "orthopnea and leg swelling": {BREATH},
    "coughing up blood": {BLOOD},
    "coughed up some bright red blood": {BLOOD},
    "haemoptysis": {BLOOD},
    "blood-stained sputum": {BLOOD},
    "There is blood in my phlegm": {BLOOD},
    "cough and low blood pressure": {SHOCK},
    "cough, blood pressure normal": set(),
    "lips turned blue": {OXYGEN},
    "hypoxic on arrival": {OXYGEN},
    "passed out in the shop": {FAINT},
    "syncope while walking": {FAINT},
    "felt faint": {FAINT},
    "blacked out for a minute": {FAINT},
    "collapsed in the street": {FAINT},
    "left lower lobe collapse on the last film": set(),
    "follow-up of a collapsed lung": set(),
    "faint crackles at both bases": set(),
    "faintness and palpitations": {FAINT},
    "new confusion": {CONFUSED},
    "drowsy and disorientated": {CONFUSED},
    "hypotensive, septic": {SHOCK},
    "shocked, BP 70/40": {SHOCK},
    "BP 120/80, no shock": set(),
    "stab wound below the left nipple": {INJURY},
    "three broken ribs after a fall": {INJURY},
    "blunt trauma": {INJURY},
    "unintentional weight loss and night sweats": {WEIGHT},
    "I have lost a lot of weight": {WEIGHT},
    "lost 10 kg in two months": {WEIGHT},
    "chest\npain": {PAIN},
    "admitted with shortness\nof breath": {BREATH},
    # ── no flag at all ──
    "": set(),
    "   \n\n ": set(),
    "routine pre-operative film": set(),
    "dry cough for two weeks, low-grade fever": set(),
    "follow-up of a nodule; feels well": set(),
    # ── denied ──
    "no chest pain": set(),
    "No CP or SOB.": set(),
    "denies chest pain": set(),
    "DENIES CHEST PAIN, DYSPNOEA AND SYNCOPE": set(),
    "Patient denied any chest pain or shortness of breath": set(),
    "Denies fever, cough, chest pain.": set(),
    "no fever, cough or chest pain": set(),
    "no chest pain, shortness of breath, or syncope": set(),
    "No haemoptysis, night sweats, nor weight loss": set(),
    "neither chest pain nor dyspnoea": set(),
    "cough without haemoptysis": set(),
    "cough without chest pain or shortness of breath": set(),
    "I don't have chest pain": set(),
    "I don’t have any chest pain": set(),
    "she doesnt get short of breath": set(),
    "He isn't short of breath": set(),
    "not short of breath": set(),
    "never had chest pain": set(),
    "does not report chest pain": set(),
    "does not complain of chest pain": set(),
    "no complaints of chest pain": set(),
    "no history of syncope": set(),
    "has not developed chest pain": set(),
    "negative for chest pain, dyspnoea, haemoptysis": set(),
    "absence of chest pain": set(),
    "nil chest pain": set(),
    "chest pain has resolved": set(),
    "Chest pain, now resolved.": set(),
    "the chest pain has gone away": set(),
    "chest pain settled overnight": set(),
    "chest pain (resolved), cough": set(),
    "chest pain which resolved yesterday": set(),
    "chest pain no longer present": set(),
    "no longer short of breath": set(),
    "not known to have chest pain": set(),
    "No SOB/CP/palpitations": set(),
    "Shortness of breath: denies, chest pain: denies": set(),
    "previously had chest pain, none now": set(),
    "chest pain: no": set(),
    "- chest pain: no\n- SOB: no\n- fever: yes": set(),
    "Chest pain: none. Dyspnoea: absent.": set(),
    "Chest pain - no": set(),
    "Chest pain? No. Short of breath? No.": set(),
    "Chest pain (denied)": set(),
    "chest pain is absent": set(),
    "chest pain not present": set(),
    "Patient is chest pain free": set(),
    "not hypoxic, not confused": set(),
    "cough with no blood": set(),
    "no fever, no chest pain": set(),
    "no chest pain yet": set(),
    "denies fever,\nchest pain": set(),
    "no fever, cough or\nchest pain": set(),
    # ── affirmed beside a denial ──
    "no fever, chest pain since yesterday": {PAIN},
    "no fever\nchest pain": {PAIN},
    "no fever\n2 days of chest pain": {PAIN},
    "• no fever • chest pain": {PAIN},
    "no fever - chest pain since Monday": {PAIN},
    "no fever – chest pain since Monday": {PAIN},
    "no fever; chest pain": {PAIN},
    "No fever. Chest pain.": {PAIN},
    "no fever but chest pain": {PAIN},
    "no fever and has chest pain": {PAIN},
    "Denies fever, has chest pain": {PAIN},
    "denies chest pain and is short of breath": {BREATH},
    "denies chest pain but reports dyspnoea": {BREATH},
    "denies syncope, complains of chest pain": {PAIN},
    "no fever or cough, chest pain since yesterday": {PAIN},
    "no fever, chest pain for two or three days": {PAIN},
    "no fever, chest pain worse on walking or climbing": {PAIN},
    "no symptoms apart from chest pain": {PAIN},
    "no complaints other than chest pain": {PAIN},
    "not only chest pain but also haemoptysis": {PAIN, BLOOD},
    "not sleeping because of chest pain": {PAIN},
    "unable to sleep due to chest pain": {PAIN},
    "chest pain is not improving": {PAIN},
    "chest pain, no relief with GTN": {PAIN},
    "chest pain - no fever": {PAIN},
    "chest pain, negative troponin": {PAIN},
    "chest pain, absent breath sounds on the right": {PAIN},
    "chest pain has gone on for days": {PAIN},
    "no relief of the chest pain": {PAIN},
    "never smoker with chest pain": {PAIN},
    "I have never had chest pain like this": {PAIN},
    "I don't feel well with this chest pain": {PAIN},
    "no past medical history, presenting with chest pain": {PAIN},
    "Fever: no, chest pain: yes": {PAIN},
    "- fever: no\n- chest pain: yes": {PAIN},
    "chest pain resolved but still breathless": {BREATH},
    "pneumothorax ruled out, chest pain persists": {PAIN},
    "he denied drinking, chest pain began at noon": {PAIN},
    "no SOB at rest, but SOB on exertion": {BREATH},
    "chest pain without dyspnoea": {PAIN},
    "not confused but drowsy": {CONFUSED},
    "Cough without fever. Night sweats.": {WEIGHT},
    "no rash; coughing up blood; no syncope": {BLOOD},
    "no worsening of shortness of breath": {BREATH},
    # ── oxygen saturation ──
    "SpO2 88%": {OXYGEN},
    "SpO₂ 88 %": {OXYGEN},
    "SPO2: 91": {OXYGEN},
    "SpO2 92%": set(),
    "sats 98% on air": set(),
    "sats 85 on room air": {OXYGEN},
    "O2 sat 84%": {OXYGEN},
    "oxygen saturation of 89.5%": {OXYGEN},
    "saturation was measured at 86%": {OXYGEN},
    "my oxygen level is 87": {OXYGEN},
    "sats on 15L 97%": set(),
    "sats on 2 L/min 86%": {OXYGEN},
    "sats dropped from 97% to 85%": {OXYGEN},
    "SpO2 100%, HR 88, RR 20": set(),
    "sats fine, HR 88": set(),
    "sats 88-90% RA": {OXYGEN},
    "oxygen saturations low at home": {OXYGEN},
    "on 28% oxygen, sats 94%": set(),
    "target sats 88-92%": set(),
    "sat down 45 minutes ago": set(),
    "fell on Sat 21 June, aged 85": set(),
}


@pytest.mark.parametrize(("text", "flags"), SENTENCES.items())
def test_a_sentence_raises_the_flags_that_it_affirms(text: str, flags: set[str]) -> None:
    assert set(red_flags(text)) == flags


@pytest.mark.parametrize("text", [text for text, flags in SENTENCES.items() if text.isascii() and len(flags) < 2])
def test_capitals_change_nothing_but_wrapped_lines(text: str) -> None:
    one_line = text if "\n" not in text or "- " in text else text.replace("\n", " . ")
    assert red_flags(one_line.upper()) == red_flags(one_line.lower())


@pytest.mark.parametrize("template", ["no {}", "denies {}", "without {}", "there is no {} today", "{}: no"])
@pytest.mark.parametrize(
    "symptom",
    ["haemoptysis", "chest pain", "dyspnoea", "cyanosis", "syncope", "confusion", "hypotension", "chest trauma"],
)
def test_every_flag_can_be_affirmed_and_denied(symptom: str, template: str) -> None:
    assert len(red_flags(symptom)) == 1
    assert red_flags(template.format(symptom)) == ()


def test_flags_come_once_and_in_one_order() -> None:
    words = "night sweats, stab wound, shock, confused, fainted, hypoxia, SOB, chest pain, haemoptysis"
    assert red_flags(f"{words}, {words}") == ALL_FLAGS


@given(st.integers(min_value=30, max_value=100))
def test_a_saturation_is_low_below_its_limit(value: int) -> None:
    assert (red_flags(f"SpO2 {value}% on air") == (OXYGEN,)) == (value < LOW_SATURATION)


PIECES = st.sampled_from(
    [*SENTENCES, " no ", "no", ", ", " or ", ". ", "\n", " but ", "denies ", "never ", "sats ", "88", " L ", "~", "'"]
)


@given(st.text(max_size=MAX_SYMPTOMS) | st.lists(PIECES, max_size=60).map("".join))
@example("\ud800 chest pain")
@example("\x00chest pain")
@example("sats " + "\u0669" * 3)
def test_any_text_gives_known_flags(text: str) -> None:
    flags = red_flags(text[:MAX_SYMPTOMS])
    assert list(flags) == [flag for flag in ALL_FLAGS if flag in flags]


HOSTILE = (
    "no chest pain ",
    "no sob ",
    "no ",
    "n",
    " ",
    "\n",
    ",",
    ", a",
    "no, or ",
    "cough ",
    "cough a b ",
    "pain in the ",
    "pain in a a a a ",
    "chest ",
    "chest a",
    "sats ",
    "sats 1",
    "sats 9 l ",
    "1",
    "9 l",
    "sat ",
    "lost a ",
    "not feel ",
    "a'",
    "chest pain, a b c d",
    "sob, a a",
    "sob been now ",
    "sob:",
    "1 or 2 ",
    "oxygen is ",
    "collapse left ",
    "and also ",
    "\ufdfa",
    "he ",
)


@pytest.mark.parametrize("piece", HOSTILE)
def test_hostile_repetition_is_read_to_its_end(piece: str) -> None:
    text = (piece * MAX_SYMPTOMS)[:MAX_SYMPTOMS]
    for whole in (text, "chest pain" + text[10:], "no" + text[2:-3] + "sob"):
        assert set(red_flags(whole)) <= set(ALL_FLAGS)


@pytest.mark.parametrize("text", SENTENCES)
@pytest.mark.parametrize("prefix", ["No fever. ", "Denies alcohol.\n", "Never smoked; ", "Cough for 2 or 3 days. "])
def test_a_sentence_without_flags_in_front_changes_nothing(prefix: str, text: str) -> None:
    assert red_flags(prefix) == ()
    assert red_flags(prefix + text) == red_flags(text)


@given(st.lists(st.sampled_from(sorted(SENTENCES)), max_size=6))
def test_separate_paragraphs_do_not_touch_each_other(texts: list[str]) -> None:
    together = red_flags(".\n\n".join(texts)[:MAX_SYMPTOMS])
    assert set(together) == {flag for text in texts for flag in SENTENCES[text]}
