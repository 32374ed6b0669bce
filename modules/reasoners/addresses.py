"""Where a film would go: whether an address is this machine, and how it is named to the user."""

import ipaddress
import re
import socket
from urllib.parse import SplitResult, urlsplit

from modules.errors import ReaderUnavailable

# What some parsers drop, and others take for the end of the host.
_DISPUTED = re.compile(r"[\x00-\x20\x7f\\]")
_PORT = re.compile(r":[0-9]*$")
_PORTS = {"http": 80, "https": 443}


def is_this_machine(url: str) -> bool:
    """Say whether an address is this machine, in its plainest spelling only; whatever is disputable is elsewhere."""
    try:
        parts = _parts(url)
    except ReaderUnavailable:
        return False
    host = _PORT.sub("", parts.netloc)  # as it was typed: a user name, a dot at the end, capitals all say no
    if host == "localhost":
        return _resolves_to_this_machine(host)
    if host.startswith("["):
        host = host[1:-1] if ":" in host else ""
    return is_loopback(host)


def described(url: str) -> str:
    """Return where a film goes, in words, without the address's path or credentials; raises ReaderUnavailable."""
    place = place_of(url)
    if is_this_machine(url):
        return f"nowhere else: to a server on this machine ({place})"
    return f"to {place}" if _parts(url).scheme == "https" else f"to {place}, over an unencrypted connection"


def place_of(url: str) -> str:
    """Return HOST:PORT of an http or https address; raises ReaderUnavailable."""
    parts = _parts(url)
    host = (parts.hostname or "").encode("idna").decode()  # letters that look like others show as xn--
    port = parts.port or _PORTS[parts.scheme]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _parts(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        # both raise ValueError where the port, or the name, cannot be one
        usable = parts.port != 0 and (parts.hostname or "").encode("idna") != b""
    except ValueError:
        usable = False
    if not usable or parts.scheme not in _PORTS or _DISPUTED.search(url):
        raise ReaderUnavailable("OPENAI_BASE_URL must start with http:// or https:// and name a host.")
    return parts


def _resolves_to_this_machine(host: str) -> bool:
    try:
        found = socket.getaddrinfo(host, None)
    except OSError:
        return False
    return bool(found) and all(is_loopback(str(entry[4][0])) for entry in found)


def is_loopback(text: str) -> bool:
    """Say whether a text is an address of the loopback, IPv4-mapped ones too."""
    if "%" in text:  # an interface is named
        return False
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
