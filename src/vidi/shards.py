"""A model whose weights are divided between processes (torch's FSDP2), and the way back.

Each process holds a part of every weight, gradient and number of the optimizer, and the whole of
one stage only while it computes. What is kept on disk is whole, as ever.

What is called here with a divided model is called by all processes, in the same order.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def is_sharded(module: nn.Module) -> bool:
    """Whether `shard` was called with this module."""
    # Where nothing was divided, nobody loaded it; that takes 0.8 s.
    loaded: Any = sys.modules.get("torch.distributed.fsdp")
    return loaded is not None and isinstance(module, loaded.FSDPModule)


def _is_part(tensor: Tensor) -> bool:
    loaded: Any = sys.modules.get("torch.distributed.tensor")
    return loaded is not None and isinstance(tensor, loaded.DTensor)


def shard(module: nn.Module, parts: Sequence[nn.Module], device: torch.device) -> None:
    """Divide the weights of `module` between all processes, in place.

    Args:
        module: the same numbers in each process; weights lie in memory in the order of their
            indices.
        parts: its stages, in order. Each is made whole alone, just before it computes, and its
            gradients are divided as soon as they are there (Zhao et al. 2023; Rajbhandari et al.
            2020, ZeRO stage 3). The rest of the module is one more of them.

    Raises:
        NotImplementedError, ValueError: torch cannot divide such a module.
    """
    from torch.distributed.device_mesh import init_device_mesh  # noqa: PLC0415 - 0.8 s
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard  # noqa: PLC0415

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    # Weights travel as they are, and autocast lowers them as it does in one process: norms stay in
    # float32. Sums of gradients over the processes are of float32 too.
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    divided: list[Any] = [
        fully_shard(part, mesh=mesh, mp_policy=policy)
        for part in (*(part for part in parts if any(True for _ in part.parameters())), module)
    ]
    # What is made whole ahead of time in the backward pass: the stage before, and nothing more
    # before the first. Left open, torch goes by all calls so far, also those of an evaluation; of
    # those processes may have made more or fewer, and would wait for each other for ever.
    for before, part in itertools.pairwise((divided[0], *divided)):
        part.set_modules_to_backward_prefetch([before])


def local(tensor: Tensor) -> Tensor:
    """This process's part, in the same memory; the tensor itself where it is not divided."""
    if not _is_part(tensor):
        return tensor
    part: Tensor = tensor.detach().to_local()  # type: ignore[attr-defined]
    return part


def put(target: Tensor, value: Tensor) -> None:
    """Copy a whole `value` into `target`, of which each process may hold a part."""
    if not _is_part(target):
        target.copy_(value)
        return
    from torch.distributed.tensor import distribute_tensor  # noqa: PLC0415

    divided: Any = target
    # All processes have the value: each takes its part, and nothing travels.
    own = distribute_tensor(
        value.to(target.device), divided.device_mesh, divided.placements, src_data_rank=None
    )
    local(target).copy_(own.to_local())


def whole_on_first(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The whole tensors, in main memory, in the first process; nothing in the others.

    One after the other, so that at no time more than one of them is whole on the device.
    """
    if not any(_is_part(tensor) for tensor in tensors.values()):
        return {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    first = dist.get_rank() == 0
    whole: dict[str, Tensor] = {}
    # Sorted: what was read from a file may have another order in each process.
    for name, tensor in sorted(tensors.items()):
        full: Any = tensor.detach()
        if _is_part(tensor):
            full = full.full_tensor()
        if first:
            whole[name] = full.cpu()
    return whole


def in_all(good: Tensor) -> Tensor:
    """() bool: whether `good` is true in every process; on its device, nobody waits for it."""
    number = good.float()
    dist.all_reduce(number, op=dist.ReduceOp.MIN)
    return number.bool()


def total_norm(parts: Sequence[Tensor]) -> Tensor:
    """() the norm of all numbers of which each process has `parts`."""
    square = torch.nn.utils.get_total_norm(parts).square()
    dist.all_reduce(square)
    return square.sqrt()


@contextlib.contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Inside, each process has the whole model: it may be called as often as each one likes.

    Does nothing for a module that is not divided.
    """
    if not is_sharded(module):
        yield
        return
    divided: Any = module
    parts: list[Any] = [part for part in module.modules() if is_sharded(part)]
    try:
        divided.set_reshard_after_forward(False)
        for part in parts:
            part.unshard()
        yield
    finally:
        divided.set_reshard_after_forward(True)
        for part in parts:
            part.reshard()


@contextlib.contextmanager
def unsynchronised(module: nn.Module) -> Iterator[None]:
    """Inside, gradients are added up in each process, and do not travel."""
    divided: Any = module
    divided.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        divided.set_requires_gradient_sync(True)
