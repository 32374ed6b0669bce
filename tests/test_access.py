"""Who is answered: by key, by name, by site and by rate; and what every answer tells a browser."""

import base64
import contextlib
import functools
import hashlib
import hmac
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import anyio
import httpx
import pytest
import yaml
from pydantic import SecretStr, ValidationError
from starlette.datastructures import Headers
from starlette.testclient import TestClient
from starlette.types import Message

import launcher
from api.access import ANSWER_HEADERS, MAX_CLIENTS, Access, Rate
from benchmarks.servers import serving_here
from dashboard.client import AssistantClient, ClientError
from main import create_app
from modules.pipeline import Pipeline
from modules.settings import PROJECT_ROOT, Settings, wrong_settings
from tests.api_requests import analyze, assert_problem, failing
from tests.conftest import MakeClient
from tests.fake_server import URL, FakeServer, analysis, png, problem, streamed

KEY = "correct-horse-battery-staple"
ELSEWHERE = ("203.0.113.9", 50_000)
ROUTES = ["/model", "/model/curves", "/docs", "/openapi.json", "/static-offline-docs/swagger-ui.css", "/nowhere"]


def made(**settings: Any) -> Settings:
    """Return settings from what the environment would say."""
    return Settings(_env_file=None, **settings)


@pytest.fixture
def make_stranger(pipeline: Pipeline) -> Iterator[MakeClient]:
    """Start an application and return a client on another machine: `make_stranger(address, api_key=...)`."""
    started: list[TestClient] = []

    def make(client: Any = ELSEWHERE, served: Pipeline = pipeline, **settings: Any) -> TestClient:
        app = create_app(made(**settings), served)
        started.append(TestClient(app, "http://localhost", client=client, raise_server_exceptions=False))
        return started[-1].__enter__()

    yield make
    for one in started:
        one.__exit__()


# ── The key ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("address", ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("key", [None, KEY])
def test_a_client_on_this_machine_needs_no_key(make_stranger: MakeClient, address: str, key: str | None) -> None:
    assert make_stranger((address, 1), api_key=key).get("/model").status_code == 200


@pytest.mark.parametrize("client", [ELSEWHERE, ("192.168.1.2", 1), ("2001:db8::1", 1), ("::ffff:10.0.0.1", 1), None,
                                    ("", 1), ("0.0.0.0", 1), ("localhost", 1), ("127.0.0.1.example", 1)])  # fmt: skip
def test_without_a_key_no_other_client_is_answered(make_stranger: MakeClient, client: Any) -> None:
    refused = make_stranger(client).get("/model", headers={"X-API-Key": "", "Authorization": "Bearer "})
    assert "API_KEY" in assert_problem(refused, 401, "key_required").detail
    assert refused.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ROUTES)
def test_every_route_but_health_wants_the_key(make_stranger: MakeClient, path: str) -> None:
    stranger = make_stranger(api_key=KEY)
    assert "X-API-Key" in assert_problem(stranger.get(path), 401, "key_required").detail
    assert stranger.get(path, headers={"X-API-Key": KEY}).status_code in (200, 404)


@pytest.mark.parametrize("path", ["/analyze", "/analyze/stream", "/render"])
def test_a_film_from_elsewhere_wants_the_key(make_stranger: MakeClient, film_png: bytes, path: str) -> None:
    post = functools.partial(make_stranger(api_key=KEY).post, path, files={"image": ("film", film_png)})
    assert_problem(post(), 401, "key_required")
    assert post(headers={"X-API-Key": KEY}).status_code == 200


@pytest.mark.parametrize("headers", [
    {"X-API-Key": KEY},
    {"Authorization": f"Bearer {KEY}"},
    {"Authorization": f"bearer  {KEY}"},
    {"X-API-Key": "another", "Authorization": f"Bearer {KEY}"},
])  # fmt: skip
def test_the_key_is_taken_in_either_header(make_stranger: MakeClient, headers: dict[str, str]) -> None:
    assert make_stranger(api_key=KEY).get("/model", headers=headers).status_code == 200


@pytest.mark.parametrize("headers", [
    {},
    {"X-API-Key": ""},
    {"X-API-Key": KEY[:-1]},
    {"X-API-Key": f"{KEY}x"},
    {"X-API-Key": KEY.upper()},
    {"X-API-Key": f"Bearer {KEY}"},
    {"X-API-Key": b"\xff\xfe"},
    {"Authorization": KEY},
    {"Authorization": f"Basic {KEY}"},
    {"Authorization": "Bearer"},
    {"Cookie": f"X-API-Key={KEY}"},
])  # fmt: skip
def test_anything_else_is_no_key(make_stranger: MakeClient, headers: Any) -> None:
    stranger = make_stranger(api_key=KEY)
    assert_problem(stranger.get("/model", headers=headers), 401, "key_required")
    assert_problem(stranger.get(f"/model?api_key={KEY}", headers=headers), 401, "key_required")


def test_the_key_is_compared_in_constant_time(make_stranger: MakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        seen.append((one, other))
        return hmac.compare_digest(one, other)

    stranger = make_stranger(api_key=KEY)
    monkeypatch.setattr("api.access.hmac", type("hmac", (), {"compare_digest": staticmethod(compare)}))
    assert stranger.get("/model", headers={"X-API-Key": "guess"}).status_code == 401
    assert stranger.get("/model", headers={"X-API-Key": KEY}).status_code == 200
    assert seen == [(b"guess", KEY.encode()), (KEY.encode(), KEY.encode())]


@pytest.mark.parametrize("header", [
    *("X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "Forwarded", "Via"),
    *("X-Real-IP", "X-Client-IP", "True-Client-IP", "CF-Connecting-IP"),
])  # fmt: skip
def test_what_was_forwarded_is_not_from_this_machine(make_stranger: MakeClient, header: str) -> None:
    proxy = make_stranger(("127.0.0.1", 1), api_key=KEY)
    for value in ("127.0.0.1", "for=127.0.0.1", "https", ""):
        assert_problem(proxy.get("/model", headers={header: value}), 401, "key_required")
    assert proxy.get("/model", headers={header: "127.0.0.1", "X-API-Key": KEY}).status_code == 200


def test_health_answers_anyone_what_it_answers_this_machine(client: TestClient, make_stranger: MakeClient) -> None:
    stranger = make_stranger(api_key=KEY, rate_limit_per_minute=1)
    for _ in range(3):
        answer = stranger.get("/health", headers={"Host": "10.1.2.3:8000"})
        assert answer.status_code == 200
        assert answer.json() == client.get("/health").json()
    for path in ("/health/", "/health/../model", "//health", "/HEALTH", "/model?/health"):
        assert stranger.get(path).status_code in (401, 429)


def test_health_answers_below_a_prefix_too(pipeline: Pipeline) -> None:
    app = create_app(made(), pipeline)
    with TestClient(app, "http://localhost", client=ELSEWHERE, root_path="/films") as stranger:
        assert stranger.get("/films/health").status_code == 200
        assert stranger.get("/films/model").status_code == 401


@pytest.mark.parametrize(("status", "headers", "settings"), [
    (401, [(b"host", b"localhost")], {"api_key": KEY}),
    (421, [(b"host", b"rebound.example")], {}),
    (403, [(b"host", b"localhost"), (b"origin", b"https://other.example")], {}),
    (429, [(b"host", b"localhost")], {"rate_limit_per_minute": 1}),
])  # fmt: skip
def test_who_is_refused_is_refused_before_the_body_is_read(
    pipeline: Pipeline, status: int, headers: list[tuple[bytes, bytes]], settings: dict[str, Any]
) -> None:
    app = create_app(made(**settings), pipeline)
    told: list[Message] = []

    async def receive() -> Message:
        raise AssertionError("the body was asked for")

    async def send(message: Message) -> None:
        told.append(message)

    async def ask(path: str, client: tuple[str, int]) -> None:
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
        }
        scope |= {"path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "client": client}
        length = [(b"content-length", b"99999999999"), (b"content-type", b"multipart/form-data; boundary=X")]
        await app(scope | {"headers": headers + length, "state": {}}, receive, send)

    async def run() -> None:
        client = ELSEWHERE if status == 401 else ("127.0.0.1", 1)
        await ask("/nowhere", client)
        await ask("/analyze", client)

    anyio.run(run)
    assert [message["status"] for message in told if "status" in message][-1] == status
    assert dict(told[-2]["headers"])[b"x-request-id"]


# ── Names ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1", "127.0.0.1:1", "[::1]", "[::1]:8000",
                                  "LocalHost"])  # fmt: skip
def test_the_names_of_this_machine_are_known(client: TestClient, host: str) -> None:
    assert client.get("/model", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["rebound.example", "rebound.example:8000", "localhost.rebound.example", "localhost.",
                                  "127.0.0.1.rebound.example", "127.0.0.2", "", "localhost:x", "localhost@x", "a b",
                                  "localhost, x", "[::1", "[::2]:8000", "192.0.2.1"])  # fmt: skip
def test_another_name_is_refused_as_a_rebound_one_would_be(client: TestClient, film_png: bytes, host: str) -> None:
    refused = client.get("/model", headers={"Host": host, "X-Forwarded-Host": "localhost"})
    assert "ALLOWED_HOSTS" in assert_problem(refused, 421, "unknown_host").detail
    files = {"image": ("film", film_png)}
    assert_problem(client.post("/render", files=files, headers={"Host": host}), 421, "unknown_host")


@pytest.mark.parametrize("names", [[b"localhost", b"rebound.example"], [b"rebound.example", b"localhost"], []])
def test_two_names_or_none_are_no_name(names: list[bytes]) -> None:
    scope = {"path": "/model", "method": "GET", "client": ("127.0.0.1", 1)}
    refused = Access(made()).answer(scope, Headers(raw=[(b"host", name) for name in names]), "an-id")
    assert refused is not None
    assert refused.status_code == 421


@pytest.mark.parametrize(("settings", "host"), [
    ({"allowed_hosts": "films.example, [2001:db8::1]"}, "films.example"),
    ({"allowed_hosts": "films.example, [2001:db8::1]"}, "[2001:db8::1]:443"),
    ({"backend_host": "192.0.2.1"}, "192.0.2.1:8000"),
    ({"backend_host": "2001:DB8::7"}, "[2001:db8::7]:8000"),
    ({"backend_url": "https://Films.example:8443/api/"}, "films.example"),
    ({"backend_url": "http://[2001:db8::7]:8000"}, "[2001:db8::7]:8000"),
])  # fmt: skip
def test_names_that_the_settings_give_are_known(make_client: MakeClient, settings: dict[str, str], host: str) -> None:
    client = make_client(**settings)
    assert client.get("/model", headers={"Host": host}).status_code == 200
    assert client.get("/model").status_code == 200
    assert_problem(client.get("/model", headers={"Host": f"x{host}"}), 421, "unknown_host")


def test_every_address_is_no_name(make_client: MakeClient) -> None:
    client = make_client(backend_host="0.0.0.0", api_key=KEY)
    assert_problem(client.get("/model", headers={"Host": "0.0.0.0:8000"}), 421, "unknown_host")


# ── Sites ────────────────────────────────────────────────────────────────────────────────────────────────────────────

HERE, SITE = "http://127.0.0.1:8000", "https://films.example"
OF_OTHER_SITES = [
    {"Origin": "https://other.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:3000"},
    {"Origin": "http://localhost:8000"},
    {"Origin": "http://127.0.0.1:8000.other.example"},
    {"Origin": HERE, "Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
]
OF_NO_OTHER_SITE = [
    {},
    {"Origin": HERE},
    {"Origin": HERE, "Sec-Fetch-Site": "same-origin"},
    {"Sec-Fetch-Site": "none"},
    {"Origin": "https://behind.a.proxy", "Sec-Fetch-Site": "same-origin"},
]


@pytest.mark.parametrize("path", ["/analyze", "/analyze/stream", "/render"])
@pytest.mark.parametrize("headers", OF_OTHER_SITES)
def test_a_page_of_another_site_cannot_send_a_film(
    client: TestClient, film_png: bytes, path: str, headers: dict[str, str]
) -> None:
    refused = client.post(path, files={"image": ("film", film_png)}, headers=headers)
    assert "CORS_ORIGINS" in assert_problem(refused, 403, "cross_site_request").detail


@pytest.mark.parametrize("headers", OF_NO_OTHER_SITE)
def test_the_servers_own_page_and_programs_can(client: TestClient, film_png: bytes, headers: dict[str, str]) -> None:
    assert client.post("/render", files={"image": ("film", film_png)}, headers=headers).status_code == 200


def test_no_other_site_may_read_answers_unless_it_is_named(client: TestClient) -> None:
    for answer in (client.get("/model", headers={"Origin": SITE}), client.options("/render", headers=asking(SITE))):
        assert not [name for name in answer.headers if name.startswith("access-control")]
    assert client.options("/render", headers=asking(SITE)).status_code == 405


def asking(origin: str, method: str = "POST", headers: str = "x-api-key") -> dict[str, str]:
    """Return the headers of a preflight."""
    names = ("Origin", "Access-Control-Request-Method", "Access-Control-Request-Headers")
    return dict(zip(names, (origin, method, headers), strict=True))


def test_a_site_that_is_named_may_ask_and_read_refusals_too(
    make_stranger: MakeClient, pipeline: Pipeline, film_png: bytes
) -> None:
    stranger = make_stranger(api_key=KEY, cors_origins=SITE, max_upload_mb=1)
    preflight = stranger.options("/analyze", headers=asking(SITE))
    assert preflight.status_code == 200
    assert preflight.headers["Access-Control-Allow-Origin"] == SITE
    assert "x-api-key" in preflight.headers["Access-Control-Allow-Headers"].lower()
    assert "access-control-allow-credentials" not in preflight.headers
    headers = {"Origin": SITE, "Sec-Fetch-Site": "cross-site"}
    with_key = headers | {"X-API-Key": KEY}
    files = {"image": ("film", film_png)}
    answers = {
        200: stranger.post("/render", files=files, headers=with_key),
        401: stranger.post("/render", files=files, headers=headers),
        404: stranger.get("/nowhere", headers=with_key),
        413: stranger.post("/render", content=bytes(1), headers=with_key | {"Content-Length": str(1 << 30)}),
        421: stranger.get("/model", headers=with_key | {"Host": "rebound.example"}),
        500: make_stranger(served=failing(pipeline, OSError()), api_key=KEY, cors_origins=SITE).post(
            "/render", files=files, headers=with_key
        ),
    }
    for status, answer in answers.items():
        assert answer.status_code == status
        assert answer.headers["Access-Control-Allow-Origin"] == SITE
        assert "X-Request-ID" in answer.headers["Access-Control-Expose-Headers"]
        assert "Origin" in answer.headers["Vary"]


@pytest.mark.parametrize("headers", [
    asking("https://other.example"),
    asking("null"),
    asking(f"{SITE}.other.example"),
    asking(SITE, "DELETE"),
    asking(SITE, headers="x-other"),
])  # fmt: skip
def test_a_preflight_of_anything_else_is_refused(make_client: MakeClient, headers: dict[str, str]) -> None:
    refused = make_client(cors_origins=SITE).options("/analyze", headers=headers)
    assert_problem(refused, 403, "cross_site_request")


def test_another_site_than_the_one_named_may_not_read(make_client: MakeClient, film_png: bytes) -> None:
    client = make_client(cors_origins=SITE)
    answer = client.get("/model", headers={"Origin": "https://other.example"})
    assert "access-control-allow-origin" not in answer.headers
    other = {"Origin": "https://other.example", "Sec-Fetch-Site": "cross-site"}
    refused = client.post("/render", files={"image": ("film", film_png)}, headers=other)
    assert_problem(refused, 403, "cross_site_request")
    assert "access-control-allow-origin" not in refused.headers


# ── Rates ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 1e6 / 3

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("per_minute", [1, 7, 60, 6000])
def test_so_many_come_at_once_and_then_so_many_a_minute(per_minute: int) -> None:
    clock = Clock()
    rate = Rate(per_minute, clock)
    assert [rate.wait_s("10.0.0.1") for _ in range(per_minute)] == [0.0] * per_minute
    wait = rate.wait_s("10.0.0.1")
    assert wait == pytest.approx(60 / per_minute, abs=1e-4)
    assert rate.wait_s("10.0.0.1") == wait, "who is refused is not counted"
    clock.now += wait
    assert rate.wait_s("10.0.0.1") == 0.0
    assert rate.wait_s("10.0.0.1") > 0.0
    clock.now += 3600
    assert [rate.wait_s("10.0.0.1") for _ in range(per_minute)] == [0.0] * per_minute
    assert rate.wait_s("10.0.0.1") > 0.0, "an hour of silence saves up no more than a minute"


def test_clients_are_told_apart_as_networks_are_given_out() -> None:
    def refused(*clients: str) -> list[bool]:
        rate = Rate(1, Clock())
        return [rate.wait_s(client) > 0 for client in clients]

    assert refused("10.0.0.1", "10.0.0.2") == [False, False]
    assert refused("10.0.0.1", "::ffff:10.0.0.1") == [False, True]
    assert refused("2001:db8::1", "2001:db8::ffff:1", "2001:db8:0:1::1") == [False, True, False]
    assert refused("", "odd word", "x" * 60_000) == [False, True, True]


def test_only_so_many_clients_are_remembered() -> None:
    rate = Rate(1, Clock())
    for number in range(MAX_CLIENTS + 500):
        rate.wait_s(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
        assert rate.wait_s("192.0.2.1") == (0.0 if number == 0 else 60.0), "one that goes on asking was forgotten"
    assert rate.clients == MAX_CLIENTS
    assert [rate.wait_s("198.51.100.1") for _ in range(2)] == [0.0, 60.0], "a newcomer was not remembered"


def test_too_many_requests_are_429_and_say_when_to_come_back(make_stranger: MakeClient) -> None:
    stranger = make_stranger(api_key=KEY, rate_limit_per_minute=2)
    key = {"X-API-Key": KEY}
    assert stranger.get("/model", headers=key).status_code == 200
    assert_problem(stranger.get("/model"), 401, "key_required")  # a guess counts
    for headers in (key, {}):
        refused = stranger.get("/model", headers=headers)
        assert_problem(refused, 429, "too_many_requests")
        assert 25 <= int(refused.headers["Retry-After"]) <= 30


def test_by_default_no_rate_is_bounded(client: TestClient) -> None:
    assert {client.get("/nowhere").status_code for _ in range(200)} == {404}


# ── What every answer tells a browser ────────────────────────────────────────────────────────────────────────────────


def test_every_answer_has_the_headers(make_stranger: MakeClient, pipeline: Pipeline, film_png: bytes) -> None:
    here, stranger = make_stranger(("127.0.0.1", 1), max_upload_mb=1), make_stranger()
    once = make_stranger(("127.0.0.1", 1), rate_limit_per_minute=1)
    broken = make_stranger(("127.0.0.1", 1), failing(pipeline, OSError("a path")))
    once.get("/model")
    files = {"image": ("film", film_png)}
    answers = [
        (200, here.get("/health")),
        (200, here.get("/model")),
        (200, here.get("/openapi.json")),
        (200, here.get("/static-offline-docs/swagger-ui.css")),
        (200, analyze(here, film_png)),
        (200, here.post("/render", files=files)),
        (200, here.post("/analyze/stream", files=files)),
        (401, stranger.post("/render", files=files)),
        (403, here.post("/render", files=files, headers={"Origin": SITE})),
        (404, here.get("/nowhere")),
        (405, here.get("/analyze")),
        (413, here.post("/render", files={"image": ("film", bytes(3 << 20))})),
        (415, here.post("/render", files={"image": ("film", b"GIF89a")})),
        (421, here.get("/model", headers={"Host": "rebound.example"})),
        (422, here.post("/render")),
        (429, once.get("/model")),
        (500, broken.post("/render", files=files)),
    ]
    for status, answer in answers:
        assert answer.status_code == status
        assert {name: answer.headers[name] for name in ANSWER_HEADERS} == ANSWER_HEADERS
        assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["X-Request-ID"])
        if status != 200 or answer.request.method == "POST":
            assert answer.headers["Cache-Control"] == "no-store"


def test_the_headers_say_what_they_must() -> None:
    assert ANSWER_HEADERS["X-Content-Type-Options"] == "nosniff"
    assert ANSWER_HEADERS["Referrer-Policy"] == "no-referrer"
    assert ANSWER_HEADERS["Cross-Origin-Resource-Policy"] == "same-origin"
    policy = ANSWER_HEADERS["Content-Security-Policy"].split("; ")
    assert {"default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'"} == set(policy)


def test_the_docs_page_allows_its_own_scripts_alone(client: TestClient) -> None:
    page = client.get("/docs")
    policy = dict(part.split(" ", 1) for part in page.headers["Content-Security-Policy"].split("; "))
    (script,) = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy["script-src"].split() == ["'self'", f"'sha256-{digest}'"]
    assert (policy["default-src"], policy["connect-src"], policy["frame-ancestors"]) == ("'none'", "'self'", "'none'")


def test_the_docs_page_works_in_a_browser(pipeline: Pipeline) -> None:
    pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    from benchmarks.dashboard import CHROMIUM, chromium

    if not CHROMIUM.exists():
        pytest.skip(f"no Chromium at {CHROMIUM}")
    with serving_here(create_app(made(), pipeline)) as url, chromium() as browser:
        page = browser.new_page()
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(f"{url}/docs")
        page.get_by_text("The weights card").click()
        page.get_by_role("button", name="Try it out").click()
        page.get_by_role("button", name="Execute").click()
        page.locator(".live-responses-table .response-col_status", has_text="200").wait_for(timeout=10_000)
        assert said == []
        page.evaluate(
            "const s = document.createElement('script'); s.text = 'window.injected = 1'; document.body.append(s)"
        )
        assert page.evaluate("window.injected") is None
        assert any("Content Security Policy" in text for text in said)


# ── OpenAPI ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_openapi_names_the_key_and_the_refusals() -> None:
    schema = create_app(made()).openapi()
    schemes = schema["components"]["securitySchemes"]
    assert schemes == {
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        "bearer": {"type": "http", "scheme": "bearer"},
    }
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            refusals = set() if path == "/health" else {"401", "421", "429"} | ({"403"} if method == "post" else set())
            assert set(operation["responses"]) & {"401", "403", "421", "429"} == refusals
            assert operation.get("security") == (None if path == "/health" else [{}, {"header": []}, {"bearer": []}])


# ── Settings, dashboard, launcher, containers ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("key", ["short", "fifteen-letters", "with spaces in between", "Schlüssel-mit-Umlaut",
                                 "x" * 257, "with-a-line\nbreak-in-it"])  # fmt: skip
def test_a_key_that_could_be_guessed_or_not_be_sent_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(ValidationError) as caught:
        made(api_key=key)
    assert key not in str(caught.value)
    assert wrong_settings(caught.value)[0].startswith("API_KEY: ")


def test_the_key_is_not_shown_with_the_settings() -> None:
    assert KEY not in repr(made(api_key=KEY))
    assert made(api_key="").api_key is None


@pytest.mark.parametrize(("name", "value"), [
    *(("cors_origins", value) for value in ("*", "null", "films.example", "https://films.example/", "https://*.example",
                                            "https://Films.example", "https://films.example:x")),
    *(("allowed_hosts", value) for value in ("*", "*.example", "https://films.example", "films.example:443", "a b")),
    ("rate_limit_per_minute", -1),
])  # fmt: skip
def test_what_opens_the_server_to_everyone_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=name):
        made(**{name: value})


def test_the_dashboard_sends_its_key_with_every_request() -> None:
    server, sent = FakeServer(), []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request.headers.get("X-API-Key"))
        return server(request)

    for key in (SecretStr(KEY), None):
        client = AssistantClient(URL, 5.0, httpx.MockTransport(answer), key)
        server.analyses = [streamed(analysis())]
        for ask in (client.health, client.card, client.curves):
            with contextlib.suppress(ClientError):
                ask()
        client.render("a.png", png())
        assert list(client.stream("a.png", png(), ""))
    assert sent == [KEY] * 5 + [None] * 5


def test_the_dashboards_pages_take_the_key_from_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    from dashboard import pages

    made: list[Any] = []
    monkeypatch.setenv("API_KEY", KEY)
    monkeypatch.setattr(pages, "AssistantClient", lambda *_, **given: made.append(given["api_key"].get_secret_value()))
    for name in ("current_session", "views", "progress", "st"):
        monkeypatch.setattr(pages, name, MagicMock())
    pages.reading_room()
    pages._client_beside_the_queue()
    assert made == [KEY, KEY]


def test_the_dashboard_says_what_a_refusal_needs() -> None:
    def told(status: int, code: str, **headers: str) -> str:
        def answer(_: httpx.Request) -> httpx.Response:
            refused = problem(status, code)
            refused.headers.update(headers)
            return refused

        with pytest.raises(ClientError) as caught:
            AssistantClient(URL, 5.0, httpx.MockTransport(answer)).card()
        return str(caught.value)

    assert "API_KEY" in told(401, "key_required")
    assert "Try again in 7 s" in told(429, "too_many_requests", **{"Retry-After": "7"})


@pytest.mark.parametrize(("host", "key", "opens"), [
    ("127.0.0.1", None, False), ("::1", None, False), ("localhost", None, False), ("0.0.0.0", KEY, False),
    ("0.0.0.0", None, True), ("::", None, True), ("192.0.2.1", None, True), ("films.example", None, True),
])  # fmt: skip
def test_the_launcher_opens_nothing_without_a_key(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], host: str, key: str | None, opens: bool
) -> None:
    started: list[Any] = []
    monkeypatch.setattr(launcher, "Settings", lambda: made(backend_host=host, api_key=key))
    monkeypatch.setattr(launcher, "install_handlers", lambda _: None)

    def run(self: launcher.Launcher) -> int:
        started.append(self)
        return 0

    monkeypatch.setattr(launcher.Launcher, "run", run)
    assert launcher.main() == int(opens)
    assert bool(started) is not opens
    assert ("API_KEY" in capsys.readouterr().err) is opens


def test_the_key_reaches_both_processes_and_no_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("API_KEY", KEY)
    for service in launcher.services(made()):
        assert KEY not in " ".join(service.command)
        out = tmp_path / service.name
        script = f"import os, pathlib; pathlib.Path({str(out)!r}).write_text(os.environ['API_KEY'])"
        probe = launcher.Service(
            service.name, (sys.executable, "-c", script), "127.0.0.1", 1, "", "", "", service.environment
        )
        running = launcher.Launcher([probe], write=lambda _: None)
        running._start(probe)
        running._children[service.name].wait(20)
        assert out.read_text() == KEY


def test_the_containers_want_the_key_and_know_each_other() -> None:
    services = yaml.safe_load((PROJECT_ROOT / "compose.yaml").read_text("utf-8"))["services"]
    for name in ("api", "dashboard"):
        assert re.fullmatch(r"\$\{API_KEY:\?[^}]+\}", services[name]["environment"]["API_KEY"])
    said = services["api"]["environment"]["ALLOWED_HOSTS"]
    settings = made(allowed_hosts=said.replace("${ALLOWED_HOSTS:-}", ""))
    asked = httpx.URL(services["dashboard"]["environment"]["BACKEND_URL"]).host
    assert settings.allowed_hosts == (asked,)


# ── On a real server ─────────────────────────────────────────────────────────────────────────────────────────────────


def own_address() -> str | None:
    """Return an address of this machine that is not the loopback's; nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("203.0.113.1", 9))
        except OSError:
            return None
        address: str = probe.getsockname()[0]
        return None if address.startswith("127.") else address


@pytest.fixture(scope="module", params=[True, False], ids=["proxy-headers", "no-proxy-headers"])
def ports(request: pytest.FixtureRequest, pipeline: Pipeline) -> Iterator[tuple[int, int]]:
    """Two servers on every address, as one starts them by hand, without a key and with one."""
    address = own_address() or "127.0.0.1"
    without = create_app(made(allowed_hosts=address), pipeline)
    with_key = create_app(made(allowed_hosts=address, api_key=KEY), pipeline)
    start = functools.partial(serving_here, host="0.0.0.0", proxy_headers=request.param)
    with start(without) as one, start(with_key) as other:
        yield httpx.URL(one).port or 0, httpx.URL(other).port or 0


def got(host: str, port: int, **headers: str) -> int:
    return httpx.get(f"http://{host}:{port}/model", headers=headers, trust_env=False).status_code


FORWARDED = ["127.0.0.1", "::1", "203.0.113.9", "127.0.0.1, 203.0.113.9", "203.0.113.9, 127.0.0.1", "odd", ""]


def test_a_real_server_answers_the_loopback(ports: tuple[int, int]) -> None:
    assert [got("127.0.0.1", port) for port in ports] == [200, 200]


@pytest.mark.parametrize("forwarded", FORWARDED)
def test_a_real_server_wants_the_key_from_a_proxy_on_the_loopback(ports: tuple[int, int], forwarded: str) -> None:
    for port in ports:
        assert got("127.0.0.1", port, **{"X-Forwarded-For": forwarded}) == 401
        assert got("127.0.0.1", port, Forwarded=f"for={forwarded}") == 401
    assert got("127.0.0.1", ports[1], **{"X-Forwarded-For": forwarded, "X-API-Key": KEY}) == 200


@pytest.mark.skipif(own_address() is None, reason="this machine has no address but the loopback's")
@pytest.mark.parametrize("forwarded", FORWARDED)
def test_a_real_server_wants_the_key_from_another_address(ports: tuple[int, int], forwarded: str) -> None:
    address = own_address() or ""
    assert [got(address, port) for port in ports] == [401, 401]
    assert [got(address, port, **{"X-Forwarded-For": forwarded}) for port in ports] == [401, 401]
    assert [got(address, port, **{"X-API-Key": KEY}) for port in ports] == [401, 200]
    assert httpx.get(f"http://{address}:{ports[0]}/health", trust_env=False).status_code == 200


@pytest.mark.skipif(own_address() is None, reason="this machine has no address but the loopback's")
def test_the_dashboards_client_reaches_a_real_server_by_its_key(ports: tuple[int, int], film_png: bytes) -> None:
    url = f"http://{own_address()}:{ports[1]}"
    told = list(AssistantClient(url, 60.0, api_key=SecretStr(KEY)).stream("film.png", film_png, "", heatmaps="none"))
    assert told[-1][0] == "done"
    with pytest.raises(ClientError, match="API_KEY") as caught:
        AssistantClient(url, 60.0).card()
    assert caught.value.code == "key_required"


def test_a_real_server_refuses_before_the_film_is_sent(ports: tuple[int, int]) -> None:
    head = (
        f"POST /analyze HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 203.0.113.9\r\nContent-Length: {40 << 20}\r\n"
        "Content-Type: multipart/form-data; boundary=X\r\nExpect: 100-continue\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", ports[1]), timeout=5) as connection:
        connection.sendall(head.encode())
        assert connection.recv(64).startswith(b"HTTP/1.1 401 ")
