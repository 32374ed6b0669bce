"""Who is answered, by the head of a request alone, and what every answer tells a browser.

Three things are looked at: the name by which the server was asked for, the site whose page asks, and who the client is.
"""

import base64
import functools
import hashlib
import hmac
import ipaddress
import math
import re
import time
from collections import OrderedDict
from collections.abc import Callable

from fastapi.openapi.docs import get_swagger_ui_html
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope, Send

from api import problems
from api.problems import KEY_HEADER, OPEN_PATH
from modules.reasoners.addresses import is_loopback
from modules.settings import Settings

OWN_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
EVERY_ADDRESS = frozenset({"0.0.0.0", "::"})
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# A reverse proxy stands on the loopback: what it forwards comes from there, and is not from there.
FORWARDED_BY = frozenset({"cf-connecting-ip", "forwarded", "true-client-ip", "via", "x-client-ip", "x-real-ip"})
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::\d{1,5})?")

MINUTE_S = 60.0
MAX_CLIENTS = 10_000  # whose rates are remembered
ROUNDING_S = 1e-4

POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
DOCS_POLICY = f"{POLICY}; connect-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; script-src 'self'"
STATIC_PATH = "/static-offline-docs"  # where fastapi-offline serves the files of the page
ANSWER_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": POLICY,
}

UNKNOWN_HOST = "The server does not go by the name that was asked for. Add the name to ALLOWED_HOSTS and restart it."
OTHER_SITE = "A page of another site asked. Its origin is not among those of CORS_ORIGINS."
NO_KEY_SET = "The server answers other machines only with a key, and has none. Set API_KEY, and restart it."
KEY_WANTED = f"Send the server's key in the header {KEY_HEADER}, or as Authorization: Bearer."
TOO_MANY = "Too many requests came from this address. Send this one again a little later."


class Access:
    """Decides whether a request is answered, before its body is read."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._names = OWN_NAMES | names_of(settings)
        self._origins = frozenset(settings.cors_origins)
        self._key = settings.api_key.get_secret_value().encode() if settings.api_key else None
        self._rate = Rate(settings.rate_limit_per_minute, clock) if settings.rate_limit_per_minute else None
        self._cors = CORSMiddleware(
            Response(),  # never asked: which headers an answer gets is all that is wanted here
            allow_origins=self._origins,
            allow_methods=("GET", "POST"),
            allow_headers=(KEY_HEADER, "Authorization", "X-Request-ID"),
            allow_private_network=True,  # an origin that was named may be a public site, and this a machine at home
            expose_headers=("X-Request-ID", "Retry-After"),
        )

    def answer(self, scope: Scope, headers: Headers, request_id: str) -> Response | None:
        """Return the answer to a request that goes no further, because it is refused or a preflight; else None."""
        if scope["path"] == scope.get("root_path", "") + OPEN_PATH:
            return None
        return self._page(scope, headers, request_id) or self._client(scope, headers, request_id)

    def _page(self, scope: Scope, headers: Headers, request_id: str) -> Response | None:
        """Look at what a browser says of the page that asks."""
        if _name_asked_for(headers) not in self._names:
            return problems.refused(request_id, 421, "unknown_host", UNKNOWN_HOST)
        if self._of_other_site(scope["method"], headers):
            return problems.refused(request_id, 403, "cross_site_request", OTHER_SITE)
        if self._origins and _is_preflight(scope, headers):
            preflight = self._cors.preflight_response(headers)  # no key comes with it, and it reaches no route
            allowed = preflight.status_code == 200
            return preflight if allowed else problems.refused(request_id, 403, "cross_site_request", OTHER_SITE)
        return None

    def _client(self, scope: Scope, headers: Headers, request_id: str) -> Response | None:
        """Look at who asks, and how often."""
        wait_s = self._rate.wait_s(client_of(scope)) if self._rate else 0.0
        if wait_s:
            return problems.refused(request_id, 429, "too_many_requests", TOO_MANY, {"Retry-After": _whole(wait_s)})
        if not from_this_machine(scope, headers) and not self._has_key(headers):
            detail = KEY_WANTED if self._key else NO_KEY_SET
            return problems.refused(request_id, 401, "key_required", detail, {"WWW-Authenticate": "Bearer"})
        return None

    def sending(self, send: Send, headers: Headers) -> Send:
        """Return a `send` that tells a browser whether the page that asked may read the answer, a refusal too."""
        return functools.partial(self._cors.send, send=send, request_headers=headers) if self._origins else send

    def _of_other_site(self, method: str, headers: Headers) -> bool:
        """Say whether another site's page wants something done; as Go's http.CrossOriginProtection decides it."""
        origin = headers.get("origin")
        if method in SAFE_METHODS or origin in self._origins:
            return False
        site = headers.get("sec-fetch-site")
        if site is not None:
            return site not in ("same-origin", "none")
        return origin is not None and origin.partition("://")[2] != headers.get("host", "").lower()

    def _has_key(self, headers: Headers) -> bool:
        given = headers.getlist(KEY_HEADER)
        schemes = [value.partition(" ") for value in headers.getlist("Authorization")]
        given += [rest.strip() for scheme, _, rest in schemes if scheme.lower() == "bearer"]
        key = self._key
        return key is not None and any(hmac.compare_digest(one.encode(), key) for one in given)


class Rate:
    """A number of requests a minute for each client, at once or spread (generic cell rate algorithm, ITU-T I.371).

    Of each client one time is kept. Beyond `MAX_CLIENTS` the one that was silent longest is forgotten.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._period_s = MINUTE_S / per_minute
        self._clock = clock
        self._used_until: OrderedDict[str, float] = OrderedDict()

    @property
    def clients(self) -> int:
        """How many clients are remembered."""
        return len(self._used_until)

    def wait_s(self, client: str) -> float:
        """Count a request and return 0, or do not count it and return after how many seconds it may come again."""
        now = self._clock()
        client = _network_of(client)
        used_until = max(self._used_until.pop(client, now), now)
        wait = used_until + self._period_s - now - MINUTE_S
        refused = wait > ROUNDING_S
        self._used_until[client] = used_until if refused else used_until + self._period_s
        if self.clients > MAX_CLIENTS:
            self._used_until.popitem(last=False)
        return wait if refused else 0.0


def client_of(scope: Scope) -> str:
    """Return the address that a request came from; empty where the server does not say."""
    client = scope.get("client")
    return str(client[0]) if client else ""


def from_this_machine(scope: Scope, headers: Headers) -> bool:
    """Say whether a request came over the loopback, and nobody forwarded it."""
    forwarded = any(name in FORWARDED_BY or name.startswith("x-forwarded") for name in headers)
    return not forwarded and is_loopback(client_of(scope))


def names_of(settings: Settings) -> frozenset[str]:
    """Return the names that the settings give the server: those allowed, its address, and where the dashboard asks."""
    names = set(settings.allowed_hosts)
    if settings.backend_host not in EVERY_ADDRESS:
        host = settings.backend_host.lower()
        names.add(f"[{host}]" if ":" in host else host)
    if settings.backend_url:
        asked = _HOST.fullmatch(re.sub(r"^https?://|/.*", "", settings.backend_url.lower()))
        names |= {asked[1]} if asked else set()
    return frozenset(names)


def stamp(headers: MutableHeaders, method: str) -> None:
    """Put on an answer what keeps browsers and caches from doing more with it than they should."""
    for name, value in ANSWER_HEADERS.items():
        headers.setdefault(name, value)
    if method not in SAFE_METHODS:
        headers["Cache-Control"] = "no-store"  # it holds a film, or what was found on one


def docs_page(request: Request) -> Response:
    """Return the interactive documentation, whose policy allows its own files and its one script within the page."""
    root = request.scope.get("root_path", "")
    page = get_swagger_ui_html(
        openapi_url=f"{root}{request.app.openapi_url}",
        title=request.app.title,
        swagger_js_url=f"{root}{STATIC_PATH}/swagger-ui-bundle.js",
        swagger_css_url=f"{root}{STATIC_PATH}/swagger-ui.css",
        swagger_favicon_url=f"{root}{STATIC_PATH}/favicon.png",
    )
    hashes = [
        hashlib.sha256(script).digest() for script in re.findall(rb"<script>(.*?)</script>", page.body, re.DOTALL)
    ]
    allowed = "".join(f" 'sha256-{base64.b64encode(digest).decode()}'" for digest in hashes)
    page.headers["Content-Security-Policy"] = DOCS_POLICY + allowed
    return page


def _is_preflight(scope: Scope, headers: Headers) -> bool:
    """Say whether a browser asks what a page of another site may ask."""
    return scope["method"] == "OPTIONS" and "origin" in headers and "access-control-request-method" in headers


def _name_asked_for(headers: Headers) -> str | None:
    """Return the host of `Host` without its port; a page of a rebound name gives that name (DNS rebinding)."""
    hosts = headers.getlist("host")
    found = _HOST.fullmatch(hosts[0].lower()) if len(hosts) == 1 else None
    return found[1] if found else None


def _network_of(client: str) -> str:
    """Return what counts as one client: an IPv4 address, or the 64 bits of an IPv6 network, which one host may have."""
    try:
        address = ipaddress.ip_address(client)
    except ValueError:
        return ""  # a proxy's odd word: all such are one
    if isinstance(address, ipaddress.IPv6Address):
        return str(address.ipv4_mapped or ipaddress.ip_network((int(address), 64), strict=False))
    return str(address)


def _whole(seconds: float) -> str:
    return str(max(1, math.ceil(seconds)))
