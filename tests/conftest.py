"""What several test files share: a pipeline, clients of the API, a dashboard page, a film that is no patient's."""

import functools
import io
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
from fastapi import FastAPI
from PIL import Image
from starlette.testclient import TestClient

from main import create_app
from modules.pipeline import Pipeline
from modules.settings import Settings

if TYPE_CHECKING:
    from streamlit.testing.v1 import AppTest

    from tests.fake_server import FakeServer

# Read when torch is imported, which test modules do after this: beside servers and browsers, threads that wait by
# spinning made whole files ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

FILM_SIDE = 256  # pixels; the network's input is smaller

MakeClient = Callable[..., TestClient]


def as_png(pixels: npt.NDArray[Any]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def on_the_loopback(app: FastAPI) -> TestClient:
    """Return a client on this machine, which needs no key."""
    return TestClient(app, "http://127.0.0.1:8000", client=("127.0.0.1", 50_000), follow_redirects=False)


@pytest.fixture(scope="session", autouse=True)
def _no_settings_of_this_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in Settings.model_fields:
            patch.delenv(name.upper(), raising=False)
            patch.delenv(name, raising=False)
        patch.setenv("CNN_CACHE", str(tmp_path_factory.mktemp("cnn_cache")))  # not the user's
        yield


@pytest.fixture(scope="session")
def pipeline(_no_settings_of_this_machine: None) -> Pipeline:
    """The pipeline of a fresh checkout, loaded once."""
    return Pipeline.from_settings(Settings(_env_file=None))


@pytest.fixture(scope="session")
def film_pixels() -> npt.NDArray[np.uint8]:
    """A synthetic film, uint8 (256, 256), bright = dense."""
    from synthetic.phantom import make_film

    return make_film(0, size=FILM_SIDE).pixels


@pytest.fixture(scope="session")
def film_png(film_pixels: npt.NDArray[np.uint8]) -> bytes:
    """The same film as a PNG file."""
    return as_png(film_pixels)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Gemma 3 vision-language model in the layout of the published MedGemma."""
    from tests import tiny_gemma3

    return tiny_gemma3.build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def make_client(pipeline: Pipeline) -> Iterator[MakeClient]:
    """Start an application: `make_client(pipeline=fake, max_queued_analyses=0)`; stopped after the test."""
    with ExitStack() as stack:

        def make(pipeline: Pipeline = pipeline, **settings: Any) -> TestClient:
            app = create_app(Settings(_env_file=None, **settings), pipeline)
            return stack.enter_context(on_the_loopback(app))

        yield make


@pytest.fixture(scope="session")
def client(pipeline: Pipeline) -> Iterator[TestClient]:
    """An application with the default settings, shared by all tests that change nothing."""
    with on_the_loopback(create_app(Settings(_env_file=None), pipeline)) as started:
        yield started


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> "FakeServer":
    """The server as the dashboard's page sees it: scripted, and without a sample."""
    import httpx

    from dashboard import views
    from dashboard.client import AssistantClient
    from tests.fake_server import URL, FakeServer

    fake = FakeServer()
    monkeypatch.setenv("BACKEND_URL", URL)
    monkeypatch.setenv("MAX_UPLOAD_MB", "50")
    monkeypatch.setattr(views, "SAMPLE_PATH", tmp_path / "sample_xray.png")
    scripted = functools.partial(AssistantClient, transport=httpx.MockTransport(fake))
    monkeypatch.setattr("dashboard.pages.AssistantClient", scripted)
    return fake


@pytest.fixture
def page(server: "FakeServer") -> Iterator["AppTest"]:
    """The dashboard's first page, for a user who has done nothing yet."""
    from tests.dashboard_page import assert_no_exception, opened

    test = opened()
    yield test
    assert_no_exception(test)
