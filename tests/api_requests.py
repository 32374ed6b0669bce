"""Requests to the API as tests make them, what every error must be, and pipelines that do as they are told."""

import io
import re
import threading
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid
from starlette.testclient import TestClient

from api import problems
from modules import errors
from modules.answers import Analysis, Problem
from modules.pipeline import Opened, Pipeline, Seen
from modules.records import HeatmapChoice, ReaderInfo, Reading
from tests.conftest import as_png

Pixels = npt.NDArray[np.uint8]

# An exception's or a file's trace in an answer: a stack, a path, a module, a class of Python or of this project.
INSIDES = re.compile(
    r"Traceback|File \"|\.py\b|<class|object at 0x|/[\w.-]+/[\w.-]+|\b(?:modules|api|fastapi|starlette|pydantic)\."
    r"|\b(?:" + "|".join(c.__name__ for c in problems.STATUS if c is not errors.Busy) + r")\b"
    r"|\b[A-Z]\w*(?:Error|Exception)\b|\bUploadFile\b"
)

SECRET = "Jane-Doe-1970"


def analyze(client: TestClient, film: bytes, **fields: str) -> Any:
    return client.post("/analyze", files={"image": ("film.png", film, "image/png")}, data=fields)


def render(client: TestClient, film: bytes, **fields: str) -> Any:
    return client.post("/render", files={"image": ("film", film)}, data=fields)


def assert_problem(response: Any, status: int, code: str) -> Problem:
    """Hold an answer against everything that every error must be."""
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")
    problem = Problem.model_validate_json(response.content)
    assert (problem.status, problem.code) == (status, code)
    assert problem.title
    assert problem.detail
    assert problem.request_id == response.headers["X-Request-ID"]
    assert response.headers["Cache-Control"] == "no-store"
    assert not INSIDES.search(response.text), response.text
    return problem


def assert_shortage(response: Any) -> None:
    problem = assert_problem(response, 503, "out_of_resources")
    assert "The film is not to blame" in problem.detail
    assert response.headers["Retry-After"] == "10"


def dicom(pixels: Pixels, photometric: str = "MONOCHROME2", **elements: Any) -> bytes:
    dataset = pydicom.Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = DigitalXRayImageStorageForPresentation, generate_uid()
    dataset.PatientName, dataset.PatientID = SECRET, SECRET
    dataset.Modality, dataset.ViewPosition, dataset.BodyPartExamined = "DX", "PA", "CHEST"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, photometric
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.WindowCenter, dataset.WindowWidth = 128, 256
    dataset.PixelData = pixels.tobytes()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    out = io.BytesIO()
    pydicom.dcmwrite(out, dataset, enforce_file_format=True)
    return out.getvalue()


def noise_png() -> bytes:
    return as_png(np.random.default_rng(0).integers(0, 256, (256, 256), dtype=np.uint8))


class FakePipeline:
    """Answers /health and /model like the real one, and does what it is told with films."""

    def __init__(self, real: Pipeline, work: Callable[[], None]) -> None:
        self.cnn, self.reader = real.cnn, real.reader
        self._real, self._work = real, work

    def open(self, *args: Any, **kwargs: Any) -> Opened:
        self._work()
        return self._real.open(*args, **kwargs)

    def see(self, opened: Opened, heatmaps: HeatmapChoice) -> Seen:
        return self._real.see(opened, heatmaps)

    def read(self, seen: Seen, **kwargs: Any) -> tuple[Reading, ReaderInfo]:
        return self._real.read(seen, **kwargs)

    def conclude(self, seen: Seen, reading: Reading, info: ReaderInfo) -> Analysis:
        return self._real.conclude(seen, reading, info)

    def render(self, *args: Any, **kwargs: Any) -> bytes:
        self._work()
        return self._real.render(*args, **kwargs)


def failing(real: Pipeline, error: Exception) -> Pipeline:
    def fail() -> None:
        raise error

    return cast(Pipeline, FakePipeline(real, fail))


class Doorman:
    """Holds every analysis until it is told to let them through."""

    def __init__(self, real: Pipeline) -> None:
        self.entered, self.open = threading.Semaphore(0), threading.Event()
        self.pipeline = cast(Pipeline, FakePipeline(real, self._wait))

    def _wait(self) -> None:
        self.entered.release()
        assert self.open.wait(20)
