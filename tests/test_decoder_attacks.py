"""Attacks on what opens films, one by one: each ends as a film or an error, within a time and a memory."""

import itertools
import os
import random
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.measuring import resident_mib
from fuzz import corpus, decoders
from fuzz.mutators import KINDS, mutate
from fuzz.worker import Outcome
from modules import decoder_process
from modules.images import ImageLimits
from modules.settings import MEBIBYTE
from tests import image_files as f

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is measured as Linux does it")

SEEDS = corpus.seeds()
DICOMS = sorted(name for name in SEEDS if name.startswith("dicom"))
SIDE = 4000
MEGABYTE = 1_000_000
SLABBED = 100  # a film of 4 million colours: measured 65 in slabs and 133 whole


@pytest.fixture(scope="module")
def worker() -> Iterator[decoders.Worker]:
    """A process with the limits of the server, in which time and memory are measured."""
    made = decoders.Worker(ImageLimits())
    yield made
    made.stop()


def kept(outcome: Outcome, *, megabytes: float = 1000, cpu_s: float = decoders.LIMIT_S) -> str:
    """Return how a case ended, after its promises were looked at."""
    assert outcome.kind not in ("unexpected", "died", "hung"), outcome
    assert outcome.cpu_s <= cpu_s, outcome
    assert outcome.peak_bytes <= megabytes * MEGABYTE, outcome
    return outcome.kind


def grown(worker: decoders.Worker, name: str, data: bytes) -> Outcome:
    """Return what became of a case, with the memory that it took beyond what a tiny film takes in the same process."""
    tiny = worker.run("png", f.PNG)
    outcome = worker.run(name, data)
    return replace(outcome, peak_bytes=outcome.peak_bytes - tiny.peak_bytes)


# ── Bombs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_png_of_zeros_is_a_film_and_no_more_copies_of_it_are_made(worker: decoders.Worker) -> None:
    bomb = corpus.png_bomb(SIDE, SIDE, 6, 4)
    assert len(bomb) < MEGABYTE // 10
    assert kept(grown(worker, "png", bomb), megabytes=220) == "decoded"


def test_a_png_holds_more_than_its_header_says(worker: decoders.Worker) -> None:
    header = f.chunk(b"IHDR", struct.pack(">LLBBBBB", 8, 8, 8, 0, 0, 0, 0))
    packed = zlib.compress(bytes(100 * MEGABYTE), 1)
    bomb = f.PNG[:8] + header + f.chunk(b"IDAT", packed) + f.chunk(b"IEND")
    kept(grown(worker, "png", bomb), megabytes=190)


def test_scans_of_a_jpeg_are_counted_by_their_pixels(worker: decoders.Worker) -> None:
    bomb = corpus.jpeg_scans(150, 3000)
    assert kept(worker.run("jpeg", bomb), cpu_s=0.5) == "undecodable_image"
    inside = f.dicom(np.zeros((3000, 1), np.uint8), {f.COLUMNS: ("US", 3000)}, syntax=f.JPEG_BASELINE, compressed=b"")
    assert kept(worker.run("jpeg", corpus.jpeg_scans(20, 200))) == "decoded"
    wrapped = inside[:-12] + f.element(f.PIXEL_DATA, "OB", f.fragments(bomb), length=f.UNDEFINED)
    assert kept(worker.run("dicom", wrapped), cpu_s=0.5) == "undecodable_image"


def test_a_progressive_film_of_ten_scans_is_within_the_bound() -> None:
    from modules.codestream import jpeg_frame

    whole = f.jpeg_claiming(6600, 6060, f.JPEG)
    at = whole.index(b"\xff\xda")
    assert jpeg_frame(whole[:-2] + whole[at:-2] * 9 + whole[-2:]).width == 6600


@pytest.mark.parametrize("photometric", ["YBR_FULL", "YBR_FULL_422"])
def test_colours_are_converted_in_slabs(photometric: str, worker: decoders.Worker) -> None:
    sample = 2 if photometric.endswith("422") else 3
    changes: Any = {f.PHOTOMETRIC: ("CS", photometric), f.PIXEL_DATA: ("OB", bytes(2000 * 2000 * sample))}
    film = f.dicom(np.zeros((2000, 2000, 3), np.uint8), changes)
    assert kept(grown(worker, "dicom", film), megabytes=SLABBED) == "decoded"


def test_slabs_give_what_a_whole_film_gives() -> None:
    from pydicom.pixels.processing import convert_color_space

    rng = np.random.default_rng(3)
    stored = rng.integers(0, 256, (1100, 1300, 3), np.uint8)
    film = f.decode(f.dicom(stored, {f.PHOTOMETRIC: ("CS", "YBR_FULL")}))
    whole = f.decode(f.dicom(convert_color_space(stored, "YBR_FULL", "RGB")))
    np.testing.assert_array_equal(film.pixels, whole.pixels)
    colours = f.decode(f.pillow(Image.fromarray(stored)))
    sample = stored[::2, ::2].astype(int)
    assert colours.colourfulness == pytest.approx((sample.max(2) - sample.min(2)).mean() / 255)
    np.testing.assert_array_equal(colours.pixels, f.decode(f.dicom(stored)).pixels)


@pytest.mark.parametrize("side", [300, 1500])
def test_precincts_get_memory_and_time_by_the_size_of_their_film(side: int, worker: decoders.Worker) -> None:
    changes = {f.ROWS: ("US", side), f.COLUMNS: ("US", side)}
    stream = f.fragments(f.jpeg_2000_precinct_bomb(side))
    film = f.dicom(np.zeros((8, 8), np.uint8), changes, syntax=f.JPEG_2000, compressed=stream)
    kept(worker.run("dicom", film), megabytes=800)


def test_a_decoder_that_never_ends_is_ended_by_the_time_it_takes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = Path(decoder_process.__file__).read_text("utf-8")
    looping = source.replace("    pixels, found = get_decoder", "    while True: pass\n    pixels, found = get_decoder")
    assert looping != source
    (tmp_path / "looping.py").write_text(looping, "utf-8")
    monkeypatch.setattr(decoder_process, "__file__", str(tmp_path / "looping.py"))
    with pytest.raises(decoder_process.DecoderProcessError) as caught:
        decoder_process.decode_elsewhere(b"", f.RLE, {}, 64)
    assert "SIGXCPU" in str(caught.value.__cause__)


# ── Lying headers, in every transfer syntax ──────────────────────────────────────────────────────────────────────────


LIES: tuple[dict[int, Any], ...] = (
    {f.ROWS: 65_535},
    {f.COLUMNS: 1},
    {f.ROWS: 6000, f.COLUMNS: 6000},
    {f.FRAMES: b"99"},
    {f.ALLOCATED: 32},
    {f.ALLOCATED: 8, f.STORED: 8, f.HIGH_BIT: 7},
    {f.ALLOCATED: 16, f.STORED: 16, f.HIGH_BIT: 15},
    {f.STORED: 1, f.HIGH_BIT: 0},
    {f.SAMPLES: 3},
    {f.SAMPLES: 1},
    {f.PLANAR: 1},
    {f.SIGNED: 1},
)


@pytest.mark.parametrize("name", DICOMS)
def test_a_header_that_lies_is_refused_or_harmless(name: str, worker: decoders.Worker) -> None:
    data = SEEDS[name]
    for lie in LIES:
        changed = data
        for tag, value in lie.items():
            order = ">" if name == "dicom big endian" else "<"
            at = changed.find(struct.pack(order + "HH", tag >> 16, tag & 0xFFFF), 132)
            content = value if isinstance(value, bytes) else struct.pack(order + "H", value)
            if at >= 0:
                changed = changed[: at + 8] + content + changed[at + 10 :]
            elif isinstance(value, bytes) and b"\x28\x00\x10\x00US" in changed:
                before = changed.index(b"\x28\x00\x10\x00US")
                changed = changed[:before] + f.element(tag, "IS", value) + changed[before:]
        kept(worker.run(name, changed), megabytes=700)


# ── Cut, joined, and several kinds at once ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["png", "jpeg", "dicom", "zip"])
def test_cut_files(kind: str, worker: decoders.Worker) -> None:
    rng = random.Random(1)
    for name in (name for name in SEEDS if name.startswith(kind)):
        for end in rng.sample(range(len(SEEDS[name])), 3):
            kept(worker.run(name, SEEDS[name][:end]))


def test_joined_files_and_polyglots_are_what_they_begin_with(worker: decoders.Worker) -> None:
    for first, second in itertools.product((f.PNG, f.JPEG, f.dicom(f.SHADES)[:-2]), repeat=2):
        kept(worker.run("film", first + second))
    archive = corpus.zip_of({"a.png": f.PNG})
    assert kept(worker.run("png", f.PNG + archive)) == "decoded"
    assert kept(worker.run("jpeg", f.JPEG + archive)) == "decoded"
    assert kept(worker.run("film", archive + f.PNG)) == "unsupported_image_type"
    assert kept(worker.run("dicom", b"II*\0" + f.dicom(f.SHADES)[4:])) == "decoded"
    assert kept(worker.run("png", f.PNG[:8] + f.dicom(f.SHADES)[8:])) == "undecodable_image"


def test_a_jpeg_with_two_frame_headers_is_refused() -> None:
    from modules.codestream import jpeg_frame
    from modules.errors import UndecodableImage

    at = f.JPEG.index(b"\xff\xc0")
    header = f.JPEG[at : at + 2 + int.from_bytes(f.JPEG[at + 2 : at + 4])]
    with pytest.raises(UndecodableImage):
        jpeg_frame(f.JPEG[:at] + header + f.JPEG[at:])


def test_a_second_header_of_a_png_has_no_say(worker: decoders.Worker) -> None:
    second = f.chunk(b"IHDR", struct.pack(">LLBBBBB", 6000, 6000, 8, 0, 0, 0, 0))
    assert kept(grown(worker, "png", f.PNG[:33] + second + f.PNG[33:]), megabytes=90) == "decoded"


# ── Metadata ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_orientation_of_millions_of_numbers(worker: decoders.Worker) -> None:
    trap = f.chunk(b"eXIf", corpus.exif_array(20 * MEGABYTE))
    assert kept(grown(worker, "png", f.PNG[:33] + trap + f.PNG[33:]), megabytes=290, cpu_s=1) == "decoded"


def test_segments_of_metadata_are_stepped_over(worker: decoders.Worker) -> None:
    bodies = [b"Exif\0\0" + bytes(65_000)] * 700
    assert kept(grown(worker, "jpeg", corpus.with_segments(f.JPEG, 0xE1, *bodies)), megabytes=290, cpu_s=1) == "decoded"


@pytest.mark.parametrize("name", [b"iCCP", b"zTXt", b"iTXt"])
def test_packed_texts_and_profiles_are_not_unpacked(name: bytes, worker: decoders.Worker) -> None:
    packed = zlib.compress(bytes(900_000), 9)
    body = b"x\0\1\0\0\0" + packed if name == b"iTXt" else b"x\0\0" + packed
    data = f.PNG[:33] + f.chunk(name, body) * 2000 + f.PNG[33:]
    assert kept(grown(worker, "png", data), megabytes=90, cpu_s=0.5) == "decoded"


def test_pillow_sees_no_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []
    original = Image.open
    monkeypatch.setattr(Image, "open", lambda file, **kw: (seen.append(file.getvalue()), original(file, **kw))[1])
    secret = b"Doe^Jane"
    f.decode(f.PNG[:33] + f.chunk(b"tEXt", b"Comment\0" + secret) + f.chunk(b"eXIf", secret) + f.PNG[33:])
    jpegs = (corpus.with_segments(f.JPEG, marker, b"Exif\0\0" + secret) for marker in (0xE1, 0xE2, 0xED, 0xFE))
    for jpeg in jpegs:
        f.decode(jpeg)
        film = np.zeros((48, 64), np.uint8)
        f.decode(f.dicom(film, syntax=f.JPEG_BASELINE, compressed=f.fragments(jpeg)))
    assert len(seen) > 10
    assert not any(secret in data for data in seen)


# ── Depth and names ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("depth", [10, 300, 5000])
@pytest.mark.parametrize("sequence", [0x00081140, f.VOI_LUT])
def test_sequences_in_each_other(depth: int, sequence: int, worker: decoders.Worker) -> None:
    opening = f.element(sequence, "SQ", b"", length=f.UNDEFINED) + struct.pack("<HHL", 0xFFFE, 0xE000, f.UNDEFINED)
    closing = struct.pack("<HHLHHL", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    whole, start = f.dicom(f.SHADES), len(f.part_10(b""))
    data = whole[:start] + opening * depth + closing * depth + whole[start:]
    assert kept(worker.run("dicom", data), megabytes=300) == ("decoded" if depth == 10 else "undecodable_image")


NAMES = ("../../up.png", "/etc/film.png", "..\\up.png", "C:\\film.png", "a\nb.png", "=1+1.png", "\x1b[2J.png", "", "/")


def test_names_of_members_lead_nowhere(worker: decoders.Worker) -> None:
    assert kept(worker.run("zip", corpus.zip_of(dict.fromkeys(NAMES, f.PNG)))) == "decoded"


# ── Zip ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def listed(data: bytes, folder: Path) -> dict[str, str]:
    """Return the code of each film's trouble, by name."""
    from batch.sources import list_films

    (folder / "z.zip").write_bytes(data)
    films = list_films([folder]).films
    return {film.name: film.trouble.code if film.trouble else "" for film in films}


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_members_that_cannot_be_bounded_are_not_unpacked(method: int, tmp_path: Path) -> None:
    from batch.reading import Unpacking, _Files
    from batch.sources import Film

    assert listed(corpus.zip_of({"a.png": f.PNG}, method), tmp_path) == {"z.zip/a.png": "packed_otherwise"}
    with pytest.raises(Unpacking):  # it has taken the place of the one that was listed
        _Files(MEGABYTE).read(Film("a.png", str(tmp_path / "z.zip"), 0, len(f.PNG)))


def test_members_that_share_their_bytes_are_no_archive(tmp_path: Path) -> None:
    assert listed(corpus.zip_overlapping(f.PNG, 30), tmp_path) == {"z.zip": "damaged_archive"}
    assert listed(corpus.zip_of({"a.png": f.PNG, "b.png": f.JPEG}), tmp_path) == {"z.zip/a.png": "", "z.zip/b.png": ""}


def test_a_member_that_inflates_is_read_up_to_the_limit(worker: decoders.Worker) -> None:
    bomb = corpus.zip_of({"film.png": bytes(100 * MEGABYTE)})
    assert kept(grown(worker, "zip", bomb), megabytes=190) == "decoded"
    lying = bomb.replace(struct.pack("<L", 100 * MEGABYTE), struct.pack("<L", 99))
    assert lying != bomb
    assert kept(grown(worker, "zip", lying), megabytes=190) == "decoded"


# ── The fuzzer itself ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_short_run_breaks_no_promise(tmp_path: Path) -> None:
    tally = decoders.fuzz(200, 7, tmp_path, report=False)
    assert not tally.findings, [path.name for path in tmp_path.iterdir()]
    assert tally.executions == 200
    assert tally.corpus > len(SEEDS)  # the lines that run guide it
    assert {"decoded", "undecodable_image", "unsupported_image_type"} <= set(tally.ends)


def test_seeds_are_opened_and_changes_are_made_again_by_their_seed() -> None:
    assert {name.partition(" ")[0] for name in SEEDS} == set(KINDS)
    assert all(len(data) < 64 << 10 for data in SEEDS.values())
    for name, data in SEEDS.items():
        changed = [mutate(name, data, f.PNG, random.Random(5)) for _ in range(2)]
        assert changed[0] == changed[1]


def broken(action: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> Outcome:
    """Return the outcome of a worker's run in which opening a film is something else."""
    from fuzz import worker as module

    monkeypatch.setattr(module, "open_image", lambda *_: action())
    decoding = module.Decoders()
    return module._run(lambda: module._film(b"", ImageLimits(), Path()), decoding, module.Lines())


def spend(seconds: float) -> None:
    import time

    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


@pytest.mark.parametrize(
    ("action", "promise"),
    [
        (lambda: {}["x"], "unexpected"),
        (lambda: spend(0.4), "slow"),
        (lambda: np.ones(600 * MEGABYTE, np.uint8).sum(), "large"),
    ],
)
def test_a_broken_promise_would_be_noticed(
    action: Callable[[], Any], promise: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modules.errors import UndecodableImage

    monkeypatch.setattr(decoders, "LIMIT_S", 0.3)
    resident = int(resident_mib(os.getpid()) * MEBIBYTE)  # this runs in the process of all tests
    monkeypatch.setattr(decoders, "LIMIT_BYTES", resident + 300 * MEGABYTE)

    def failing() -> None:
        action()
        raise UndecodableImage("It is damaged.")

    assert decoders.broken_promise(broken(failing, monkeypatch)) == promise


def test_a_worker_that_dies_is_noticed_and_another_one_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    made = decoders.Worker()
    try:
        import os
        import signal

        assert made._process.pid is not None
        os.kill(made._process.pid, signal.SIGKILL)
        made._process.join()
        assert decoders.broken_promise(made.run("png", f.PNG)) == "died"
        assert made.run("png", f.PNG).kind == "decoded"
    finally:
        made.stop()
