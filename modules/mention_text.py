"""Report text spelt in one way and cut: into the sentences that speak of this film, and these into segments."""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from modules.mention_cues import CUES
from modules.mention_terms import FIXED, LOOK_ALIKES, NORMAL, SIGNS, SPELLINGS, SPELT_RIGHT, TERMS

MAX_SENTENCE = 1000  # characters; a longer one is cut, so that no text takes more than linear time

# ── Headings ─────────────────────────────────────────────────────────────────────────────────────────────────────────

_SET_ASIDE = (
    r"(?:(?:clinical|exam|study|brief|patient|relevant|past|medical) ){0,3}"
    r"(?:indications?(?: for (?:exam\w*|study|the \w+))?|history|hx|pmh|background|information|details|data"
    r"|context|notes?|question"
    r"|presentation|symptoms?|complaints?|diagnosis(?= ?: ?(?:\?|r/?o|rule)))"
    r"|reason for (?:the )?(?:exam\w*|study|test|request|referral|visit|x ?ray|film|this exam\w*|imaging)"
    r"|request(?:ed)?(?: for)?"
    r"|referral|comparisons?|technique|procedure|recommend\w*|follow ?up(?: recommendations?)?|advice|plan"
    r"|suggest(?:ed|ions?)(?: follow ?up)?"
    r"|prior (?:exams?|studies|films?|imaging|report)|previous (?:exams?|studies|films?|imaging|report)"
)
_OTHERS = (
    r"(?:findings?|impressions?|conclusions?|reports?|results?|opinion|interpretation|summary|observations?"
    r"|comments?|assessment|radiology report"
    r"|chest|heart|lungs?|pleura|mediastinum|bones?|cardiac|cardiomediastinal silhouette|airways?|diaphragms?"
    r"|others?|soft tissues"
    r"|pleural spaces?|lines(?: and tubes)?|tubes|devices|lungs and pleura|x ?ray|cxr|chest x ?ray|film"
    r"|exam(?:ination)?|study|addendum|differential\w*)"
)

# A full stop ends a sentence, but not in "vs. 3.5", nor before "It has resolved", which speaks of what was named.
_REFERS_BACK = (
    r" (?:it|this|these|they|both) (?:has|have|is|are) (?:now |since |completely |fully |all |both )?"
    r"(?:resolved|cleared|gone|disappeared|no longer|not )"
)
_END_OF_SENTENCE = re.compile(
    rf"\n|!|(?<!\bvs)(?<!\bdr)(?<!\bapprox)(?<!\bcf)(?<![ .][a-z])\.(?!\d|{_REFERS_BACK})"
    r"|(?<=\S)\?+(?= |\n|$)(?! ?(?:no|none|nil|yes|absent|negative|present)\b)"
)
_HEADING = re.compile(rf"(?:(?<=[\n.;!?])|^) ?(?:\d[.)] ?)?(?:(?P<aside>{_SET_ASIDE})|{_OTHERS}) ?:")
_WRAPS_AFTER = re.compile(
    r"(?:,|\b(?:a|an|and|any|are|at|be|by|for|from|has|have|in|is|left|may|no|not|of|on|or|right|small|the|to|was|with"
    r"|without))$",
    re.IGNORECASE,
)
_BULLET = re.compile(r"(?:[-*•·#]|\d+[.)])\s|[A-Z][A-Za-z ]{2,30}:")
# Not seen, and inside of words: soft hyphen, joiners, byte order mark. "with-out", cut by one, would else be no denial.
_UNSEEN = dict.fromkeys((0xAD, 0x200C, 0x200D, 0x2060, 0xFEFF))
_SWAPS = str.maketrans('\u2018\u2019\u2010\u2011\u2212*_`#"\u201c\u201d', "''---       ")


# ── From text to sentences ───────────────────────────────────────────────────────────────────────────────────────────


def plain_text(text: str) -> tuple[str, str, list[int]]:
    """Return the text with its white space collapsed, a plain copy to match, and each plain character's place in it."""
    lines = [" ".join(line.split()) for line in text.translate(_UNSEEN).splitlines()]
    breaks: set[int] = set()
    length, last, blank = 0, "", False
    kept: list[str] = []
    for line in lines:
        if not line:
            blank = True
            continue
        if kept:
            if blank or not _wrapped(last, line):
                breaks.add(length)
            length += 1
        kept.append(line)
        length += len(line)
        last, blank = line, False
    shown = " ".join(kept)
    swapped = shown.translate(_SWAPS)
    out: list[str] = []
    at: list[int] = []
    for place, character in enumerate(swapped):
        if place in breaks:
            piece = "\n"
        elif character.isascii():
            piece = character.lower()
        else:
            piece = unicodedata.normalize("NFKC", character).lower()
            piece = piece if len(piece) <= 3 else " "
        if piece == "-" and 0 < place < len(swapped) - 1:
            before, after = swapped[place - 1], swapped[place + 1]
            if before.isalnum() and after.isalnum() and not (before.isdigit() and after.isdigit()):
                piece = " "
        if piece == " " and out and out[-1] in " \n":
            continue
        out.extend(piece)
        at.extend([place] * len(piece))
    return shown, *_spelt_right("".join(out), at)


def _spelt_right(plain: str, at: list[int]) -> tuple[str, list[int]]:
    """Mend slips of the pen in the names of findings."""
    out: list[str] = []
    places: list[int] = []
    done = 0
    for match in _WORD.finditer(plain):
        meant = _meant(match.group())
        if meant is None:
            continue
        start, end = match.span()
        out += [plain[done:start], meant]
        places += at[done:start]
        places += [at[min(start + i, end - 1)] for i in range(len(meant) - 1)] + [at[end - 1]]
        done = end
    return "".join([*out, plain[done:]]), [*places, *at[done:]]


def _shorter(word: str) -> set[str]:
    return {word[:i] + word[i + 1 :] for i in range(len(word))}


_SPELLINGS = {form: word for word in SPELLINGS for form in (*_shorter(word), word)}
_WORD = re.compile(r"[a-z]{5,16}")


def _meant(word: str) -> str | None:
    """Return the name that a word misspells by one letter, or None."""
    if word in SPELLINGS or word in SPELT_RIGHT:
        return None
    return next((_SPELLINGS[form] for form in (word, *_shorter(word)) if form in _SPELLINGS), None)


def _wrapped(line: str, following: str) -> bool:
    """Say whether a line was broken in the middle of a sentence."""
    if _BULLET.match(following) or line.endswith((".", ":", ";", "!", "?")):
        return False
    return following[0].islower() or bool(_WRAPS_AFTER.search(line[-12:])) or len(line) >= 60


def sentences(plain: str) -> Iterator[tuple[int, int]]:
    """Yield the sentences outside those sections that say nothing of this film."""
    headings = list(_HEADING.finditer(plain))
    position = 0
    for i, heading in enumerate(headings):
        if heading.start() < position:
            continue
        yield from _cut(plain, position, heading.start())
        position = heading.start()
        if heading.group("aside"):
            if i + 1 < len(headings):
                position = headings[i + 1].start()
            else:  # no other heading closes the section: it is one sentence
                ended = _END_OF_SENTENCE.search(plain, _skip_space(plain, heading.end()))
                position = ended.end() if ended else len(plain)
    yield from _cut(plain, position, len(plain))


def _skip_space(plain: str, position: int) -> int:
    while position < len(plain) and plain[position].isspace():
        position += 1
    return position


def _cut(plain: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    ends = [match.end() for match in _END_OF_SENTENCE.finditer(plain, start, end)]
    for stop in (*ends, end):
        while stop - start > MAX_SENTENCE:
            space = plain.rfind(" ", start + 1, start + MAX_SENTENCE)
            middle = space if space > 0 else start + MAX_SENTENCE
            yield start, middle
            start = middle
        if plain[start:stop].strip():
            yield start, stop
        start = stop


# ── From a sentence to segments ──────────────────────────────────────────────────────────────────────────────────────

Said = Literal["present", "absent", "uncertain", "aside"]


@dataclass
class Term:
    """A description of pathologies at [start, end) of the plain text."""

    names: tuple[str, ...]
    start: int
    end: int
    said: Said = "present"
    sign: bool = False  # what is seen, not the pathology's name
    fixed: bool = False  # its words alone decide: "lungs are clear"
    inner: tuple[str, ...] = ()  # cues between its words: "heart is not enlarged"


@dataclass
class Cue:
    """Words that say something of the terms around them, or that join or end the parts of a sentence."""

    kind: str
    start: int
    end: int
    words: str


@dataclass
class Segment:
    """A member of a list or another short stretch of a sentence, with what joins it to the one before."""

    join: str
    start: int
    end: int
    items: list[Term | Cue] = field(default_factory=list)

    @property
    def terms(self) -> list[Term]:
        """The descriptions of pathologies, in order."""
        return [item for item in self.items if isinstance(item, Term)]

    @property
    def cues(self) -> list[Cue]:
        """The cues that mean what they seem to say."""
        return [item for item in self.items if isinstance(item, Cue) and item.kind != "pseudo"]


def _whole_words(patterns: Iterable[str]) -> str:
    return rf"(?:(?<![a-z0-9])|(?=n't))(?:{'|'.join(patterns)})(?![a-z0-9])"


_TERMS = (
    *(((name,), "present", False, re.compile(_whole_words(patterns))) for name, patterns in TERMS.items()),
    *(((name,), "sign", False, re.compile(_whole_words(patterns))) for name, patterns in SIGNS.items()),
    *((names, "absent", True, re.compile(_whole_words(patterns))) for names, patterns in NORMAL.items()),
    *((names, "present", True, re.compile(_whole_words(patterns))) for names, patterns in FIXED.items()),
)
_LOOK_ALIKES = re.compile(_whole_words(LOOK_ALIKES))
_WORD_CUES = ("pseudo", "aside", "former", "earlier", "doubt", "denial", "negation")
_CUES = re.compile(
    "|".join(
        f"(?P<{kind}>{_whole_words(patterns) if kind in _WORD_CUES else '|'.join(patterns)})"
        for kind, patterns in CUES.items()
    )
)
_JOINS = frozenset(CUES) - frozenset(_WORD_CUES) - {"question", "now"}


def find_terms(sentence: str) -> list[Term]:
    """Return the descriptions of pathologies in a sentence, in the order in which they end."""
    masked = _LOOK_ALIKES.sub(lambda match: "~" * len(match.group()), sentence)
    found = [
        Term(names, match.start(), match.end(), "absent" if kind == "absent" else "present", kind == "sign", fixed)
        for names, kind, fixed, pattern in _TERMS
        for match in pattern.finditer(masked)
    ]
    return sorted(found, key=lambda term: (term.end, term.start))


def _nests(term: Term, terms: list[Term]) -> bool:
    """Say whether another finding is named inside a term: "pleura: no effusion, mild thickening"."""
    return any(term.start <= other.start and other.end < term.end and other.names != term.names for other in terms)


def _place(item: Term | Cue) -> tuple[int, bool]:
    return (item.end, False) if isinstance(item, Term) else (item.start, True)


def cut_segments(sentence: str, terms: list[Term]) -> list[Segment]:
    """Cut a sentence where its parts are joined; cues inside a term belong to the term alone."""
    items: list[Term | Cue] = [*terms]
    plain = [term for term in terms if not _nests(term, terms)]
    for match in _CUES.finditer(sentence):
        cue = Cue(str(match.lastgroup), match.start(), match.end(), match.group())
        around = [term for term in plain if term.start <= cue.start and cue.end <= term.end]
        # "no change" denies nothing, but "heart size is not increased" holds a denial
        kind = "negation" if cue.kind == "pseudo" and cue.words.startswith(("not ", "n't ")) else cue.kind
        for term in around:
            term.inner = (*term.inner, kind)
        if not around:
            items.append(cue)
    segments = [Segment("start", 0, len(sentence))]
    for item in sorted(items, key=_place):
        if isinstance(item, Cue) and item.kind in _JOINS:
            segments[-1].end = item.start
            segments.append(Segment(item.kind, item.end, len(sentence)))
        else:
            segments[-1].items.append(item)
    return segments
