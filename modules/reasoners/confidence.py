"""How sure a model was of what it wrote, measured on its own token probabilities; null where it gave none.

It is no accuracy: a model can be sure and wrong.
"""

import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate

from modules.reasoners.replies import FIELDS, STATUSES, looks_like_json, past_thoughts
from modules.reasoners.turns import Generation, Token

# A JSON string, cut off or not; with a colon behind it, it is a key. Taking keys too keeps quotes in pairs.
_STRING = re.compile(rb'"((?:[^"\\]|\\.)*+)(?:"(\s*+:)?|\\?\Z)', re.DOTALL)
_STATUS = {name: re.compile(rb'"%s"\s*:\s*\{\s*"status"\s*:\s*"' % field.encode()) for name, field in FIELDS.items()}
# Of two statuses in one statement JSON takes the last, and what was measured of the first is no measure of it.
_ANOTHER_STATUS = re.compile(rb'[^}]*?"status"\s*:')
_FIRST_LETTERS = frozenset(status[:1].encode() for status in STATUSES)  # p, a, u, n: each decides the status


def of_tokens(generations: Iterable[Generation]) -> float | None:
    """Return exp(mean log-probability) over the freely chosen tokens, or None when none was measured."""
    logprobs = (token.logprob for generation in generations for token in _free(generation.tokens))
    measured = [min(0.0, logprob) for logprob in logprobs if logprob is not None and not math.isnan(logprob)]
    return math.exp(sum(measured) / len(measured)) if measured else None


def _free(tokens: tuple[Token, ...]) -> Iterator[Token]:
    """Yield the tokens in which the model had a choice; where no grammar tells, those inside of JSON values."""
    if any(token.free is not None for token in tokens):
        yield from (token for token in tokens if token.free)
        return
    written, start = _written(tokens)
    values = [(start, len(written))]  # prose
    if looks_like_json(written[start:].decode("utf-8", "replace")):
        values = [match.span(1) for match in _STRING.finditer(written, start) if match[2] is None]
    starts = [start for start, _ in values]
    for token, end in zip(tokens, accumulate(len(token.piece) for token in tokens), strict=True):
        k = bisect_right(starts, end - 1) - 1
        if k >= 0 and end - len(token.piece) < values[k][1]:
            yield token


def _written(tokens: tuple[Token, ...]) -> tuple[bytes, int]:
    """Return the bytes of a reply, and where it begins behind what the model thought aloud."""
    written = b"".join(token.piece for token in tokens)
    return written, past_thoughts(written.decode("latin-1"))


def of_statuses(generation: Generation) -> dict[str, float]:
    """Return by pathology the probability of the chosen status among those that could have been chosen.

    The first letter decides between the four. Where it was written, the alternatives are grouped by the letter that
    they would have written; a pathology without measured alternatives is left out.
    """
    written, start = _written(generation.tokens)
    ends = list(accumulate(len(token.piece) for token in generation.tokens))
    found = {}
    for name, pattern in _STATUS.items():
        places = [match.end() for match in pattern.finditer(written, start)]
        if not places or places[-1] >= len(written) or _ANOTHER_STATUS.match(written, places[-1]):
            continue
        k = bisect_right(ends, places[-1])
        token = generation.tokens[k]
        share = _share_of_letter(token, places[-1] - (ends[k] - len(token.piece)))
        if share is not None:
            found[name] = share
    return found


def _share_of_letter(token: Token, within: int) -> float | None:
    """Return the share of the probability that went to the letter that the token has at `within`."""
    masses = dict.fromkeys(_FIRST_LETTERS, 0.0)
    for piece, logprob in token.alternatives:
        letter = piece[within : within + 1]
        if piece[:within] == token.piece[:within] and letter in masses and not math.isnan(logprob):
            masses[letter] += math.exp(min(0.0, logprob))
    total, chosen = sum(masses.values()), masses.get(token.piece[within : within + 1], 0.0)
    return min(1.0, chosen / total) if chosen > 0.0 else None
