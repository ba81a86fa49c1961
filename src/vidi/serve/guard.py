"""Who may ask what: looked at before anything else is done with a request.

A web page in the user's browser must not reach a server on the user's machine. So the host is one
that was named, a request from another site is refused, no request that a page may send without
being asked first (form, text) is read, and no answer allows another site anything.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

_HOST: Final = re.compile(r"(\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9]([A-Za-z0-9.-]{0,252}))(:\d{1,5})?")
_IMAGE: Final = re.compile(r"(image/[a-z0-9.+-]{1,60}|application/octet-stream)")
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
# May be asked without the token: they say nothing about the model, and browsers and probes send
# none.
_OPEN: Final = frozenset({"/", "/healthz", "/readyz", "/openapi.json"})


@dataclass(frozen=True)
class Refusal:
    """Why not, and what a client should know about it."""

    status: int
    error: str
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Guard:
    """hosts: names by which this server may be called, lower case. token: None: none is needed."""

    hosts: frozenset[str]
    token: bytes | None = None

    def look(
        self, method: str, path: str, methods: Sequence[str], headers: Mapping[str, str]
    ) -> Refusal | None:
        """None: go on. methods: those that this path has, none for one that is not there."""
        host = headers.get("host", "")
        if not _HOST.fullmatch(host):
            return Refusal(400, "the host is malformed", {})
        if self._name(host) not in self.hosts:
            return Refusal(421, "this server does not go by that name", {})
        origin = headers.get("origin")
        if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
            return Refusal(403, "asked by another site", {})
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return Refusal(403, "asked by another site", {})
        if not methods:
            return Refusal(404, "nothing is there", {})
        if method not in methods:
            return Refusal(405, "not that way", {"allow": ", ".join(methods)})
        if self.token is not None and path not in _OPEN and not self._knows(headers):
            return Refusal(401, "the token is missing or wrong", {"www-authenticate": "Bearer"})
        return None

    @staticmethod
    def kind(headers: Mapping[str, str]) -> Refusal | None:
        """Whether the body says that it is an image. None: it does."""
        kind = headers.get("content-type", "").split(";")[0].strip().lower()
        if kind == "application/json":
            return Refusal(
                400, "no such input: the body is the bytes of one image, no URL, no path", {}
            )
        if not _IMAGE.fullmatch(kind):
            return Refusal(
                415,
                "send the bytes of one image and say what they are: curl --data-binary @photo.jpg "
                "-H 'Content-Type: image/jpeg' .../predict",
                {},
            )
        return None

    @staticmethod
    def _name(host: str) -> str:
        return re.sub(r":\d+$", "", host).lower()

    def _knows(self, headers: Mapping[str, str]) -> bool:
        given = headers.get("authorization", "")
        word, _, token = given.partition(" ")
        assert self.token is not None
        # Takes as long for a token that is nearly right.
        return hmac.compare_digest(token.strip().encode(), self.token) and word.lower() == "bearer"


def names_of(address: str, more: Sequence[str] = ()) -> frozenset[str]:
    """Under which names a server at this address may be called."""
    names = {name.lower() for name in more}
    if is_loopback(address):
        return frozenset(names) | _LOOPBACK
    bound = ipaddress.ip_address(address)
    if not bound.is_unspecified:
        names.add(f"[{address}]" if bound.version == 6 else address)
    return frozenset(names)


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches it."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
