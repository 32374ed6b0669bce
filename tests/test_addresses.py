"""Whether an address is this machine, and how it is named."""

import socket
from typing import Any

import httpx2
import pytest

from modules.errors import ReaderUnavailable
from modules.reasoners.addresses import described, is_this_machine, place_of

HERE = (
    "http://127.0.0.1:11434/v1",
    "https://127.0.0.1",
    "HTTP://127.0.0.1:1",
    "http://127.255.3.4:80/",
    "http://[::1]:8000/v1",
    "http://[::1]",
    "http://[::ffff:127.0.0.1]:8000",
    "http://localhost:1234/v1?x=1",
)
ELSEWHERE = (
    "http://0.0.0.0:8000",
    "http://[::]:8000",
    "http://127.0.0.1@evil.example/",
    "http://127.0.0.1:80@evil.example/",
    "http://user:word@127.0.0.1/",
    "http://127.0.0.1\\@evil.example/",
    "http://evil.example\\@127.0.0.1/",
    "http://evil.example#@127.0.0.1/",
    "http://evil.example?@127.0.0.1/",
    "http://127.0.0.1.evil.example/",
    "http://localhost.evil.example/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0x7f.0.0.1/",
    "http://0177.0.0.1/",
    "http://127.1/",
    "http://127.0.0.1./",
    "http://localhost./",
    "http://LOCALHOST/",
    "http://Localhost/",
    "http://①②⑦.0.0.1/",
    "http://127。0。0。1/",
    "http://lоcalhost/",  # a Cyrillic o
    "http://[::1%25lo]/",
    "http://[::ffff:8.8.8.8]/",
    "http://[127.0.0.1]/",
    "http://::1/",
    "http://[::1",
    "http://127.0.0.1:99999/",
    "http://127.0.0.1:0/",
    "http://127.0.0.1:80:80/",
    "http:// 127.0.0.1/",
    "http://127.0.0.1\n/",
    "http:127.0.0.1",
    "//127.0.0.1/",
    "127.0.0.1:8000",
    "file://127.0.0.1/",
    "ftp://127.0.0.1/",
    "http://192.168.0.1/",
    "http://10.0.0.1/",
    "http://128.0.0.1/",
    "http://[fe80::1]/",
    "http://",
    "http://:80/",
    "http:///v1",
    "",
)


@pytest.mark.parametrize("url", HERE)
def test_the_plain_spellings_of_this_machine(url: str) -> None:
    assert is_this_machine(url)
    assert described(url).startswith("nowhere else: to a server on this machine (")


@pytest.mark.parametrize("url", ELSEWHERE)
def test_everything_else_is_elsewhere(url: str) -> None:
    assert not is_this_machine(url)


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://a.example", "127.0.0.1:8000", "http://", "", "http://a b"]
)
def test_only_http_with_a_host_is_an_address(url: str) -> None:
    with pytest.raises(ReaderUnavailable, match="OPENAI_BASE_URL"):
        described(url)


def test_localhost_must_resolve_to_this_machine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolving_to(*addresses: str) -> None:
        found: list[Any] = [(socket.AF_INET, 0, 0, "", (address, 0)) for address in addresses]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args: found)

    resolving_to("127.0.0.1", "::1")
    assert is_this_machine("http://localhost:1")
    resolving_to("127.0.0.1", "203.0.113.9")
    assert not is_this_machine("http://localhost:1")
    resolving_to()
    assert not is_this_machine("http://localhost:1")

    def failing(*args: object) -> None:
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", failing)
    assert not is_this_machine("http://localhost:1")


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("http://127.0.0.1:11434/v1", "nowhere else: to a server on this machine (127.0.0.1:11434)"),
        ("http://[::1]:8000", "nowhere else: to a server on this machine ([::1]:8000)"),
        ("https://api.example.org/v1/secret?key=1", "to api.example.org:443"),
        ("http://API.example.org", "to api.example.org:80, over an unencrypted connection"),
        ("https://user:word@gpu.example.org:8443/v1", "to gpu.example.org:8443"),
        ("http://127.0.0.1@evil.example/", "to evil.example:80, over an unencrypted connection"),
        ("https://аpple.example", "to xn--pple-43d.example:443"),
    ],
)
def test_a_place_is_named_without_path_and_credentials(url: str, place: str) -> None:
    assert described(url) == place


def test_the_place_is_the_one_that_the_client_connects_to() -> None:
    for url in (*HERE, *ELSEWHERE):
        try:
            place, parsed = place_of(url), httpx2.URL(url)
        except (ReaderUnavailable, httpx2.InvalidURL):
            continue  # no connection at all
        port = parsed.port or {"http": 80, "https": 443}[parsed.scheme]
        host = parsed.raw_host.decode()
        assert place in (f"{host}:{port}", f"[{host}]:{port}"), url
