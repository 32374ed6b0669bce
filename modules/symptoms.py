"""Red-flag symptoms in free English text; a negated one is no flag.

Negation follows the idea of NegEx (Chapman et al., J Biomed Inform 2001): a cue negates what comes after it in the same
clause, until a word that ends its scope; a few cues negate what comes before them.
"""

import re

MAX_SYMPTOMS = 4000  # characters

# Each flag with the words that name it. Chosen, not fitted; a flag asks for attention and diagnoses nothing.
_FLAGS: tuple[tuple[str, str], ...] = (
    (
        "coughing blood",
        r"h[ae]+moptysis|cough\w*(?: up)?(?: \w+){0,2} blood|blood[- ](?:stained|streaked|tinged)\w* (?:sputum|phlegm)",
    ),
    (
        "chest pain",
        r"(?:chest|thoracic|pleuritic)(?: \w+)? (?:pain|pressure|tightness)|pain in (?:the |my |his |her )?chest"
        r"|pleurodynia",
    ),
    (
        "shortness of breath",
        r"short(?:ness)? of breath|sob\b|dyspn(?:o?ea|oeic|eic)|breathless\w*"
        r"|(?:difficulty|trouble|hard time) (?:in )?breathing"
        r"|can(?:no|')?t (?:breathe|catch (?:\w+ )?breath)|respiratory distress|orthopn(?:o?ea)|gasping",
    ),
    ("low oxygen", r"hypox(?:i[ac]|a?emia|a?emic)|desaturat\w*|cyano(?:sis|tic)|(?:blue|bluish) (?:lips|fingers|skin)"),
    (
        "fainting",
        r"syncop(?:e|al)|faint(?:ed|ing|s)?|pass(?:ed|es|ing) out|(?<!lung )collapsed?(?! lung)"
        r"|loss of consciousness|unconscious",
    ),
    ("confusion", r"confus(?:ed|ion)|delirium|delirious|altered mental (?:state|status)|drows(?:y|iness)"),
    ("low blood pressure or shock", r"hypotens(?:ion|ive)|low blood pressure|shock\b|septic|sepsis"),
    (
        "chest injury",
        r"(?:chest|thoracic|blunt|penetrating) (?:trauma|injury)|stab(?:bed| wound)|gunshot|rib fractures?",
    ),
    ("weight loss", r"weight loss|los(?:ing|t)(?: \w+){0,2} weight|night sweats"),
)
_FLAG_PATTERNS = tuple((name, re.compile(rf"\b(?:{words})", re.IGNORECASE)) for name, words in _FLAGS)

_OXYGEN_SATURATION = re.compile(
    r"\b(?:spo2|sao2|sats?|(?:oxygen )?saturation)\D{0,12}?(\d{2,3})(?:\.\d+)?\s*%?", re.IGNORECASE
)
LOW_SATURATION = 92  # per cent; below it, oxygen is commonly prescribed (BTS guideline for oxygen use, 2017: 94-98 %)

_CLAUSE_ENDS = re.compile(
    r"[.;!?\n](?!\d)"
    r"|\b(?:but|however|although|though|yet|except|apart from|aside from|now|presents?|complains?|reports?|developed"
    r"|with new)\b"
    r"|,\s*(?:and )?(?:also )?(?:has|had|having|with|positive for|experienc\w+|endorses|admits)\b",
    re.IGNORECASE,
)
# "Denies fever, cough, chest pain" denies all three …
_NEGATES_LIST = re.compile(
    r"\b(?:den(?:y|ies|ied|ying)|negative for|free of|absence of|nor|neither|ruled out)\b", re.IGNORECASE
)
# … but "no fever, chest pain" affirms the pain, unless an "or" makes a list of it: "no fever, cough or chest pain".
_NEGATES_NEXT = re.compile(
    r"\b(?:no|not|without|never|(?:does|do|did|is|was|has|have)n't|lack of|lacks|nil)\b(?P<scope>.*)",
    re.IGNORECASE | re.DOTALL,
)
_ALTERNATIVES = re.compile(r"\b(?:or|nor)\b", re.IGNORECASE)
_NEGATES_BEFORE = re.compile(
    r"^[\s,]*(?:is |are |was |were |has |have )?(?:been )?"
    r"(?:absent|denied|excluded|ruled out|resolved|negative|nil|: ?no\b|- ?no\b)",
    re.IGNORECASE,
)
# Not a denial, though it begins like one.
_PSEUDO_NEGATIONS = re.compile(
    r"\b(?:not (?:only|just|sure|certain|improv\w+|resolv\w+|better|relieved)"
    r"|no (?:improvement|relief|change|better|longer able)"
    r"|without (?:improvement|relief)|cannot|can not|can't|unable)\b",
    re.IGNORECASE,
)


def red_flags(text: str) -> tuple[str, ...]:
    """Return the red flags that the text affirms, each once, in the order of this file."""
    text = text.replace("\u2019", "'")
    clauses = [clause for clause in _CLAUSE_ENDS.split(text) if clause.strip()]
    found = {name for clause in clauses for name, pattern in _FLAG_PATTERNS if _affirmed(clause, pattern)}
    if any(int(value) < LOW_SATURATION for value in _OXYGEN_SATURATION.findall(text)):
        found.add("low oxygen")
    return tuple(name for name, _ in _FLAG_PATTERNS if name in found)


def _affirmed(clause: str, pattern: re.Pattern[str]) -> bool:
    plain = _PSEUDO_NEGATIONS.sub(lambda match: "~" * len(match.group()), clause)
    return any(not _negated(plain, match) for match in pattern.finditer(clause))


def _negated(clause: str, match: re.Match[str]) -> bool:
    before, after = clause[: match.start()], clause[match.end() :]
    if _NEGATES_LIST.search(before) or _NEGATES_BEFORE.match(after):
        return True
    cue = _NEGATES_NEXT.search(before)
    if cue is None:
        return False
    listed = _ALTERNATIVES.search(cue["scope"]) or _ALTERNATIVES.search(after)
    # the last cue is the nearest: "no fever, no chest pain"
    scope = _last_scope(before)
    return "," not in scope or listed is not None


def _last_scope(before: str) -> str:
    """Return what stands between the last cue and the symptom."""
    scope = before
    while cue := _NEGATES_NEXT.search(scope):
        scope = cue["scope"]
    return scope
