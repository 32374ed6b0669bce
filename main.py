"""The HTTP API: `uvicorn main:app`. Routes, lifespan and error handlers; everything clinical is in `modules`."""

import asyncio
import functools
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import anyio
import anyio.to_thread
from fastapi import Depends, FastAPI, File, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from api import logs, problems
from api.access import Access, client_of, docs_page
from api.admission import Admission, Place
from api.memory import keep_little
from api.middleware import FORM_OVERHEAD_BYTES, RequestBoundary, log_unforeseen
from api.stopping import when_told_to_end
from api.streaming import READER_THREADS, STREAM_DESCRIPTION, AdmittedFilm, events, stop_when_gone
from modules.answers import Analysis, Health
from modules.curves import Curves, load_curves
from modules.errors import AssistantError, ConfigurationError
from modules.pipeline import Opened, Pipeline, Seen
from modules.reasoners.base import Control
from modules.records import DISCLAIMER, MAX_SYMPTOMS, HeatmapChoice
from modules.settings import Settings
from modules.version import VERSION
from modules.weights import WeightsCard

logger = logging.getLogger("assistant.server")

NO_CURVES = "No curves of these weights were measured: python -m evaluation writes them, for the folder of the weights."
MIN_BODIES = 8  # uploads at the same time, however few films may wait for their turn
GONE = "The client went away before its turn came."
FORM_LIMITS = {"max_files": 1, "max_fields": 8, "max_part_size": FORM_OVERHEAD_BYTES}


def create_app(settings: Settings, pipeline: Pipeline | None = None) -> FastAPI:
    """Make the application; without a `pipeline`, one is loaded from the settings when the server starts."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, object]]:
        logs.configure(settings.log_level)
        keep_little()
        own = None if pipeline else await anyio.to_thread.run_sync(_load, settings)
        admission = Admission(settings.max_concurrent_analyses, settings.max_queued_analyses)
        serving = pipeline or own
        assert serving is not None
        try:
            with when_told_to_end(serving.reader.stop_reading):
                yield {
                    "pipeline": serving,
                    "admission": admission,
                    "readers": anyio.CapacityLimiter(READER_THREADS),
                }
        finally:
            if own is not None:
                own.close()

    app = FastAPIOffline(
        title="Explainable Multimodal Clinical AI Assistant",
        description=DISCLAIMER,
        version=VERSION,
        lifespan=lifespan,
        form_limits=FORM_LIMITS,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    places = settings.max_concurrent_analyses + settings.max_queued_analyses
    app.add_middleware(
        RequestBoundary,
        access=Access(settings),
        max_film_bytes=settings.max_upload_bytes,
        max_bodies=max(MIN_BODIES, places),
    )
    app.add_exception_handler(AssistantError, problems.domain_error)
    app.add_exception_handler(RequestValidationError, problems.invalid_request)
    app.add_exception_handler(HTTPException, problems.http_error)
    app.add_api_route("/docs", docs_page, include_in_schema=False)
    _add_routes(app, settings)
    problems.describe(app)
    return app


def _load(settings: Settings) -> Pipeline:
    try:
        loaded = Pipeline.from_settings(settings)
    except ConfigurationError as exc:
        # a sentence for whoever starts the server; the trace would say nothing more
        logger.error("start_up_failed", extra={"fields": {"reason": str(exc)}})  # noqa: TRY400
        raise
    logger.info("ready", extra={"fields": {**loaded.cnn.info.model_dump(), "reader": loaded.reader.health().mode}})
    return loaded


def _read_and_conclude(pipeline: Pipeline, seen: Seen, watch: Control) -> str:
    return pipeline.conclude(seen, *pipeline.read(seen, watch=watch)).model_dump_json()


def _pipeline(request: Request) -> Pipeline:
    loaded: Pipeline = request.state.pipeline
    return loaded


def _admission(request: Request) -> Admission:
    admission: Admission = request.state.admission
    return admission


def _readers(request: Request) -> anyio.CapacityLimiter:
    readers: anyio.CapacityLimiter = request.state.readers
    return readers


Loaded = Annotated[Pipeline, Depends(_pipeline)]
Admitted = Annotated[Admission, Depends(_admission)]
Readers = Annotated[anyio.CapacityLimiter, Depends(_readers)]
Film = Annotated[UploadFile, File(description="A frontal chest radiograph: PNG, JPEG or single-frame DICOM")]
Symptoms = Annotated[str, Form(max_length=MAX_SYMPTOMS, description="Free text, in English")]
Heatmaps = Annotated[HeatmapChoice, Form(description="Which Grad-CAM grids to return")]
Invert = Annotated[bool, Form(description="The greyscale is inverted: exchange black and white first")]
Force = Annotated[bool, Form(description="Go on although the input gate refuses the image")]


@asynccontextmanager
async def _turn(request: Request, admission: Admission) -> AsyncIterator[Place]:
    """Wait for the turn of a request; nothing is done for a client that did not wait for it."""
    with admission.place(client_of(request.scope)) as place:
        await place.wait_for_turn()
        if await request.is_disconnected():
            raise HTTPException(408, GONE)
        yield place


async def _admitted_film(
    request: Request,
    pipeline: Loaded,
    admission: Admitted,
    image: Film,
    symptoms: Symptoms = "",
    invert: Invert = False,
    force: Force = False,
) -> AsyncIterator[AdmittedFilm]:
    """Open a film before the answer begins, so that a refusal is an error and no broken stream."""

    def work() -> Opened:
        # not before its turn: waiting films stay on disk
        return pipeline.open(
            image.file.read(), symptoms, invert=invert, force=force, request_id=problems.request_id(request)
        )

    async with _turn(request, admission) as place:
        film = AdmittedFilm(await place.run(work), place)
        await image.close()  # a film whose reader is slow takes no disk from others
        try:
            yield film
        finally:
            film.leave()


OpenedFilm = Annotated[AdmittedFilm, Depends(_admitted_film)]


def _add_routes(app: FastAPI, settings: Settings) -> None:
    @app.post(
        "/analyze",
        response_model=Analysis,
        responses=problems.documented(400, 408, 413, 415, 422, 500, 503),
        summary="Analyse a chest radiograph",
    )
    async def analyze(
        request: Request, pipeline: Loaded, readers: Readers, film: OpenedFilm, heatmaps: Heatmaps = "top"
    ) -> Response:
        seen = await film.run(lambda: pipeline.see(film.opened, heatmaps))
        film.leave()  # waiting for a reader takes no place from others
        watch = Control()
        work = functools.partial(_read_and_conclude, pipeline, seen, watch)
        leaving = asyncio.create_task(stop_when_gone(request, watch))
        try:
            analysis = await anyio.to_thread.run_sync(work, limiter=readers)
        except asyncio.CancelledError:  # some servers cancel the request itself when its client goes away
            watch.stop()
            raise
        finally:
            leaving.cancel()
        return Response(analysis, media_type="application/json")

    @app.post(
        "/analyze/stream",
        response_class=EventSourceResponse,
        responses=problems.documented(400, 408, 413, 415, 422, 500, 503),
        summary="Analyse a chest radiograph, and say what is known as soon as it is known",
        description=STREAM_DESCRIPTION,
    )
    async def stream(
        request: Request,
        pipeline: Loaded,
        readers: Readers,
        film: OpenedFilm,
        heatmaps: Heatmaps = "top",
    ) -> AsyncIterator[ServerSentEvent]:
        try:
            async for event in events(pipeline, readers, film, heatmaps):
                yield event
        except Exception as exc:
            id_ = problems.request_id(request)
            log_unforeseen(id_, exc)
            yield ServerSentEvent(event="error", raw_data=problems.unforeseen_problem(id_, exc).model_dump_json())

    @app.post(
        "/render",
        response_class=Response,
        responses={
            200: {"content": {"image/png": {}}, "description": "The film as a grey PNG of at most 1024 px a side"},
            **problems.documented(400, 408, 413, 415, 422, 500, 503),
        },
        summary="Show any accepted file as PNG",
    )
    async def render(
        request: Request, pipeline: Loaded, admission: Admitted, image: Film, invert: Invert = False
    ) -> Response:
        async with _turn(request, admission) as place:
            png = await place.run(lambda: pipeline.render(image.file.read(), invert=invert))
        return Response(png, media_type="image/png")

    @app.get("/health", response_model=Health, summary="Is the server ready, and which models answer?")
    async def health(pipeline: Loaded) -> Health:
        return Health(cnn_ready=True, model=pipeline.cnn.info, reader=pipeline.reader.health(), version=VERSION)

    @app.get("/model", response_model=WeightsCard, summary="The weights card")
    async def model(pipeline: Loaded) -> WeightsCard:
        return pipeline.cnn.card

    @app.get(
        "/model/curves",
        response_model=Curves,
        responses=problems.documented(404),
        summary="ROC curves and reliability of the weights, where they were measured",
    )
    def curves(pipeline: Loaded) -> Curves:
        found = load_curves(settings.cxr_weights, pipeline.cnn.card)
        if found is None:
            raise HTTPException(404, NO_CURVES)
        return found


def __getattr__(name: str) -> FastAPI:
    """Make `main.app` when a server first asks for it, so that importing this module reads no settings."""
    if name == "app":
        app = create_app(Settings())
        globals()["app"] = app
        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
