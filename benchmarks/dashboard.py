"""`python -m benchmarks.dashboard`: how fast the dashboard's page answers, measured in headless Chromium.

It starts an API with the `dummy` reader and a dashboard on free ports, opens the page as a user does, and prints JSON.
Needs the packages of `requirements-dev.txt` and a Chromium (`CHROMIUM` names another than `/usr/bin/chromium`).
"""

import argparse
import io
import json
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, FilePayload, FloatRect, Locator, Page, sync_playwright

from benchmarks.servers import serving
from synthetic.phantom import make_film

CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
CHROMIUM_FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
SCREEN = (1440, 900)
MEDIA = "/media/"  # below which Streamlit offers files
FILES = (".json", ".pdf", ".csv")
ASKED_FOR_FILE = "Client Error: Download Button source error - 404"
ROUNDS = 10
LOOK_MS = 1500.0  # a glance at the film before Analyze is pressed
FILM_IMAGE = 'img[alt^="The radiograph"]'
IDLE = '[data-testid="stApp"][data-test-script-state="notRunning"]'
BAR = '[data-testid="stVegaLiteChart"] [aria-roledescription="bar"]'
# From the last touch of a control to the frame after the one in which the browser has the new picture.
STOPWATCH = """
window.touched = 0; window.shown = [];
for (const kind of ['pointerdown', 'keydown'])
  addEventListener(kind, () => { window.touched = performance.now(); }, true);
document.addEventListener('load', (event) => {
  if (!event.target.matches || !event.target.matches('img[alt^="The radiograph"]')) return;
  const touched = window.touched, source = event.target.src;
  requestAnimationFrame(() => requestAnimationFrame(
    () => window.shown.push({source, milliseconds: performance.now() - touched})));
}, true);
"""


# ── The page ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def chromium() -> Iterator[Browser]:
    """Run a headless Chromium."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(CHROMIUM_FLAGS))
        try:
            yield browser
        finally:
            browser.close()


class Room:
    """A browser page with the dashboard in it, and what a user does there."""

    def __init__(self, browser: Browser, url: str, screen: tuple[int, int] = SCREEN) -> None:
        self.page: Page = browser.new_page(viewport={"width": screen[0], "height": screen[1]})
        self.page.set_default_timeout(15_000)
        self.hosts: set[str] = set()
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))
        self.page.on("websocket", lambda socket: self.hosts.add(urlsplit(socket.url).netloc))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._heard)
        self.page.add_init_script(STOPWATCH)
        self._own = urlsplit(url).netloc
        self.page.goto(url)
        self.button("Try the synthetic sample").wait_for(timeout=60_000)  # the first page of a server imports first
        self.settle()

    def _heard(self, said: ConsoleMessage) -> None:
        # A run that offers a file anew takes the old one away; the browser, which asks at once whether a file is there,
        # may ask between the two. The button then has the new one. Pictures are no such files.
        asked = urlsplit(said.location["url"]).path
        of_file = asked.startswith(MEDIA) and asked.endswith(FILES)
        taken_away = (of_file and "status of 404" in said.text) or said.text == ASKED_FOR_FILE
        if said.type == "error" and not taken_away:
            self.errors.append(said.text)

    @property
    def other_hosts(self) -> set[str]:
        """Where requests went, but for the dashboard itself and what the page holds in memory."""
        return self.hosts - {self._own, ""}

    def settle(self) -> None:
        """Wait until the script behind the page has ended."""
        self.page.wait_for_timeout(150)
        self.page.wait_for_selector(IDLE, timeout=30_000)

    def button(self, name: str) -> Locator:
        """Return a button by its whole name."""
        return self.page.get_by_role("button", name=name, exact=True)

    def tab(self, name: str) -> None:
        """Open a tab of the result."""
        self.page.get_by_role("tab", name=name).click()
        self.settle()

    def open_page(self, name: str) -> None:
        """Open another page of the dashboard."""
        self.page.get_by_role("link", name=name).click()
        self.settle()

    def upload(self, *films: tuple[str, bytes]) -> None:
        """Give films to the uploader."""
        files: list[FilePayload] = [
            {"name": name, "mimeType": "application/octet-stream", "buffer": data} for name, data in films
        ]
        self.page.locator('[data-testid="stFileUploaderDropzoneInput"]').set_input_files(files)
        self.page.locator('[data-testid="stFileChip"]').nth(len(films) - 1).wait_for()
        self.settle()

    def analyse(self) -> None:
        """Press Analyze and wait for the result."""
        self.button("Analyze").click()
        self.see_result()

    def see_result(self) -> None:
        """Wait for the whole result."""
        self.page.get_by_text("Risk level:").first.wait_for()
        self.page.locator(BAR).nth(13).wait_for()
        self.page.locator(FILM_IMAGE).wait_for()
        self.settle()

    @property
    def film(self) -> str:
        """Where the picture of the film comes from; Streamlit names it by its content."""
        return self.page.locator(FILM_IMAGE).get_attribute("src") or ""

    def changed(self, act: Callable[[], object]) -> float:
        """Do something that changes the picture; return the milliseconds until the new one was on the screen."""
        before = self.page.evaluate("window.shown.length")
        act()
        self.page.wait_for_function("n => window.shown.length > n", arg=before)
        milliseconds: float = self.page.evaluate("window.shown.at(-1).milliseconds")
        self.settle()
        return milliseconds

    def choose(self, name: str) -> None:
        """Choose a map over the film."""
        self.page.get_by_role("combobox", name="Map over the film").click()
        self.page.get_by_role("option", name=name).click()

    def toggle(self, name: str) -> None:
        """Turn a switch."""
        self.page.locator('[data-testid="stCheckbox"]', has_text=name).locator("label").click()

    def slide(self, name: str, key: str) -> None:
        """Move a slider by a key."""
        self.page.get_by_role("slider", name=name).press(key)


def film_png(seed: int, *findings: str, size: int = 1024) -> bytes:
    """Return a drawn film as a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(make_film(seed, size, findings).pixels).save(buffer, "PNG")
    return buffer.getvalue()


# ── What is measured ─────────────────────────────────────────────────────────────────────────────────────────────────


def measure(browser: Browser, url: str) -> dict[str, Any]:
    """Read a film, then touch every control; times are of this machine and these minutes."""
    films = [film_png(seed, "Effusion") for seed in range(7)]
    first = [first_findings(browser, url, film, LOOK_MS) for film in films[1:4]]
    at_once = [first_findings(browser, url, film, 0) for film in films[4:]]
    room = Room(browser, url)
    room.upload(("film.png", films[0]))
    room.analyse()
    in_view = seen_whole(room)
    names = ("Mass", "Edema", "Hernia", "Nodule", "Fibrosis")
    times = {
        "chooser": [room.changed(lambda n=names[i % 5]: room.choose(n)) for i in range(ROUNDS)],  # type: ignore[misc]
        "opacity": [room.changed(lambda: room.slide("Opacity", "ArrowRight")) for _ in range(5)]
        + [room.changed(lambda: room.slide("Opacity", "ArrowLeft")) for _ in range(ROUNDS - 5)],
        "toggle": [room.changed(lambda: room.toggle("Show map")) for _ in range(ROUNDS)],
    }
    for name in ("Compare", "Model card", "About and limits", "Reading room"):
        room.open_page(name)
    return {
        "first_findings_ms": round(statistics.median(first)),
        "first_findings_each_ms": [round(t) for t in first],
        "first_findings_without_a_look_each_ms": [round(t) for t in at_once],
        "new_picture_median_ms": {name: round(statistics.median(values)) for name, values in times.items()},
        "new_picture_worst_ms": {name: round(max(values)) for name, values in times.items()},
        "in_view_at_1440x900": in_view,
        "requests_to_other_hosts": sorted(room.other_hosts),
        "page_errors": room.errors,
    }


def first_findings(browser: Browser, url: str, film: bytes, look_ms: float) -> float:
    """Return the milliseconds from Analyze to 14 bars on the screen, in a browser without a cache.

    Meanwhile it loads its code for charts, unless the user has looked at the film for as long as that takes.
    """
    room = Room(browser, url)
    room.upload(("film.png", film))
    room.page.locator(FILM_IMAGE).wait_for()
    room.page.wait_for_timeout(look_ms)
    room.page.evaluate(
        """bars => { window.bars = 0; const look = () => {
             if (document.querySelectorAll(bars).length >= 14) { window.bars = performance.now(); return; }
             requestAnimationFrame(look); }; look(); }""",
        BAR,
    )
    room.button("Analyze").click()
    room.page.wait_for_function("window.bars > 0")
    milliseconds: float = room.page.evaluate("window.bars - window.touched")
    room.page.close()
    return milliseconds


def seen_whole(room: Room) -> dict[str, bool]:
    """Say of each part whether all of it is on the screen, above the line at the bottom, without scrolling."""
    floor = _box(room.page.locator('[data-testid="stBottomBlockContainer"]'))["y"]
    bars = room.page.locator(BAR)
    parts = {
        "film": [room.page.locator(FILM_IMAGE)],
        "risk": [room.page.locator('[data-testid="stAlert"]', has_text="Risk level:")],
        "confidences": room.page.locator('[data-testid="stMetric"]').all()[:3],
        "findings": bars.all(),
        "names_of_tabs": room.page.get_by_role("tab").all(),
    }
    whole = {
        name: all(_inside(_box(place), room.page.viewport_size or {}, floor) for place in places)
        for name, places in parts.items()
    }
    return whole | {"fourteen_rows": bars.count() == 14}


def _box(place: Locator) -> FloatRect:
    box = place.bounding_box()
    assert box is not None
    return box


def _inside(box: FloatRect, screen: Any, floor: float) -> bool:
    right, bottom = box["x"] + box["width"], box["y"] + box["height"]
    return box["x"] >= 0 and box["y"] >= 0 and right <= screen["width"] and bottom <= min(floor, screen["height"])


def main(argv: list[str] | None = None) -> None:
    """Measure, print JSON, and write it where asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dashboard", description=__doc__)
    parser.add_argument("--out", type=Path, help="also write the result as JSON")
    args = parser.parse_args(argv)
    with serving() as (_, dashboard), chromium() as browser:
        result = measure(browser, dashboard.url) | {"load_average": round(os.getloadavg()[0], 2)}
    text = json.dumps(result, indent=1) + "\n"
    sys.stdout.write(text)
    if args.out:
        args.out.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
