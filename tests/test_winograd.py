from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vidi.step import autocast
from vidi.winograd import has_winograd, takes_any, winograd_convolutions
from vidi.winograd.compiled import convolve, weight_gradient

CPU = torch.device("cpu")


def _processor_can() -> bool:
    """Linux on an x86 processor with the instructions of src/vidi/winograd/winograd.c."""
    try:
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


needs_it = pytest.mark.skipif(not has_winograd(), reason="needs AVX-512 BF16 and a C compiler")


@pytest.mark.skipif(not _processor_can(), reason="needs AVX-512 BF16")
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_an_installation_compiles_the_convolutions() -> None:
    assert has_winograd(), "`pip install -e .` compiles src/vidi/winograd/winograd.c"


@contextlib.contextmanager
def threads_of(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def off(ours: Tensor, right: Tensor) -> float:
    """The error's root mean square, as a share of the result's."""
    return float((ours.detach().float() - right.detach()).norm() / right.detach().norm())


def drawn(*shape: int, seed: int, channels_last: bool = True) -> Tensor:
    """Exact in bfloat16, so that what differs is the way of computing."""
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return numbers.contiguous(memory_format=layout)


@needs_it
@settings(max_examples=100, deadline=None)
@given(
    images=st.integers(1, 5),
    height=st.integers(1, 19),
    width=st.integers(1, 19),
    inputs=st.integers(1, 14),
    outputs=st.integers(1, 9),
    threads=st.integers(1, 3),
    channels_last=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_outputs_and_gradients_are_those_of_a_convolution(
    images: int, height: int, width: int, inputs: int, outputs: int, threads: int,
    channels_last: bool, seed: int,
) -> None:  # fmt: skip
    given_images = drawn(images, 8 * inputs, height, width, seed=seed)
    gradient = drawn(images, 16 * outputs, height, width, seed=seed + 1)
    weight = drawn(16 * outputs, 8 * inputs, 3, 3, seed=seed + 2, channels_last=channels_last)
    weight = weight.float()
    with threads_of(threads):
        ours = (
            convolve(given_images, weight),
            convolve(gradient, weight, turned=True),
            weight_gradient(given_images, gradient, weight),
        )
    by_images, by_weight = torch.ops.aten.convolution_backward(
        gradient.float(), given_images.float(), weight, None,
        [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False],
    )[:2]  # fmt: skip
    right = F.conv2d(given_images.float(), weight, padding=1), by_images, by_weight
    for made, expected in zip(ours, right, strict=True):
        assert made.shape == expected.shape
        # A lone pixel's few sums may all happen to be small; else it is 1 %.
        assert off(made, expected) < 0.04


@needs_it
def test_the_result_does_not_depend_on_threads_or_the_rest_of_the_batch() -> None:
    images, gradient = drawn(90, 24, 15, 15, seed=0), drawn(90, 96, 15, 15, seed=1)
    wide = drawn(90, 104, 15, 15, seed=2)
    weight, wide_weight = drawn(96, 24, 3, 3, seed=3).float(), drawn(96, 104, 3, 3, seed=4).float()
    found = []
    for threads in (1, 2, 3):
        with threads_of(threads):
            found.append(
                (
                    convolve(images, weight),
                    convolve(gradient, weight, turned=True),
                    # Of few channels each thread has sums of its own, of many they share them.
                    weight_gradient(images, gradient, weight),
                    weight_gradient(wide, gradient, wide_weight),
                )
            )
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))
    assert torch.equal(convolve(images[7:9], weight), found[0][0][7:9])
    (by_weight,) = torch.ops.aten.convolution_backward(
        gradient.float(), wide.float(), wide_weight, None,
        [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [False, True, False],
    )[1:2]  # fmt: skip
    assert off(found[0][3], by_weight) < 0.02


@needs_it
def test_a_network_trains_with_it_as_without() -> None:
    def losses(filtered: bool) -> list[float]:
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.GELU(),
            nn.Conv2d(16, 32, 3, padding="same", bias=False), nn.BatchNorm2d(32), nn.GELU(),
            nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(32, 4),
        )  # fmt: skip
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        images, targets = torch.randn(64, 8, 12, 12), torch.randint(0, 4, (64,))
        found = []
        for _ in range(30):
            with autocast(CPU, "bfloat16"), winograd_convolutions(filtered):
                loss = F.cross_entropy(net(images).float(), targets)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            found.append(float(loss.detach()))
        return found

    with threads_of(2):
        with_it, without = losses(True), losses(False)
    assert with_it != without
    assert with_it[0] == pytest.approx(without[0], rel=0.01)
    assert with_it[-1] == pytest.approx(without[-1], rel=0.2)
    assert with_it[-1] < 0.5 * with_it[0]


@needs_it
@pytest.mark.parametrize(
    ("inputs", "outputs", "told"),
    [
        (12, 16, {"padding": 1}),
        (16, 24, {"padding": 1}),
        (16, 16, {"padding": 0}),
        (16, 16, {"padding": 1, "stride": 2}),
        (16, 16, {"padding": 2, "dilation": 2}),
        (32, 32, {"padding": 1, "groups": 2}),
    ],
)
def test_other_convolutions_stay_torchs(inputs: int, outputs: int, told: dict[str, int]) -> None:
    layer = nn.Conv2d(inputs, outputs, 3, **told)  # type: ignore[arg-type]
    assert not takes_any(nn.Sequential(layer))
    images = torch.randn(20, inputs, 9, 9)
    with autocast(CPU, "bfloat16"):
        expected = layer(images)
        with winograd_convolutions(True):
            assert torch.equal(layer(images), expected)


@needs_it
def test_it_computes_where_it_says_and_torch_elsewhere() -> None:
    layer = nn.Conv2d(16, 16, 3, padding=1)
    images = torch.randn(20, 16, 9, 9)
    with winograd_convolutions(True):
        assert torch.equal(layer(images), F.conv2d(images, layer.weight, layer.bias, padding=1))
    with autocast(CPU, "bfloat16"):
        direct = layer(images)
        with winograd_convolutions(False):
            assert torch.equal(layer(images), direct)
        with winograd_convolutions(True):
            filtered = layer(images)
            by_name = F.conv2d(input=images, weight=layer.weight, bias=layer.bias, padding=1)
            assert torch.equal(by_name, filtered)
            # No image, few tiles, and images that are half a tile.
            assert layer(images[:0]).shape == (0, 16, 9, 9)
            for others in (images[:2], torch.randn(400, 16, 2, 2)):
                assert layer(others).grad_fn.name() == direct.grad_fn.name()
            with pytest.raises(RuntimeError, match="channels"):
                layer(torch.randn(20, 8, 9, 9))
        assert torch.equal(layer(images), direct)
    assert filtered.dtype == direct.dtype
    assert not torch.equal(filtered, direct)
    assert off(filtered, direct.float()) < 0.02
    assert filtered.is_contiguous(memory_format=torch.channels_last)


@needs_it
def test_a_number_that_is_none_stays_none() -> None:
    images = drawn(2, 16, 9, 9, seed=0)
    images[1, 3, 4, 4] = torch.inf
    weight = torch.randn(16, 16, 3, 3)
    out = convolve(images, weight)
    assert out[0].isfinite().all()
    assert not out[1].isfinite().all()
    assert not weight_gradient(images, torch.ones_like(images), weight).isfinite().all()


def test_a_machine_without_it_goes_on_with_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidi.winograd.convolution.has_winograd", lambda: False)
    layer = nn.Conv2d(16, 16, 3, padding=1)
    images = torch.randn(20, 16, 9, 9)
    with autocast(CPU, "bfloat16"):
        expected = layer(images)
        with winograd_convolutions(True):
            assert torch.equal(layer(images), expected)


def test_what_a_model_has_for_it() -> None:
    fitting = nn.Conv2d(16, 16, 3, padding=1)
    assert takes_any(nn.Sequential(nn.Flatten(), nn.Sequential(fitting)))
    assert not takes_any(nn.Linear(3, 4))
    assert not takes_any(nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect"))
