"""What to do when memory runs out: fewer images at once, never fewer images."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import Any, final

import torch

from vidi.errors import OutOfMemory

try:
    import resource
except ImportError:  # Windows has no such module.
    resource = None  # type: ignore[assignment]

# What torch says on devices, and its allocator on processors, which raises a plain RuntimeError.
_WORDS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whatever device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)


@final
@dataclass(slots=True)
class Limit:
    """How many images go through the model at once; it only ever falls."""

    num_images: int

    def halve(self, error: BaseException, *, what: str) -> str:
        """Half as many from now on; returns what to tell the user.

        Args:
            error: the one that said so; raised again if it speaks of something else than memory.
            what: "training" or "evaluation".

        Raises:
            OutOfMemory: one image alone does not fit.
        """
        if not is_out_of_memory(error):
            raise error
        if self.num_images == 1:
            raise OutOfMemory(
                f"out of memory: not even one image fits ({what})",
                fix="give a smaller model or image (--model, --set data.image_px=...), or "
                "--set machine.recompute=true",
            ) from error
        before, self.num_images = self.num_images, (self.num_images + 1) // 2
        return (
            f"out of memory: {what} takes {self.num_images} images at once instead of {before}; "
            "batch, learning rate and order stay"
        )


def release() -> None:
    """Give back what nobody needs any more; between the phases of a run and after an error."""
    gc.collect()
    if torch.accelerator.is_available():
        _device_module().empty_cache()


def peak_bytes() -> int:
    """The most that this process has had so far: of the accelerator's memory where there is one
    that tells, else of main memory. 0 where the system does not tell."""
    if torch.accelerator.is_available():
        return int(getattr(_device_module(), "max_memory_allocated", int)())
    if resource is None:
        return 0
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024


def _device_module() -> Any:
    return torch.get_device_module(torch.accelerator.current_accelerator())
