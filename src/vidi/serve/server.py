"""The process: a socket, the application, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import os
import re
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vidi.cores import usable_cores
from vidi.errors import InUseError, MissingExtra, UsageError
from vidi.malloc import keep_memory
from vidi.predictor import Predictor, load
from vidi.serve.app import App
from vidi.serve.decoding import Decoders
from vidi.serve.guard import Guard, is_loopback, names_of
from vidi.serve.limits import Limits
from vidi.storage import shown

# Between "not ready" and the end of listening: who balances load looks about once a second.
_DRAIN_S: Final = 1.0
_SHORTEST_TOKEN: Final = 16
# Blocks up to here stay with the process: a batch, not the largest body.
_KEPT_BYTES: Final = 16 << 20
_TOKEN_VARIABLE: Final = "VIDI_TOKEN"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a server listens and who may ask it."""

    host: str = "127.0.0.1"
    # 0: any that is free.
    port: int = 8000
    # A path instead of host and port.
    unix: Path | None = None
    # Further names by which it may be called, such as that of a proxy in front.
    allowed_hosts: tuple[str, ...] = ()
    token_file: Path | None = None


def serve(
    model: str | Path | Predictor,
    place: Place | None = None,
    limits: Limits | None = None,
    *,
    access_log: bool = False,
    say: Callable[[str], None] | None = None,
    on_ready: Callable[[App, str], None] | None = None,
) -> None:
    """Answer until SIGTERM or SIGINT, then finish what is under way.

    Args:
        model: a bundle, a run, or what `vidi.load` gave.
        place: where to listen; at 127.0.0.1, port 8000, if left out.
        limits: what to put up with.
        access_log: one line a request on standard error.
        say, on_ready: are told when it listens.

    Raises:
        UsageError: an address off loopback without a token, or one that is none.
        InUseError: somebody else listens there.
        MissingExtra: uvicorn is not installed.
    """
    place, limits = place or Place(), limits or Limits()
    keep_memory(block_bytes=_KEPT_BYTES)
    predictor = model if isinstance(model, Predictor) else load(model)
    uvicorn, protocol = _uvicorn(limits)
    token = read_token(place.token_file)
    guard = Guard(_names(place, token), token)
    listening = _listen(place)
    cores = usable_cores()
    with contextlib.ExitStack() as stack:
        stack.callback(listening.close)
        decoders = stack.enter_context(Decoders(predictor.pixels, cores, limits.decode_s))
        log = _logged if access_log else None
        app = App(predictor, decoders, guard, limits, decode_threads=cores, log=log)
        stack.callback(app.close)
        config = uvicorn.Config(
            app,
            http=protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=limits.idle_s,
            timeout_graceful_shutdown=int(limits.stop_s),
            backlog=limits.connections,
        )
        # Its warnings are about single requests; those are counted and answered.
        logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        address = _address(place, listening)
        tell = say or (lambda _: None)
        ready = on_ready or (lambda _, __: None)
        asyncio.run(_run(uvicorn.Server(config), app, listening, address, tell, ready))
    if place.unix is not None:
        place.unix.unlink(missing_ok=True)


async def _run(
    server: Any,
    app: App,
    listening: socket.socket,
    address: str,
    say: Callable[[str], None],
    on_ready: Callable[[App, str], None],
) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()

    def stop() -> None:
        if app.stopping:
            # Told twice: at once.
            server.force_exit = True
        app.stopping = True
        stopped.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    # Its own handlers would end the process by the signal; a server that was told to stop did well.
    server.capture_signals = contextlib.nullcontext
    batches = asyncio.create_task(app.batcher.run())
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.005)
    say(f"serving at {address}")
    on_ready(app, address)
    waiting = asyncio.create_task(stopped.wait())
    await asyncio.wait({waiting, serving}, return_when=asyncio.FIRST_COMPLETED)
    say("stopping: what is under way is finished")
    with contextlib.suppress(TimeoutError):
        if not server.force_exit:
            await asyncio.sleep(_DRAIN_S)
    server.should_exit = True
    await serving
    waiting.cancel()
    batches.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await batches


def _uvicorn(limits: Limits) -> tuple[Any, Any]:
    try:
        import uvicorn

        from vidi.serve.protocol import protocol_of
    except ImportError:
        raise MissingExtra(
            "serving needs uvicorn and h11", fix="pip install 'vidi[serve]'"
        ) from None
    return uvicorn, protocol_of(limits)


def read_token(path: Path | None) -> bytes | None:
    """From a file or from the variable VIDI_TOKEN, never from the command line, which all can see.

    Raises:
        UsageError: no such file, one that others can read, or a token that can be guessed.
    """
    if path is not None:
        try:
            about = path.stat()
            text = path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"no token can be read from {shown(path)}: {error}") from None
        if stat.S_IMODE(about.st_mode) & 0o077:
            raise UsageError(
                f"others can read the token in {shown(path)}", fix=f"chmod 600 {shown(path)}"
            )
    else:
        text = os.environ.get(_TOKEN_VARIABLE, "").strip()
        if not text:
            return None
    if len(text) < _SHORTEST_TOKEN or not re.fullmatch(r"[\x21-\x7e]+", text):
        raise UsageError(
            f"the token has fewer than {_SHORTEST_TOKEN} characters, or some that are not ASCII",
            fix="python -c 'import secrets; print(secrets.token_urlsafe(32))'",
        )
    return text.encode("ascii")


def _names(place: Place, token: bytes | None) -> frozenset[str]:
    for name in place.allowed_hosts:
        if not re.fullmatch(r"[A-Za-z0-9.\-\[\]:]{1,255}", name) or "*" in name:
            raise UsageError(f"{name!r} is no host name")
    if place.unix is not None:
        return names_of("localhost", place.allowed_hosts)
    try:
        loopback = is_loopback(place.host)
        if not loopback:
            ipaddress.ip_address(place.host)
    except ValueError:
        raise UsageError(
            f"{place.host!r} is no address of this machine", fix="--host 127.0.0.1, or another IP"
        ) from None
    if not loopback and token is None:
        raise UsageError(
            f"{place.host} can be reached from outside of this machine, and no token is set",
            fix=f"put one into {_TOKEN_VARIABLE} or --token-file; or stay at 127.0.0.1",
        )
    return names_of(place.host, place.allowed_hosts)


def _listen(place: Place) -> socket.socket:
    if place.unix is not None:
        return _listen_unix(place.unix)
    host = "127.0.0.1" if place.host == "localhost" else place.host
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Head and body of an answer are two writes; without it the second waits 40 ms for the
        # client to acknowledge the first. Connections inherit it.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listening.bind((host, place.port))
        return listening
    except (OSError, OverflowError) as error:
        listening.close()
        raise _cannot_listen(f"{host}, port {place.port}", error) from None


def _listen_unix(path: Path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket():
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
                if other.connect_ex(str(path)) == 0:
                    raise OSError(errno.EADDRINUSE, "in use")
            path.unlink()
        before = os.umask(0o177)
        try:
            listening.bind(str(path))
        finally:
            os.umask(before)
        return listening
    except OSError as error:
        listening.close()
        raise _cannot_listen(shown(path), error) from None


def _cannot_listen(where: str, error: Exception) -> InUseError | UsageError:
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return InUseError(f"somebody listens at {where} already", fix="--port 0 finds a free one")
    return UsageError(f"cannot listen at {where}: {getattr(error, 'strerror', None) or error}")


def _address(place: Place, listening: socket.socket) -> str:
    if place.unix is not None:
        return f"unix:{place.unix}"
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def _logged(line: str) -> None:
    """On standard error; a disk that is full stops no answers."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {line}\n")
        sys.stderr.flush()
