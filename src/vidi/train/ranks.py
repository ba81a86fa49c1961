"""Several processes that train together: who is who, and what they say to each other.

Nothing that travels is an object that could hold code: numbers, arrays and bytes only.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, final

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed import PrefixStore, rendezvous  # type: ignore[attr-defined]

from vidi import probe
from vidi.errors import ConfigError, TrainingError
from vidi.shards import is_sharded

# So often they agree whether to stop, to save, or to end sooner or later than planned.
AGREE_EVERY_STEPS = 10
# How long the others are asked whether they are still there, once somebody did not answer.
_ROLL_CALL_S = 3.0
# What gloo's threads get to let go of the last tensors, see `joined`.
_LET_GO_S = 0.2


class Saved(Protocol):
    """What a checkpoint gives, from the disk or from another process."""

    @property
    def step(self) -> int: ...
    @property
    def state(self) -> Mapping[str, Any]: ...
    @property
    def names(self) -> tuple[str, ...]: ...
    def read(self, name: str) -> bytes: ...


@final
@dataclass(frozen=True)
class Received:
    """A checkpoint that another process has read and verified."""

    step: int
    state: Mapping[str, Any]
    files: Mapping[str, bytes]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.files)

    def read(self, name: str) -> bytes:
        return self.files[name]


@final
@dataclass(frozen=True)
class Ranks:
    """This process among those that train together; alone by default, when nothing travels.

    All processes call the same methods in the same order.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    # torch's key-value store that all processes reach.
    store: Any = None

    @property
    def is_first(self) -> bool:
        """The first process reads, decides, writes and speaks."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.world_size == 1

    def from_first(self, data: bytes | None) -> bytes:
        """What the first process gives, in all of them; the others give None."""
        if self.alone:
            assert data is not None
            return data
        size = torch.tensor([len(data or b"")])
        dist.broadcast(size, src=0)
        sent = torch.zeros(int(size), dtype=torch.uint8)
        if self.is_first and data:
            sent = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        if int(size):
            dist.broadcast(sent, src=0)
        return sent.numpy().tobytes()

    def checkpoint_from_first(self, checkpoint: Saved | None) -> Saved | None:
        """The checkpoint that the first process has; None where it has none."""
        if self.alone:
            return checkpoint
        header = b"null"
        if checkpoint is not None:
            names = list(checkpoint.names)
            header = json.dumps(
                {"step": checkpoint.step, "state": dict(checkpoint.state), "names": names}
            ).encode()
        told = json.loads(self.from_first(header if self.is_first else None))
        if told is None:
            return None
        files = {
            name: self.from_first(None if checkpoint is None else checkpoint.read(name))
            for name in told["names"]
        }
        return Received(told["step"], told["state"], files)

    def sums(self, numbers: Tensor) -> Tensor:
        """The sum over all processes, number by number."""
        if not self.alone:
            dist.all_reduce(numbers)
        return numbers

    def smallest(self, number: int) -> int:
        """The smallest of the processes' numbers."""
        if self.alone:
            return number
        shared = torch.tensor([number])
        dist.all_reduce(shared, op=dist.ReduceOp.MIN)
        return int(shared)

    def largest(self, number: int) -> int:
        """The largest of the processes' numbers."""
        return -self.smallest(-number)

    def together(self, rows: NDArray[Any]) -> NDArray[Any]:
        """(N, ...) of each process, one after the other; N may differ, dtype and the rest not."""
        if self.alone:
            return rows
        counts = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
        dist.all_gather(counts, torch.tensor([len(rows)]))
        most = max(int(count) for count in counts)
        padded = np.zeros((most, *rows.shape[1:]), rows.dtype)
        padded[: len(rows)] = rows
        parts = [torch.zeros(padded.shape, dtype=torch.from_numpy(padded).dtype) for _ in counts]
        dist.all_gather(parts, torch.from_numpy(padded))
        return np.concatenate(
            [part.numpy()[: int(count)] for part, count in zip(parts, counts, strict=True)]
        )

    def same(self, module: nn.Module) -> None:
        """Parameters and buffers become those of the first process."""
        if not self.alone:
            with torch.no_grad():
                for tensor in module.state_dict().values():
                    dist.broadcast(tensor, src=0)

    def same_buffers(self, module: nn.Module) -> None:
        """Statistics of batch norms become those of the first process."""
        if not self.alone:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)

    def wait_for_first(self, what: str) -> None:
        """Wait, for as long as it takes, until the first process has said that `what` is done.

        Preparing may take longer than any message is allowed to.
        """
        if self.alone:
            return
        assert self.store is not None
        key = f"vidi/{what}"
        if self.is_first:
            self.store.set(key, "done")
        while not self.store.check([key]):
            time.sleep(0.05)

    def missing(self) -> Sequence[int]:
        """Which processes do not answer any more, after a message did not arrive."""
        if self.store is None:
            return ()
        try:
            self.store.set(f"vidi/here/{self.rank}", "yes")
            ends_at = time.monotonic() + _ROLL_CALL_S
            absent = list(range(self.world_size))
            while absent and time.monotonic() < ends_at:
                time.sleep(0.1)
                absent = [n for n in absent if not self.store.check([f"vidi/here/{n}"])]
        except (RuntimeError, dist.DistError):
            # The store itself was with a process that is gone.
            return ()
        return absent


ALONE = Ranks()


@contextlib.contextmanager
def joined(timeout_s: float) -> Iterator[Ranks]:
    """The processes that torchrun, or `vidi train --nproc`, started; or this one alone.

    Args:
        timeout_s: how long one waits for the others' messages.

    Raises:
        ConfigError: started as one of several, but not told where the others are.
        TrainingError: another process did not answer in time, or ended.
    """
    world_size, _ = probe.counted()
    if world_size == 1:
        yield ALONE
        return
    if "MASTER_ADDR" not in os.environ:
        raise ConfigError(
            f"this is one of {world_size} processes (WORLD_SIZE), and MASTER_ADDR is not set",
            fix="start them with: vidi train --nproc N, or torchrun -m vidi train",
        )
    timeout = timedelta(seconds=timeout_s)
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
        backend = "cpu:gloo,cuda:nccl"
    everybody, rank, _ = next(iter(rendezvous("env://", timeout=timeout)))
    # The launcher keeps one store for all of its attempts. Without an attempt's name on the keys,
    # gloo would look for the processes of the attempt before, and wait for them.
    store = PrefixStore(_attempt(), everybody)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    ranks = Ranks(rank, world_size, local_rank, store)
    try:
        yield ranks
    except (RuntimeError, dist.DistError) as error:
        if not _is_about_others(error):
            raise
        absent = ranks.missing()
        who = f"process {', '.join(map(str, absent))}" if absent else "another process"
        raise TrainingError(
            f"{who} of {world_size} did not answer within {timeout_s:g} s, or ended; process "
            f"{rank} cannot go on alone",
            fix="its own output says why; --max-restarts N continues from the newest checkpoint",
        ) from error
    finally:
        with contextlib.suppress(Exception):
            dist.destroy_process_group()
        # DistributedDataParallel keeps the group, and so gloo's threads, to the end of the process
        # (torch 2.13). One that still waits for the interpreter, to drop the tensors of the last
        # message, when that ends would take the process down with SIGABRT.
        time.sleep(_LET_GO_S)


def num_restarts() -> int:
    """How often the launcher has started all processes again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _attempt() -> str:
    """Keys of an attempt before a restart are not those of this one."""
    return f"attempt {num_restarts()}"


def _is_about_others(error: BaseException) -> bool:
    """Whether a message to or from another process failed."""
    words = ("gloo", "nccl", "connection", "socket", "timed out", "timeout", "broken pipe")
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)


def wrapped(module: nn.Module, ranks: Ranks, device: torch.device) -> nn.Module:
    """The module whose gradients are the mean over all processes; itself where there is one."""
    if ranks.alone or is_sharded(module):
        return module
    # Training does not read the statistics of batch norms; what is judged and saved has those of
    # the first process. Sent with every forward pass, they would also wait for ever for a process
    # that ran out of memory in the middle of one. torch 2.13 gave the setting another name.
    known = inspect.signature(nn.parallel.DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    own_buffers: dict[str, Any] = {name: False}
    return nn.parallel.DistributedDataParallel(
        module,
        device_ids=[ranks.local_rank] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        **own_buffers,
    )
