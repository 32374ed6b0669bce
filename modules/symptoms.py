"""Red-flag symptoms in free English text; a negated one is no flag.

Negation follows the idea of NegEx (Chapman et al., J Biomed Inform 2001): a cue negates what comes after it in the same
clause, until a word that ends its scope; a few cues negate what comes before them. Where a sentence can be read both
ways the symptom counts: a flag too many costs a look, a flag too few may cost more. That is why `modules/mentions.py`
cannot serve here: in a report "no effusion, pneumothorax" denies both, from a patient "no fever, chest pain" does not.
"""

import re
import unicodedata

# ── What names a flag ────────────────────────────────────────────────────────────────────────────────────────────────

# Each flag with the words that name it. Chosen, not fitted; a flag asks for attention and diagnoses nothing.
_FLAGS: tuple[tuple[str, str], ...] = (
    (
        "coughing blood",
        r"h[ae]+moptysis|cough\w*(?: (?!no\b|not\b|without\b|low\b|high\b)\w+){0,4} blood(?! (?:pressure|test|sugar))"
        r"|blood[- ](?:stained|streaked|tinged) (?:sputum|phlegm)|bloody (?:sputum|phlegm)|spitting (?:up )?blood"
        r"|blood in (?:the |my |his |her )?(?:sputum|phlegm)",
    ),
    (
        "chest pain",
        r"(?:chest|thoracic|pleuritic|retrosternal|substernal)(?:(?: and| or|/)? ?(?!no\b|not\b|clear\b)\w+)?[- ]"
        r"(?:pain|pressure|tight|heaviness|discomfort|hurt|ach(?:e|ing))"
        r"|(?:pains?|pressure|tightness|heaviness|discomfort|ache) (?:in|on|across|over) (?:\w+ ){0,5}chest"
        r"|tight chest|cp\b(?! angle)|angina|pleurodynia",
    ),
    (
        "shortness of breath",
        r"short(?:ness)? of breath|sob(?:oe|ar)?\b|dyspn(?:o?ea|oeic|eic)|breathless|out of breath|orthopn(?:o?ea)"
        r"|(?:difficulty|trouble|hard time|struggling|unable|hard|difficult)(?: in| to| with)? breath(?:e|ing)\b"
        r"|breathing (?:is |was )?difficult|(?:hardly|barely) breathe"
        r"|(?:can ?|could ?)(?:no|n')?'?t (?:breathe|catch (?:\w+ )?breath)|respiratory distress|gasping",
    ),
    (
        "low oxygen",
        r"hypox(?:i[ac]|a?emia|a?emic)|desaturat|cyano(?:sis|tic|sed)|(?:blue|bluish) (?:lips|fingers|skin)"
        r"|lips (?:are |were |went |turned |look )?blue|low (?:blood )?(?:oxygen|o2|sat(?:s|uration))\b"
        r"|(?:oxygen|sats|saturations?)(?: levels?)? (?:is |are |was |were )?(?:low\b|dropp|falling)",
    ),
    (
        "fainting",
        r"(?:pre)?syncop(?:e|al)|faint(?:ed|ing|s|ness)\b|(?:feel|feels|feeling|felt|nearly|almost) faint\b"
        r"|pass(?:ed|es|ing)? out|black(?:ed|ing)? ?out|loss of consciousness|unconscious"
        r"|(?<!lung )(?<!lobe )(?<!lobar )collaps(?:e|ed|ing)\b"
        r"(?! (?:of|(?:(?:left|right|upper|middle|lower) )*(?:lung|lobe)))",
    ),
    ("confusion", r"confus(?:ed|ion)|delirium|delirious|disorient|altered mental (?:state|status)|drows(?:y|iness)"),
    (
        "low blood pressure or shock",
        r"hypotens(?:ion|ive)|low (?:blood pressure|bp)\b|bp:? (?:is |of |was )?[4-8]\d/|shock(?:ed)?\b|septic|sepsis",
    ),
    (
        "chest injury",
        r"(?:chest|thoracic|blunt|penetrating) (?:trauma|injury)|stab(?:bed| wound)|gunshot|rib fractures?"
        r"|(?:broken|fractured|cracked) ribs?|(?:trauma|injury|blow) to (?:\w+ ){0,2}chest",
    ),
    (
        "weight loss",
        r"weight loss|los(?:ing|t)(?: \w+){0,3} weight|lost (?:\w+ ){0,2}\d+ ?(?:kg|kilos?|lbs?|pounds?|stone)\b"
        r"|night sweats",
    ),
)
# Flags that need action by themselves, and flags that come on over weeks; every other one is acute.
IMMEDIATE_FLAGS = frozenset({"low oxygen", "low blood pressure or shock"})
SLOW_FLAGS = frozenset({"weight loss"})
_FLAG_PATTERNS = tuple((name, re.compile(rf"\b(?:{words})", re.IGNORECASE)) for name, words in _FLAGS)

# ── Oxygen saturation ────────────────────────────────────────────────────────────────────────────────────────────────

LOW_SATURATION = 92  # per cent; below it, oxygen is commonly prescribed (BTS guideline for oxygen use, 2017: 94-98 %)
_PLAUSIBLE_SATURATION = 30  # per cent; a smaller number is the oxygen that is given, or something else
_OXYGEN_SATURATION = re.compile(
    r"(?<!target )\b(?:spo2|sao2|o2 ?sats?|sats|satt?ing|saturat(?:ions?|ing)|oxygen (?:levels?|is|was)"
    r"|sat(?=[^.,;\n]{0,12}%))"
    r"[^\d.,;\n]{0,20}?(?:\d+ ?(?:l|lpm|lit(?:re|er)s?)\b[^\d.,;\n]{0,12}?)?"  # "on 2 L/min"
    r"(\d{2,3})(?!\d| ?(?:l|lpm|lit(?:re|er)s?)\b)(?:\.\d+)?(?: ?%? ?(?:to|->?) ?(\d{2,3}))?",
    re.IGNORECASE,
)

# ── Negation ─────────────────────────────────────────────────────────────────────────────────────────────────────────

_CLAUSE_ENDS = re.compile(
    r"[;!\n•]|\.(?!\d)|\?(?! ?(?:no|none|nil|yes)\b)"
    r"|\b(?:but|however|although|though|yet|except|apart from|aside from|than|just|only|still|until|because|due to)\b"
    r"|\bnow\b(?! (?:resolved|gone|settled|subsided|absent))"
    r"|(?<!not )(?<!n't )(?<!never )(?<!no )"
    r"\b(?:present(?:s|ed|ing|(?= with))|complain(?:s|ed|ing)?|report(?:s|ed|ing)?|develop(?:s|ed|ing)|with new)\b"
    r"|(?:, ?(?:and )?|\band )(?:also )?(?:(?:he|she|they|i|patient|pt) )?(?:also )?(?:has|had|have|having|is|am|was"
    r"|with|positive for|experienc\w+|endorses|admits|feels?|felt|gets?|getting|i'm|i've|he's|she's)\b",
    re.IGNORECASE,
)
# "Denies fever, cough, chest pain" denies all three.
_NEGATES_LIST = re.compile(r"\b(?:den(?:y|ies|ied|ying)|negative for|free of|absence of|nor|neither)\b", re.IGNORECASE)
# "No fever, chest pain" affirms the pain, unless an "or" makes a list of it: "no fever, cough or chest pain".
_NEGATES_NEXT = re.compile(
    r"\b(?:no|not|without|never|(?:does|do|did|is|are|was|were|has|have|had)n'?t|lack of|lacks|nil|ruled out)\b",
    re.IGNORECASE,
)
_LIST_ENDS = re.compile(r",|[–—]| - ")
_LAST_OF_LIST = re.compile(r"\bn?or\b[^,]*$", re.IGNORECASE)
_LIST_GOES_ON = re.compile(
    r"(?:,(?: (?!worse|when|since|for\b|after|radiat|on\b)[\w'-]+){1,4})*,? n?or\b", re.IGNORECASE
)
# The symptom comes first: "chest pain has resolved", "chest pain: no".
_NEGATED_AFTER = re.compile(
    r"[ ,(]*(?:(?:which|that) )?(?:(?:is|are|was|were|has|have|had) )?(?:(?:been|now|since|all|completely|fully) )*"
    r"(?:excluded|ruled out|resolved|settled|subsided|went away|gone(?! on)"
    r"|no(?:t| longer) (?:present|reported|noted))\b"
    r"| (?:is|are|was|were) (?:now )?(?:absent|negative|denied)\b| denied by\b|[- ]free\b"
    r"| ?[,:?(–—-]* ?(?:no|none|nil|negative|absent|denied|denies)(?= ?(?:$|[,)]|\w[\w ]*[:?]))",
    re.IGNORECASE,
)
_AFFIRMED_AFTER = re.compile(
    r" ?(?:[:?(–—-]+ ?(?:yes|positive|present|\+)|like this|this bad"
    r"|(?:has |have )?(?:began|begun|started|persists?|continues?|returned)\b)",
    re.IGNORECASE,
)
# "Denies smoking, haemoptysis for 2 weeks": nobody denies something with an onset, unless an "or" closes the list.
_WITH_ONSET = re.compile(
    r" ?(?:for (?:the )?(?:past |last )?(?:\d+|a|one|two|three|several|some)\b|since\b|x ?\d|today\b|yesterday\b"
    r"|this (?:morning|evening|week)\b|\d+ ?(?:days?|weeks?|hours?|months?)\b)",
    re.IGNORECASE,
)
# Not a denial, though it begins like one, and an "or" that makes no list.
_PSEUDO_NEGATIONS = re.compile(
    r"\b(?:(?:not|\w+n'?t) (?:only|just|sure|certain|improv\w+|resolv\w+|better|relieved|wors\w+|deny"
    r"|(?:feel(?:ing)? )?(?:well|right|good)\b)"
    r"|no (?:improvement|relief|change|better|longer able|wors\w+|radiation|doubt)"
    r"|without (?:improvement|relief)|never[- ]smoke[dr]|cannot|can not|can't|unable"
    r"|(?:\d+|one|two|three|four) or (?:\d+|two|three|four|five))\b",
    re.IGNORECASE,
)
# A line that was wrapped in the middle of a sentence; the next one begins with a small letter, not with a bullet.
_WRAPPED_LINE = re.compile(r"(,|\b(?:and|any|chest|denies|in|no|of|or|short|shortness|the))\n(?=[a-z])")


# ── From text to flags ───────────────────────────────────────────────────────────────────────────────────────────────


def red_flags(text: str) -> tuple[str, ...]:
    """Return the red flags that the text affirms, each once, in the order of this file."""
    found = {name for spelling in _spellings(text) for name in _flags_in(_tidied(spelling))}
    return tuple(name for name, _ in _FLAG_PATTERNS if name in found)


def _spellings(text: str) -> tuple[str, ...]:
    """Return the text without characters that one does not see, which come along when it is copied from a page.

    A soft hyphen stands inside of a word. Any other may stand in place of a space, too: the text is then read both
    ways, and what either reading flags counts.
    """
    hidden = {ord(c) for c in text if unicodedata.category(c).startswith("C") and not c.isspace()}
    if not hidden:
        return (text,)
    return text.translate(dict.fromkeys(hidden, "")), text.translate(dict.fromkeys(hidden, " ") | {0xAD: ""})


def _flags_in(text: str) -> set[str]:
    clauses = [clause for clause in _CLAUSE_ENDS.split(text) if clause.strip()]
    found = {name for clause in clauses for name, pattern in _FLAG_PATTERNS if _affirmed(clause, pattern)}
    saturations = [int(value) for values in _OXYGEN_SATURATION.findall(text) for value in values if value]
    if any(_PLAUSIBLE_SATURATION <= value < LOW_SATURATION for value in saturations):
        found.add("low oxygen")
    return found


def _tidied(text: str) -> str:
    """Write apostrophes, digits, spaces and line ends in one way, and join lines that were wrapped."""
    text = unicodedata.normalize("NFKC", text).replace("\u2019", "'").replace("\u2018", "'").replace("\u2010", "-")
    lines = (" ".join(line.split()) for line in text.splitlines())
    return _WRAPPED_LINE.sub(r"\1 ", "\n".join(lines))


def _affirmed(clause: str, pattern: re.Pattern[str]) -> bool:
    plain = _PSEUDO_NEGATIONS.sub(lambda match: "~" * len(match.group()), clause)
    return any(not _negated(plain[: match.start()], plain[match.end() :]) for match in pattern.finditer(clause))


def _negated(before: str, after: str) -> bool:
    """Say whether a symptom is negated, by what stands before and after it in its clause."""
    if _AFFIRMED_AFTER.match(after):
        return False
    _, comma, item = before.rpartition(",")
    if comma and _WITH_ONSET.match(after) and not _LAST_OF_LIST.search(before):
        return any(cue.search(item) for cue in (_NEGATES_LIST, _NEGATES_NEXT))  # none before the comma reaches it
    if _NEGATED_AFTER.match(after) or _NEGATES_LIST.search(before):
        return True
    ends = [cue.end() for cue in _NEGATES_NEXT.finditer(before)]
    if not ends:
        return False
    scope = before[ends[-1] :]  # of the nearest cue: "no fever, no chest pain"
    return not _LIST_ENDS.search(scope) or bool(_LAST_OF_LIST.search(scope) or _LIST_GOES_ON.match(after))
