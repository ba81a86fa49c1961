"""What is answered: an ASGI application."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, final
from urllib.parse import parse_qsl

from vidi.errors import UnreadableImage
from vidi.predictor import Predictor
from vidi.serve.batching import Answer, Batcher
from vidi.serve.counters import Counters
from vidi.serve.decoding import Decoders
from vidi.serve.guard import Guard, Refusal
from vidi.serve.limits import Limits
from vidi.serve.openapi import described
from vidi.serve.page import Page, page

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

_METHODS: Final[Mapping[str, tuple[str, ...]]] = {
    "/": ("GET", "HEAD"),
    "/healthz": ("GET", "HEAD"),
    "/readyz": ("GET", "HEAD"),
    "/metrics": ("GET", "HEAD"),
    "/openapi.json": ("GET", "HEAD"),
    "/predict": ("POST",),
}
_TOP: Final = 5
_JSON: Final = "application/json"


class _Refused(Exception):
    """Ends a request with a status; `reason` is a code where the image is at fault."""

    def __init__(self, status: int, error: str, *, reason: str = "", retry: bool = False) -> None:
        super().__init__(error)
        self.status, self.error, self.reason, self.retry = status, error, reason, retry


@final
class App:
    """`app(scope, receive, send)` for one predictor."""

    def __init__(
        self,
        predictor: Predictor,
        decoders: Decoders,
        guard: Guard,
        limits: Limits,
        *,
        decode_threads: int,
        log: Callable[[str], None] | None = None,
    ) -> None:
        self._predictor = predictor
        self._decoders = decoders
        self._guard = guard
        self._limits = limits
        self._log = log
        self.counters = Counters()
        self.batcher = Batcher(predictor, limits, self.counters.batch)
        self._pool = ThreadPoolExecutor(decode_threads, "decode")
        self._under_way = 0
        self.stopping = False
        heat = "heat" in predictor.network.outputs
        self._page: Page = page(predictor, heat=heat, token=guard.token is not None)
        self._openapi = json.dumps(
            described(predictor.classes, heat=heat, token=guard.token is not None)
        ).encode()

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        started_at = time.monotonic()
        path, method = scope["path"], scope["method"]
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        status, kind, body, more = await self._answered(scope, receive, headers)
        unread = status in (400, 401, 403, 404, 405, 408, 413, 415, 421, 503)
        await _respond(send, status, kind, body, more, close=unread, head=method == "HEAD")
        elapsed_s = time.monotonic() - started_at
        self.counters.request(path if path in _METHODS else "other", status, elapsed_s)
        if self._log is not None:
            raw = scope["raw_path"][:200].decode("latin-1")
            self._log(f"{method[:16]!r} {raw!r} {status} {1000 * elapsed_s:.1f} ms")

    async def _answered(
        self, scope: dict[str, Any], receive: Receive, headers: Mapping[str, str]
    ) -> tuple[int, str, bytes, dict[str, str]]:
        path, method = scope["path"], scope["method"]
        methods = _METHODS.get(path, ()) if scope["raw_path"] == path.encode() else ()
        refusal = self._guard.look(method, path, methods, headers)
        if refusal is None and path == "/predict":
            refusal = self._guard.kind(headers)
        if refusal is not None:
            return _refusal(refusal)
        if path == "/predict":
            return await self._predicted(scope, receive, headers)
        if path == "/":
            return 200, "text/html; charset=utf-8", self._page.html, self._page.headers
        if path == "/openapi.json":
            return 200, _JSON, self._openapi, {}
        if path == "/metrics":
            text = self.counters.text(
                under_way=self._under_way, replaced=self._decoders.num_replaced
            )
            return 200, "text/plain; version=0.0.4; charset=utf-8", text.encode(), {}
        if path == "/readyz" and self.stopping:
            return 503, _JSON, b'{"ready": false}\n', {}
        return 200, _JSON, b'{"ready": true}\n' if path == "/readyz" else b'{"alive": true}\n', {}

    async def _predicted(
        self, scope: dict[str, Any], receive: Receive, headers: Mapping[str, str]
    ) -> tuple[int, str, bytes, dict[str, str]]:
        if self._under_way >= self._limits.queue or self.stopping:
            words = "stopping" if self.stopping else "busy"
            return 503, _JSON, _error(words), {"retry-after": "1"}
        self._under_way += 1
        try:
            async with asyncio.timeout(self._limits.answer_s):
                top, heat = self._asked(scope["query_string"])
                data = await self._body(receive, headers)
                answer = await self._answer(data, heat=heat)
                return 200, _JSON, self._rendered(answer, top), {}
        except _Refused as refused:
            more = {"retry-after": "1"} if refused.retry else {}
            return refused.status, _JSON, _error(refused.error, refused.reason), more
        except TimeoutError:
            return 503, _JSON, _error("it took too long"), {"retry-after": "1"}
        finally:
            self._under_way -= 1

    def _asked(self, query: bytes) -> tuple[int, bool]:
        """`top` and `heat` of the query; anything else is no input of this server."""
        top, heat = _TOP, False
        try:
            pairs = parse_qsl(
                query.decode("ascii"), keep_blank_values=True, strict_parsing=bool(query),
                max_num_fields=4,
            )  # fmt: skip
        except ValueError:
            raise _Refused(400, "the query is malformed") from None
        for name, value in pairs:
            if name == "top" and value.isdecimal() and 1 <= int(value[:9]) <= 10**6:
                top = int(value[:9])
            elif name == "heat" and value in ("true", "false"):
                heat = value == "true" and "heat" in self._predictor.network.outputs
            else:
                raise _Refused(400, "no such input: there are top=1 and up, heat=true or false")
        return min(top, len(self._predictor.classes)), heat

    async def _body(self, receive: Receive, headers: Mapping[str, str]) -> bytes:
        limit = self._limits.body_bytes
        length = headers.get("content-length")
        if length is not None and (len(length) > 12 or int(length) > limit):
            raise _Refused(413, f"at most {limit:,} bytes are read")
        data = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Refused(400, "the client has gone")
                    data += message.get("body", b"")
                    if len(data) > limit:
                        raise _Refused(413, f"at most {limit:,} bytes are read")
                    if not message.get("more_body", False):
                        return bytes(data)
        except TimeoutError:
            raise _Refused(408, "the body came too slowly") from None

    async def _answer(self, data: bytes, *, heat: bool) -> Answer:
        self.batcher.num_coming += 1
        try:
            pixels = await asyncio.get_running_loop().run_in_executor(
                self._pool, self._decoders.decode, data
            )
        except UnreadableImage as error:
            self.counters.refused(error.reason)
            raise _Refused(422, error.sentence, reason=error.reason) from None
        finally:
            self.batcher.num_coming -= 1
        answer = await self.batcher.answer(pixels, heat=heat)
        if not math.isfinite(float(answer.probabilities.sum())):
            raise _Refused(422, "the model's answer is no number", reason="NOT_FINITE")
        return answer

    def _rendered(self, answer: Answer, top: int) -> bytes:
        prediction = self._predictor.prediction(answer.probabilities)
        record: dict[str, Any] = {
            "label": prediction.label,
            "probability": _short(prediction.probability),
            "abstained": prediction.abstained,
            "top": [
                {"label": label, "probability": _short(share)}
                for label, share in prediction.top[:top]
            ],
        }
        if answer.heat is not None:
            largest = max(float(answer.heat.max()), 1e-12)
            contract = self._predictor.pixels
            record["heat"] = {
                "rows": [[round(float(v) / largest, 3) for v in row] for row in answer.heat],
                "resize": contract.resize,
                "share": contract.image_px / contract.store_px,
            }
        return json.dumps(record, allow_nan=False).encode() + b"\n"

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.batcher.close()


async def _respond(
    send: Send,
    status: int,
    kind: str,
    body: bytes,
    more: Mapping[str, str],
    *,
    close: bool,
    head: bool,
) -> None:
    headers = {
        "content-type": kind,
        "content-length": str(len(body)),
        "x-content-type-options": "nosniff",
        "cache-control": "no-store",
        "cross-origin-resource-policy": "same-origin",
        **more,
    }
    if close:
        # The body was not read: what is left of it must not be taken for the next request.
        headers["connection"] = "close"
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }
    )
    await send({"type": "http.response.body", "body": b"" if head else body})


def _refusal(refusal: Refusal) -> tuple[int, str, bytes, dict[str, str]]:
    return refusal.status, _JSON, _error(refusal.error), dict(refusal.headers)


def _error(words: str, reason: str = "") -> bytes:
    record = {"error": words} | ({"reason": reason} if reason else {})
    return json.dumps(record).encode() + b"\n"


def _short(value: float) -> float:
    return float(f"{value:.6g}")
