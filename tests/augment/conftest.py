"""Pictures to change, torchvision to compare with, and something that stands for a device."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vidi import model
from vidi.augment import memory
from vidi.batch import Batch

MakeBatch = Callable[..., Batch]


def _pictures(
    count: int = 6,
    px: int = 48,
    channels: int = 3,
    *,
    noise: float = 20.0,
    channels_last: bool = True,
) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    coarse = torch.rand(count, channels, 5, 5, generator=generator) * 200
    images = F.interpolate(coarse, (px, px), mode="bicubic")
    images[:, :, px // 2 :, : px // 3] += 40
    images = images + noise * torch.rand(images.shape, generator=generator)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return images.clamp(0, 255).to(torch.uint8).contiguous(memory_format=layout)


@pytest.fixture
def make_batch() -> MakeBatch:
    """`make_batch(count=6, px=48, channels=3, noise=20.0, channels_last=True)`: soft shapes, an
    edge and some noise; the classes go round from 0 to 9."""

    def make(*args: Any, **settings: Any) -> Batch:
        images = _pictures(*args, **settings)
        numbers = torch.arange(len(images))
        return Batch(images, numbers % 10, numbers * 13 + 5)

    return make


@pytest.fixture(scope="session")
def v2() -> ModuleType:
    """torchvision.transforms.v2"""
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("needs torchvision")
    model.declare_missing_operators()
    return importlib.import_module("torchvision.transforms.v2")


class _NoWaiting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Whatever would make the host wait for a device is an error."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        name = str(func)
        if any(word in name for word in ("_local_scalar_dense", "nonzero", "bincount", "unique")):
            raise AssertionError(f"{name} makes the host wait for the device")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> TorchDispatchMode:
    """What is computed inside it goes the way of an accelerator and may not wait for it."""
    monkeypatch.setattr(memory, "in_main_memory", lambda images: images is None)
    return _NoWaiting()  # type: ignore[no-untyped-call]
