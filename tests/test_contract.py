"""Every route against the project's own OpenAPI: cases that schemathesis makes, right and wrong, over a real socket.

`CONTRACT_EXAMPLES=1000 pytest tests/test_contract.py` (`make contract`) tries as many cases of each route.
"""

import itertools
import os
from collections import Counter
from collections.abc import Iterator

import hypothesis
import numpy as np
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from benchmarks.servers import serving_here
from main import create_app
from modules.answers import Problem
from modules.pipeline import Pipeline
from modules.settings import Settings
from tests.conftest import as_png
from tests.image_files import dicom

EXAMPLES = int(os.environ.get("CONTRACT_EXAMPLES", "30"))  # of each route
PROBLEM = "application/problem+json"
# What a client that breaks HTTP itself is told; OpenAPI does not list it for each route.
UNDOCUMENTED = {404, 405, 406}
SEEN: Counter[tuple[str, int]] = Counter()  # cases by route and status


contract = schemathesis.openapi.from_dict(create_app(Settings(_env_file=None)).openapi())


@pytest.fixture(scope="module")
def url(pipeline: Pipeline) -> Iterator[str]:
    with serving_here(create_app(Settings(_env_file=None), pipeline)) as address:
        yield address


@pytest.fixture(scope="module")
def films(film_png: bytes, film_pixels: np.ndarray) -> Iterator[bytes]:
    """What is put in the place of random bytes, which no decoder would take: good films and bad ones, in turn."""
    inverted, noise = as_png(255 - film_pixels), np.random.default_rng(1).integers(0, 256, (256, 256), np.uint8)
    return itertools.cycle(
        [film_png, b"", dicom(film_pixels), film_png[:-100], inverted, as_png(noise), b"GIF89a", film_png]
    )


@contract.parametrize()
@hypothesis.settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="CONTRACT_EXAMPLES" not in os.environ,
    suppress_health_check=list(hypothesis.HealthCheck),
)
def test_every_answer_is_one_that_openapi_describes(case: schemathesis.Case, films: Iterator[bytes], url: str) -> None:
    if isinstance(case.body, dict) and isinstance(case.body.get("image"), bytes | str):
        case.body["image"] = next(films)
    response = case.call(base_url=url)
    SEEN[case.operation.path, response.status_code] += 1
    checks = [not_a_server_error]
    if response.status_code not in UNDOCUMENTED:
        checks += [
            status_code_conformance,
            content_type_conformance,
            response_headers_conformance,
            response_schema_conformance,
        ]
    case.validate_response(response, checks=checks)
    assert response.headers["x-request-id"][0]
    if response.status_code >= 400:
        assert response.headers["content-type"][0] == PROBLEM
        problem = Problem.model_validate_json(response.content)
        assert problem.status == response.status_code
        assert problem.code


def test_the_cases_reached_each_kind_of_answer() -> None:
    """Else the test above would have proved nothing."""
    for path in ("/analyze", "/analyze/stream", "/render"):
        assert {200, 400, 415, 422} <= {status for route, status in SEEN if route == path}, SEEN
    assert {route for route, status in SEEN if status == 200} >= {"/health", "/model"}
