"""What the page and the PDF say in the same words."""

from modules.answers import Analysis
from modules.records import ModelInfo, ReaderInfo

NOT_MEASURED = "not measured"
NO_FACTOR = "No factor was given."
NO_REVIEW = "No special reason. A professional must read the film in any case."
NO_SECOND_READER = "There was no second reader to differ from."
NO_CONTRADICTION = "No contradiction was found."
SAW_CNN = "It was shown the CNN's numbers: it is no second opinion and moved no number."
FLAGGED = "Do not rely on this text. It seems to break rules that the reader was given:"
NOTHING_WRITTEN = "Nothing was written."


def contradiction_lines(analysis: Analysis) -> tuple[str, ...]:
    """Return where the two readers differ."""
    return tuple(f"{c.pathology}: {c.note} (CNN probability {c.cnn_probability:.3f})" for c in analysis.contradictions)


def network_words(model: ModelInfo) -> str:
    """Say which network it was, and whether its numbers are probabilities."""
    return f"{model.architecture}, {'calibrated' if model.calibrated else 'not calibrated'}"


def question_words(reader: ReaderInfo) -> str:
    """Say which questions the second reader was asked."""
    return f"version {reader.prompt}" if reader.prompt else "none were asked"


def size_words(analysis: Analysis) -> str:
    """Say how large the film was as it was analysed, and which way its greyscale ran."""
    inverted = ", greyscale inverted by request" if analysis.quality.inverted_by_request else ""
    return f"{analysis.image.width} × {analysis.image.height} pixels{inverted}"
