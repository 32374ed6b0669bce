"""What a reader must answer: what is taken, what is refused and how, and that the longest reply fits its budget."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from modules.pathologies import NAMES
from modules.reasoners.replies import (
    FIELDS,
    MAX_DIFFERENTIAL,
    MAX_ITEM,
    MAX_OBSERVATIONS,
    MAX_QUOTE,
    MAX_REASONING,
    MAX_RECOMMENDATION,
    MAX_REPLY,
    STATUSES,
    ClinicalReply,
    ReplyError,
    ReplyLimits,
    StatusReply,
    clinical_schema,
    film_schema,
    looks_like_json,
    parse_clinical,
    parse_film,
    past_thoughts,
    tidied,
    without_thoughts,
)
from modules.settings import DEFAULT_REPLY_TOKENS, MIN_REPLY_TOKENS
from tests.scripted import clinical_reply, clinical_text, film_reply, film_text

PRESENT = {"status": "present", "quote": "a 4 cm mass"}
SECRET = "XYZZY"  # what no error may repeat

# ── What is taken ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize(("name", "field"), FIELDS.items())
def test_each_status_of_each_pathology_reaches_its_own_statement(name: str, field: str, status: str) -> None:
    other = "uncertain" if status != "uncertain" else "absent"
    said = parse_film(film_text(**(dict.fromkeys(FIELDS.values(), other) | {field: status})))
    assert tuple(said) == NAMES
    assert {n for n in NAMES if said[n].status == status} == {name}
    assert said[name].quote == f"it is {status}"


def test_a_quote_may_be_left_out() -> None:
    assert parse_film(film_text(Mass={"status": "absent"}))["Mass"] == StatusReply(status="absent", quote="")


def test_a_second_reply_needs_its_reasoning_alone() -> None:
    assert parse_clinical('{"clinical_reasoning": "A mass."}') == ClinicalReply(clinical_reasoning="A mass.")
    reply = parse_clinical(clinical_text())
    assert reply.model_dump(mode="json") == clinical_reply()


REPLY = film_text(Mass=PRESENT)
WRAPPED = {
    "spaces": f" \n\t{REPLY}\r\n\n",
    "a fence": f"```json\n{REPLY}\n```",
    "a fence of no language": f"```\n{REPLY}```",
    "a fence in capitals": f"```JSON {REPLY} ```",
    "a fence that does not close": f"```json\n{REPLY}",
    "a fence after a sentence": f"Of course, this is the reply to your question:\n```json\n{REPLY}\n```\nElse?",
    "a word before": f"json {REPLY}",
    "a list of one": f"[{REPLY}]",
    "words around": f"Here it is: {REPLY} I hope that this helps.",
    "thoughts of MedGemma": f"<unused94>thought\nIs it {{a mass}}? <unused95>{REPLY}",
    "thoughts of others": f"<think>\nIs it a mass?\n</think>\n\n{REPLY}",
    "thoughts with a draft": f"<think>{film_text(Mass='absent')}</think>```json{REPLY}```",
    "thoughts without their opening": f"Is it a mass?</think>{REPLY}",
    "thoughts of MedGemma without their opening": f"thought\nIs it a mass?<unused95>{REPLY}",
    "empty thoughts": f"<think></think>{REPLY}",
    "thoughts twice": f"<unused94>a<unused95><think>b</think>{REPLY}",
    "a byte order mark": f"\ufeff{REPLY}",
    "indents": json.dumps(film_reply(Mass=PRESENT), indent=2),
    "no spaces": json.dumps(film_reply(Mass=PRESENT), separators=(",", ":")),
    "another order": json.dumps(dict(reversed(film_reply(Mass=PRESENT).items()))),
}


@pytest.mark.parametrize("case", WRAPPED)
def test_what_stands_around_a_reply_is_forgiven(case: str) -> None:
    said = parse_film(WRAPPED[case])
    assert (said["Mass"].status, said["Mass"].quote) == ("present", "a 4 cm mass")
    assert looks_like_json(WRAPPED[case])


@pytest.mark.parametrize("mark", ["<think>", "</think>", "<unused94>", "<unused95>", "```", "```json {} ```", "{", "}"])
def test_a_mark_inside_of_a_quote_is_text(mark: str) -> None:
    """A film may show any words; that they are quoted must not break the reply."""
    said = parse_film(film_text(Mass={"status": "present", "quote": f"it says {mark} there"}))
    assert said["Mass"].quote == f"it says {mark} there"


def test_html_stays_text() -> None:
    html = "<script>alert(1)</script> & <b>mass</b>"
    assert parse_film(film_text(Mass={"status": "present", "quote": html}))["Mass"].quote == html
    reply = parse_clinical(clinical_text(clinical_reasoning=html, differential=[html]))
    assert (reply.clinical_reasoning, reply.differential) == (html, (html,))


# ── What is cleaned ──────────────────────────────────────────────────────────────────────────────────────────────────

UNSEEN = {
    "NUL": "\x00",
    "bell": "\x07",
    "escape": "\x1b[31m",
    "delete": "\x7f",
    "C1": "\x85",
    "line separator": "\u2028",
    "right-to-left override": "\u202e",
    "isolate": "\u2067",
    "zero-width space": "\u200b",
    "zero-width joiner": "\u200d",
    "byte order mark": "\ufeff",
    "soft hyphen": "\xad",
    "private use": "\ue000",
    "tag letter": "\U000e0041",
    "unassigned": "\U000e0fff",
}


@pytest.mark.parametrize("case", UNSEEN)
def test_characters_that_one_does_not_see_do_not_get_through(case: str) -> None:
    text = f"a mass{UNSEEN[case]} here"
    quote = parse_film(film_text(Mass={"status": "present", "quote": text}))["Mass"].quote
    reply = parse_clinical(clinical_text(clinical_reasoning=text, key_observations=[text], recommendation=text))
    for shown in (quote, reply.clinical_reasoning, *reply.key_observations, reply.recommendation):
        assert shown.isprintable()
        assert shown.replace("[31m", "").split() == ["a", "mass", "here"]


def test_half_a_surrogate_pair_does_not_get_through() -> None:
    text = json.dumps(clinical_reply(clinical_reasoning="a \ud800 mass \U0001fac1"), ensure_ascii=False)
    assert parse_clinical(text).clinical_reasoning == "a mass \U0001fac1"
    with pytest.raises(ReplyError, match="json invalid"):
        parse_clinical(json.dumps(clinical_reply(clinical_reasoning="a \ud800 mass")))


@given(st.text(st.characters()), st.integers(1, 60))
def test_tidied_text_is_one_printable_line_of_bounded_length_and_stays_as_it_is(text: str, limit: int) -> None:
    once = tidied(text, limit)
    assert len(once) <= limit
    assert once == " ".join(once.split())
    assert all(c.isprintable() or c == " " for c in once)
    once.encode("utf-8")
    assert tidied(once, limit) == once


def test_long_texts_are_clipped_and_say_so() -> None:
    long = "word " * 2000
    quote = parse_film(film_text(Mass={"status": "present", "quote": long}))["Mass"].quote
    reply = parse_clinical(
        clinical_text(clinical_reasoning=long, key_observations=[long], differential=[long], recommendation=long)
    )
    for text, limit in (
        (quote, MAX_QUOTE),
        (reply.clinical_reasoning, MAX_REASONING),
        (reply.key_observations[0], MAX_ITEM),
        (reply.differential[0], MAX_ITEM),
        (reply.recommendation, MAX_RECOMMENDATION),
    ):
        assert limit - 5 <= len(text) <= limit
        assert text.endswith("word…")


@pytest.mark.parametrize("length", [0, 1, 2])
def test_a_text_of_its_limit_is_not_clipped(length: int) -> None:
    assert tidied("x" * MAX_ITEM, MAX_ITEM) == "x" * MAX_ITEM
    assert tidied("x" * length, 1) == ("x" * length if length <= 1 else "…")


def test_items_beyond_their_number_are_cut_and_empty_ones_do_not_count() -> None:
    items = ["", *(f"item {i}" for i in range(100)), ""]
    reply = parse_clinical(clinical_text(key_observations=items, differential=items))
    assert reply.key_observations == tuple(f"item {i}" for i in range(MAX_OBSERVATIONS))
    assert reply.differential == tuple(f"item {i}" for i in range(MAX_DIFFERENTIAL))


# ── What is refused ──────────────────────────────────────────────────────────────────────────────────────────────────


def without(field: str) -> dict[str, Any]:
    return {k: v for k, v in film_reply().items() if k != field}


BAD_FILM: dict[str, Any] = {
    **{f"no {field}": without(field) for field in FIELDS.values()},
    "another pathology": film_reply(Fracture=PRESENT),
    "another key of a statement": film_reply(Mass={**PRESENT, SECRET: 0.9}),
    "an unknown status": film_reply(Mass={"status": SECRET}),
    "a status in capitals": film_reply(Mass={"status": "Present"}),
    "no status": film_reply(Mass={"quote": SECRET}),
    "a bare status": {**film_reply(), "Mass": "present"},
    "a list for a statement": film_reply(Mass=[PRESENT]),
    "a number for a status": film_reply(Mass={"status": 1}),
    "true for a status": film_reply(Mass={"status": True}),
    "a list for a quote": film_reply(Mass={"status": "present", "quote": [SECRET]}),
    "a number for a quote": film_reply(Mass={"status": "present", "quote": 4}),
    "null for a quote": film_reply(Mass={"status": "present", "quote": None}),
    "null for a statement": film_reply(Mass=None),
    "a display name": film_reply(**{"Pleural Thickening": PRESENT}),
    "the other reply": clinical_reply(),
    "nothing": {},
    "a list": [film_reply()] * 2,
    "a number": 14,
    "null": None,
    "a text": SECRET,
}
BAD_CLINICAL: dict[str, Any] = {
    "no reasoning": {"differential": [SECRET]},
    "empty reasoning": clinical_reply(clinical_reasoning=""),
    "blank reasoning": clinical_reply(clinical_reasoning=" \n\u200b "),
    "null reasoning": clinical_reply(clinical_reasoning=None),
    "a number for the reasoning": clinical_reply(clinical_reasoning=1),
    "a sentence for a list": clinical_reply(differential=SECRET),
    "an object for a list": clinical_reply(differential={SECRET: SECRET}),
    "a number in a list": clinical_reply(differential=[SECRET, 1]),
    "a list in a list": clinical_reply(key_observations=[[SECRET]]),
    "null for a list": clinical_reply(key_observations=None),
    "an invisible item": clinical_reply(key_observations=["\u200b"]),
    "an unknown key": clinical_reply(**{SECRET: "Low"}),
    "a level of risk": clinical_reply(risk_level="Low"),
    "the other reply": film_reply(),
    "null": None,
    "a list": [clinical_reply()] * 2,
}


@pytest.mark.parametrize("case", BAD_FILM)
def test_a_first_reply_that_does_not_fit_is_refused_without_repeating_it(case: str) -> None:
    with pytest.raises(ReplyError) as caught:
        parse_film(json.dumps(BAD_FILM[case]))
    assert SECRET not in str(caught.value)
    assert "4 cm" not in str(caught.value)
    assert 0 < len(str(caught.value)) < 200


@pytest.mark.parametrize("case", BAD_CLINICAL)
def test_a_second_reply_that_does_not_fit_is_refused_without_repeating_it(case: str) -> None:
    with pytest.raises(ReplyError) as caught:
        parse_clinical(json.dumps(BAD_CLINICAL[case]))
    assert SECRET not in str(caught.value)
    assert 0 < len(str(caught.value)) < 200


def test_the_error_names_what_is_wrong() -> None:
    with pytest.raises(ReplyError, match=r"^Mass\.status: literal error; Edema: missing$"):
        parse_film(json.dumps({k: v for k, v in film_reply(Mass={"status": SECRET}).items() if k != "Edema"}))
    with pytest.raises(ReplyError, match=r"^the reply: extra forbidden$"):
        parse_clinical(clinical_text(**{SECRET: 1}))


BOMBS = {
    "lists": "[" * 60_000,
    "closed lists": "[" * 30_000 + "]" * 30_000,
    "objects": '{"a":' * 12_000,
    "closed objects": '{"Mass":' * 6_000 + "1" + "}" * 6_000,
    "braces": "{" * 30_000 + "}" * 30_000,
    "lists in a value": '{"Mass":' + "[" * 50_000 + "]" * 10_000 + "}",
    "lists in an unknown key": '{"clinical_reasoning":"x","x":' + "[" * 150 + "]" * 150 + "}",
    "fences": "```" * 21_000,
    "a fence of spaces": "```x" + " " * 60_000 + "x",
    "thoughts": "<think>" * 9_000,
    "thoughts closed": "<think></think>" * 4_000,
    "ends of thoughts": "</think><unused95>" * 3_500,
    "spaces": "{" + " " * 60_000,
    "backslashes": '{"Mass":"' + "\\" * 50_000 + '"}',
    "quotes": '"' * 60_000,
    "keys": "'a': " * 12_000,
    "a long key": '"' + "a" * 60_000,
    "digits": "1" * 60_000,
    "lines": "\n" * 60_000,
    "a huge number": '{"clinical_reasoning":' + "9" * 50_000 + "}",
    "too long": "{" + " " * MAX_REPLY + "}",
    "empty": "",
    "NUL": "\x00",
    "prose": "I cannot read films.",
    "cut off": film_text()[:-5],
    "two objects": "{}{}",
    "NaN": '{"clinical_reasoning": NaN}',
}


@pytest.mark.parametrize("case", BOMBS)
def test_what_is_no_reply_is_refused_in_no_time(case: str) -> None:
    start = time.perf_counter()
    for parse in (parse_film, parse_clinical):
        with pytest.raises(ReplyError):
            parse(BOMBS[case])
    looks_like_json(BOMBS[case])
    without_thoughts(BOMBS[case])
    assert time.perf_counter() - start < 0.5


@given(st.text(st.characters(), max_size=300) | st.text('{}[]":,\\` \nMass', max_size=60))
def test_any_text_is_refused_with_a_reason_or_taken(text: str) -> None:
    for parse in (parse_film, parse_clinical):
        with pytest.raises(ReplyError):
            parse(text)
    assert isinstance(looks_like_json(text), bool)


def test_a_reply_is_refused_by_its_length_before_it_is_parsed() -> None:
    padded = clinical_text()
    padded += " " * (MAX_REPLY - len(padded))
    assert parse_clinical(padded).clinical_reasoning
    with pytest.raises(ReplyError, match="too long"):
        parse_clinical(padded + " ")


# ── Thoughts, and what is prose ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("A mass.", "A mass."),
        ("  A mass.\n", "A mass."),
        ("<think>hm</think> A mass.", "A mass."),
        ("\n<unused94>thought\nhm<unused95>\nA mass.", "A mass."),
        ("hm</think>A mass.", "A mass."),
        ("<think>hm, and then the budget ended", ""),
        ("<unused94>thought hm, and then the budget ended", ""),
        ("<think></think>", ""),
        ("", ""),
    ],
)
def test_thoughts_are_no_reply(text: str, said: str) -> None:
    assert without_thoughts(text) == said
    assert text[past_thoughts(text) :].strip() == said


def test_thoughts_may_be_longer_than_a_reply() -> None:
    assert without_thoughts(f"<think>{'hm ' * MAX_REPLY}</think>A mass.") == "A mass."
    assert len(without_thoughts("x" * (MAX_REPLY + 5))) == MAX_REPLY


@pytest.mark.parametrize(
    "text",
    [
        "The lungs are clear.",
        "Pneumothorax: none. Effusion: small, on the left.",
        "**Findings**\n- Cardiomegaly: present\n- Edema: no",
        "The heart is large, the lungs are clear (see {1}), and there is no effusion {2}.",
        "The {left} lung shows an effusion {1}.",
        'He said "no cough": a note of the user.',
        "",
    ],
)
def test_prose_is_not_json(text: str) -> None:
    assert not looks_like_json(text)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[",
        '{"Mass": {"status": "absent"',
        '["Mass"]',
        "null",
        " true ",
        "-1.5e3",
        '"Mass"',
        '"Mass',
        "{'Mass': {'status': 'absent'}}",
        'Here it is: {"Mass": {"status": "absent"',  # cut off behind a word
        'I looked at the film, and this is the object that you asked me for: {"Mass": {"status": "absent"}}',
        "The statements on all 14 pathologies are as follows. 'Mass': 'absent', 'Edema': 'absent'",
        '"clinical_reasoning": "A mass."',
        '```json\n{"Mass":',
    ],
)
def test_what_tried_to_be_json_is_not_read_as_prose(text: str) -> None:
    """In prose, a name is a finding; in JSON it is only a key, whose value may be `absent`."""
    assert looks_like_json(text)


# ── Budgets ──────────────────────────────────────────────────────────────────────────────────────────────────────────

BUDGETS = (MIN_REPLY_TOKENS, 1537, 1600, 1800, 2048, 3000, DEFAULT_REPLY_TOKENS, 8192, 65_536)
budgets = st.integers(MIN_REPLY_TOKENS, 65_536)


def compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def longest_film(limits: ReplyLimits) -> str:
    worst = {"status": max(STATUSES, key=len), "quote": "x" * limits.quote}
    return compact(dict.fromkeys(FIELDS.values(), worst))


def longest_clinical(limits: ReplyLimits) -> str:
    item = "x" * limits.item
    return compact(
        {
            "clinical_reasoning": "x" * limits.reasoning,
            "key_observations": [item] * MAX_OBSERVATIONS,
            "differential": [item] * MAX_DIFFERENTIAL,
            "recommendation": "x" * limits.recommendation,
        }
    )


@given(budgets)
def test_the_longest_reply_has_no_more_characters_than_the_budget_has_tokens(max_tokens: int) -> None:
    limits = ReplyLimits.within(max_tokens)
    assert len(longest_film(limits)) < max_tokens
    assert len(longest_clinical(limits)) < max_tokens
    parse_film(longest_film(limits))
    parse_clinical(longest_clinical(limits))


@given(budgets)
def test_no_limit_is_above_what_is_taken_nor_too_small_for_a_few_words(max_tokens: int) -> None:
    limits = ReplyLimits.within(max_tokens)
    assert 40 <= limits.quote <= MAX_QUOTE
    assert 200 <= limits.reasoning <= MAX_REASONING
    assert 40 <= limits.item <= MAX_ITEM
    assert 100 <= limits.recommendation <= MAX_RECOMMENDATION


@given(budgets, budgets)
def test_a_larger_budget_never_shortens_a_reply(one: int, other: int) -> None:
    small, large = (ReplyLimits.within(n) for n in sorted((one, other)))
    assert small.quote <= large.quote
    assert (small.reasoning, small.item, small.recommendation) <= (large.reasoning, large.item, large.recommendation)


def test_the_default_budget_holds_all_that_a_reply_may_hold() -> None:
    assert ReplyLimits.within(DEFAULT_REPLY_TOKENS) == ReplyLimits(
        MAX_QUOTE, MAX_REASONING, MAX_ITEM, MAX_RECOMMENDATION
    )


# ── Schemas ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("plain", [True, False])
def test_the_schemas_ask_for_all_pathologies_and_the_four_statuses(plain: bool) -> None:
    limits = ReplyLimits.within(DEFAULT_REPLY_TOKENS)
    film, clinical = film_schema(limits, plain=plain), clinical_schema(limits, plain=plain)
    assert tuple(film["properties"]) == tuple(film["required"]) == tuple(FIELDS.values())
    assert len(FIELDS) == 14
    for statement in film["properties"].values():
        assert tuple(statement["properties"]["status"]["enum"]) == STATUSES
        assert tuple(statement["required"]) == ("status", "quote")  # no room for what symptoms could echo in
        assert statement["additionalProperties"] is False
    assert tuple(clinical["required"]) == tuple(ClinicalReply.model_fields)
    assert film["additionalProperties"] is clinical["additionalProperties"] is False
    json.dumps((film, clinical))


def test_only_plain_schemas_bound_texts_by_a_pattern() -> None:
    limits = ReplyLimits.within(DEFAULT_REPLY_TOKENS)
    for schema in (film_schema, clinical_schema):
        assert "maxLength" not in json.dumps(schema(limits, plain=True))
        assert "pattern" not in json.dumps(schema(limits, plain=False))


@pytest.mark.parametrize("max_tokens", BUDGETS)
def test_a_grammar_can_be_made_of_the_plain_schemas(max_tokens: int) -> None:
    llguidance = pytest.importorskip("llguidance")
    limits = ReplyLimits.within(max_tokens)
    for schema in (film_schema(limits, plain=True), clinical_schema(limits, plain=True)):
        grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema))
        assert llguidance.LLMatcher.validate_grammar(grammar) == ""


def byte_matcher(schema: dict[str, Any]) -> Any:
    """Return a matcher of a schema over tokens of one byte each."""
    llguidance = pytest.importorskip("llguidance")

    class Bytes:
        eos_token_id = 256
        bos_token_id = None
        tokens = (*(bytes([i]) for i in range(256)), b"<end>")
        special_token_ids = (256,)

        def __call__(self, text: bytes | str) -> list[int]:
            return list(text.encode() if isinstance(text, str) else text)

    tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Bytes()))
    compactly: Any = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}
    grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults=compactly)
    matcher = llguidance.LLMatcher(tokenizer, grammar)
    assert not matcher.is_error(), matcher.get_error()
    return matcher


def accepts(schema: dict[str, Any], text: str) -> bool:
    matcher = byte_matcher(schema)
    encoded = list(text.encode())
    return bool(matcher.try_consume_tokens(encoded) == len(encoded) and matcher.is_accepting())


@pytest.mark.parametrize("max_tokens", [MIN_REPLY_TOKENS, DEFAULT_REPLY_TOKENS])
def test_the_grammar_lets_the_longest_reply_through_and_nothing_longer(max_tokens: int) -> None:
    limits = ReplyLimits.within(max_tokens)
    film, clinical = film_schema(limits, plain=True), clinical_schema(limits, plain=True)
    assert accepts(film, longest_film(limits))
    assert accepts(clinical, longest_clinical(limits))
    for longer, schema in ((longest_film(limits), film), (longest_clinical(limits), clinical)):
        assert not accepts(schema, longer.replace("xx", "xxx", 1))
        assert not accepts(schema, longer.replace("xx", 'x"', 1))
        assert not accepts(schema, longer.replace("xx", "\\n", 1))
        assert not accepts(schema, longer.replace("xx", "é", 1))
        assert not accepts(schema, longer.replace(":", ": ", 1))


def test_the_grammar_lets_no_empty_reasoning_through() -> None:
    schema = clinical_schema(ReplyLimits.within(DEFAULT_REPLY_TOKENS), plain=True)
    assert accepts(schema, compact(clinical_reply()))
    for empty in ({"clinical_reasoning": ""}, {"clinical_reasoning": " "}, {"differential": [" "]}):
        assert not accepts(schema, compact(clinical_reply(**empty)))


def test_a_statement_is_checked_wherever_it_is_made() -> None:
    with pytest.raises(ValidationError):
        StatusReply(status="likely")
    assert len(StatusReply(status="present", quote="x" * 1000).quote) == MAX_QUOTE
