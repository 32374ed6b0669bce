"""The dashboard in headless Chromium, against real processes: what only a browser can tell."""

import csv
import io
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pypdf
import pytest
from PIL import Image

pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

from playwright.sync_api import Browser, expect

from benchmarks.dashboard import BAR, CHROMIUM, FILM_IMAGE, Room, chromium, film_png, seen_whole
from benchmarks.servers import Server, dashboard_server, free_port, serving
from modules.answers import Analysis
from modules.pathologies import NAMES
from modules.records import ReaderStatement
from synthetic.not_radiographs import scene
from tests import fake_server
from tests.api_requests import dicom
from tests.browser_page import opened, scripted_api

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no Chromium at {CHROMIUM}")

SYMPTOMS = "Fever and cough for three days."
HOSTILE_NAME = "<img src=x onerror=alert(1)>.png"
HOSTILE_QUOTE = "<img src=x onerror=alert(1)> **bold** <b>b</b>"
Servers = tuple[Server, Server]


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with serving() as pair:
        yield pair


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def films() -> dict[str, bytes]:
    return {
        "effusion": film_png(3, "Effusion", size=512),
        "mass": film_png(5, "Mass", size=512),
        "clear": film_png(4, size=512),
    }


@pytest.fixture(scope="module")
def reading(browser: Browser, servers: Servers, films: dict[str, bytes]) -> Iterator[Room]:
    """A page with one film that was uploaded and read, shared by the tests that only look at it."""
    with opened(browser, servers[1].url) as room:
        room.upload((HOSTILE_NAME, films["effusion"]))
        room.page.get_by_role("textbox", name="Symptoms and history").fill(SYMPTOMS)
        room.analyse()
        yield room


# ── One film ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_result_is_seen_whole_without_scrolling(reading: Room) -> None:
    assert set(seen_whole(reading).values()) == {True}
    assert reading.page.locator(BAR).count() == len(NAMES)
    assert (reading.page.locator(FILM_IMAGE).get_attribute("alt") or "").startswith("The radiograph")


def test_a_hostile_file_name_is_only_text(reading: Room) -> None:
    chip = reading.page.locator('[data-testid="stFileChipName"]')
    expect(chip).to_have_attribute("title", HOSTILE_NAME)
    expect(chip).to_contain_text("<img")
    assert reading.page.locator('img[src="x"]').count() == 0


def test_each_control_of_the_film_changes_the_picture(reading: Room) -> None:
    seen = [reading.film]
    reading.page.get_by_text("Window, scale and marks").click()
    for act in (
        lambda: reading.choose("Mass"),
        lambda: reading.slide("Opacity", "ArrowLeft"),
        lambda: reading.slide("Level", "ArrowLeft"),
        lambda: reading.slide("Window", "ArrowLeft"),
        lambda: reading.toggle("Mark the peak"),
        lambda: reading.toggle("Relative scale"),
        lambda: reading.toggle("Invert the greyscale"),
        lambda: reading.toggle("Show map"),
    ):
        reading.changed(act)
        seen.append(reading.film)
    assert len(set(seen)) == len(seen)
    reading.changed(lambda: reading.toggle("Show map"))
    assert reading.film == seen[-2]  # the same choice, the same picture
    picture = Image.open(io.BytesIO(reading.page.request.get(reading.film).body()))
    assert picture.size == (512, 512)


def test_a_click_on_a_bar_chooses_its_map(reading: Room) -> None:
    reading.changed(lambda: bar(reading, "Edema").click())
    expect(reading.page.locator(FILM_IMAGE)).to_have_attribute(
        "alt", starting("The radiograph with the Grad-CAM map of Edema")
    )
    assert "Edema" in str(reading.page.get_by_role("combobox", name="Map over the film").input_value())


def test_every_control_is_reached_by_tab(reading: Room) -> None:
    reading.page.get_by_role("link", name="Reading room").focus()
    reached = set()
    for _ in range(60):
        reading.page.keyboard.press("Tab")
        reached.add(
            reading.page.evaluate(
                "(e => e.getAttribute('aria-label') || e.innerText || e.type)(document.activeElement)"
            )
        )
    text = " | ".join(str(name) for name in reached)
    for name in ("Add files", "synthetic sample", "Symptoms", "Analyze", "Map over the film", "Show map", "Opacity"):
        assert name in text, text
    assert "Window, scale and marks" in text
    assert "Why this risk" in text


def test_json_pdf_and_csv_are_what_they_say(reading: Room, tmp_path: Path) -> None:
    reading.tab("Take away")
    answer = Analysis.model_validate_json(downloaded(reading, "Download the answer (JSON)", tmp_path))
    assert [f.pathology for f in answer.findings if f.pathology in NAMES]
    report = downloaded(reading, "Download the report (PDF)", tmp_path)
    pages = pypdf.PdfReader(io.BytesIO(report)).pages
    text = " ".join(" ".join(page.extract_text() for page in pages).split())
    assert "research" in text
    assert answer.request_id in text
    rows = list(
        csv.DictReader(io.StringIO(downloaded(reading, "Download the worklist (CSV)", tmp_path).decode("utf-8-sig")))
    )
    assert [(row["request_id"], row["risk_level"]) for row in rows] == [(answer.request_id, answer.risk_level)]
    for said in (answer.model_dump_json(), text):  # neither holds what may name a patient
        assert SYMPTOMS not in said
        assert "onerror" not in said


def bar(room: Room, pathology: str) -> Any:
    return room.page.locator(f'{BAR}[aria-label*="pathology: {pathology};"]')


def starting(text: str) -> Any:
    return re.compile(f"^{re.escape(text)}")


def downloaded(room: Room, button: str, folder: Path) -> bytes:
    with room.page.expect_download() as waiting:
        room.button(button).click()
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path.read_bytes()


# ── Other films ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_dicom_is_shown_and_read(browser: Browser, servers: Servers, films: dict[str, bytes]) -> None:
    pixels = np.asarray(Image.open(io.BytesIO(films["clear"])))
    with opened(browser, servers[1].url) as room:
        room.upload(("film.dcm", dicom(pixels)))
        expect(room.page.locator(FILM_IMAGE)).to_be_visible()
        room.analyse()
        assert "Jane" not in room.page.inner_text("body")
        room.tab("What ran")
        expect(room.page.get_by_text("View", exact=False).last).to_contain_text("PA")


def test_a_photo_is_refused_and_can_be_forced(browser: Browser, servers: Servers) -> None:
    drawn = scene(np.random.default_rng(1), 256)
    buffer = io.BytesIO()
    Image.fromarray((255 * (drawn - drawn.min()) / np.ptp(drawn)).astype(np.uint8)).save(buffer, "PNG")
    with opened(browser, servers[1].url) as room:
        room.upload(("photo.png", buffer.getvalue()))
        room.button("Analyze").click()
        expect(room.page.get_by_text("The film was refused")).to_be_visible()
        expect(room.page.locator(FILM_IMAGE)).to_be_visible()
        room.button("Analyse anyway").click()
        room.see_result()
        expect(room.page.locator('[data-testid="stAlert"]', has_text="Risk level:")).to_contain_text("review needed")


def test_three_films_make_a_worklist(
    browser: Browser, servers: Servers, films: dict[str, bytes], tmp_path: Path
) -> None:
    with opened(browser, servers[1].url) as room:
        room.upload(*((f"{name} {HOSTILE_NAME}", data) for name, data in films.items()))
        room.button("Analyze all 3 films").click()
        expect(room.button("Analyze")).to_be_disabled()
        room.see_result()
        expect(room.button("Analyze")).to_be_enabled(timeout=20_000)
        room.settle()
        room.tab("Take away")
        table = downloaded(room, "Download the worklist (CSV)", tmp_path).decode("utf-8-sig")
        rows = list(csv.DictReader(io.StringIO(table)))
        urgency = [
            (["High", "Moderate", "Low"].index(r["risk_level"]), r["needs_review"] == "no", int(r["number"]))
            for r in rows
        ]
        assert urgency == sorted(urgency)
        assert len(urgency) == len(films)
        opened_before = room.page.get_by_text("Open: film").inner_text()
        place = next(i for i, row in enumerate(rows) if f"film {row['number']}," not in opened_before)
        before = room.film
        grid = room.page.get_by_test_id("stSidebar").get_by_test_id("stDataFrame")
        box = grid.bounding_box()
        assert box is not None
        height = box["height"] / (len(rows) + 1)  # the head is as high as a row
        grid.click(position={"x": 17, "y": height * (place + 1.5)})
        expect(room.page.get_by_text("Open: film")).to_contain_text(
            f"film {rows[place]['number']}, {rows[place]['file']}"
        )
        room.see_result()
        assert room.film != before
        room.open_page("Compare")
        expect(room.page.locator(FILM_IMAGE)).to_have_count(2)
        sources = {image.get_attribute("src") for image in room.page.locator(FILM_IMAGE).all()}
        assert len(sources) == 2
        expect(room.page.get_by_text(HOSTILE_NAME)).to_have_count(2)
        assert room.page.locator('img[src="x"]').count() == 0
        for name in ("Model card", "About and limits"):
            room.open_page(name)
        room.open_page("Reading room")
        room.see_result()
        expect(room.page.get_by_text("Open: film")).to_contain_text(rows[place]["file"])


# ── Failure ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_server_that_dies_while_it_reads(browser: Browser, servers: Servers, films: dict[str, bytes]) -> None:
    api, dashboard = servers
    with opened(browser, dashboard.url) as room:
        room.upload(("film.png", films["mass"]))
        symptoms = room.page.get_by_role("textbox", name="Symptoms and history")
        symptoms.fill(SYMPTOMS)
        expect(room.page.locator(FILM_IMAGE)).to_be_visible()
        api.signal(signal.SIGSTOP)  # so that it can't be faster than this test
        room.button("Analyze").click()
        expect(room.page.get_by_text("Sending and decoding the film")).to_be_visible()
        api.kill()
        expect(room.page.get_by_text("The connection broke")).to_be_visible()
        room.button("Retry").click()
        expect(room.page.get_by_text("The server cannot be reached", exact=True)).to_be_visible()
        expect(room.page.locator(FILM_IMAGE)).to_be_visible()
        expect(symptoms).to_have_value(SYMPTOMS)
        api.start()
        api.wait()
        room.button("Retry").click()
        room.see_result()
        expect(symptoms).to_have_value(SYMPTOMS)


def test_what_a_reader_wrote_stays_text_in_the_chart(browser: Browser) -> None:
    hostile = ReaderStatement(status="present", quote=HOSTILE_QUOTE, confidence=0.9)
    findings = tuple(
        f.model_copy(update={"reader": hostile}) if f.pathology == "Effusion" else f for f in fake_server.all_findings()
    )
    analysis = fake_server.analysis(findings=findings, clinical_reasoning=fake_server.HOSTILE)
    fake = fake_server.FakeServer()
    fake.analyses.append(fake_server.streamed(analysis, fake_server.HOSTILE))
    with scripted_api(fake) as url:
        dashboard = dashboard_server(free_port(), url)
        try:
            dashboard.start()
            dashboard.wait()
            with opened(browser, dashboard.url) as room:
                room.upload(("film.png", fake_server.png()))
                room.analyse()
                bar(room, "Effusion").hover()
                tooltip = room.page.locator("#vg-tooltip-element")
                expect(tooltip).to_contain_text(HOSTILE_QUOTE)
                assert tooltip.locator("img, b").count() == 0
                room.tab("Second reader")
                expect(room.page.get_by_text(fake_server.HOSTILE).first).to_be_visible()
                assert room.page.locator('img[src="x"], img[src*="evil"]').count() == 0
        finally:
            dashboard.kill()
