"""Words that would become part of a page, in every text that the dashboard shows: they stay words, in real Chromium."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

import io

from playwright.sync_api import Browser, Page, expect

from benchmarks.dashboard import BAR, CHROMIUM, Room, chromium, film_png
from benchmarks.servers import HOST, Server, dashboard_server, free_port, serving
from modules.curves import Curves, load_curves
from modules.records import ReaderStatement
from modules.weights import EMBEDDED_WEIGHTS, read_card
from tests import fake_server
from tests.browser_page import opened, scripted_api
from tests.fake_server import FakeServer
from tests.test_text_attacks import hostile_dicom
from tests.text_attacks import BLOCKS, ELSEWHERE, MARKED_UP, PAGE_PARTS, REMAINS, with_text_everywhere

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no Chromium at {CHROMIUM}")

TEXT = MARKED_UP + BLOCKS
TABS = ("Why this risk", "Second reader", "Where they differ", "At your prevalence", "Table", "What ran", "Take away")
FILE_NAMES = (  # no slash: a browser sends what is after it
    "<img id=pwned src=x onerror=window.pwned=1>.png",
    ":red[pwnedred] :material:skull: :skull: $pwned$ `pwned` **pwned**.png",
    "# pwned [pwnedlink](javascript:window.pwned=1) ![pwned](i.png) <h1 id=pwned>.png",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


def remains(page: Page) -> list[str]:
    """Return what a page has made of the texts; none of them may be missing from it either."""
    found: list[str] = page.evaluate(REMAINS)
    return found


def assert_only_words(room: Room, *, shown: bool = True) -> None:
    """Check a page on which texts that attack stand."""
    assert remains(room.page) == []
    assert not shown or "pwned" in room.page.inner_text("body")


def type_symptoms(room: Room, text: str) -> None:
    """Type symptoms, and wait until the page has them: a click at the same time could be lost."""
    box = room.page.get_by_role("textbox", name="Symptoms and history")
    box.fill(text)
    box.press("Control+Enter")
    room.settle()
    expect(box).to_have_value(text)


@contextmanager
def dashboard_of(fake: FakeServer) -> Iterator[Server]:
    """Run a dashboard whose API is scripted."""
    with scripted_api(fake) as url:
        dashboard = dashboard_server(free_port(), url)
        try:
            dashboard.start()
            dashboard.wait()
            yield dashboard
        finally:
            dashboard.kill()


def hostile_server() -> FakeServer:
    """Return an API in whose answers every free text attacks."""
    fake = FakeServer()
    fake.health = lambda _: fake_server.answer(with_text_everywhere(fake_server.health(), TEXT))
    fake.model = lambda _: fake_server.answer(with_text_everywhere(fake_server.card(), TEXT))
    fake.curves = lambda _: fake_server.answer(with_text_everywhere(curves(), TEXT))
    return fake


def curves() -> Curves:
    found = load_curves("embedded", read_card(EMBEDDED_WEIGHTS))
    assert found is not None
    return found


def hostile_analysis() -> httpx.Response:
    """Return an answer whose every free text attacks, a reader's draft and one unknown pathology too."""
    said = ReaderStatement(status="present", quote=MARKED_UP, confidence=0.9)
    whole = fake_server.analysis(
        findings=tuple(f.model_copy(update={"reader": said}) for f in fake_server.all_findings())
    )
    told = with_text_everywhere(whole, TEXT)
    last = told.findings[-1].model_copy(update={"pathology": f"Hernia {MARKED_UP}"})
    told = told.model_copy(update={"findings": (*told.findings[:-1], last)})
    return fake_server.streamed(told, TEXT)


# ── What an API answers ──────────────────────────────────────────────────────────────────────────────────────────────


def test_every_text_of_an_answer_stays_text_on_every_page(browser: Browser) -> None:
    fake, go_on = hostile_server(), threading.Event()
    fake.analyses += [
        fake_server.interrupted(hostile_analysis(), "reader_words", lambda: go_on.wait(60)),
        hostile_analysis(),
    ]
    with dashboard_of(fake) as dashboard, opened(browser, dashboard.url) as room:
        assert_only_words(room)  # what /health says
        room.upload((FILE_NAMES[0], fake_server.png(1)), (FILE_NAMES[1], fake_server.png(2)))
        type_symptoms(room, TEXT)
        room.button("Analyze all 2 films").click()
        expect(room.page.get_by_text("The second reader's draft")).to_be_visible()
        assert_only_words(room)
        go_on.set()
        room.page.get_by_text("Risk level:").first.wait_for()
        room.page.locator(BAR).nth(13).wait_for()
        expect(room.button("Analyze")).to_be_enabled(timeout=30_000)
        room.settle()
        assert_only_words(room)
        for tab in TABS:
            room.tab(tab)
            assert_only_words(room)
        for name in ("Effusion", "Hernia"):
            room.page.locator(f'{BAR}[aria-label*="pathology: {name}"]').hover()
            expect(room.page.locator("#vg-tooltip-element")).to_contain_text("pwnedred")
            assert_only_words(room)
        for name in ("Compare", "Model card", "About and limits"):
            room.open_page(name)
            room.settle()
            assert_only_words(room, shown=name != "About and limits")


@pytest.mark.parametrize(("status", "code"), [(422, "not_a_chest_radiograph"), (400, "undecodable_image"), (500, TEXT)])
def test_every_text_of_an_error_stays_text(browser: Browser, status: int, code: str) -> None:
    fake = hostile_server()
    errors = [{"field": TEXT, "message": TEXT}]
    wrong = fake_server.problem(status, code, TEXT, errors=errors, gate_score=0.1)
    fake.analyses.append(wrong)
    fake.render = lambda _: fake_server.problem(status, code, TEXT)
    with dashboard_of(fake) as dashboard, opened(browser, dashboard.url) as room:
        room.upload((FILE_NAMES[2], fake_server.png()))
        assert_only_words(room)
        room.button("Analyze").click()
        room.page.locator('[data-testid="stAlert"]').first.wait_for()
        room.settle()
        assert_only_words(room)
        for name in ("Model card", "About and limits", "Compare"):
            room.open_page(name)
            assert_only_words(room, shown=False)


# ── What a user gives, through the real server ───────────────────────────────────────────────────────────────────────


def test_names_symptoms_and_headers_stay_text_through_the_real_servers(browser: Browser) -> None:
    drawn = film_png(3, "Effusion", size=512)
    pixels = np.asarray(Image.open(io.BytesIO(drawn)))
    named = ("PatientName", "StudyDescription", "SeriesDescription", "InstitutionName", "ImageComments", "ViewPosition")
    header = hostile_dicom(pixels, dict.fromkeys(named, " ".join(PAGE_PARTS[:6]).replace("\\", "/")[:900]))
    films = ((FILE_NAMES[0], drawn), (FILE_NAMES[1], header), (FILE_NAMES[2], drawn[:-50]))
    with serving() as (api, dashboard):
        with opened(browser, dashboard.url) as room:
            room.upload(*films)
            type_symptoms(room, f"Chest pain. {TEXT}")
            assert_only_words(room)
            room.button("Analyze all 3 films").click()
            expect(room.button("Analyze")).to_be_enabled(timeout=60_000)
            room.settle()
            assert_only_words(room)
            for tab in TABS:
                room.tab(tab)
                assert_only_words(room)
            room.open_page("Compare")
            assert_only_words(room)
        page = browser.new_page()
        asked: set[str] = set()
        page.on("request", lambda request: asked.add(httpx.URL(request.url).netloc.decode()))
        page.goto(f"{api.url}/docs")
        page.get_by_text("/analyze/stream").first.wait_for()
        assert asked - {""} == {httpx.URL(api.url).netloc.decode()}
        page.close()


# ── These checks can fail ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def careless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A page that renders each part as the dashboard must not."""
    script = tmp_path_factory.mktemp("careless") / "app.py"
    parts = [*PAGE_PARTS, BLOCKS]
    script.write_text(
        f"import streamlit as st\nst.markdown({parts!r}[int(st.query_params['part'])], unsafe_allow_html=True)\n"
    )
    port = free_port()
    command = ("streamlit", "run", str(script), "--server.address", HOST, "--server.port", str(port))
    server = Server(command, port, "/_stcore/health")
    try:
        server.start()
        server.wait()
        yield server.url
    finally:
        server.kill()


# Streamlit itself takes scripts, frames, comments and event handlers out of Markdown.
STARTS = ("<img", "<h1", "[", "![", "<http", ":", "$\\", "$$", "`", "**")
RENDERED = tuple(i for i, part in enumerate(PAGE_PARTS) if part.startswith(STARTS))


@pytest.mark.parametrize("part", [*RENDERED, len(PAGE_PARTS)], ids=lambda part: ascii((*PAGE_PARTS, BLOCKS)[part][:20]))
def test_what_a_page_renders_would_be_noticed(browser: Browser, careless: str, part: int) -> None:
    page = browser.new_page()
    page.route(f"**/*{ELSEWHERE}*/**", lambda route: route.abort())
    page.goto(f"{careless}/?part={part}")
    page.wait_for_selector('[data-testid="stMarkdownContainer"]')
    page.wait_for_timeout(300)
    assert remains(page) != []
    page.close()


def test_a_script_that_ran_would_be_noticed(browser: Browser) -> None:
    page = browser.new_page()
    page.set_content("<p>words</p>")
    assert remains(page) == []
    page.set_content(f"<p>words</p>{PAGE_PARTS[0].replace(';alert(1)', '')}")
    assert remains(page) == ["a script ran"]
    page.close()
