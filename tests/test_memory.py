"""Running out of memory is told apart from every other error, and halves what is done at once."""

from __future__ import annotations

import pytest
import torch

from vidi.errors import OutOfMemory
from vidi.memory import Limit, is_out_of_memory, peak_bytes, release

CPU_WORDS = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError(CPU_WORDS),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
        MemoryError(),
    ],
    ids=str,
)
def test_what_says_that_memory_ran_out(error: Exception) -> None:
    assert is_out_of_memory(error)


def test_torch_s_own_allocator_on_the_processor_is_understood() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    "error", [RuntimeError("shape mismatch"), ValueError("out of memory"), KeyError("x")], ids=str
)
def test_what_does_not(error: Exception) -> None:
    assert not is_out_of_memory(error)


def test_a_limit_halves_down_to_one_image_and_then_ends_in_words() -> None:
    limit = Limit(11)
    error = torch.OutOfMemoryError("CUDA out of memory")
    sizes = []
    for _ in range(4):
        assert "out of memory" in limit.halve(error, what="training")
        sizes.append(limit.num_images)
    assert sizes == [6, 3, 2, 1]
    with pytest.raises(OutOfMemory, match="not even one image"):
        limit.halve(error, what="training")


def test_another_error_is_raised_again() -> None:
    limit = Limit(8)
    with pytest.raises(RuntimeError, match="mine"):
        limit.halve(RuntimeError("mine"), what="training")
    assert limit.num_images == 8


def test_memory_is_given_back_and_its_peak_told() -> None:
    release()
    assert peak_bytes() > 10_000_000
