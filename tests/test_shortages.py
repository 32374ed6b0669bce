"""A machine that has run out of something is not told as a fault of the film; a damaged cache is no figures."""

import errno
from pathlib import Path
from typing import Any

import pytest

from modules.answers import Problem
from modules.engines.reference import References
from modules.errors import UndecodableImage, shortage_in
from modules.pipeline import Pipeline
from tests.api_requests import assert_shortage, render
from tests.conftest import MakeClient
from tests.image_files import pydicom_file


def test_what_is_a_shortage() -> None:
    full = OSError(errno.ENOSPC, "full")
    form = ValueError("of a form")
    form.__cause__ = full
    assert shortage_in(form) is full
    for other in (OSError("truncated"), FileNotFoundError(errno.ENOENT, "gone"), RuntimeError("x"), UndecodableImage()):
        assert shortage_in(other) is None


@pytest.mark.parametrize(
    "shortage",
    [OSError(errno.EMFILE, "Too many open files"), OSError(errno.EAGAIN, "no process"), MemoryError()],
    ids=["handles", "processes", "memory"],
)
def test_a_decoder_that_cannot_be_started_is_not_the_films_fault(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch, shortage: Exception
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise shortage

    client, film = make_client(), pydicom_file("SC_rgb_jpeg_gdcm.dcm")
    with monkeypatch.context() as patch:
        patch.setattr("modules.decoder_process.subprocess.run", fail)
        assert_shortage(render(client, film))
    assert render(client, film).status_code == 200


@pytest.mark.parametrize(
    "shortage", [OSError(errno.ENOSPC, "No space"), MemoryError(), RuntimeError("can't start new thread")]
)
def test_a_shortage_in_the_middle_of_a_stream_ends_it_with_that_reason(
    make_client: MakeClient, film_png: bytes, monkeypatch: pytest.MonkeyPatch, shortage: Exception
) -> None:
    def fail(*_: Any) -> Any:
        raise shortage

    monkeypatch.setattr(Pipeline, "conclude", fail)
    told = make_client().post("/analyze/stream", files={"image": film_png}).text.rstrip().rsplit("event: ", 1)[-1]
    assert told.startswith("error\n")
    problem = Problem.model_validate_json(told.split("data: ", 1)[1])
    assert (problem.status, problem.code) == (503, "out_of_resources")


def npy(header: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()


@pytest.mark.parametrize(
    "damage",
    [
        b"PK\x03\x04 no archive",
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (9999999999999,)}"),
        npy("{'descr': (((("),
        npy("[" * 5000),
    ],
    ids=["no archive", "more than all memory", "a header without an end", "a deep header"],
)
def test_a_kept_file_of_any_content_is_no_figures(tmp_path: Path, damage: bytes) -> None:
    """Whoever gets none asks PyTorch again and replaces the file: `test_a_damaged_file_is_noticed_and_replaced`."""
    (tmp_path / "kept.npy").write_bytes(damage)
    assert References(tmp_path).read(tmp_path / "kept.npy") is None
