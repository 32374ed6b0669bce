"""Nothing that names a patient stays behind: real servers and a batch run, in a folder of their own that is searched.

What only a code in the process can show, an unforeseen error at debug level, is in `tests/test_api_logs.py`.
"""

import ast
import csv
import io
import json
import os
import pickle
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pydicom
import pytest
from PIL import Image, PngImagePlugin
from pydicom.uid import RLELossless

from benchmarks.servers import HOST, free_port
from modules.images import open_image
from modules.records import MAX_SYMPTOMS, ModelInfo
from modules.settings import PROJECT_ROOT, Settings
from modules.weights import PrecisionTest
from tests import loopback
from tests.api_requests import dicom, noise_png
from tests.traces import OpenFile, Search, Watch, processes_below, spellings, written_files

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="reads /proc, which only Linux has")

START_LIMIT_S, LIMIT_S = 240.0, 120.0
SIDE = 1536  # pixels: an upload of more than the mebibyte that is held in memory
# New in each run: nothing that an earlier one left can be found, nor this file's own bytecode.
RUN = secrets.token_hex(5)
SYMPTOMS, FILE, PATIENT, CHUNK, TYPED = (f"{kind}x{RUN}" for kind in ("symptom", "file", "patient", "chunk", "typed"))
UID = f"1.2.826.0.1.3680043.8.498.{int(RUN, 16)}"
BLOCK = secrets.token_bytes(24)  # of pixels, in one row


# ── What is sent ─────────────────────────────────────────────────────────────────────────────────────────────────────


def film_pixels(side: int = 512) -> Any:
    """A drawn film with a row of pixels that is in no other."""
    from synthetic.phantom import make_film

    pixels = make_film(3, 512, ("Effusion",)).pixels
    pixels = np.ascontiguousarray(np.kron(pixels, np.ones((side // 512, side // 512), np.uint8)))
    pixels[3, 8 : 8 + len(BLOCK)] = np.frombuffer(BLOCK, np.uint8)
    return pixels


def film_png(pixels: Any) -> bytes:
    notes, out = PngImagePlugin.PngInfo(), io.BytesIO()
    notes.add_text("PatientName", CHUNK)
    Image.fromarray(pixels).save(out, "PNG", pnginfo=notes, compress_level=0)
    return out.getvalue()


def film_dicom(pixels: Any, **elements: Any) -> bytes:
    named = ("PatientName", "PatientID", "PatientAddress", "OtherPatientNames", "ReferringPhysicianName")
    named += ("InstitutionName", "AccessionNumber", "StudyDescription", "OperatorsName", "StationName")
    uids = ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
    texts = {**dict.fromkeys(named, PATIENT[:16]), **dict.fromkeys(uids, UID), "PatientBirthDate": "19700101"}
    return dicom(pixels, **texts | elements)


def compressed(film: bytes) -> bytes:
    dataset = pydicom.dcmread(io.BytesIO(film))
    dataset.compress(RLELossless)
    out = io.BytesIO()
    dataset.save_as(out)
    return out.getvalue()


PIXELS = film_pixels()
PNG, DICOM = film_png(PIXELS), film_dicom(PIXELS)
LARGE = film_dicom(film_pixels(SIDE))
RLE = compressed(DICOM)
FILMS = {
    "good.png": PNG,
    "good.dcm": DICOM,
    "rle.dcm": RLE,
    "rle-broken.dcm": RLE[: len(RLE) // 2] + b"\0" * (len(RLE) - len(RLE) // 2),
    "large.dcm": LARGE,
    "lateral.dcm": film_dicom(PIXELS, ViewPosition="LL"),
    "other.dcm": film_dicom(PIXELS, Modality="CT"),
    "cut.dcm": DICOM[:-1000],
    "cut.png": PNG[:-1000],
    "text.png": f"{PATIENT} {CHUNK}".encode(),
    "noise.png": noise_png(),
}
SEARCH = Search.of((SYMPTOMS, FILE, PATIENT[:16], CHUNK, UID, TYPED), {"pixels": BLOCK})
IDENTIFIERS = Search.of((PATIENT[:16], CHUNK, UID), {})


def requests_of(client: httpx.Client) -> Iterator[httpx.Response]:
    """Send every film to every route, and marks wherever else a client can write something."""
    headers = {"User-Agent": TYPED, "Referer": f"http://{TYPED}/", "Cookie": f"a={TYPED}", f"X-{TYPED}": TYPED}

    def post(path: str, name: str, data: bytes, **fields: str) -> httpx.Response:
        image = (f"{FILE} {name}", data, "application/octet-stream")
        return client.post(f"{path}?q={TYPED}", files={"image": image}, data=fields, headers=headers)

    for name, data in FILMS.items():
        for path in ("/analyze", "/analyze/stream", "/render"):
            yield post(path, name, data, **({} if path == "/render" else {"symptoms": f"Cough, {SYMPTOMS}"}))
    yield post("/analyze", "good.png", PNG, symptoms=SYMPTOMS * MAX_SYMPTOMS)
    yield post("/analyze", "good.png", PNG, heatmaps=TYPED, **{TYPED: TYPED})
    yield post(f"/{TYPED}", "good.png", PNG)
    yield client.get(f"/health/{TYPED}", headers=headers)
    form = {"Content-Type": f"multipart/form-data; boundary={TYPED}"}
    yield client.post("/analyze", content=f"--{TYPED}\r\n{SYMPTOMS}", headers=headers | form)


def half_an_upload(port: int) -> tuple[socket.socket, bytes]:
    """Send all of a large upload but its end; return the connection and what is left to send."""
    fields = httpx.Request(
        "POST",
        f"http://{HOST}:{port}/analyze",
        files={"image": (f"{FILE}.dcm", LARGE)},
        data={"symptoms": SYMPTOMS, "heatmaps": "none"},
    )
    body = fields.read()
    head = f"POST /analyze HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
    connection = socket.create_connection((HOST, port), LIMIT_S)
    connection.sendall(f"{head}Content-Type: {fields.headers['content-type']}\r\n\r\n".encode() + body[:-400])
    return connection, body[-400:]


# ── The run ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Run:
    """What was asked, answered, written and seen meanwhile."""

    folder: Path
    answers: list[httpx.Response] = field(default_factory=list)
    waiting: list[OpenFile] = field(default_factory=list)  # while an upload was under way
    left: list[OpenFile] = field(default_factory=list)  # after it had broken off
    reader_got: list[bytes] = field(default_factory=list)
    page: dict[str, str] = field(default_factory=dict)
    table: str = ""
    journal: str = ""
    watch: Watch | None = None
    began: float = field(default_factory=time.time)

    @property
    def output(self) -> str:
        return (self.folder / "output.txt").read_text("utf-8", "replace")


def until(settled: Callable[[], Any], limit_s: float = LIMIT_S) -> Any:
    deadline = time.monotonic() + limit_s
    while not (found := settled()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Run launcher, API, dashboard and batch with a home, a temporary and a cache folder of their own."""
    result = Run(tmp_path_factory.mktemp("run"))
    places = {name: result.folder / name for name in ("home", "tmp", "cache", "config", "state")}
    for place in places.values():
        place.mkdir()
    ports = free_port(), free_port()
    with loopback.serving(*reader_behaviours()) as script:
        ours = {name.upper() for name in Settings.model_fields} | {"PYTEST_CURRENT_TEST", "TEMP", "TMP"}
        environment = {k: v for k, v in os.environ.items() if k.upper() not in ours and SEARCH.within(v) == []} | {
            **{"HOME": str(places["home"]), "TMPDIR": str(places["tmp"]), "XDG_CACHE_HOME": str(places["cache"])},
            **{"XDG_CONFIG_HOME": str(places["config"]), "XDG_STATE_HOME": str(places["state"])},
            **{"BACKEND_PORT": str(ports[0]), "DASHBOARD_PORT": str(ports[1]), "LOG_LEVEL": "debug"},
            **{"MEDGEMMA_MODE": "openai", "OPENAI_BASE_URL": f"{script.url}/v1", "OPENAI_MODEL": "scripted"},
            **{"PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"},
        }
        with (
            Watch(result.folder, SEARCH) as result.watch,
            (result.folder / "output.txt").open("wb") as output,
        ):
            servers = subprocess.Popen(
                [sys.executable, "launcher.py"],
                cwd=PROJECT_ROOT,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                assert until(lambda: "Ready." in result.output or servers.poll() is not None, START_LIMIT_S)
                ask_api(result, servers.pid, ports[0])
                ask_dashboard(result, f"http://{HOST}:{ports[1]}", tmp_path_factory.mktemp("taken"))
            finally:
                servers.send_signal(signal.SIGTERM)
                servers.wait(60)
            run_batch(result, environment, tmp_path_factory.mktemp("films"), tmp_path_factory.mktemp("tables"), output)
        result.reader_got = [request.raw for request in script.requests]
    yield result


def reader_behaviours() -> tuple[loopback.Behaviour, ...]:
    """Answer one film, and refuse the others in words that repeat all that was asked."""

    def refuse(exchange: loopback.Exchange) -> None:
        asked = exchange.server.script.requests[-1].raw.decode()
        loopback.openai_error(400, f"what is this: {asked}")(exchange)

    def say(text: str) -> loopback.Behaviour:
        return loopback.streaming(loopback.openai_events(text))

    return say(loopback.FILM_REPLY), say(loopback.CLINICAL_REPLY), refuse


def ask_api(result: Run, pid: int, port: int) -> None:
    with httpx.Client(base_url=f"http://{HOST}:{port}", trust_env=False, timeout=LIMIT_S) as client:
        result.answers += requests_of(client)
    temporary = result.folder / "tmp"
    connection, rest = half_an_upload(port)
    with connection:
        result.waiting = until(lambda: [f for f in written_files(pid, temporary) if len(f.content) > 1 << 20])
        connection.sendall(rest)
        assert b" 200 " in connection.makefile("rb").readline()
    broken, _ = half_an_upload(port)
    until(lambda: written_files(pid, temporary))
    broken.close()
    until(lambda: not written_files(pid, temporary))
    result.left = written_files(pid, temporary)


def ask_dashboard(result: Run, url: str, taken: Path) -> None:
    """Let a user read films in a browser, where there is one: with a name, symptoms, a refusal and all pages."""
    with suppress(ImportError):
        from benchmarks.dashboard import CHROMIUM, Room, chromium

        if not CHROMIUM.exists():
            return
        with chromium() as browser:
            room = Room(browser, url)
            films = {name: FILMS[name] for name in ("good.dcm", "large.dcm", "lateral.dcm", "cut.dcm", "good.png")}
            room.upload(*((f"{FILE} {name}", data) for name, data in films.items()))
            symptoms = room.page.get_by_role("textbox", name="Symptoms and history")
            symptoms.fill(SYMPTOMS)
            symptoms.press("Control+Enter")
            room.settle()
            room.button(f"Analyze all {len(films)} films").click()
            room.page.get_by_text("Risk level:").first.wait_for()
            room.page.wait_for_function("!document.querySelector('.st-key-analyze button').disabled", timeout=120_000)
            room.settle()
            for tab in room.page.get_by_role("tab").all_inner_texts():
                room.tab(tab)
                result.page[tab] = room.page.content()
            for name in ("JSON", "PDF", "CSV"):
                with room.page.expect_download() as waiting:
                    room.page.get_by_role("button", name=f"({name})").click()
                waiting.value.save_as(taken / name)
                result.page[name] = (taken / name).read_bytes().decode("latin-1")
            for name in ("Compare", "Model card", "About and limits"):
                room.open_page(name)
                result.page[name] = room.page.content()


def run_batch(result: Run, environment: dict[str, str], films: Path, tables: Path, output: Any) -> None:
    for name, data in FILMS.items():
        (films / f"{FILE} {name}").write_bytes(data)
    with (tables / "symptoms.csv").open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(("file", "symptoms"))
        writer.writerows((f"{FILE} {name}", f"Chest pain, {SYMPTOMS}") for name in FILMS)
    out = tables / "table.csv"
    command = [sys.executable, "-m", "batch", str(films), "--out", str(out), "--reader", "--workers", "1"]
    command += ["--symptoms", str(tables / "symptoms.csv")]
    done = subprocess.run(
        command, cwd=PROJECT_ROOT, env=environment, stdout=output, stderr=output, timeout=300, check=False
    )
    assert done.returncode == 3  # some were refused
    result.table, result.journal = out.read_text("utf-8-sig"), (tables / "table.csv.journal").read_text("utf-8")


# ── What stays, and what was there meanwhile ─────────────────────────────────────────────────────────────────────────


def test_every_kind_of_answer_was_given(run: Run) -> None:
    statuses = [answer.status_code for answer in run.answers]
    assert {200, 400, 404, 415, 422} <= set(statuses)
    by_film = dict(zip(FILMS, zip(*[iter(statuses)] * 3, strict=False), strict=False))
    assert {name for name, (status, *_) in by_film.items() if status == 200} == {
        *("good.png", "good.dcm", "rle.dcm", "large.dcm")
    }
    whole = [a for a in run.answers if (a.status_code, a.headers["content-type"]) == (200, "application/json")]
    assert {answer.json()["reader"]["mode"] for answer in whole} == {"openai", "dummy"}  # it failed after one film


def test_nothing_of_a_film_a_name_or_a_symptom_stays_in_any_file(run: Run) -> None:
    assert SEARCH.below(run.folder) == {}
    assert (run.folder / "cache").is_dir()
    assert "Ready." in run.output


def test_nothing_was_there_while_they_ran(run: Run) -> None:
    assert run.watch is not None
    assert run.watch.rounds > 100
    assert run.watch.found == {}


def test_nothing_was_written_into_the_project(run: Run) -> None:
    for path in PROJECT_ROOT.rglob("*"):
        if ".git" not in path.parts and path.is_file() and path.stat().st_mtime > run.began:
            assert SEARCH.within(path.read_bytes()) == [], path


def test_an_upload_that_waits_has_no_name_and_is_gone_when_it_ends(run: Run) -> None:
    (waiting,) = run.waiting
    assert LARGE[1000:2000] in waiting.content  # it is the film, so the search below /proc finds what it should
    assert waiting.links == 0
    assert waiting.target.endswith(" (deleted)")
    assert run.left == []


def test_the_log_holds_these_fields_and_no_others(run: Run) -> None:
    lines = [json.loads(line) for line in run.output.splitlines() if line.startswith("{")]
    assert {"request", "ready", "engine_checked"} <= {line["event"] for line in lines}
    for line in lines:
        assert set(line) <= {"time", "level", "event"} | documented_events()[line["event"]]


# ── DICOM identifiers never leave modules/images.py ──────────────────────────────────────────────────────────────────


def test_no_identifier_is_in_an_answer_or_an_error(run: Run) -> None:
    for answer in run.answers:
        assert IDENTIFIERS.within(answer.content) == []
        assert SEARCH.within("".join(f"{k}: {v}\n" for k, v in answer.headers.items())) == []
        if answer.status_code >= 400:
            assert SEARCH.within(answer.content) == []


def test_an_opened_film_holds_no_identifier() -> None:
    for name in ("good.dcm", "large.dcm", "good.png"):
        opened = open_image(FILMS[name])
        radiograph = opened.decode()
        assert IDENTIFIERS.within(pickle.dumps((opened.header, radiograph))) == []
    assert IDENTIFIERS.within(pickle.dumps(FILMS["good.dcm"])) != []


def test_a_reader_gets_pixels_and_symptoms_and_nothing_else_of_a_file(run: Run) -> None:
    assert len(run.reader_got) >= 3
    assert any(SYMPTOMS.encode() in got for got in run.reader_got)
    for got in run.reader_got:
        assert Search.of((FILE, PATIENT[:16], CHUNK, UID, TYPED), {}).within(got) == []


def test_the_dashboard_shows_the_names_that_its_user_gave_and_no_identifier(run: Run) -> None:
    if not run.page:
        pytest.skip("there is no Chromium here")
    for name, content in run.page.items():
        assert IDENTIFIERS.within(content) == [], name
    assert FILE in run.page["CSV"]
    for name in ("JSON", "PDF"):
        assert Search.of((FILE, SYMPTOMS), {}).within(run.page[name]) == []


def test_a_table_names_the_files_of_its_user_and_no_identifier(run: Run) -> None:
    rows = list(csv.DictReader(io.StringIO(run.table)))
    assert {row["file"] for row in rows} == {f"{FILE} {name}" for name in FILMS}
    assert {row["status"] for row in rows} == {"ok", "refused", "undecodable"}
    for content in (run.table, run.journal):
        assert Search.of((PATIENT[:16], CHUNK, UID, SYMPTOMS), {"pixels": BLOCK}).within(content) == []


# ── What PRIVACY.md says ─────────────────────────────────────────────────────────────────────────────────────────────

PRIVACY = (PROJECT_ROOT / "PRIVACY.md").read_text("utf-8")


def documented_events() -> dict[str, set[str]]:
    """Return the fields of each event of the log as PRIVACY.md lists them."""
    table = PRIVACY.partition("| event | fields |\n|---|---|\n")[2].partition("\n\n")[0]
    rows = [re.findall(r"`([^`]+)`", line) for line in table.splitlines()]
    return {event: set(fields) for event, *fields in rows}


# Records that are logged whole, by what they are called there.
DUMPED = {"loaded.cnn.info": ModelInfo.model_fields, "passed[0]": PrecisionTest.model_fields}
LOGS = r"logger\.(debug|info|warning|error|exception|critical|log)"


def logged_by(source: str) -> dict[str, set[str]]:
    """Return the fields of each event that a source logs."""
    found: dict[str, set[str]] = {}
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        named = {  # a dictionary that got a name first
            node.targets[0].id: node.value
            for node in ast.walk(function)
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and isinstance(node.value, ast.Dict)
        }
        for call in ast.walk(function):
            if not isinstance(call, ast.Call) or not re.fullmatch(LOGS, ast.unparse(call.func)):
                continue
            extra = next((word.value for word in call.keywords if word.arg == "extra"), None)
            fields = extra.values[0] if extra is not None else ast.Dict([], [])
            fields = named[fields.id] if isinstance(fields, ast.Name) else fields
            parts = [fields]
            if isinstance(fields, ast.Dict):  # {**named, ...}
                whole = [v for k, v in zip(fields.keys, fields.values, strict=True) if k is None]
                parts += [named[v.id] for v in whole if isinstance(v, ast.Name)]
            names = {key.value for part in parts for key in getattr(part, "keys", ()) if key is not None}
            names.update(*(DUMPED[call] for call in re.findall(r"[\w.\[\]]+(?=\.model_dump\(\))", ast.unparse(fields))))
            found.setdefault(call.args[0].value, set()).update(names)
    return found


def test_the_log_is_documented() -> None:
    sources = [PROJECT_ROOT / "main.py", PROJECT_ROOT / "app.py", PROJECT_ROOT / "launcher.py"]
    sources += [
        path for name in ("api", "batch", "dashboard", "modules") for path in (PROJECT_ROOT / name).rglob("*.py")
    ]
    found: dict[str, set[str]] = {}
    for path in sources:
        for event, fields in logged_by(path.read_text("utf-8")).items():
            found.setdefault(event, set()).update(fields)
    assert found == documented_events()


def test_every_test_that_is_named_exists() -> None:
    files = set(re.findall(r"`tests/(test_\w+\.py)`", PRIVACY))
    assert len(files) > 8
    code = {path.name: path.read_text("utf-8") for path in (PROJECT_ROOT / "tests").glob("test_*.py")}
    assert files <= set(code)
    named = set(re.findall(r"`(test_\w+)`", PRIVACY))
    assert {name for name in named if not any(f"def {name}(" in text for text in code.values())} == set()
    assert "[PRIVACY.md](PRIVACY.md)" in (PROJECT_ROOT / "README.md").read_text("utf-8")


# ── This search can fail ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("way", list(spellings("x")))
def test_a_text_is_found_in_every_spelling(way: str, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "kept").write_bytes(b"\xff\0before" + spellings(SYMPTOMS)[way] + b"after\xfe")
    (found,) = SEARCH.below(tmp_path).values()
    assert f"{SYMPTOMS} as {way}" in found


@pytest.mark.parametrize("kept", [PNG, film_png(PIXELS[::2, ::2]), LARGE, PIXELS.tobytes(), zlib.compress(PNG, 0)])
def test_a_film_is_found_as_it_was_sent_and_drawn_anew(kept: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.tmp").write_bytes(b"head" + kept)
    assert set(SEARCH.below(tmp_path)) == {"a.tmp"}


def test_the_name_of_a_file_is_found_too(tmp_path: Path) -> None:
    (tmp_path / f"{FILE}.lock").touch()
    assert set(SEARCH.below(tmp_path)) == {f"{FILE}.lock"}


def test_a_file_that_is_soon_deleted_is_seen(tmp_path: Path) -> None:
    with Watch(tmp_path, SEARCH) as watch:
        path = tmp_path / "a.tmp"
        path.write_bytes(PNG)
        until(lambda: watch.found, 20)
        path.unlink()
    assert set(watch.found) == {"a.tmp"}


def test_a_file_that_a_process_holds_is_seen(tmp_path: Path) -> None:
    hold = f"f = tempfile.TemporaryFile(dir={str(tmp_path)!r}); f.write(b'kept'); f.flush(); time.sleep(60)"
    code = f"import os, tempfile, time\nif os.fork():\n    os.wait()\nelse:\n    {hold}"
    child = subprocess.Popen([sys.executable, "-c", code])
    try:
        (held,) = until(lambda: written_files(child.pid, tmp_path), 30)
        assert (held.content, held.links) == (b"kept", 0)
        assert len(processes_below(child.pid)) == 2
    finally:
        for pid in processes_below(child.pid)[::-1]:
            os.kill(pid, signal.SIGKILL)
        child.wait()
