"""A worker process: `python -m vidi.tune.worker`, JSON lines in and out over its standard streams.

It ends with the search that started it, however that ends: a thread waits for the end of its input.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from collections.abc import Mapping
from typing import Any, TextIO

from vidi.errors import Interrupted
from vidi.tune.session import Session


def main() -> None:
    """Serve until the input ends."""
    # What libraries print must not get between the messages.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    guard = threading.Lock()

    def send(message: Mapping[str, Any]) -> None:
        with guard:
            answers.write(json.dumps(message) + "\n")
            answers.flush()

    messages: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin, messages), daemon=True).start()
    session = Session(send)
    send({"kind": "ready", "pid": os.getpid()})
    while True:
        try:
            session.handle(json.loads(messages.get()))
        except Interrupted:
            # It was asked to stop, and has saved.
            continue


def _read(stream: TextIO, messages: queue.SimpleQueue[str]) -> None:
    """Hands over line after line. At the end nobody waits for us any more: a run can be killed at
    any instant, so nothing is lost by going at once."""
    for line in stream:
        messages.put(line)
    os._exit(0)


if __name__ == "__main__":
    main()
