"""`python -m batch`: rows, columns and formats; a run that is stopped, killed, cut, or begun anew otherwise."""

import csv
import io
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from batch import command
from batch.command import ALL_READ, COULD_NOT_RUN, SOME_NOT_READ, STOPPED, CannotRun, Options, main, run
from batch.journal import Journal, JournalError
from batch.pool import PoolError
from batch.reading import Recipe
from batch.rows import COLUMNS, FINDING_COLUMNS, Row, flat
from batch.sources import SourceError, list_films, with_symptoms
from batch.tables import RUNNABLE, TableError, suffixes, write_table
from modules.errors import ConfigurationError
from modules.pathologies import NAMES
from modules.pipeline import Pipeline
from modules.records import DISCLAIMER
from modules.settings import PROJECT_ROOT, Settings
from modules.version import VERSION
from tests.batch_films import DIE, DIE_ONCE, HANG, MEMORY, Obedient
from tests.conftest import as_png
from tests.image_files import dicom

FORMULA = "=cmd|'C calc'!A1.png"
PAGE = (PROJECT_ROOT / "docs" / "BATCH.md").read_text("utf-8")


def write(folder: Path, **files: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.png").write_bytes(content)
    return folder


def zipped(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")  # of a name that is there twice
        for name, content in members:
            archive.writestr(name, content)
    return path


def names(*sources: Path, paths_in: Path | None = None) -> list[str]:
    return [film.name for film in list_films(sources, paths_in).films]


def table(path: Path) -> list[dict[str, Any]]:
    """Read a table of any format, as Python values."""
    if path.suffix == ".parquet":
        parquet: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return parquet
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]
    with path.open(newline="", encoding="utf-8-sig") as file:
        return [{column.name: from_cell(row[column.name], column.kind) for column in COLUMNS} for row in rows_in(file)]


def rows_in(file: io.TextIOBase) -> Iterator[dict[str, str]]:
    yield from csv.DictReader(file)


def from_cell(cell: str, kind: str) -> Any:
    text = cell.removeprefix("'")
    if not cell:
        return None
    if kind == "flag":
        return {"true": True, "false": False}[cell]
    kinds: dict[str, Callable[[str], Any]] = {"text": str, "whole": int, "number": float, "texts": json.loads}
    return kinds[kind](text)


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    return folder


@pytest.fixture
def obedient(notes: Path) -> Obedient:
    return Obedient(notes)


# ── Real films ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def real(film_png: bytes, film_pixels: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """One run of the command over films of all kinds, good and bad; its table, and what it said."""
    folder = tmp_path_factory.mktemp("real")
    films = folder / "films"
    films.mkdir()
    (films / "film.png").write_bytes(film_png)
    (films / FORMULA).write_bytes(film_png)
    (films / "IM0001").write_bytes(dicom(film_pixels))
    (films / "noise.png").write_bytes(as_png(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)))
    (films / "cut.png").write_bytes(film_png[: len(film_png) // 2])
    (films / "notes.txt").write_text("no film")
    (films / "broken.zip").write_bytes(b"PK\x03\x04 and nothing")
    (films / "below").mkdir()
    zipped(
        films / "below" / "more.zip", [("in/film.png", film_png), ("in/film.png", b""), ("x.zip", b""), ("t.csv", b"")]
    )
    (folder / "symptoms.csv").write_text("file,symptoms\nfilm.png,sudden severe chest pain\n", "utf-8")
    out = folder / "table.parquet"
    words = [sys.executable, "-m", "batch", str(films), "--out", str(out), "--workers", "1"]
    words += ["--symptoms", str(folder / "symptoms.csv")]
    clean = {k: v for k, v in os.environ.items() if k.lower() not in Settings.model_fields}
    done = subprocess.run(words, cwd=PROJECT_ROOT, env=clean, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == SOME_NOT_READ, done.stderr
    return out, done.stdout + done.stderr


def test_every_file_has_one_row_sorted_by_name_and_errors_are_rows(real: tuple[Path, str]) -> None:
    said = {row["file"]: (row["status"], row["code"]) for row in table(real[0])}
    assert said == {
        FORMULA: ("ok", None),
        "IM0001": ("ok", None),
        "below/more.zip/in/film.png": ("ok", None),
        "below/more.zip/in/film.png #2": ("undecodable", "undecodable_image"),
        "below/more.zip/x.zip": ("failed", "nested_archive"),
        "broken.zip": ("undecodable", "damaged_archive"),
        "cut.png": ("undecodable", "undecodable_image"),
        "film.png": ("ok", None),
        "noise.png": ("refused", "not_a_chest_radiograph"),
    }
    assert list(said) == sorted(said)
    assert "9 films: 4 ok, 1 refused, 3 undecodable, 1 failed" in real[1]
    assert "left out: 1 .csv, 1 .txt" in real[1]


def test_a_row_says_what_the_pipeline_says(real: tuple[Path, str], pipeline: Pipeline, film_png: bytes) -> None:
    row = {row["file"]: row for row in table(real[0])}["film.png"]
    answer = pipeline.analyze(film_png, "sudden severe chest pain")
    for finding in answer.findings:
        name = finding.pathology.replace(" ", "_")
        assert row[f"{name}_cnn"] == pytest.approx(finding.cnn_probability, abs=1e-4)
        assert row[f"{name}_threshold"] == pytest.approx(finding.operating_threshold, abs=1e-6)
        assert row[f"{name}_detected"] == finding.detected
        assert row[f"{name}_fused"] == pytest.approx(finding.fused_probability, abs=1e-4)
    assert row["gate_score"] == pytest.approx(answer.quality.gate_score, abs=1e-6)
    assert (row["risk_level"], row["needs_review"]) == (answer.risk_level, answer.needs_review)
    assert row["risk_factors"] == list(answer.risk_factors)
    assert any("chest pain" in factor for factor in row["risk_factors"])  # of the table of symptoms
    assert (row["width"], row["height"]) == (256, 256)
    assert (row["reader_mode"], row["film_sent_to"]) == ("dummy", "nowhere: no second reader ran")
    assert row["llm_confidence"] is None
    assert row["weights_sha256"] == answer.model.sha256
    assert all(row[f"ms_{stage}"] >= 0 for stage in ("read", "decode", "gate", "cnn", "fusion", "risk"))
    assert row["ms_total"] >= row["ms_cnn"] > 0


def test_a_refused_film_says_why_how_large_it_is_and_which_network_would_have_read_it(real: tuple[Path, str]) -> None:
    row = {row["file"]: row for row in table(real[0])}["noise.png"]
    assert row["message"].endswith(".")
    assert (row["width"], row["height"]) == (64, 64)
    assert len(row["sha256"]) == len(row["weights_sha256"]) == 64
    assert row["Mass_cnn"] is row["risk_level"] is row["ms_cnn"] is None


def test_all_formats_hold_the_same(real: tuple[Path, str], tmp_path: Path) -> None:
    lines = real[0].with_name("table.parquet.journal").read_text("utf-8").splitlines()
    rows = sorted((Row(**json.loads(line)["row"]) for line in lines if line.startswith('{"row"')), key=lambda r: r.file)
    tables = {suffix: tmp_path / f"table{suffix}" for suffix in suffixes()}
    for path in tables.values():
        write_table(path, rows)
    assert table(tables[".csv"]) == table(tables[".jsonl"]) == table(tables[".parquet"]) == table(real[0])
    assert len(rows) == 9


def test_the_columns_are_those_that_are_documented(real: tuple[Path, str]) -> None:
    assert list(table(real[0])[0]) == [column.name for column in COLUMNS]
    ends = {f"{name.replace(' ', '_')}_{end}" for name in NAMES for end, _, _ in FINDING_COLUMNS}
    expected = {c.name: (c.kind, c.meaning) for c in COLUMNS if c.name not in ends}
    expected |= {f"PATHOLOGY_{end}": (kind, meaning) for end, kind, meaning in FINDING_COLUMNS}
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*) \|$", PAGE, re.MULTILINE)
    assert {name: (kind, meaning) for name, kind, meaning in rows} == expected
    assert pq.read_schema(real[0]).metadata[b"disclaimer"].decode() == DISCLAIMER


# ── Tables ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("begin", [*RUNNABLE, "'=", '"', ","])
def test_no_cell_is_a_formula_and_every_text_comes_back(begin: str, tmp_path: Path) -> None:
    row = Row(file=f'{begin}1+1",\n=x.png', status="failed", message="-1", risk_factors=("=a", "b"), cnn_confidence=0.5)
    out = tmp_path / "t.csv"
    write_table(out, [row])
    with out.open(newline="", encoding="utf-8-sig") as file:
        (cells,) = csv.DictReader(file)
    assert not any(cell.startswith(tuple(set(RUNNABLE) - {"'"})) for cell in cells.values())
    assert table(out) == [json.loads(json.dumps(flat(row)))]
    assert cells["cnn_confidence"] == "0.5"
    assert b",0.5," in out.read_bytes()  # a number, not a text


def test_a_table_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    out = tmp_path / "t.jsonl"
    out.write_text("old")

    def rows() -> Iterator[Row]:
        yield Row(file="a", status="ok")
        raise OSError(28, "No space left on device")

    with pytest.raises(TableError, match=r"No space left on device\. Every film is in the journal"):
        write_table(out, rows())
    assert out.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["t.jsonl"]


# ── Sources ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_names_are_relative_to_one_source_and_as_given_with_several(tmp_path: Path) -> None:
    films = write(tmp_path / "films", b=b"", a=b"")
    archive = zipped(tmp_path / "z.zip", [("d/c.png", b""), ("..\\up.png", b""), ("__MACOSX/._c.png", b"")])
    assert names(films) == ["a.png", "b.png"]
    assert names(archive) == ["z.zip/../up.png", "z.zip/d/c.png"]
    assert names(films / "a.png") == ["a.png"]
    listed = tmp_path / "list.txt"
    listed.write_text(f"{films / 'a.png'}\n\n{tmp_path / 'gone.png'}\n", "utf-8")
    assert names(films, archive, paths_in=listed) == sorted(
        [f"{films}/a.png", f"{films}/b.png", f"{archive}/../up.png", f"{archive}/d/c.png", f"{tmp_path}/gone.png"]
    )
    (gone,) = (film for film in list_films([], listed).films if film.name.endswith("gone.png"))
    assert gone.trouble is not None
    assert gone.trouble.code == "unreadable_file"


def test_what_may_be_a_film_is_taken_and_the_rest_counted(tmp_path: Path) -> None:
    for name in ("a.PNG", "IM1", "1.2.840.5", "x.dcm", "DICOMDIR", ".hidden", "labels.csv"):
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / "pipe.png")
    listing = list_films([tmp_path])
    assert [film.name for film in listing.films] == ["1.2.840.5", "IM1", "a.PNG", "x.dcm"]
    assert listing.left_out == {"": 2, ".csv": 1, ".png": 1}
    (pipe,) = list_films([tmp_path / "pipe.png"], tmp_path / "IM1").films
    assert pipe.trouble is not None


def test_a_name_that_is_no_utf_8_is_told_from_one_that_looks_like_it(tmp_path: Path) -> None:
    for raw in (b"\xff.png", b"\\xff.png"):
        with suppress(OSError):  # not every file system takes such a name
            Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + raw)).touch()
    found = names(tmp_path)
    assert len(set(found)) == len(list(tmp_path.iterdir()))
    assert all(name.encode() for name in found)


@pytest.mark.parametrize(("name", "why"), [("gone", "does not exist"), ("z.zip", "damaged"), ("empty", "no film")])
def test_a_source_that_cannot_be_used_is_a_sentence(name: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "z.zip").write_bytes(b"none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=why):
        list_films([tmp_path / name])


def test_an_encrypted_member_has_a_row(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "z.zip", [("a.png", b"x")])
    data = bytearray(archive.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(data)
    (film,) = list_films([archive]).films
    assert film.trouble is not None
    assert film.trouble.code == "encrypted_member"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a,b\n", "columns file and symptoms"),
        ("file,symptoms\nb.png,x\n", "none of the films"),
        ("file,symptoms\na.png,x\na.png,y\n", "a row already"),
    ],
)
def test_symptoms_that_belong_to_no_film_are_refused(text: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text(text, "utf-8")
    with pytest.raises(SourceError, match=why):
        with_symptoms(list_films([write(tmp_path / "films", a=b"")]).films, tmp_path / "s.csv")


# ── Workers that die, and runs that are killed ───────────────────────────────────────────────────────────────────────


def test_a_film_that_kills_its_workers_fails_and_the_others_are_read(
    tmp_path: Path, obedient: Obedient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "FILM_LIMIT_S", 1.0)
    films = write(tmp_path / "films", a=b"1", b=DIE, c=DIE_ONCE, d=MEMORY, e=HANG, f=b"2")
    run(Options((films,), tmp_path / "t.jsonl", workers=2), obedient)
    assert [(row["status"], row["code"]) for row in table(tmp_path / "t.jsonl")] == [
        ("ok", None), ("failed", "worker_died"), ("ok", None), ("failed", "out_of_memory"), ("failed", "timed_out"),
        ("ok", None),
    ]  # fmt: skip
    begun = (obedient.folder / "begun.log").read_text().split()
    assert {name: begun.count(name) for name in set(begun)} == {
        "a.png": 1, "b.png": 2, "c.png": 2, "d.png": 2, "e.png": 2, "f.png": 1,
    }  # fmt: skip


def test_threads_and_workers_together_are_the_cores(tmp_path: Path, obedient: Obedient) -> None:
    before = dict(os.environ)
    run(Options((write(tmp_path / "films", a=b""),), tmp_path / "t.jsonl", workers=1), obedient)
    (row,) = table(tmp_path / "t.jsonl")
    assert row["message"] == f"threads {len(os.sched_getaffinity(0))} PASSIVE"
    assert dict(os.environ) == before
    settings = Settings(_env_file=None)
    for workers in (1, 2, 7):
        assert command.workers_and_threads(Options((), Path(), workers=workers), settings)[0] == workers
    with pytest.raises(CannotRun, match="--workers 1"):
        command.workers_and_threads(Options((), Path(), reader=True, workers=2), settings)


def test_a_worker_gives_its_network_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def ask(settings: Settings) -> Pipeline:
        asked.append(settings.cnn_threads)
        raise ConfigurationError("asked")

    monkeypatch.setattr(Pipeline, "from_settings", ask)
    monkeypatch.setattr("cv2.setNumThreads", asked.append)
    with pytest.raises(ConfigurationError, match="asked"):
        Recipe(Settings(cnn_threads=7), "1", threads=3)()
    assert asked == [3, 3]


@pytest.mark.parametrize(
    ("broken", "why"),
    [({"why_not": "The weights are no good."}, "The weights are no good"), ({"dies_at_start": True}, "3 workers")],
)
def test_workers_that_cannot_start_end_the_run(broken: dict[str, Any], why: str, tmp_path: Path, notes: Path) -> None:
    with pytest.raises(PoolError, match=why):
        run(Options((write(tmp_path / "films", a=b""),), tmp_path / "t.jsonl", workers=1), Obedient(notes, **broken))


def read_lines(journal: Path) -> int:
    return journal.read_bytes().count(b'\n{"row"') if journal.exists() else 0


@contextmanager
def started(films: Path, out: Path, notes: Path) -> Iterator["subprocess.Popen[bytes]"]:
    words = [sys.executable, "-m", "tests.batch_films", str(films), str(out), str(notes)]
    process = subprocess.Popen(words, cwd=PROJECT_ROOT, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for_rows(process: "subprocess.Popen[bytes]", journal: Path, rows: int) -> None:
    deadline = time.monotonic() + 60
    while process.poll() is None and read_lines(journal) < rows:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_every_film_is_there_once_however_the_run_is_killed(tmp_path: Path, notes: Path) -> None:
    rng = random.Random(7)
    films = write(tmp_path / "films", **{f"film{n:03}": b"%d" % n for n in range(300)})
    out, journal = tmp_path / "t.jsonl", tmp_path / "t.jsonl.journal"
    for target in sorted(rng.sample(range(5, 280), 4)):
        with started(films, out, notes) as process:
            wait_for_rows(process, journal, target)
            workers = [int(path.stem) for path in notes.glob("*.pid")]
            time.sleep(rng.random() * 0.02)
            for victim in rng.choice(([process.pid], workers[-1:], [*workers, process.pid])):
                with suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
            time.sleep(0.1)
        for path in notes.glob("*.pid"):
            path.unlink()
        assert not out.exists() or read_lines(journal) == 300
    cut = journal.read_bytes()
    journal.write_bytes(cut[:-7])
    summary = run(Options((films,), out, workers=2), Obedient(notes))
    assert summary.statuses == {"ok": 300}
    assert [row["file"] for row in table(out)] == [f"film{n:03}.png" for n in range(300)]
    recorded = [json.loads(line).get("row", {}).get("file") for line in journal.read_text("utf-8").splitlines()]
    assert len([name for name in recorded if name]) == len({name for name in recorded if name}) == 300


def test_workers_end_with_the_run_that_started_them(tmp_path: Path, notes: Path) -> None:
    films = write(tmp_path / "films", **{f"film{n:03}": HANG if n > 2 else b"" for n in range(6)})
    with started(films, tmp_path / "t.jsonl", notes) as process:
        wait_for_rows(process, tmp_path / "t.jsonl.journal", 3)
    workers = [int(path.stem) for path in notes.glob("*.pid")]
    deadline = time.monotonic() + 20
    while any(alive(worker) for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert workers


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_says_how_to_go_on(
    sent: signal.Signals,
    tmp_path: Path,
    obedient: Obedient,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    films = write(tmp_path / "films", a=b"", b=b"")
    out = tmp_path / "t.jsonl"
    take = Journal.append

    def stopped(journal: Journal, row: Row) -> None:
        take(journal, row)
        os.kill(os.getpid(), sent)

    with monkeypatch.context() as patch:
        patch.setattr(command, "Recipe", lambda *_: obedient)
        patch.setattr(Journal, "append", stopped)
        assert main([str(films), "--out", str(out)]) == STOPPED
    assert "The same command goes on" in capsys.readouterr().err
    assert not out.exists()
    assert read_lines(tmp_path / "t.jsonl.journal") == 1
    monkeypatch.setattr(command, "Recipe", lambda *_: obedient)
    assert main([str(films), "--out", str(out)]) == ALL_READ
    assert len(table(out)) == 2


# ── The journal ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def finished(tmp_path: Path, obedient: Obedient) -> Options:
    options = Options((write(tmp_path / "films", a=b"1", b=b"2", c=b"3"),), tmp_path / "t.jsonl", workers=1)
    run(options, obedient)
    return options


@pytest.mark.parametrize(
    "end", [b'{"row":{"file":"c.png","sta', b"\0\0\0\0", b'{"row":[]}\n', b"\xff\n", b'{"row":3}\n']
)
def test_a_cut_or_damaged_line_is_dropped_and_its_film_read_again(
    end: bytes, finished: Options, obedient: Obedient, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = finished.journal.read_bytes().splitlines(keepends=True)
    finished.journal.write_bytes(b"".join(lines[:-1]) + end)
    finished.out.unlink()
    (obedient.folder / "begun.log").unlink()
    assert run(finished, obedient).statuses == {"ok": 3}
    assert (obedient.folder / "begun.log").read_text().split() == [json.loads(lines[-1])["row"]["file"]]
    assert "1 cut lines" in capsys.readouterr().err


def test_a_finished_run_that_is_started_again_reads_nothing(finished: Options, obedient: Obedient) -> None:
    before = finished.out.read_bytes()
    (obedient.folder / "begun.log").unlink()
    finished.out.unlink()
    run(finished, obedient)
    assert finished.out.read_bytes() == before
    assert not (obedient.folder / "begun.log").exists()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"force": True}, "--force"),
        ({"invert": True}, "--invert"),
        ({"reader": True}, "second reader"),
        ({"symptoms": "s.csv"}, "symptoms"),
    ],
)
def test_other_options_are_refused(
    change: dict[str, Any], what: str, finished: Options, obedient: Obedient, tmp_path: Path
) -> None:
    (tmp_path / "s.csv").write_text("file,symptoms\na.png,cough\n", "utf-8")
    change = {key: tmp_path / value if key == "symptoms" else value for key, value in change.items()}
    before = finished.journal.read_bytes()
    other = Options(**{**vars(finished), **change})
    with pytest.raises(JournalError, match=f"begun with other .*{what}"):
        run(other, obedient)
    assert finished.journal.read_bytes() == before
    assert run(Options(**{**vars(other), "restart": True}), obedient).films == 3


def test_other_films_weights_and_settings_are_refused(
    finished: Options, obedient: Obedient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(JournalError, match="begun with other weights"):
        run(finished, Obedient(obedient.folder, weights="b" * 64))
    with monkeypatch.context() as patch:
        patch.setenv("CNN_MIRROR_CHECK", "false")
        with pytest.raises(JournalError, match="begun with other CNN_MIRROR_CHECK"):
            run(finished, obedient)
    write(finished.sources[0], a=b"another")
    with pytest.raises(JournalError, match="begun with other films"):
        run(finished, obedient)


def test_one_run_at_a_time(finished: Options, obedient: Obedient) -> None:
    begun = command._begun(finished, Settings(medgemma_mode="dummy"), list_films(finished.sources), VERSION)
    with Journal(finished.journal, begun), pytest.raises(JournalError, match="in use"):
        run(finished, obedient)


def test_a_file_that_is_no_journal_is_not_touched(tmp_path: Path, obedient: Obedient) -> None:
    (tmp_path / "t.csv.journal").write_text("dear diary\n")
    with pytest.raises(JournalError, match="no journal of this program"):
        run(Options((write(tmp_path / "films", a=b""),), tmp_path / "t.csv", workers=1), obedient)
    assert (tmp_path / "t.csv.journal").read_text() == "dear diary\n"


def test_a_full_disk_is_a_sentence_and_the_run_goes_on_later(tmp_path: Path, obedient: Obedient) -> None:
    films = write(tmp_path / "films", **{f"f{n}": b"" for n in range(40)})
    options = Options((films,), tmp_path / "t.jsonl", workers=1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(JournalError, match=r"cannot be written: .* the same command goes on"):
            run(options, obedient)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert 0 < read_lines(options.journal) < 40
    assert run(options, obedient).statuses == {"ok": 40}


# ── The command line ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["films", "--out", "t.xlsx"], "must end in .parquet, .csv, .jsonl"),
        (["films", "--out", "there.csv"], "is there already"),
        (["films", "--out", "films/a.png/t.csv"], "cannot be opened"),
        (["gone", "--out", "t.csv"], "does not exist"),
        (["films", "--out", "t.csv", "--symptoms", "none.csv"], "cannot be read"),
    ],
)
def test_what_cannot_run_is_a_sentence(
    words: list[str], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("films"), a=b"")
    Path("there.csv").touch()
    assert main(words) == COULD_NOT_RUN
    said = capsys.readouterr().err
    assert said.startswith("python -m batch: ")
    assert why in said
    assert said.count("\n") == 1


def test_no_film_leaves_without_the_reader_being_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDGEMMA_MODE", "api")
    monkeypatch.setenv("MEDGEMMA_FALLBACK", "openai")
    without = command._settings(reader=False)
    assert (without.medgemma_mode, without.medgemma_fallback) == ("dummy", ("dummy",))
    assert command._settings(reader=True).medgemma_mode == "api"
    assert "no film leaves this machine" in " ".join(command._parser().format_help().split())
