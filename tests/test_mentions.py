"""What is said of each pathology, in sentences as radiologists write them, and in text that nobody would."""

import hashlib
import json
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from modules.mentions import MAX_QUOTE, statements
from modules.pathologies import NAMES
from tests.mention_sentences import SENTENCES

CORPUS = Path(__file__).parent / "data" / "report_sentences.jsonl"
MAX_TEXT = 64_000

ABBREVIATIONS = ("ate", "card", "eff", "inf", "mass", "nod", "pna", "ptx", "con", "ede", "emp", "fib", "thick", "her")
CODES = dict(zip(ABBREVIATIONS, NAMES, strict=True))
SIGNS = {"+": "present", "-": "absent", "?": "uncertain"}


def expected(codes: str) -> dict[str, str]:
    return {CODES[code[:-1]]: SIGNS[code[-1]] for code in codes.split()}


def said(text: str) -> dict[str, str]:
    return {name: statement.status for name, statement in statements(text).items()}


@pytest.mark.parametrize(("text", "codes"), SENTENCES.items())
def test_a_sentence_says_what_a_reader_would_understand(text: str, codes: str) -> None:
    assert said(text) == expected(codes)


@pytest.mark.parametrize("text", [text for text in SENTENCES if text.isascii() and "\n" not in text])
def test_capitals_and_white_space_change_nothing(text: str) -> None:
    assert said(text.upper()) == said(text)
    assert said("  " + text.replace(" ", "  \t")) == said(text)


@pytest.mark.parametrize("text", [text for text, codes in SENTENCES.items() if codes])
def test_a_quote_is_in_the_text_word_for_word(text: str) -> None:
    for statement in statements(text).values():
        assert statement.quote
        assert statement.quote in " ".join(text.split())
        assert statement.confidence is None


FINDINGS = {
    "Atelectasis": ("atelectasis", "lobar collapse", "volume loss", "plate-like atelectasis"),
    "Cardiomegaly": ("cardiomegaly", "cardiac enlargement", "enlargement of the cardiac silhouette"),
    "Effusion": ("pleural effusion", "pleural effusions", "blunting of the costophrenic angles", "haemothorax"),
    "Infiltration": ("infiltrate", "pulmonary infiltrates", "infiltration"),
    "Mass": ("mass", "pulmonary masses", "mediastinal mass", "tumour"),
    "Nodule": ("nodule", "pulmonary nodules", "coin lesion", "nodular opacity"),
    "Pneumonia": ("pneumonia", "bronchopneumonia", "aspiration pneumonia"),
    "Pneumothorax": ("pneumothorax", "pneumothoraces", "PTX", "visible visceral pleural line"),
    "Consolidation": ("consolidation", "airspace opacity", "air-space disease", "air bronchogram"),
    "Edema": ("pulmonary oedema", "interstitial edema", "Kerley B lines"),
    "Emphysema": ("emphysema", "emphysematous change", "hyperinflation", "bullae"),
    "Fibrosis": ("fibrosis", "honeycombing", "scarring", "reticulation"),
    "Pleural Thickening": ("pleural thickening", "pleural plaques", "apical cap"),
    "Hernia": ("hiatal hernia", "hiatus hernia", "diaphragmatic hernia", "retrocardiac air-fluid level"),
}
TERMS = [(name, term) for name, synonyms in FINDINGS.items() for term in synonyms]
SAYING = {
    "present": (
        "{}",
        "There is {}.",
        "Left-sided {} is seen.",
        "No change in the {}.",
        "Unchanged {}.",
        "No fracture, but there is {}.",
        "Persistent {}, no free air.",
        "Findings in keeping with {}.",
    ),
    "absent": (
        "No {}.",
        "There is no {} today.",
        "No evidence of {}.",
        "Without {}.",
        "No rib fracture, free air or {}.",
        "Negative for {}.",
        "No sign of any {}, fracture or free air.",
        "{}: none",
        "{} is not seen.",
        "{} is no longer seen.",
        "The previously seen {} has resolved.",
        "I do not see any {} on this film.",
    ),
    "uncertain": (
        "Possible {}.",
        "Cannot exclude {}.",
        "{} cannot be excluded.",
        "Findings suspicious for {}.",
        "This may represent {}.",
        "Likely {}.",
        "? {}",
        "{} is possible.",
    ),
    None: (
        "History of {}.",
        "Indication: {}.",
        "Rule out {}.",
        "Follow-up to exclude {}.",
        "CT is advised to exclude {}.",
    ),
}


@pytest.mark.parametrize(("name", "term"), TERMS)
@pytest.mark.parametrize(("status", "template"), [(s, t) for s, templates in SAYING.items() for t in templates])
def test_every_synonym_meets_every_cue(name: str, term: str, status: str | None, template: str) -> None:
    assert said(template.format(term)).get(name) == status


LISTED = st.lists(st.sampled_from(TERMS), min_size=2, max_size=5, unique_by=lambda term: term[0])


@given(LISTED, st.sampled_from(["no", "without", "no evidence of", "there is no", "negative for", "free of"]))
def test_every_member_of_a_denied_list_is_denied(members: list[tuple[str, str]], cue: str) -> None:
    terms = [term for _, term in members]
    text = f"{cue} {', '.join(terms[:-1])} or {terms[-1]}"
    denied = said(text)
    assert {denied[name] for name, _ in members} == {"absent"}
    assert "present" not in denied.values()


@given(LISTED, st.sampled_from(["are not seen", "are absent", "have resolved", "are no longer visible"]))
def test_every_member_of_a_list_is_denied_by_what_follows_it(members: list[tuple[str, str]], cue: str) -> None:
    terms = [term for _, term in members]
    assert "present" not in said(f"{', '.join(terms[:-1])} and {terms[-1]} {cue}.").values()


@given(st.lists(st.sampled_from(TERMS), min_size=2, max_size=2, unique_by=lambda term: term[0]))
def test_a_denial_does_not_reach_past_but(members: list[tuple[str, str]]) -> None:
    (denied, first), (affirmed, second) = members
    status = said(f"No {first}, but there is {second}.")
    assert (status[denied], status[affirmed]) == ("absent", "present")


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("No left effusion. Small right effusion.", "eff+"),
        ("Possible right nodule. Definite left nodule.", "nod+"),
        ("No pneumonia on the left. Possible pneumonia on the right.", "pna?"),
        ("No effusion. The pleural spaces are clear. Costophrenic angles are sharp.", "eff-"),
    ],
)
def test_of_several_mentions_present_beats_uncertain_beats_absent(text: str, codes: str) -> None:
    assert said(text) == expected(codes)


def test_a_sign_yields_to_the_name_that_explains_it_in_the_same_sentence_only() -> None:
    assert said("Blunted left costophrenic angle, possible small effusion.") == {"Effusion": "uncertain"}
    assert said("No right effusion. Blunted left costophrenic angle.") == {"Effusion": "present"}


def test_a_long_clause_is_quoted_around_its_finding() -> None:
    text = "the lungs " + "and the lungs " * 30 + "show a nodule " + "in the lungs " * 30
    quote = statements(text)["Nodule"].quote
    assert "nodule" in quote
    assert len(quote) <= MAX_QUOTE


# ── Any text at all ──────────────────────────────────────────────────────────────────────────────────────────────────

PIECES = st.sampled_from(
    [*SENTENCES, " no ", "no", ", ", " or ", ". ", "\n", " but ", "?", ": ", "(", ")", " / ", "3 cm "]
)


@given(st.text(max_size=2000) | st.lists(PIECES, max_size=30).map("".join))
@example("\ud800 effusion")
@example("\x00effusion")
@example("\ufdfa effusion \u0130")
@example("effusion" + "\u0301" * 300)
def test_any_text_gives_bounded_statements(text: str) -> None:
    found = statements(text)
    assert list(found) == [name for name in NAMES if name in found]
    assert all(statement.status in SIGNS.values() for statement in found.values())
    assert all(0 < len(statement.quote) <= MAX_QUOTE for statement in found.values())


HOSTILE = (
    "no ",
    "n",
    " ",
    "\n",
    ", a ",
    "(",
    ") ",
    "? ",
    ": ",
    "effusion ",
    "no effusion, ",
    "effusion or ",
    "effusion. It has resolved. ",
    "( effusion ) ",
    "heart ",
    "heart and the mediastinum ",
    "cardiac size ",
    "lungs are ",
    "lungs are well expanded and ",
    "blunting of the ",
    "diaphragm is ",
    "pleura a a ",
    "fluid a ",
    "4.5 cm a ",
    "1.2 ",
    "ctr of ",
    "no significant interval ",
    "not currently ",
    "is clearly ",
    "seen on a ",
    "previously seen ",
    "on the a ",
    "past past ",
    "past medical ",
    "clinical medical ",
    "indication: ",
    "findings: ",
    "history of ",
    "prior ",
    "prior study ",
    "may ",
    "possibly ",
    "pnuemonia ",
    "e.g. ",
    "-",
    " - ",
    "/",
    "\ufdfa",
    "\u0130",
)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("piece", HOSTILE)
def test_hostile_repetition_is_read_to_its_end(piece: str) -> None:
    for text in ((piece * MAX_TEXT)[:MAX_TEXT], ((piece * 12 + "effusion ") * MAX_TEXT)[:MAX_TEXT]):
        assert set(statements(text)) <= set(NAMES)


def test_a_denial_at_the_end_of_a_long_text_is_still_read() -> None:
    assert said("The trachea is central. " * 2000 + "No effusion.") == {"Effusion": "absent"}


# ── A corpus that another hand wrote and labelled ────────────────────────────────────────────────────────────────────


def held_out(text: str) -> bool:
    """Say whether a sentence belongs to the half that no rule was tuned on."""
    return int(hashlib.sha256(text.encode("utf-8")).hexdigest()[-1], 16) % 2 == 1


def test_the_held_out_half_of_the_corpus_is_read_as_its_author_labelled_it() -> None:
    rows = [json.loads(line) for line in CORPUS.read_text("utf-8").splitlines() if line.strip()]
    pairs = defaultdict(list)
    for row in rows:
        if held_out(row["text"]):
            found = said(row["text"])
            for name in NAMES:
                pairs[name].append((row["statuses"].get(name), found.get(name)))
    f1 = {}
    for name, statuses in pairs.items():
        labelled = sum(label == "present" for label, _ in statuses)
        read = sum(status == "present" for _, status in statuses)
        both = sum(label == status == "present" for label, status in statuses)
        f1[name] = 2 * both / (labelled + read) if labelled + read else 1.0
    denied = [status for statuses in pairs.values() for label, status in statuses if label == "absent"]
    assert len(f1) == len(NAMES)
    assert sum(f1.values()) / len(f1) >= 0.90, f1
    assert denied.count("present") <= 0.01 * len(denied)
