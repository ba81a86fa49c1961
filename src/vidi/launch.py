"""`vidi train --nproc N`: several processes on this machine, by torch's own elastic launcher."""

from __future__ import annotations

import logging
import signal
import sys
import uuid
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from vidi.interpreter import options

# How often the launcher looks whether all are alive.
LOOK_EVERY_S = 0.2


def launch(arguments: Sequence[str], *, processes: int, max_restarts: int) -> int:
    """Run `vidi` with these arguments in so many processes; returns the exit code.

    When one ends with an error the others are ended too; up to `max_restarts` times all are started
    again, and continue from the newest checkpoint. They find each other on the loopback interface,
    at a port that the system chooses. Which process a signal ended is said on standard error; one
    that failed has said why itself.
    """
    # They would say of every error and signal, in words for their own developers, that it came.
    for what in ("multiprocessing.api", "agent.server.api"):
        logging.getLogger(f"torch.distributed.elastic.{what}").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=max_restarts,
        monitor_interval=LOOK_EVERY_S,
        logs_specs=DefaultLogsSpecs(),
    )
    try:
        elastic_launch(config, sys.executable)(*options(), "-u", "-m", "vidi", *arguments)
    except ChildFailedError as error:
        for rank, one in sorted(error.failures.items()):
            # The others get SIGTERM from the launcher.
            if one.exitcode < 0 and -one.exitcode != signal.SIGTERM:
                name = signal.Signals(-one.exitcode).name
                sys.stderr.write(
                    f"vidi: process {rank} of {processes} was ended by {name}\n  -> the same "
                    "command continues from the newest checkpoint, if there is one yet; with "
                    "--max-restarts N by itself\n"
                )
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException as error:
        # Those that were not training yet have said nothing.
        name = signal.Signals(error.sigval).name
        sys.stderr.write(f"vidi: {name}: all {processes} processes have ended\n")
        return 128 + int(error.sigval)
    return 0
