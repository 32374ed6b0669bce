"""The recipe of a training run, as its TOML file holds it."""

import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from modules.records import Record
from modules.settings import PROJECT_ROOT
from modules.weights import Preprocessing

IMAGENET: Literal["imagenet"] = "imagenet"
RECIPE = PROJECT_ROOT / "training" / "cxr14.toml"
# What a run can start from, as a recipe names it.
STARTS: dict[str, str | None] = {"shipped": "assets/weights", IMAGENET: IMAGENET, "scratch": None}

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
AtLeastOne = Annotated[int, Field(ge=1)]


class RecipeError(ValueError):
    """The recipe cannot be used; the message says what to change."""


class Phase(Record):
    """Some epochs at one input size."""

    side: int = Field(ge=32, le=1024, description="Side of the network's input, in pixels")
    epochs: AtLeastOne


class Cycle(Record):
    """One rise and fall of the learning rate (Smith, 2018); a later one starts from the averaged weights before it."""

    peak_learning_rate: Positive
    warm_up: float = Field(
        ge=0.0, lt=1.0, description="Share of the steps in which the rate rises; it then falls as a cosine to 0"
    )
    average_decay: Share = Field(description="Of the exponential moving average of weights and statistics, a step")
    phases: Annotated[tuple[Phase, ...], Field(min_length=1)]


class Optimisation(Record):
    """AdamW (Loshchilov and Hutter, ICLR 2019)."""

    batch: AtLeastOne = Field(description="Films a step, over all processes")
    weight_decay: float = Field(ge=0.0)
    largest_gradient: Positive = Field(description="Norm to which gradients are clipped")
    patience: AtLeastOne = Field(description="Epochs at the serving size without a better validation AUROC")


class Augmentation(Record):
    """Random changes of a training film."""

    reduce_to: int = Field(ge=16, description="Side to which some films are reduced, so that sharpness tells nothing")
    reduced: Share = Field(description="Share of the films that are reduced")
    mirror: Share
    rotation_degrees: float = Field(ge=0.0, le=45.0)
    scale: Share = Field(description="Largest change of size, as a share")
    stretch: Share = Field(description="Largest change of the aspect ratio, as a share")
    shift: Share = Field(description="Largest displacement, as a share of the side")
    gamma: float = Field(ge=0.0, description="Largest change of log gamma")
    contrast: Share
    brightness: Share
    noise: float = Field(ge=0.0, description="Largest standard deviation of added noise, in grey levels of [0, 1]")
    erased: Share = Field(description="Share of the films of which a rectangle is greyed out")
    mixed: Share = Field(
        description="Share of the steps whose films are mixed in pairs (mixup, Zhang et al., ICLR 2018)"
    )
    mixing: Positive = Field(description="Both parameters of the Beta distribution that a mixing share is drawn from")


class Recipe(Record):
    """Everything that decides the weights, beside the films."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    seed: int = Field(ge=0)
    initial_weights: str | None = Field(
        None, description="Weights folder to start from, or imagenet; without it, from scratch"
    )
    processes: AtLeastOne = 1
    left_out_of_mean: tuple[str, ...] = Field((), description="Pathologies without a part in the mean AUROC of choice")
    preprocessing: Preprocessing
    optimisation: Optimisation
    augmentation: Augmentation
    cycles: Annotated[tuple[Cycle, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _ends_as_it_serves(self) -> Self:
        if self.cycles[-1].phases[-1].side != self.preprocessing.input_size:
            raise ValueError(f"the last phase must have the serving size, {self.preprocessing.input_size} pixels")
        return self


def read_recipe(path: Path) -> Recipe:
    """Read and validate a recipe; raises RecipeError with the first thing that is wrong."""
    try:
        return Recipe.model_validate(tomllib.loads(path.read_text("utf-8")))
    except (OSError, UnicodeDecodeError) as exc:
        raise RecipeError(f"{path} cannot be read.") from exc
    except tomllib.TOMLDecodeError as exc:
        raise RecipeError(f"{path} is no TOML file: {exc}.") from exc
    except ValidationError as exc:
        first = exc.errors()[0]
        raise RecipeError(f"{path}: {'.'.join(str(part) for part in first['loc'])}: {first['msg']}.") from exc


def starting_from(recipe: Recipe, start: str) -> Recipe:
    """Return the recipe with another start, one of STARTS."""
    return recipe.model_copy(update={"initial_weights": STARTS[start]})
