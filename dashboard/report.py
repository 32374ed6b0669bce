"""A one-page PDF of one analysis: films, findings and reasons, calm enough to be read like a clinical report.

Whatever a model, a server or a file wrote is cleaned, bounded and escaped before it is set: `Sheet.words` is the only
way onto the page. Symptoms, file names and identifiers of patients are not printed.
"""

import importlib.util
import io
import threading
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from PIL import Image as Pillow
from reportlab.lib.colors import HexColor  # type: ignore[import-untyped]
from reportlab.lib.pagesizes import A4  # type: ignore[import-untyped]
from reportlab.lib.styles import ParagraphStyle  # type: ignore[import-untyped]
from reportlab.pdfbase import pdfmetrics  # type: ignore[import-untyped]
from reportlab.pdfbase.ttfonts import TTFont  # type: ignore[import-untyped]
from reportlab.platypus import Image, Paragraph, SimpleDocTemplate, Spacer, Table  # type: ignore[import-untyped]

from dashboard import wording
from dashboard.findings import STATUS_WORDS, ranked
from modules.answers import Analysis
from modules.records import DISCLAIMER, Finding, RiskLevel

TITLE = "Chest radiograph: analysis report"
BANNER = "Research and education only. Not a medical device."
SHORTENED = "… (shortened; see the JSON)"

MARGIN = 36.0  # points
TOP, BOTTOM = 44.0, 34.0
WIDTH = A4[0] - 2 * MARGIN
GAP = 8.0
MAX_SIDE = 1024  # pixels of a picture
MAX_PIXELS = 4096 * 4096  # a larger file is refused before it is decoded
MAX_LINES = 40  # of one list: a server may send any number
MAX_LINE = 600  # characters of one line of it
MAX_VALUE = 200  # characters of a line of "What ran"

INK, SOFT, RULE, BAND = "#1b2733", "#5b6875", "#c9d1d8", "#f1f4f6"
# (mark, background); low is no green, because it does not mean healthy.
LEVEL_COLOURS: dict[RiskLevel, tuple[str, str]] = {
    "High": ("#b3261e", "#fbeceb"),
    "Moderate": ("#b26a00", "#fdf4e5"),
    "Low": ("#35618e", "#ebf2f9"),
}

# reportlab keeps its fonts in globals, and several sessions of the dashboard may make a report at once.
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class Plan:
    """How much room the parts get that may shrink."""

    picture: float  # side in points
    reasoning: int  # characters
    quote: int  # characters


PLANS = (
    Plan(176, 1800, 110),
    Plan(150, 1800, 110),
    *(Plan(140, characters, 110) for characters in (1500, 1200, 1000, 800, 650)),
    *(Plan(130, characters, 45) for characters in (650, 500, 400, 300)),
    Plan(110, 300, 45),
)


@dataclass(frozen=True)
class Fonts:
    """Two faces and the characters that they have."""

    regular: str
    bold: str
    has: Callable[[str], bool]
    missing: str  # what stands for any other character


Films = tuple[bytes | None, bytes | None]  # JPEGs of the film and its overlay


def report_pdf(
    analysis: Analysis, film: bytes, overlay: bytes | None, *, made_at: datetime, symptoms_given: bool
) -> bytes:
    """Return the report as a PDF: one page where it can be, the same bytes for the same input."""
    pictures = _picture(film), _picture(overlay) if overlay else None
    date = made_at.isoformat(sep=" ", timespec="minutes")
    with _ONE_AT_A_TIME:
        sheet = Sheet(_fonts(_font_folder()))

        def build(plan: Plan, films: Films | None, pages: int) -> tuple[int, bytes]:
            story = list(_story(sheet, analysis, films, plan, symptoms_given, date))
            return sheet.build(story, date, analysis.request_id, pages)

        # Each plan needs less room than the one before it. When none is small enough, nothing is gained by shrinking.
        fitting = bisect_left(PLANS, True, key=lambda plan: build(plan, None, 1)[0] == 1)
        if fitting < len(PLANS):
            return build(PLANS[fitting], pictures, 1)[1]
        return build(PLANS[0], pictures, build(PLANS[0], None, 1)[0])[1]


# ── Text, fonts and pictures ─────────────────────────────────────────────────────────────────────────────────────────


def _font_folder() -> Path | None:
    """Return where matplotlib keeps DejaVu Sans, without importing it."""
    spec = importlib.util.find_spec("matplotlib")
    folders = spec.submodule_search_locations if spec else None
    return Path(folders[0]) / "mpl-data" / "fonts" / "ttf" if folders else None


@lru_cache
def _fonts(folder: Path | None) -> Fonts:
    """Register DejaVu Sans once, or settle for Helvetica, which knows Western European characters alone."""
    files = [folder / f"{name}.ttf" for name in ("DejaVuSans", "DejaVuSans-Bold")] if folder else []
    if not files or not all(file.is_file() for file in files):
        return Fonts("Helvetica", "Helvetica-Bold", lambda char: bool(char.encode("cp1252", "ignore")), "?")
    regular, bold = (TTFont(file.stem, str(file)) for file in files)
    pdfmetrics.registerFont(regular)
    pdfmetrics.registerFont(bold)
    known = frozenset(regular.face.charToGlyph) & frozenset(bold.face.charToGlyph)
    return Fonts(regular.fontName, bold.fontName, lambda char: ord(char) in known, "\N{REPLACEMENT CHARACTER}")


def _clipped(text: str, limit: int, ending: str = "…") -> str:
    """Return text with single spaces, without control and format characters, cut at a word where there is one."""
    # Work is bounded first; what is dropped below may leave a little less than the limit.
    cut = text[: 2 * limit + 1]
    spaced = "".join(" " if char.isspace() else char for char in cut)
    line = " ".join("".join(char for char in spaced if unicodedata.category(char) not in {"Cc", "Cf"}).split())
    if len(line) <= limit and len(cut) == len(text):
        return line
    head = line[: max(0, limit - len(ending))]
    at_word, _, rest = head.rpartition(" ")
    return (at_word if at_word and len(rest) < 40 else head).rstrip() + ending


def _picture(data: bytes) -> bytes | None:
    """Return a film as a JPEG that says nothing besides its pixels, or None when it cannot be read."""
    try:
        with Pillow.open(io.BytesIO(data), formats=("PNG", "JPEG")) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                return None
            image = _eight_bits(opened)
    # Pillow's ways to say that it can't read a file
    except (OSError, ValueError, SyntaxError, EOFError, Pillow.DecompressionBombError, Pillow.DecompressionBombWarning):
        return None
    image.thumbnail((MAX_SIDE, MAX_SIDE), Pillow.Resampling.LANCZOS)
    image.info.clear()  # Pillow would carry a comment over, and a comment may name a patient
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90, subsampling=0)
    return out.getvalue()


def _eight_bits(image: Pillow.Image) -> Pillow.Image:
    if image.mode.startswith("I"):  # Pillow would clip 16 bits, not scale them: the film would be white
        return image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    return image.convert("L" if image.mode in {"1", "L", "LA"} else "RGB")


class Sheet:
    """Makes what a page consists of."""

    def __init__(self, fonts: Fonts) -> None:
        self._fonts, bold = fonts, fonts.bold
        self.body = self._style("body", 7.6)
        self.bold = self._style("bold", 7.6, fontName=bold)
        self.bullet = self._style("bullet", 7.6, leftIndent=6.2, firstLineIndent=-6.2)
        self.small = self._style("small", 6.6, textColor=HexColor(SOFT))
        self.title = self._style("title", 15, fontName=bold)
        self.level = self._style("level", 13, fontName=bold)
        self.heading = self._style("heading", 8.8, fontName=bold, spaceBefore=6, spaceAfter=1.5, keepWithNext=1)
        self.head = self._style("head", 7, fontName=bold, textColor=HexColor(SOFT))
        self.key = self._style("key", 7.6, textColor=HexColor(SOFT))

    def _style(self, name: str, size: float, **other: Any) -> Any:
        values = {"fontName": self._fonts.regular, "leading": size * 1.26, "textColor": HexColor(INK)}
        return ParagraphStyle(name, fontSize=size, **(values | other))

    def words(self, text: str, style: Any, limit: int = MAX_LINE, ending: str = "…") -> Any:
        """Return text as a paragraph in which nothing is markup."""
        return Paragraph(escape(self.printable(text, limit, ending)), style)

    def printable(self, text: str, limit: int, ending: str = "…") -> str:
        """Return text in the characters that the font has."""
        line = _clipped(text, limit, ending)
        return "".join(char if self._fonts.has(char) else self._fonts.missing for char in line)

    def bullets(self, lines: Sequence[str]) -> list[Any]:
        """Return each line with a dash, and how many were left out."""
        shown = [f"–  {line}" for line in lines[:MAX_LINES]]
        if len(lines) > MAX_LINES:
            shown.append(f"–  and {len(lines) - MAX_LINES} more; see the JSON")
        return [self.words(line, self.bullet) for line in shown]

    def build(self, story: list[Any], date: str, request_id: str, pages: int) -> tuple[int, bytes]:
        """Return the number of pages and the document; `pages` is what its footers call the total."""
        request = self.printable(request_id, 64)

        def furniture(canvas: Any, document: Any) -> None:
            right, top, bottom = A4[0] - MARGIN, A4[1] - 30, 22
            canvas.setFillColor(HexColor(SOFT))
            canvas.setStrokeColor(HexColor(RULE))
            canvas.setFont(self._fonts.bold, 7.6)
            canvas.drawString(MARGIN, top, BANNER)
            canvas.setFont(self._fonts.regular, 7)
            canvas.drawRightString(right, top, date)
            canvas.drawString(MARGIN, bottom, f"{BANNER}  ·  Request {request}")
            canvas.drawRightString(right, bottom, f"Page {document.page} of {max(pages, document.page)}")
            canvas.line(MARGIN, top - 5, right, top - 5)
            canvas.line(MARGIN, bottom + 10, right, bottom + 10)

        out = io.BytesIO()
        # A frame pads its content by 6 points.
        sides = {"leftMargin": MARGIN - 6, "rightMargin": MARGIN - 6, "topMargin": TOP - 6, "bottomMargin": BOTTOM - 6}
        nameless = dict.fromkeys(("author", "creator", "subject"), "")
        names: dict[str, Any] = {"title": f"{TITLE} ({BANNER})", "lang": "en-GB", "invariant": 1}
        document = SimpleDocTemplate(out, pagesize=A4, **sides, **names, **nameless)
        document.build(story, onFirstPage=furniture, onLaterPages=furniture)
        return document.page, out.getvalue()


# ── The page, from top to bottom ─────────────────────────────────────────────────────────────────────────────────────


def _story(
    sheet: Sheet, analysis: Analysis, films: Films | None, plan: Plan, symptoms_given: bool, date: str
) -> Iterator[Any]:
    """Yield the parts; without films (None), as when pages are counted, their room is left empty."""
    yield sheet.words(TITLE, sheet.title)
    yield Spacer(0, 5)
    yield _risk(sheet, analysis, symptoms_given)
    yield Spacer(0, GAP)
    yield _pictures(sheet, analysis, films, plan)
    yield sheet.words("Findings", sheet.heading)
    yield _findings(sheet, analysis.findings, plan)
    yield Spacer(0, 2)
    yield sheet.words(
        "Compare a probability with its own threshold: rare findings have low ones. Fused: adjusted by the second "
        "reader within a cap, not calibrated. † too few validation patients: never drives the risk.",
        sheet.small,
    )
    yield sheet.words("Where the readers differ", sheet.heading)
    yield from _contradictions(sheet, analysis)
    yield sheet.words("Clinical reasoning", sheet.heading)
    yield from _reasoning(sheet, analysis, plan)
    if analysis.quality.warnings or analysis.quality.forced or not analysis.quality.accepted:
        yield sheet.words("Quality of the film", sheet.heading)
        yield from sheet.bullets(tuple(_quality(analysis)))
    yield sheet.words("What ran", sheet.heading)
    yield _provenance(sheet, analysis, date)
    yield sheet.words("Limits", sheet.heading)
    yield sheet.words(DISCLAIMER, sheet.body)


def _risk(sheet: Sheet, analysis: Analysis, symptoms_given: bool) -> Any:
    mark, background = LEVEL_COLOURS[analysis.risk_level]
    review = "Review needed" if analysis.needs_review else "Review"
    symptoms = "Symptoms were given; their text is not printed." if symptoms_given else "No symptoms were given."
    texts = analysis.risk_factors or (wording.NO_FACTOR,), analysis.review_reasons or (wording.NO_REVIEW,)
    factors, reasons = map(sheet.bullets, texts)
    # A row cannot be broken: lists too long for one go on overleaf, a pair of lines a row.
    brief = all(len(lines) <= MAX_LINES / 2 and sum(map(len, lines)) <= 2 * MAX_LINE for lines in texts)
    rows = [
        [sheet.words(f"Risk level: {analysis.risk_level}", sheet.level), sheet.words(symptoms, sheet.small)],
        [sheet.words("What drives it", sheet.bold), sheet.words(review, sheet.bold)],
        *([[factors, reasons]] if brief else zip_longest(factors, reasons, fillvalue="")),
    ]
    whole = (0, 0), (-1, -1)
    colours = [("BACKGROUND", *whole, HexColor(background)), ("LINEBEFORE", (0, 0), (0, -1), 3, HexColor(mark))]
    room = [("BOTTOMPADDING", (0, line), (-1, line), 5) for line in (0, -1)]
    style = [*colours, *room, ("TOPPADDING", (0, 0), (-1, 0), 4), ("VALIGN", (0, 0), (-1, 0), "MIDDLE")]
    return _table(rows, (WIDTH * 0.54, WIDTH * 0.46), style, side=8)


def _table(rows: list[list[Any]], widths: tuple[float, ...], style: list[Any], side: float = 3, repeat: int = 0) -> Any:
    whole = (0, 0), (-1, -1)
    base: list[Any] = [("VALIGN", *whole, "TOP")]
    base += [(f"{name}PADDING", *whole, side) for name in ("LEFT", "RIGHT")]
    base += [(f"{name}PADDING", *whole, 0.8) for name in ("TOP", "BOTTOM")]
    return Table(rows, widths, style=[*base, *style], repeatRows=repeat)


def _pictures(sheet: Sheet, analysis: Analysis, films: Films | None, plan: Plan) -> Any:
    column = plan.picture + GAP
    captions = "Film", "Overlay: Grad-CAM"
    missing = "The film cannot be shown.", "There is no overlay for this film, or it cannot be shown."
    cells: list[list[Any]] = []
    for film, caption, why_not in zip(films or (None, None), captions, missing, strict=True):
        if films is None:
            shown = Spacer(plan.picture, plan.picture)
        elif film is None:
            shown = sheet.words(why_not, sheet.body)
        else:
            shown = Image(io.BytesIO(film), plan.picture, plan.picture, kind="proportional", hAlign="LEFT")
        cells.append([shown, sheet.words(caption, sheet.small)])
    beside = [*_overlay(sheet, analysis), Spacer(0, GAP), *_reader(sheet, analysis)]
    style = [("LEFTPADDING", (0, 0), (1, -1), 0), ("RIGHTPADDING", (2, 0), (2, -1), 0)]
    return _table([[*cells, beside]], (column, column, WIDTH - 2 * column), style, side=4)


def _overlay(sheet: Sheet, analysis: Analysis) -> Iterator[Any]:
    yield sheet.words("What the overlay shows", sheet.bold)
    shown = analysis.heatmap_finding
    if shown is None:
        yield sheet.words("No finding: no overlay was drawn.", sheet.body)
        return
    detected = "detected" if shown.detected else "NOT detected"
    text = f"{_clipped(shown.pathology, 40)}: {detected}, CNN probability {shown.probability:.3f}. {shown.note}"
    yield sheet.words(text, sheet.body, 320)


def _reader(sheet: Sheet, analysis: Analysis) -> Iterator[Any]:
    reader = analysis.reader
    yield sheet.words("Second reader", sheet.bold)
    yield sheet.words(f"Mode: {reader.mode}; model: {reader.model or 'none'}", sheet.body, 90)
    if reader.mode != reader.mode_requested:
        yield sheet.words(f"Asked for: {reader.mode_requested}", sheet.body)
    if not reader.independent or reader.fallback_reason:
        why = reader.fallback_reason or "none was asked for"
        start = "Fallback" if reader.independent else "No second model read this film"
        yield sheet.words(f"{start}: {why}", sheet.body, 240)
    yield sheet.words(f"Film sent to: {reader.film_sent_to}", sheet.body, 400)
    confidence = reader.token_confidence
    measured = wording.NOT_MEASURED if confidence is None else f"{confidence:.2f} (how decided, not how often right)"
    yield sheet.words(f"Confidence: {measured}", sheet.body)


def _findings(sheet: Sheet, findings: tuple[Finding, ...], plan: Plan) -> Any:
    heads = ("Finding", "Detected", "CNN", "Threshold", "Fused", "Second reader", "Its words")
    rows = [[sheet.words(head, sheet.head) for head in heads]]
    whole = (0, 0), (-1, -1)
    style: list[Any] = [("LINEBELOW", *whole, 0.4, HexColor(RULE)), ("VALIGN", *whole, "MIDDLE")]
    for line, found in enumerate(ranked(findings)[:MAX_LINES], start=1):
        face = sheet.bold if found.detected else sheet.body
        if found.detected:
            style.append(("BACKGROUND", (0, line), (-1, line), HexColor(BAND)))
        name = _clipped(found.pathology, 40) + ("" if found.sufficient_data else " †")
        first = name, "detected" if found.detected else "–", f"{found.cnn_probability:.3f}"
        numbers = f"{found.operating_threshold:.3f}", f"{found.fused_probability:.3f}"
        others = *numbers, STATUS_WORDS[found.reader.status]
        cells = [sheet.words(text, face) for text in first] + [sheet.words(text, sheet.body) for text in others]
        rows.append([*cells, sheet.words(found.reader.quote, sheet.small, plan.quote)])
    return _table(rows, (98, 52, 40, 48, 40, 68, WIDTH - 346), style, repeat=1)


def _contradictions(sheet: Sheet, analysis: Analysis) -> Iterator[Any]:
    if not analysis.reader.independent:
        yield sheet.words(wording.NO_SECOND_READER, sheet.body)
    elif not analysis.contradictions:
        yield sheet.words(wording.NO_CONTRADICTION, sheet.body)
    yield from sheet.bullets(wording.contradiction_lines(analysis))


def _reasoning(sheet: Sheet, analysis: Analysis, plan: Plan) -> Iterator[Any]:
    if not analysis.reader.independent:
        yield sheet.words("Written from a template, not by a model: it is no second opinion.", sheet.small)
    if analysis.reader.saw_cnn:
        yield sheet.words(wording.SAW_CNN, sheet.small)
    if analysis.reader.flags:
        yield sheet.words(wording.FLAGGED, sheet.bold)
        yield from sheet.bullets(analysis.reader.flags)
    yield sheet.words(analysis.clinical_reasoning or wording.NOTHING_WRITTEN, sheet.body, plan.reasoning, SHORTENED)


def _quality(analysis: Analysis) -> Iterator[str]:
    quality = analysis.quality
    if quality.forced or not quality.accepted:
        yield f"The input gate refused this image and was overridden. {quality.reason}"
    yield from (warning.message for warning in quality.warnings)


def _provenance(sheet: Sheet, analysis: Analysis, date: str) -> Any:
    model = analysis.model
    entries = {
        "CNN": wording.network_words(model),
        "Weights": f"{model.weights}, SHA-256 {model.sha256[:12]}",
        "Engine, device, precision": f"{model.engine}, {model.device}, {model.precision}",
        "Questions": wording.question_words(analysis.reader),
        "Film": wording.size_words(analysis),
        "Input gate": f"score {analysis.quality.gate_score:.2f}",
        "Request": analysis.request_id,
        "Report made": f"{date}, version {analysis.version}",
    }
    cells = [(sheet.words(k, sheet.key), sheet.words(v, sheet.body, MAX_VALUE)) for k, v in entries.items()]
    rows = [[*left, *right] for left, right in zip(cells[::2], cells[1::2], strict=True)]
    return _table(rows, (62, WIDTH / 2 - 62) * 2, [("LEFTPADDING", (0, 0), (0, -1), 0)])
