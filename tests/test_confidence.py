"""How sure a model was: over which tokens it is measured, and that no way of splitting a reply changes it."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.pathologies import NAMES
from modules.reasoners.confidence import of_statuses, of_tokens
from modules.reasoners.replies import FIELDS, STATUSES
from modules.reasoners.turns import Generation, Token
from modules.records import Status
from tests.scripted import clinical_text, film_text, in_pieces

NAN, INF = math.nan, math.inf


def tokens(*said: tuple[str, float | None, bool | None]) -> Generation:
    return Generation(
        "".join(piece for piece, _, _ in said), tuple(Token(p.encode(), lp, free) for p, lp, free in said)
    )


# ── Of a whole reply ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_measured_is_no_number() -> None:
    assert of_tokens(()) is None
    assert of_tokens((Generation("A mass."),)) is None
    assert of_tokens((in_pieces("A ", "mass.", logprob=None),)) is None
    assert of_tokens((in_pieces("A ", "mass.", free=False),)) is None
    assert of_tokens((tokens(("a", NAN, True)),)) is None


def test_it_is_the_geometric_mean_of_the_free_tokens_alone() -> None:
    reply = tokens(
        ('{"a":"', None, False), ("x", -0.2, True), ("y", -0.6, True), ('"', -9.0, False), ("}", None, False)
    )
    assert of_tokens((reply,)) == pytest.approx(math.exp(-0.4))


def test_it_is_taken_over_both_replies_by_token() -> None:
    film, clinical = in_pieces("a", logprob=-0.1, free=True), in_pieces("b", "c", "d", logprob=-0.5, free=True)
    assert of_tokens((film, clinical)) == pytest.approx(math.exp(-(0.1 + 3 * 0.5) / 4))
    assert of_tokens((film, Generation("not measured"))) == pytest.approx(math.exp(-0.1))


def test_without_a_grammar_the_values_count_and_the_keys_and_marks_do_not() -> None:
    reply = tokens(
        *(('{"', -9.0, None), ("status", -9.0, None), ('":"', -9.0, None)),
        *(("present", -0.1, None), ('","', -9.0, None), ("quote", -9.0, None), ('" : "', -9.0, None)),
        *(("a ", -0.2, None), ("mass", -0.3, None), ('"}', -9.0, None)),
    )
    assert of_tokens((reply,)) == pytest.approx(math.exp(-0.2))


def test_items_of_lists_are_values() -> None:
    reply = tokens(
        *(('{"differential":["', -9.0, None), ("Mass", -0.1, None), ('","', -9.0, None)),
        *(("Nodule", -0.3, None), ('"],"recommendation":"', -9.0, None), ("none", -0.2, None), ('"}', -9.0, None)),
    )
    assert of_tokens((reply,)) == pytest.approx(math.exp(-0.2))


def test_a_token_that_reaches_into_a_value_counts() -> None:
    reply = tokens(('{"a"', -9.0, None), (':"x', -0.1, None), ('y","b":"', -0.3, None), ('z"}', -0.2, None))
    assert of_tokens((reply,)) == pytest.approx(math.exp(-0.2))


@pytest.mark.parametrize("escaped", [r"a \"mass\": it", r"a \\", r"\u00e9\n", "a: {b}", ""])
def test_what_a_value_holds_does_not_end_it(escaped: str) -> None:
    reply = tokens(
        ('{"quote":"', -9.0, None), (f"a{escaped}", -0.3, None), ('","status":"', -9.0, None), ("b", -0.1, None)
    )
    assert of_tokens((reply,)) == pytest.approx(math.exp(-0.2))


@pytest.mark.parametrize(
    "text", ["A mass.", 'A "large" mass.', "A mass {1} and a nodule {2}, in a paragraph with braces."]
)
def test_in_prose_every_token_counts(text: str) -> None:
    assert of_tokens((in_pieces(*text),)) == pytest.approx(math.exp(-0.1))


def test_thoughts_are_no_part_of_the_reply() -> None:
    for thoughts in (('<think>say "', "x", '"?</think>'), ("<unused94>", "a mass?", "<unused95>"), ("hm", "</think>")):
        for said in (('{"a":"', -9.0, None), ("x", -0.1, None)), (("A mass.", -0.1, None),):
            reply = tokens(*((piece, -5.0, None) for piece in thoughts), *said)
            assert of_tokens((reply,)) == pytest.approx(math.exp(-0.1))


@pytest.mark.parametrize(
    "text",
    [film_text(**{field: {"status": "absent", "quote": "it is clear"} for field in FIELDS.values()}), clinical_text()],
)
def test_the_values_of_whole_replies_are_found(text: str) -> None:
    """Written by character, only what stands in a value weighs −0.1; everything else would show."""
    inside, in_key = False, False
    made = []
    for i, c in enumerate(text):
        if c == '"' and not inside:
            in_key = text[text.index('"', i + 1) + 1] == ":"
        inside ^= c == '"'
        made.append(Token(c.encode(), -0.1 if inside and c != '"' and not in_key else -9.0))
    assert of_tokens((Generation(text, tuple(made)),)) == pytest.approx(math.exp(-0.1))


anything = st.sampled_from((NAN, INF, -INF, 0.0, -0.0, 1e308, -1e308, 5.0, -9999.0)) | st.floats()
pieces = st.binary(max_size=6) | st.sampled_from(
    (b'"', b'{"', b'":"', b"\\", b":", b"}", b"present", b"<think>", b"\xff")
)
any_token = st.builds(
    Token,
    pieces,
    st.none() | anything,
    st.none() | st.booleans(),
    st.lists(st.tuples(pieces, anything), max_size=4).map(tuple),
)


@given(st.lists(any_token, max_size=12))
def test_whatever_was_measured_gives_a_number_between_0_and_1_or_none(made: Sequence[Token]) -> None:
    confidence = of_tokens((Generation("", tuple(made)),))
    assert confidence is None or 0.0 <= confidence <= 1.0


@given(st.lists(st.tuples(st.text(max_size=3), st.floats(-20, 0)), min_size=1, max_size=12))
def test_less_probable_tokens_never_raise_it(said: list[tuple[str, float]]) -> None:
    before = of_tokens((tokens(*((piece, p, True) for piece, p in said)),))
    after = of_tokens((tokens(*((piece, p - 0.5, True) for piece, p in said)),))
    assert before is not None
    assert after is not None
    assert after <= before


# ── Of each status ───────────────────────────────────────────────────────────────────────────────────────────────────


def alternatives(said: bytes, within: int, masses: Mapping[Any, float]) -> tuple[tuple[bytes, float], ...]:
    """Return what could have stood in place of a token: the same bytes up to `within`, then another status."""
    before = said[:within]
    return tuple((before + status.encode(), math.log(p) if p > 0 else -INF) for status, p in masses.items())


def retokenised(text: str, cuts: set[int], chances: Mapping[str, Mapping[Any, float]]) -> Generation:
    """Split a reply at any bytes, and give each token that writes a status's first letter its alternatives."""
    written = text.encode()
    letters = {}
    for name, field in FIELDS.items():
        mark = f'"{field}": {{"status": "'.encode()
        letters[written.index(mark) + len(mark)] = name
    edges = [0, *sorted(cut for cut in cuts if 0 < cut < len(written)), len(written)]
    made = []
    for start, end in pairwise(edges):
        piece = written[start:end]
        inside = [at for at in letters if start <= at < end]
        options = alternatives(piece, inside[0] - start, chances[letters[inside[0]]]) if len(inside) == 1 else ()
        made.append(Token(piece, -0.1, None, options))
    return Generation(text, tuple(made))


shares = st.fixed_dictionaries({status: st.floats(0.01, 1.0) for status in STATUSES}).map(
    lambda masses: {status: mass / (2 * sum(masses.values())) for status, mass in masses.items()}
)


@given(st.data())
def test_no_way_of_splitting_a_reply_changes_the_probability_of_a_status(data: st.DataObject) -> None:
    chosen = {name: data.draw(st.sampled_from(STATUSES)) for name in NAMES[:3]}
    chances = {name: data.draw(shares) for name in NAMES[:3]} | dict.fromkeys(NAMES[3:], dict.fromkeys(STATUSES, 0.25))
    text = film_text(**{FIELDS[name]: {"status": status, "quote": 'é "x"'} for name, status in chosen.items()})
    # never two statuses in one token: a cut in each statement before its status
    needed = {text.encode().index(f'"{field}"'.encode()) + 1 for field in FIELDS.values()}
    cuts = data.draw(st.sets(st.integers(1, len(text.encode())), max_size=60))
    found = of_statuses(retokenised(text, needed | cuts, chances))
    assert tuple(found) == NAMES
    for name, status in chosen.items():
        assert found[name] == pytest.approx(chances[name][status] / sum(chances[name].values()))
    for name in NAMES[3:]:
        assert found[name] == pytest.approx(0.25)


def one_status(*alternatives: tuple[str, float], said: str = "present", before: str = "") -> dict[str, float]:
    """Return what is found of a reply on Mass, whose status is one token together with `before`."""
    start, end = '{"Mass": {"status": "'.removesuffix(before), '", "quote": ""}}'
    options = tuple((piece.encode(), p) for piece, p in alternatives)
    reply = (
        Token(start.encode(), None),
        Token((before + said).encode(), -0.1, True, options),
        Token(end.encode(), None),
    )
    return of_statuses(Generation("", reply))


def test_alternatives_are_grouped_by_the_status_that_they_begin() -> None:
    options = (("present", math.log(0.3)), ("pres", math.log(0.1)), ("p", math.log(0.1)), ("absent", math.log(0.5)))
    assert one_status(*options) == {"Mass": pytest.approx(0.5)}


def test_what_begins_no_status_does_not_count() -> None:
    options = (("present", math.log(0.2)), ("Present", math.log(0.7)), ("", -0.1), (" ", -0.1), ('"', -0.1))
    assert one_status(*options) == {"Mass": pytest.approx(1.0)}


def test_alternatives_that_differ_before_the_status_do_not_count() -> None:
    options = ((' "present', math.log(0.2)), (' "absent', math.log(0.2)), ("\n uncertain", math.log(0.6)))
    assert one_status(*options, before=' "') == {"Mass": pytest.approx(0.5)}


def test_a_status_without_measured_alternatives_is_left_out() -> None:
    assert one_status() == {}
    assert one_status(("absent", -0.1)) == {}  # the chosen one is not among them
    assert one_status(("present", -INF), ("absent", -0.1)) == {}
    assert one_status(("present", NAN), ("absent", -0.1)) == {}
    assert of_statuses(Generation(film_text())) == {}
    assert of_statuses(in_pieces("A mass.")) == {}
    assert of_statuses(in_pieces('{"Mass": {"status": "')) == {}


def test_improbable_and_impossible_alternatives_weigh_nothing() -> None:
    assert one_status(("present", -0.5), ("absent", -INF), ("uncertain", NAN), ("not", -9999.0)) == {"Mass": 1.0}
    assert one_status(("present", 0.5), ("absent", INF)) == {"Mass": 0.5}  # no probability is above 1


def test_a_statement_with_two_statuses_has_no_measured_one() -> None:
    options = ((b"present", -0.1), (b"absent", -2.5))
    first, chosen = Token(b'{"Mass": {"status": "', None), Token(b"present", -0.1, None, options)
    for end, found in (('"}}', {"Mass"}), ('", "quote": "", "status" : "absent"}}', set())):
        assert set(of_statuses(Generation("", (first, chosen, Token(end.encode(), None))))) == found


@pytest.mark.parametrize("status", STATUSES)
def test_a_status_of_a_draft_is_not_taken_for_the_one_that_was_given(status: Status) -> None:
    def statement(said: str, chance: float) -> tuple[Token, ...]:
        options = ((said.encode(), math.log(chance)), (b"x", -0.1), (b"absent", -3.0), (b"present", -3.0))
        return (Token(b'{"Mass": {"status": "', None), Token(said.encode(), -0.1, None, options), Token(b'"}}', None))

    thoughts = (Token(b"<think>", None), *statement("uncertain", 0.9), Token(b"</think>", None))
    alone = of_statuses(Generation("", statement(status, 0.4)))
    assert of_statuses(Generation("", thoughts + statement(status, 0.4))) == alone
    assert of_statuses(Generation("", (*thoughts, Token(b"A mass.", -0.1)))) == {}


def test_a_name_in_a_quote_is_no_key() -> None:
    text = film_text(Edema={"status": "absent", "quote": '"Mass": {"status": "present'})
    found = of_statuses(retokenised(text, set(range(len(text))), dict.fromkeys(NAMES, dict.fromkeys(STATUSES, 0.25))))
    assert found["Mass"] == pytest.approx(0.25)


@given(st.lists(any_token, max_size=30))
def test_whatever_was_measured_gives_probabilities(made: Sequence[Token]) -> None:
    framed = [t for token in made for t in (Token(b'"Mass":{"status":"', -0.1), token)]
    for reply in (made, framed):
        assert all(0.0 <= p <= 1.0 for p in of_statuses(Generation("", tuple(reply))).values())
