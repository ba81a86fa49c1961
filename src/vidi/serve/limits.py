"""What a server puts up with. Every number has a test that goes over it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bytes, seconds and counts; defaults for photos from cameras."""

    # Of one image file. 32 MB: a 24-megapixel PNG.
    body_bytes: int = 32 << 20
    # For the head of a request, from its first byte, and on a new connection from the start.
    head_s: float = 5.0
    # For the body, from the end of the head.
    body_s: float = 30.0
    # For decoding one image.
    decode_s: float = 10.0
    # From the first byte to the answer; longer and the client has given up.
    answer_s: float = 60.0
    # A connection that says nothing.
    idle_s: int = 5
    # Requests that are read, decoded or predicted at a time; more are told to come again.
    queue: int = 256
    # Connections at a time.
    connections: int = 1024
    # Images of one batch, and how long the first waits for others that are on their way.
    batch: int = 32
    window_s: float = 0.002
    # For what is under way when it is told to stop.
    stop_s: float = 20.0
