"""The PDF: one page for a usual analysis, the same bytes each time, and foreign text only as text."""

import io
import itertools
import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pypdf import PdfReader
from pypdf.generic import ArrayObject, DictionaryObject

from dashboard import report
from dashboard.report import BANNER, PLANS, report_pdf
from modules.answers import Analysis
from modules.pathologies import NAMES
from modules.pipeline import Pipeline
from modules.records import Contradiction, Finding, HeatmapFinding, ReaderStatement, RiskLevel
from tests.fake_server import all_findings, analysis, finding, quality, reader
from tests.test_structure import loaded_by

MADE_AT = datetime(2026, 3, 4, 15, 16, tzinfo=UTC)
A4_POINTS = (595, 842)
HOSTILE = (
    "<b>bold</b>",
    "</para>",
    "<para><a href='http://evil.example'>press</a>",
    "<img src='http://evil.example/x.png'/>",
    "<onDraw name='x'/>",
    "&amp; &#60; & <",
    "W" * 100_000,
    "\N{GRINNING FACE}\N{ZERO WIDTH JOINER}\N{FAMILY}",
    "مرحبا بالعالم",
    "a\x00b\x1b[31m\u202eevil",
    "\ud800 lone \udfff",
    "%s {0} \\ ) ( endstream endobj /JavaScript (app.alert(1))",
    "",
)


def picture(size: tuple[int, int] = (60, 40), mode: str = "L", kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, 90).save(out, kind)
    return out.getvalue()


FILM, OVERLAY = picture(), picture(mode="RGB")


def made(found: Analysis, film: bytes = FILM, overlay: bytes | None = OVERLAY, **other: Any) -> bytes:
    values = {"made_at": MADE_AT, "symptoms_given": False} | other
    return report_pdf(found, film, overlay, **values)


def opened(pdf: bytes) -> PdfReader:
    return PdfReader(io.BytesIO(pdf), strict=True)


def text_of(pdf: bytes) -> str:
    """Return the text of all pages with single spaces, so that it does not matter where lines break."""
    return " ".join(" ".join(page.extract_text() for page in opened(pdf).pages).split())


def names_in(pdf: bytes) -> set[str]:
    """Return every key and every name in the document, wherever it stands."""

    def walk(value: Any) -> Iterator[str]:
        value = value.get_object()
        if any(value is known for known in seen):
            return
        seen.append(value)
        if isinstance(value, DictionaryObject):
            for key, inner in value.items():
                yield str(key)
                yield from walk(inner)
        elif isinstance(value, ArrayObject):
            for inner in value:
                yield from walk(inner)
        elif isinstance(value, str):
            yield str(value)

    seen: list[Any] = []
    document = opened(pdf)  # its objects live as long as it does
    return set(walk(document.trailer))


def images_of(pdf: bytes) -> list[Any]:
    return [image.image for image in opened(pdf).pages[0].images]


def with_quotes(quote: str) -> tuple[Finding, ...]:
    said = ReaderStatement(status="present", quote=quote)
    return tuple(found.model_copy(update={"reader": said}) for found in all_findings())


# ── What it says ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("level", ["Low", "Moderate", "High"])
def test_a_usual_analysis_fills_one_page_of_a4_with_all_that_matters(level: RiskLevel) -> None:
    pdf = made(analysis(risk_level=level), symptoms_given=True)
    (page,) = opened(pdf).pages
    assert tuple(round(float(side)) for side in page.mediabox[2:]) == A4_POINTS
    text = text_of(pdf)
    for expected in (
        f"Risk level: {level}",
        "Effusion is detected.",
        "Review needed",
        "The readers differ.",
        "Effusion: detected, CNN probability 0.620. Strongest in the right lower zone.",
        "Effusion detected 0.620 0.280 0.710 present blunted angle",
        "Hernia † – 0.000 0.100 0.000 not mentioned",
        "Pneumonia: CNN detected but LLM did not mention (CNN probability 0.040)",
        "A small effusion on the right.",
        "Mode: local; model: medgemma",
        "Film sent to: nowhere: it stayed on this machine",
        "Confidence: 0.70",
        "a-model, SHA-256 0123456789ab",
        "pytorch, cpu",
        "request-1",
        "2026-03-04 15:16+00:00",
        "The film has little contrast.",
        "A qualified professional must read the film.",
        "Symptoms were given; their text is not printed.",
        "Page 1 of 1",
        *NAMES,
    ):
        assert expected in text
    assert text.count(BANNER.rstrip(".")) == 2  # above and below
    assert "0123456789abf" not in text


def test_findings_come_as_the_page_ranks_them() -> None:
    text = text_of(made(analysis()))
    rows = [text.index(row) for row in ("Effusion detected", "Pneumonia detected", "Mass – 0.700", "Hernia † –")]
    assert rows == sorted(rows)


def test_what_no_reader_measured_or_wrote_is_said_in_words() -> None:
    alone = reader(mode="dummy", model=None, independent=False, token_confidence=None, fallback_reason="No key was set")
    found = analysis(
        reader=alone, contradictions=(), needs_review=False, review_reasons=(), heatmap_finding=None, risk_factors=()
    )
    text = text_of(made(found, overlay=None))
    assert "Confidence: not measured" in text
    assert "No second model read this film: No key was set" in text
    assert "Asked for: local" in text
    assert "it is no second opinion" in text
    assert "There was no second reader to differ from." in text
    assert "No special reason. A professional must read the film in any case." in text
    assert "No symptoms were given." in text
    assert "There is no overlay for this film, or it cannot be shown." in text


def test_a_reader_that_broke_rules_or_saw_the_numbers_is_marked() -> None:
    marked = reader(flags=("It advises a drug.",), saw_cnn=True, fallback_reason="Gemini did not answer")
    text = text_of(made(analysis(reader=marked, quality=quality(forced=True, accepted=False))))
    assert "Do not rely on this text." in text
    assert "It advises a drug." in text
    assert "It was shown the CNN's numbers" in text
    assert "Fallback: Gemini did not answer" in text
    assert "The input gate refused this image and was overridden." in text


def test_an_overlay_of_what_was_not_detected_says_so() -> None:
    shown = HeatmapFinding(pathology="Mass", detected=False, probability=0.7, note="Coarse.")
    assert "Mass: NOT detected, CNN probability 0.700. Coarse." in text_of(made(analysis(heatmap_finding=shown)))


def test_it_has_a_title_and_no_author() -> None:
    information = opened(made(analysis())).metadata
    assert information is not None
    assert BANNER in (information.title or "")
    assert not information.author
    assert "ReportLab" in (information.producer or "")


def test_a_real_analysis_fits_on_one_page(pipeline: Pipeline, film_png: bytes) -> None:
    found = pipeline.analyze(film_png, "fever and chest pain since Tuesday")
    pdf = made(found, film_png, symptoms_given=True)
    assert len(opened(pdf).pages) == 1
    text = text_of(pdf)
    assert f"Risk level: {found.risk_level}" in text
    assert "since Tuesday" not in text


# ── Room ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_long_reasoning_is_shortened_before_anything_flows_over() -> None:
    pdf = made(analysis(clinical_reasoning="The film shows an effusion. " * 300, findings=with_quotes("word " * 40)))
    assert len(opened(pdf).pages) == 1
    text = text_of(pdf)
    assert "(shortened; see the JSON)" in text
    assert "Pneumonia: CNN detected but LLM did not mention" in text


def test_what_matters_flows_to_further_pages_with_the_same_warning() -> None:
    factors = tuple(f"Factor {number}: {'words ' * 60}" for number in range(20))
    notes = tuple(
        Contradiction(pathology=name, cnn_probability=0.5, note="They differ. " * 20, kind="denied") for name in NAMES
    )
    pdf = made(analysis(risk_factors=factors, contradictions=notes))
    pages = opened(pdf).pages
    assert len(pages) > 1
    for number, page in enumerate(pages, start=1):
        text = page.extract_text()
        assert text.count(BANNER.rstrip(".")) >= 2
        assert f"Page {number} of {len(pages)}" in text
    text = text_of(pdf)
    assert all(f"Factor {number}:" in text for number in range(20))
    assert all(f"{name}: They differ." in text for name in NAMES)


def test_lists_without_end_are_counted_and_cut() -> None:
    text = text_of(made(analysis(risk_factors=tuple(f"Factor {n}." for n in range(1000)))))
    assert "Factor 39." in text
    assert "and 960 more; see the JSON" in text


def test_each_plan_needs_less_room_than_the_one_before() -> None:
    for roomy, tight in itertools.pairwise(PLANS):
        assert (roomy.picture, roomy.reasoning, roomy.quote) > (tight.picture, tight.reasoning, tight.quote)
        assert roomy.picture >= tight.picture
        assert roomy.reasoning >= tight.reasoning
        assert roomy.quote >= tight.quote


# ── The same each time ───────────────────────────────────────────────────────────────────────────────────────────────


def test_the_same_input_gives_the_same_bytes_in_threads_too() -> None:
    found, results = analysis(), []
    threads = [threading.Thread(target=lambda: results.append(made(found))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [made(found)] * 4
    assert made(found, made_at=datetime(2026, 3, 5, tzinfo=UTC)) != results[0]


# ── Foreign text ─────────────────────────────────────────────────────────────────────────────────────────────────────


FORBIDDEN = re.compile(r"/(URI|JS|JavaScript|Launch|Annots|AA|OpenAction|EmbeddedFiles|AcroForm|GoToR)")


def poisoned(text: str) -> Analysis:
    """Return an analysis that says a text wherever a model or a server may write."""
    found = analysis(
        clinical_reasoning=text,
        risk_factors=(text, text),
        review_reasons=(text,),
        contradictions=(Contradiction(pathology=text, cnn_probability=0.5, note=text, kind="denied"),),
        findings=(*with_quotes(text), finding(text, 0.5, 0.1)),
        reader=reader(model=text, fallback_reason=text, film_sent_to=text, flags=(text,), prompt=text),
        heatmap_finding=HeatmapFinding(pathology=text, detected=False, probability=0.1, note=text),
        request_id=text,
        disclaimer=text,
    )
    values = dict.fromkeys(("weights", "sha256", "architecture", "engine", "device"), text)
    return found.model_copy(update={"model": found.model.model_copy(update=values)})


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:20]))
def test_hostile_text_is_text(text: str) -> None:
    pdf = made(poisoned(text))
    assert not {name for name in names_in(pdf) if FORBIDDEN.fullmatch(name)}
    assert "/Font" in names_in(pdf)
    read = text_of(pdf)
    assert "Risk level: Moderate" in read
    assert "NOT detected" in read
    assert not re.search(r"[\x00-\x1f\x7f\u200d\u202e\ud800-\udfff]", read)
    if text.isascii() and text.isprintable() and len(text) < 100:
        assert text.replace(" ", "") in read.replace(" ", "")


def test_a_link_would_be_noticed() -> None:
    from reportlab.pdfgen.canvas import Canvas

    out = io.BytesIO()
    canvas = Canvas(out)
    canvas.linkURL("http://evil.example", (0, 0, 9, 9))
    canvas.showPage()
    canvas.save()
    assert {name for name in names_in(out.getvalue()) if FORBIDDEN.fullmatch(name)} >= {"/URI", "/Annots"}


@settings(max_examples=15, deadline=None)
@given(st.text(st.characters(exclude_categories=()), max_size=80))
def test_no_text_breaks_it(text: str) -> None:
    assert "Risk level: Moderate" in text_of(made(poisoned(text)))


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:20]))
def test_without_its_font_it_still_makes_a_report(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_font_folder", lambda: None)
    read = text_of(made(poisoned(text)))
    assert "Risk level: Moderate" in read
    if text == "مرحبا بالعالم":
        assert "????? ???????" in read


def test_a_character_that_the_font_lacks_is_shown_as_missing() -> None:
    assert "a \N{REPLACEMENT CHARACTER} b" in text_of(made(analysis(clinical_reasoning="a 漢 b")))
    assert "äöü ≥ Ω" in text_of(made(analysis(clinical_reasoning="äöü ≥ Ω")))


# ── Pictures ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def noise() -> Image.Image:
    pixels = np.random.default_rng(3).integers(0, 256, (1500, 1200), np.uint8)
    return Image.fromarray(pixels)


def test_film_and_overlay_are_drawn_at_most_1024_pixels_large() -> None:
    out = io.BytesIO()
    noise().save(out, "PNG")
    assert sorted(image.size for image in images_of(made(analysis(), out.getvalue()))) == [(60, 40), (819, 1024)]


def test_what_a_file_says_besides_its_pixels_is_left_behind() -> None:
    out = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E] = "PATIENT^NAME"
    Image.new("L", (60, 40), 90).save(out, "JPEG", exif=exif, comment=b"PATIENT^NAME")
    assert b"PATIENT^NAME" in out.getvalue()
    for image in images_of(made(analysis(), out.getvalue())):
        assert not image.getexif()
        assert "comment" not in image.info


def test_a_film_of_16_bits_is_scaled_and_not_clipped() -> None:
    out = io.BytesIO()
    Image.fromarray(np.full((40, 60), 0x8080, np.uint16)).save(out, "PNG")
    film = images_of(made(analysis(), out.getvalue(), None))[0]
    assert film.getextrema() == (128, 128)


@pytest.mark.parametrize(
    "data",
    [b"", b"no image", FILM[:40], FILM[:-30], picture(kind="GIF"), b"\x89PNG\r\n\x1a\n" + b"\xff" * 99],
    ids=["empty", "text", "header", "cut off", "another format", "damaged"],
)
def test_a_damaged_film_becomes_a_line_of_words(data: bytes) -> None:
    pdf = made(analysis(), data, data)
    assert images_of(pdf) == []
    assert "The film cannot be shown." in text_of(pdf)
    assert "There is no overlay for this film, or it cannot be shown." in text_of(pdf)


def test_a_picture_too_large_to_decode_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "MAX_PIXELS", 60 * 40 - 1)
    assert "The film cannot be shown." in text_of(made(analysis()))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["PNG", "JPEG"]), st.integers(0, 400), st.binary(min_size=1, max_size=8))
def test_no_damage_to_a_picture_breaks_it(kind: str, place: int, damage: bytes) -> None:
    data = bytearray(picture(kind=kind))
    data[place : place + len(damage)] = damage
    report._picture(bytes(data))


def test_it_loads_nothing_heavy() -> None:
    assert not loaded_by("import dashboard.report") & {"torch", "cv2", "matplotlib", "pydicom"}
