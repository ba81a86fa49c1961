"""HTTP/1.1 as strictly as a server can be: what two readers could take for two things is refused.

uvicorn and h11 speak the protocol; this adds the time limits and the refusals they do not have:
slow heads, bare line feeds, a length said twice, both ways to say a length, requests in a row
without waiting for answers.
"""

from __future__ import annotations

import asyncio
import re
from typing import Final, final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from vidi.serve.limits import Limits

_BARE_LINE_FEED: Final = re.compile(rb"(?<!\r)\n")
_ONCE: Final = (b"host", b"content-length", b"transfer-encoding", b"content-type", b"authorization")
_REQUEST_LINE: Final = re.compile(rb"[A-Z]{1,20} [\x21-\x7e]+ HTTP/1\.[01]")
_MOST_HEAD_BYTES: Final = 16 << 10


def protocol_of(limits: Limits) -> type[H11Protocol]:
    """The protocol class that uvicorn is given."""

    @final
    class Strict(H11Protocol):
        """One connection."""

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._head = bytearray()
            self._timer: asyncio.TimerHandle | None = None
            if len(self.connections) > limits.connections:
                self._refuse(503, "too many connections")
                return
            self._expect_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            if self._under_way():
                if self.conn.their_state is not h11.SEND_BODY:
                    # The request was whole: this is the next one, before the answer.
                    self._refuse(400, "one request at a time")
                    return
            elif not self._is_sound_head(data):
                return
            super().data_received(data)
            if self._under_way():
                self._stop_timer()
                self._head.clear()
                if self.conn.trailing_data[0]:
                    self._refuse(400, "one request at a time")

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._head.clear()

        def _under_way(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _is_sound_head(self, data: bytes) -> bool:
            """Refuses and says False otherwise; True also while the head is not whole yet."""
            if not self._head and self._timer is None:
                self._expect_head()
            self._head += data
            head, end, _ = bytes(self._head).partition(b"\r\n\r\n")
            if _BARE_LINE_FEED.search(head):
                self._refuse(400, "lines end in CR LF")
            elif len(head) > _MOST_HEAD_BYTES:
                self._refuse(431, "the head is too long")
            elif end and (wrong := _wrong_head(head)):
                self._refuse(400, wrong)
            else:
                return True
            return False

        def _expect_head(self) -> None:
            self._stop_timer()
            self._timer = self.loop.call_later(limits.head_s, self._too_slow)

        def _too_slow(self) -> None:
            self._timer = None
            if not self._under_way() and not self.transport.is_closing():
                self._refuse(408, "too slow")

        def _stop_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _refuse(self, status: int, why: str) -> None:
            """Answer and close, whatever h11 makes of it."""
            self._stop_timer()
            body = f'{{"error": "{why}"}}\n'.encode()
            words = {400: "Bad Request", 408: "Request Timeout", 503: "Service Unavailable"}
            retry = b"Retry-After: 1\r\n" if status == 503 else b""
            self.transport.write(
                b"HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
                b"X-Content-Type-Options: nosniff\r\n%sConnection: close\r\n\r\n%s"
                % (status, words.get(status, "Refused").encode(), len(body), retry, body)
            )
            self.transport.close()

    return Strict


def _wrong_head(head: bytes) -> str:
    """Why two programs could read this head differently; empty when they could not."""
    names: dict[bytes, int] = {}
    lines = head.split(b"\r\n")
    if not _REQUEST_LINE.fullmatch(lines[0]):
        return "that is no request of HTTP/1.1"
    for line in lines[1:]:
        if line[:1] in (b" ", b"\t"):
            return "folded lines are not read"
        name, colon, _ = line.partition(b":")
        if not colon or name != name.strip() or not name:
            return "a line of the head has no name"
        names[name.lower()] = names.get(name.lower(), 0) + 1
    for name in _ONCE:
        if names.get(name, 0) > 1:
            return f"{name.decode()} stands there twice"
    if b"content-length" in names and b"transfer-encoding" in names:
        return "the length is said in two ways"
    if b"host" not in names:
        return "no host"
    return ""
