"""The commands: parse, one call, print. Everything they do is there in Python under the same words.

Torch is imported only by the commands that need it, so that `vidi --help` answers at once.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Final, NoReturn, ParamSpec

import typer

from vidi.cli import data, judging, learning, shipping
from vidi.cli.options import app
from vidi.cli.printing import print_json, printable
from vidi.errors import Interrupted, VidiError
from vidi.signals import speaks

__all__ = ["app", "main"]

P = ParamSpec("P")

# In the order of the help.
COMMANDS: Final = (
    *(learning.train, learning.fit, learning.tune, learning.plan, data.augment, data.audit),
    *(learning.ablate, judging.evaluate, judging.compare, judging.suspects, shipping.predict),
    *(shipping.export, shipping.serve, judging.report, judging.show, data.models, data.cache),
    *(judging.tensorboard, data.doctor),
)


def _stoppable(command: Callable[P, None]) -> Callable[P, None]:
    """The command, which says that it was stopped: the command-line library would only exit."""

    @functools.wraps(command)
    def called(*args: P.args, **settings: P.kwargs) -> None:
        try:
            command(*args, **settings)
        except KeyboardInterrupt:
            raise Interrupted("stopped before it was done", signal_number=signal.SIGINT) from None

    return called


for each in COMMANDS:
    app.command()(_stoppable(each))


@contextlib.contextmanager
def _errors_explained() -> Iterator[None]:
    """Our errors in words and with their exit code; all else is a bug, with its traceback."""
    try:
        yield
    except Interrupted as error:
        if not speaks():
            sys.exit(error.status)
        _fail(str(error), error.status, error)
    except VidiError as error:
        _fail(str(error), error.exit_code, error)
    except BrokenPipeError:
        # The reader has gone (`| head`). Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _fail(message: str, status: int, error: VidiError | None = None) -> NoReturn:
    """On standard error in words; where JSON was asked for, on standard output as JSON too."""
    if error is not None and "--json" in sys.argv[1:]:
        about = {"error": error.message, "fix": error.fix, "kind": type(error).__name__}
        # One line: of a command that prints one object a line it is the last.
        print_json({**about, "exit_code": status}, indent=None)
    lines = [printable(line) for line in message.splitlines()]
    typer.echo("vidi: " + "\n".join(lines), err=True)
    sys.exit(status)


def main() -> None:
    """The entry point of the `vidi` command."""
    try:
        with _errors_explained():
            app()
    except SystemExit as end:
        if "RANK" in os.environ:
            _leave(end)
        raise


def _leave(end: SystemExit) -> NoReturn:
    """One of several processes ends at once: the threads that carry its messages outlive them, and
    one that asks for the interpreter while that is taken down would end it with SIGABRT, and the
    launcher then all the others."""
    if isinstance(end.code, str):
        sys.stderr.write(end.code + "\n")
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(end.code if isinstance(end.code, int) else int(end.code is not None))
