"""The application in several processes: `RAY_AUTH_MODE=token serve run scale.serve:build replicas=2 cpus=1`.

Each replica is a process with `main.create_app`, its own pipeline, and its share of the cores; Ray Serve gives requests
to them, starts another one where one is lost, and, where `max_replicas` says so, as many as there is work for.
"""

import os
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.types import ASGIApp, Receive, Scope, Send

from api.streaming import READER_THREADS
from main import create_app
from modules.settings import Settings, wrong_settings
from scale import INSTALL
from scale.environment import environment

NAME = "assistant"
HEALTH_PERIOD_S = 2.0  # chosen: after it a replica that was lost is noticed and another one started
UPSCALE_DELAY_S = 5.0  # chosen: a replica takes longer than that to start
DOWNSCALE_DELAY_S = 120.0  # chosen
TOKEN_WANTED = (
    "Start it as: RAY_AUTH_MODE=token serve run … Without a token, whoever reaches Ray's ports on this machine can run "
    "code. RAY_AUTH_MODE=disabled says that none is wanted."
)
SHUTDOWN_S = 20.0  # chosen: how long films that are under way may take when a replica is told to end


class Arguments(BaseModel):
    """What `serve run scale.serve:build` takes, as name=value."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    replicas: int = Field(1, ge=1, le=1024, description="Processes to begin with, and at least.")
    max_replicas: int | None = Field(None, ge=1, le=1024, description="Processes under load; by default no more.")
    cpus: float = Field(1.0, gt=0, allow_inf_nan=False, description="Cores of each; its network has as many threads.")
    gpu_fraction: float = Field(
        0.0, ge=0, le=1, description="Share of one GPU of each; 0: the network runs on the CPU."
    )

    @model_validator(mode="after")
    def _at_least_as_many(self) -> "Arguments":
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError("max_replicas must be at least replicas")
        return self


def build(args: Arguments) -> Any:
    """Return the application for `serve run`, which starts Ray only after this: on its own, it starts as set here."""
    if "RAY_AUTH_MODE" not in os.environ:  # Ray has read it by now: set here, its own processes would not be let in
        raise SystemExit(TOKEN_WANTED)
    try:
        from ray import serve
    except ImportError as exc:
        raise SystemExit(INSTALL) from exc
    try:
        settings = Settings()
    except ValidationError as exc:
        raise SystemExit(f"The setting {wrong_settings(exc)[0]}.") from None  # without its value: it may be a key
    os.environ.update(environment())
    return serve.deployment(serve.ingress(application)(), **options(args, settings)).bind()


def options(args: Arguments, settings: Settings) -> dict[str, Any]:
    """Return what Ray Serve is told of the replicas."""
    threads = str(max(1, int(args.cpus)))
    places = settings.max_concurrent_analyses + settings.max_queued_analyses
    device = {} if args.gpu_fraction else {"CNN_DEVICE": "cpu"}
    env_vars = {"CNN_THREADS": threads, "OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE", **device}
    scaling: dict[str, Any] = {"num_replicas": args.replicas}
    if args.max_replicas not in (None, args.replicas):
        scaling = {
            "autoscaling_config": {
                "min_replicas": args.replicas,
                "max_replicas": args.max_replicas,
                "target_ongoing_requests": settings.max_concurrent_analyses,
                "upscale_delay_s": UPSCALE_DELAY_S,
                "downscale_delay_s": DOWNSCALE_DELAY_S,
            }
        }
    return {
        "name": NAME,
        # A replica refuses films beyond its places itself. What waits for a second reader has left its place.
        "max_ongoing_requests": places + READER_THREADS,
        "max_queued_requests": places,
        "ray_actor_options": {
            "num_cpus": args.cpus,
            "num_gpus": args.gpu_fraction,
            "runtime_env": {"env_vars": env_vars},  # no keys: Ray logs it
        },
        "health_check_period_s": HEALTH_PERIOD_S,
        "graceful_shutdown_timeout_s": SHUTDOWN_S,
        "logging_config": {"enable_access_log": False},  # the application logs its requests, with less of them
        **scaling,
    }


def application() -> ASGIApp:
    """Make the application of a replica, inside its process; its start-up loads and checks the network."""
    return WithState(create_app(Settings()))


class WithState:
    """Gives requests what the application's start-up made, as the ASGI specification has it and Ray Serve does not."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._state: dict[str, Any] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle the start-up, or one request."""
        if scope["type"] == "lifespan":
            await self._app({**scope, "state": self._state}, receive, send)
        else:
            await self._app({**scope, "state": dict(self._state)}, receive, send)
