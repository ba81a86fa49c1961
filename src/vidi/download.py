"""Files over the network: continued where they broke off, checked, and there whole or not at all.

Only what somebody asked for by name is downloaded. Proxies are those of the environment.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO, Any

from vidi.errors import DamagedError, UsageError
from vidi.storage import explained

# More than any file that is downloaded here; a server that sends it is hostile.
_MAX_BYTES = 8 * 2**30
_CHUNK_BYTES = 1 << 20
# No byte for so long, or fewer than `_SLOWEST` a second over so long, is a dead connection.
_TIMEOUT_S = 30.0
_SLOWEST_BYTES_PER_S = 1024
# After a connection that broke: what is missing is asked for again after these waits.
_PAUSES_S = (0.5, 2.0, 5.0)

Watch = Callable[[int, int | None], None]


class _Broken(Exception):
    """The connection failed, and the next one may do better."""


def verify(path: Path, sha256: str) -> None:
    """
    Raises:
        DamagedError: the file is missing or has other contents; both digests are named.
    """
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DamagedError(f"cannot read {path}: {error.strerror}") from None
    if not found.startswith(sha256):
        raise DamagedError(
            f"{path} is not the file that was published: "
            f"SHA-256 {found[:16]}..., not {sha256[:16]}...",
            fix="delete it and fetch it again",
        )


def download(
    url: str,
    path: Path,
    *,
    sha256: str,
    size_bytes: int | None = None,
    watch: Watch | None = None,
    instead: str = "",
) -> None:
    """Fetch a file to `path`; what an interrupted download left is continued.

    Until it is complete and has the right digest it is called `path` + ".part".

    Args:
        sha256: of the file, in hexadecimal; all of it, or its first digits.
        size_bytes: about how large it is; much more is not downloaded.
        watch: told (bytes so far, bytes in all or None).
        instead: what else one can do where there is no network.

    Raises:
        UsageError: the network or the server fails, with what to do without it.
        DamagedError: the server's file is not the one that was published.
        StorageError: it cannot be written.
    """
    part = path.with_name(f"{path.name}.part")
    limit = _MAX_BYTES if size_bytes is None else size_bytes + size_bytes // 20 + 2**20
    for attempt in range(2):
        continued = _fetch(url, part, limit, watch, instead)
        try:
            verify(part, sha256)
        except DamagedError:
            with contextlib.suppress(OSError):
                part.unlink()
            # What was continued may be the beginning of another file; once more, from nothing.
            if continued and attempt == 0:
                continue
            raise DamagedError(
                f"{url} gives a file that is not the one that was published",
                fix=f"try again later, or put the right one (SHA-256 {sha256}...) at {path}",
            ) from None
        with explained("cannot keep", path):
            part.replace(path)
        return


def _fetch(url: str, part: Path, limit: int, watch: Watch | None, instead: str) -> bool:
    """All that is missing of `url` into `part`; True when there was something to continue."""
    path = part.with_name(part.name.removesuffix(".part"))
    continued = part.is_file() and part.stat().st_size > 0
    for pause_s in (*_PAUSES_S, None):
        had = part.stat().st_size if part.is_file() else 0
        try:
            _ask(url, part, limit, watch)
            return continued
        except _Broken as error:
            has = part.stat().st_size if part.is_file() else 0
            # A connection that brought something is worth another one.
            if pause_s is not None and has > had:
                time.sleep(pause_s)
                continue
            elsewhere = f"fetch it elsewhere and put it at {path}"
            raise UsageError(
                f"cannot download {url}: {error}",
                fix=f"the same command continues it; or {elsewhere}"
                + (f"; or {instead}" if instead else ""),
            ) from None
    raise AssertionError


def _ask(url: str, part: Path, limit: int, watch: Watch | None) -> None:
    """One request for what is missing. Raises _Broken, UsageError, StorageError."""
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "vidi"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    opener = urllib.request.build_opener(_NoDowngrade)
    try:
        with opener.open(request, timeout=_TIMEOUT_S) as answer:
            start = have if answer.status == 206 else 0
            stated = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
            if answer.status == 206 and stated and int(stated[1]) != have:
                raise _Broken(f"asked from byte {have}, the server answers from byte {stated[1]}")
            length = answer.headers.get("Content-Length", "")
            total = start + int(length) if length.isdigit() else None
            _receive(answer, part, start, total, limit, watch)
    except urllib.error.HTTPError as error:
        error.close()
        # The whole file is there already: nothing lies beyond its end.
        if error.code == 416 and have:
            return
        raise _Broken(f"the server answers {error.code} {error.reason}") from None
    except (urllib.error.URLError, TimeoutError, ConnectionError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise _Broken(str(reason) or type(error).__name__) from None


def _receive(
    answer: Any, part: Path, start: int, total: int | None, limit: int, watch: Watch | None
) -> None:
    if total is not None and total > limit:
        raise UsageError(f"the server's file has {total:,} bytes; expected are {limit:,} at most")
    received = start
    looked_at, seen = time.monotonic(), received
    with part.open("ab" if start else "wb") as file:
        # A read that fails is the network's doing, a write that fails the disk's.
        while chunk := answer.read1(_CHUNK_BYTES):
            received += len(chunk)
            if received > limit:
                raise UsageError(f"the server sends more than the {limit:,} bytes expected")
            with explained("cannot write", part):
                file.write(chunk)
            if watch is not None:
                watch(received, total)
            now = time.monotonic()
            if now - looked_at > _TIMEOUT_S:
                if received - seen < _SLOWEST_BYTES_PER_S * (now - looked_at):
                    raise _Broken(f"{received - seen:,} bytes in {now - looked_at:.0f} s")
                looked_at, seen = now, received
        with explained("cannot write", part):
            file.flush()
            os.fsync(file.fileno())
    if total is not None and received < total:
        raise _Broken(f"the connection ended after {received:,} of {total:,} bytes")


class _NoDowngrade(urllib.request.HTTPRedirectHandler):
    """Follows redirections, but never from an encrypted connection to a plain one."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise urllib.error.URLError(f"redirected to {newurl}, which is not encrypted")
        return super().redirect_request(req, fp, code, msg, headers, newurl)
