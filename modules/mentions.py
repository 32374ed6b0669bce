"""What free English report text says of each pathology: present, absent or uncertain, with the words it rests on.

The idea is NegEx's (Chapman et al., J Biomed Inform 2001) as ConText widened it (Harkema et al., J Biomed Inform 2009):
cues of denial, doubt and history reach over the members of a list until something ends their scope. medspaCy and
negspaCy do this too, but bring spaCy and a language model for 14 terms. The words are in `modules/mention_terms.py` and
`modules/mention_cues.py`.
"""

import itertools
from collections.abc import Iterator
from typing import Literal, cast

from modules import mention_cues as cues
from modules.mention_text import Cue, Said, Segment, Term, cut_segments, find_terms, plain_text, sentences
from modules.pathologies import NAMES
from modules.records import ReaderStatement

MAX_QUOTE = 200  # characters

_Side = Literal["before", "after", "nowhere"]
_RANK: dict[str, int] = {"present": 3, "uncertain": 2, "absent": 1}


_LIST_JOINS = frozenset({"comma", "and", "or", "slash", "with", "open", "close"})
_CLOSING_JOINS = frozenset({"and", "or", "slash"})  # of the last member of a list
_FRESH_JOINS = frozenset({"comma", "and", "with", "open", "break"})  # behind them a cue speaks of what follows anew
_COMBINED = {"Atelectasis", "Consolidation"}  # "collapse/consolidation" is said of one opacity that is both


def statements(text: str) -> dict[str, ReaderStatement]:
    """Return what the text says of each pathology that it mentions; one that it does not mention is no key."""
    shown, plain, at = plain_text(text)
    found: dict[str, tuple[str, str]] = {}
    for start, end in sentences(plain):
        for names, said, left, right in _read(plain, start, end):
            for name in names:
                if said in _RANK and _RANK[said] > _RANK.get(found.get(name, ("", ""))[0], 0):
                    found[name] = (said, shown[at[left] : at[right - 1] + 1][:MAX_QUOTE])
    return {
        name: ReaderStatement(status=found[name][0], quote=found[name][1], confidence=None)
        for name in NAMES
        if name in found
    }


def _read(plain: str, start: int, end: int) -> Iterator[tuple[tuple[str, ...], Said, int, int]]:
    """Yield each term of a sentence with what is said of it and the range to quote."""
    sentence = plain[start:end]
    terms = find_terms(sentence)
    if not terms:
        return
    segments = cut_segments(sentence, terms)
    _label(sentence, segments)
    _scope(sentence, segments)
    _alternatives(sentence, segments)
    named = {name for term in terms if not term.sign and term.said != "aside" for name in term.names}
    for left, right, term in _quoted(sentence, segments):
        if not (term.sign and named.intersection(term.names)):
            yield term.names, term.said, start + left, start + right


# ── What is said of each term ────────────────────────────────────────────────────────────────────────────────────────


def _label(sentence: str, segments: list[Segment]) -> None:
    """Read terms that head a value: "Pneumothorax: none"."""
    last_with = {name: term.start for segment in segments for term in segment.terms for name in term.names}
    for i, segment in enumerate(segments):
        for term in segment.terms:
            said = None if term.fixed else _labelled(sentence, term)
            if said == "heading" and segment.join in {"start", "break"}:
                rest = sentence[term.end :].strip(" :=.")
                if not rest or any(last_with[name] > term.start for name in term.names):
                    said = "aside"  # what follows speaks of it by itself
                elif cues.NORMAL_VALUE.search(rest):
                    said = "absent"
            if said in {"present", "absent", "uncertain", "aside"}:
                term.said, term.fixed = cast(Said, said), True
                for other in _list_before(sentence, segments, i):
                    if not other.fixed:
                        other.said, other.fixed = term.said, True


def _labelled(sentence: str, term: Term) -> str | None:
    """Return the value that a term heads, "heading" where the value is a sentence, or None."""
    value = cues.VALUE.match(sentence, term.end)
    if value is None or (value["bracket"] and sentence[value.end() : value.end() + 1] not in ",;)"):
        return None
    return (
        value.lastgroup if value.lastgroup not in {None, "bracket", "colon"} else "heading" if value["colon"] else None
    )


def _scope(sentence: str, segments: list[Segment]) -> None:
    """Let each cue reach as far as its scope."""
    listed = _in_open_list(segments)
    said: Said = "present"
    brackets: list[Said] = []
    for i, segment in enumerate(segments):
        said = _past_join(sentence, segment, said, brackets, listed[i])
        afterwards: Said | None = None
        for j, item in enumerate(segment.items):
            if isinstance(item, Term):
                if not item.fixed:
                    item.said = _with_inner(item, said)
            elif item.kind == "now":
                said = "present" if said == "aside" else said
            elif item.kind != "pseudo":
                reach = _reach(sentence, segments, i, j)
                if reach == "before":
                    _reach_back(sentence, segments, i, j)
                elif reach == "after":
                    if item.kind == "former" and said == "present":
                        afterwards = said
                    said = _after(item.kind, said, first=j == 0 and segment.join in _FRESH_JOINS)
        said = afterwards or said


def _past_join(sentence: str, segment: Segment, said: Said, brackets: list[Said], listed: bool) -> Said:
    """Return what is still said when a segment begins."""
    if segment.join == "open":
        brackets.append(said)
    elif segment.join == "close":
        return brackets.pop() if brackets else said
    elif (
        segment.join == "break"
        or (segment.join == "cause" and said != "aside")
        or (said != "present" and _starts_anew(sentence, segment, listed))
    ):
        return "present"
    return said


def _after(kind: str, said: Said, *, first: bool) -> Said:
    """Return what is said behind a cue; "no opacity suspicious for pneumonia" stays a denial."""
    if kind == "aside" or (kind == "former" and said == "present"):
        return "aside"
    denies = kind in {"denial", "negation"}
    if kind != "former" and (said == "present" or first or (denies and said == "uncertain")):
        return "absent" if denies else "uncertain"
    return said


def _with_inner(term: Term, said: Said) -> Said:
    if "negation" in term.inner or "denial" in term.inner:
        return "absent" if said != "aside" else said
    if ("doubt" in term.inner or "question" in term.inner) and said == "present":
        return "uncertain"
    return said


def _in_open_list(segments: list[Segment]) -> list[bool]:
    """Say of each segment whether an "or" further on closes the list that it stands in."""
    listed = [False] * (len(segments) + 1)
    for i in range(len(segments) - 2, -1, -1):
        following = segments[i + 1]
        listed[i] = following.join in {"or", "slash"} or (following.join == "comma" and listed[i + 1])
    return listed


def _starts_anew(sentence: str, segment: Segment, listed: bool) -> bool:
    """Say whether a segment is a statement of its own and no further member of the list before it."""
    if segment.join in {"or", "slash", "versus"}:
        return False
    stretch = sentence[segment.start : segment.end]
    behind = segment.terms[-1].end - segment.start if listed and segment.terms else 0
    if cues.STILL.search(stretch, behind):
        return True
    if cues.VERB.search(stretch):
        exists = cues.EXISTS.search(stretch)
        run_on = exists and segment.join == "comma" and cues.RUN_ON.fullmatch(exists.group())
        if not exists or (run_on and not listed):
            return True
    return not listed and bool(cues.AFFIRMING.match(stretch))


def _reach(sentence: str, segments: list[Segment], i: int, j: int) -> _Side:
    """Say on which side of a cue the terms stand that it speaks of."""
    items = segments[i].items
    cue = cast(Cue, items[j])
    before, after = (any(isinstance(item, Term) for item in part) for part in (items[:j], items[j + 1 :]))
    if cue.kind in {"negation", "aside"}:
        return "after"
    if cue.kind in {"former", "earlier"}:
        side: _Side = "after" if cue.kind == "former" else "before"
        return "nowhere" if _says_how_it_is_now(sentence, segments, i, cue) else side
    if cue.kind == "denial":
        return "after" if after and not (before and cues.AUXILIARY.match(cue.words)) else "before"
    rest = sentence[cue.end : segments[i].end]
    return _reach_of_doubt(cue, rest, segments[i].join, before=before, after=after, last=i + 1 == len(segments))


def _reach_of_doubt(cue: Cue, rest: str, join: str, *, before: bool, after: bool, last: bool) -> _Side:
    passive, modal = cues.PASSIVE.search(cue.words), cues.MODAL.match(cue.words)
    if passive and (before or (join == "or" and not after)):
        return "before"
    if after:
        return "after"
    at_its_end = cues.AT_ITS_END.match(rest) and (rest.strip(" .?!)") or not modal)
    if (modal and cues.ARTEFACT.match(rest)) or (before and at_its_end):
        return "before"
    if before:
        return "nowhere"
    return "before" if at_its_end and last and join in _FRESH_JOINS else "after"


def _says_how_it_is_now(sentence: str, segments: list[Segment], i: int, cue: Cue) -> bool:
    first, last = _clause(segments, i)
    before, after = sentence[segments[first].start : cue.start], sentence[cue.end : segments[last].end]
    return bool(cues.STILL.search(before) or cues.NOW.search(after))


def _reach_back(sentence: str, segments: list[Segment], i: int, j: int) -> None:
    """Apply a cue to the terms before it, and to the list that ends with them."""
    cue = cast(Cue, segments[i].items[j])
    found = [item for item in segments[i].items[:j] if isinstance(item, Term)]
    subject = cues.NO_SUBJECT.match(sentence[segments[i].start : cue.start])
    if not found and subject:  # "pneumothorax, now resolved"; "a pneumothorax; this has resolved"
        ends = {"cause"} if cues.PRONOUN.match(subject.group()) else {"break", "cause"}
        while not found and i > 0 and segments[i].join not in ends:
            i -= 1
            found = segments[i].terms
    if segments[i].join in _CLOSING_JOINS or (found and cue.kind == "denial"):
        found = [*found, *_list_before(sentence, segments, i)]
    for term in found:
        if term.fixed:
            continue
        if cue.kind == "denial":
            term.said = "absent"
        elif cue.kind == "earlier" and term.said != "absent":
            term.said = "aside"
        elif term.said == "present":
            term.said = "uncertain"


def _list_before(sentence: str, segments: list[Segment], i: int) -> Iterator[Term]:
    """Yield the terms of the list whose last member stands in segment i, without those of that segment."""
    closed = False
    while i > 0 and segments[i].join in _LIST_JOINS:
        segment, member = segments[i], segments[i - 1]
        closed = closed or segment.join in _CLOSING_JOINS
        stretch = sentence[member.start : member.end]
        own = segment.join == "comma" and cues.AFFIRMING.match(sentence[segment.start : segment.end])
        predicate = any(cues.PREDICATE.search(sentence[term.start : term.end]) for term in member.terms)
        if predicate or cues.VERB.search(stretch) or any(cue.kind != "former" for cue in member.cues):
            return
        if not closed and (own or cues.AFFIRMING.match(stretch)):
            return
        yield from member.terms
        i -= 1


def _alternatives(sentence: str, segments: list[Segment]) -> None:
    """Make the members of a differential uncertain: "atelectasis or consolidation"."""
    unchanged = False  # "no change in the effusion or atelectasis"
    for earlier, later in itertools.pairwise(segments):
        unchanged = (unchanged and earlier.join != "break") or any(
            isinstance(item, Cue) and item.kind == "pseudo" for item in earlier.items
        )
        pair = (*earlier.terms[-1:], *later.terms[:1])
        names = {name for term in pair for name in term.names}
        if later.join == "slash":
            differ = len(pair) == 2 and len(names) > 1 and names != _COMBINED
        elif later.join == "or":
            other = any(cues.ALTERNATIVE.match(sentence, part.start) for part in (earlier, later))
            differ = other if len(pair) < 2 else len(names) > 1
        else:
            differ = later.join == "versus"
        for term in pair:
            if differ and not unchanged and not term.fixed and term.said == "present":
                term.said = "uncertain"


# ── Quotes ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _clause(segments: list[Segment], i: int) -> tuple[int, int]:
    """Return the first and the last segment of the clause that holds segment i."""
    first = last = i
    while first > 0 and segments[first].join != "break":
        first -= 1
    while last + 1 < len(segments) and segments[last + 1].join != "break":
        last += 1
    return first, last


def _quoted(sentence: str, segments: list[Segment]) -> Iterator[tuple[int, int, Term]]:
    """Yield each term with the range of its clause, or of the words around it where that is too long."""
    first = 0
    for i, segment in enumerate(segments):
        if segment.join == "break":
            first = i
        for term in segment.terms:
            _, last = _clause(segments, i)
            start, end = min(segments[first].start, term.start), max(segments[last].end, term.end)
            value = cues.VALUE.match(sentence, term.end)
            end = max(end, value.end()) if value else end
            yield *_trimmed(sentence, start, end, term), term


def _trimmed(sentence: str, start: int, end: int, term: Term) -> tuple[int, int]:
    while start < term.start and not sentence[start].isalnum():
        start += 1
    while end > term.end and not sentence[end - 1].isalnum() and sentence[end - 1] not in "?%)":
        end -= 1
    if end - start > MAX_QUOTE:
        start = max(start, min(term.end - MAX_QUOTE, term.start))
        end = min(end, start + MAX_QUOTE)
    return start, end
