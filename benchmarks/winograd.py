"""vidi's own 3 x 3 convolutions against torch's, on a processor, in bfloat16.

    python benchmarks/winograd.py layers            # each kind of layer: forward and both gradients
    python benchmarks/winograd.py steps [NAME ...]  # a whole training step of networks

Both take turns in one process; medians, and the ratio is the median of the ratios of neighbours.
Whether a network learns as much with them: `vidi ablate DATA --factors convolutions`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vidi import probe
from vidi.winograd import winograd_convolutions
from vidi.zoo import MODELS

# Channels in, channels out, side: of the small network three times as wide, at 32 px.
LAYERS = (
    (24, 96, 31),
    (96, 96, 15),
    (96, 384, 15),
    (384, 384, 7),
    (384, 384, 3),
    # Of ResNet and VGG.
    (64, 64, 56),
    (256, 256, 14),
    (512, 512, 14),
)
# Name, side of the images, batch size.
STEPS = (
    ("small_cnn", 32, 512),
    ("small_cnn_x3", 32, 512),
    ("resnet18", 64, 64),
    ("vgg11_bn", 64, 64),
)


def in_turns(first: Callable[[], None], second: Callable[[], None], repeats: int) -> str:
    """Milliseconds of both, and how many times as fast the first is."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats + 1):
        for each, work in zip(seconds, (first, second), strict=True):
            started_at = time.perf_counter()
            work()
            # The first turn takes memory and chooses kernels.
            if turn:
                each.append(time.perf_counter() - started_at)
    ratio = statistics.median(b / a for a, b in zip(*seconds, strict=True))
    ours, theirs = (1e3 * statistics.median(each) for each in seconds)
    return f"{ours:7.1f} {theirs:7.1f} ms {ratio:5.2f}"


def layer(inputs: int, outputs: int, side: int, num_images: int, repeats: int) -> None:
    images = torch.randn(num_images, inputs, side, side)
    images = images.bfloat16().contiguous(memory_format=torch.channels_last).requires_grad_()
    network = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    gradient = torch.randn(num_images, outputs, side, side).bfloat16()
    gradient = gradient.contiguous(memory_format=torch.channels_last)

    def work(on: bool) -> Callable[[], None]:
        def both() -> None:
            with torch.autocast("cpu", torch.bfloat16), winograd_convolutions(on):
                network(images).backward(gradient)
            images.grad = network.weight.grad = None

        return both

    told = in_turns(work(True), work(False), repeats)
    print(f"{inputs:4d} -> {outputs:4d} channels, {side:2d} px, {num_images} images: {told}")


def step(name: str, side: int, batch_size: int, repeats: int) -> None:
    network = MODELS[name].build(num_classes=10).train()
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(batch_size, 3, side, side).contiguous(memory_format=torch.channels_last)
    targets = torch.randint(0, 10, (batch_size,))

    def work(on: bool) -> Callable[[], None]:
        def whole() -> None:
            with torch.autocast("cpu", torch.bfloat16), winograd_convolutions(on):
                logits: Tensor = network(images)
            nn.functional.cross_entropy(logits.float(), targets).backward()  # type: ignore[no-untyped-call]
            network.zero_grad(set_to_none=True)

        return whole

    told = in_turns(work(True), work(False), repeats)
    print(f"{name:>14}, {side} px, batches of {batch_size}: {told}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("layers", "steps"))
    parser.add_argument("names", nargs="*")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--images", type=int, default=128)
    asked = parser.parse_args()
    probe.keep_memory()
    torch.manual_seed(0)
    print("ours, torch's, how many times as fast")
    if asked.what == "layers":
        for inputs, outputs, side in LAYERS:
            layer(inputs, outputs, side, asked.images, asked.repeats)
    else:
        for name, side, batch_size in STEPS:
            if not asked.names or name in asked.names:
                step(name, side, batch_size, asked.repeats)


if __name__ == "__main__":
    main()
