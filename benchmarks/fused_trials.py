"""Whether trials of one shape are trained faster as one program than one after another.

    python benchmarks/fused_trials.py                       # mlp, lenet5, small_cnn; this device
    python benchmarks/fused_trials.py --models lenet5 --trials 2 8 --batches 64

Every trial has its own weights, learning rate and weight decay, and all see the same images:
torch.func stacks their weights and maps the step over them (`stack_module_state`, `vmap`). Against
that, the same steps of the same trials one after another. Says how many times as fast one program
is, the median of pairs that alternate; above 1 it pays. Updates are plain SGD in both.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn import functional

from vidi import model

CLASSES = 10
PX = {"mlp": 28, "lenet5": 28, "small_cnn": 32}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=list(PX))
    parser.add_argument("--trials", nargs="+", type=int, default=[2, 4, 8])
    parser.add_argument("--batches", nargs="+", type=int, default=[64, 256])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3, help="of each half of a pair")
    asked = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{device}, {torch.get_num_threads()} threads, float32")
    for name in asked.models:
        for batch in asked.batches:
            for count in asked.trials:
                told = _ratio(name, batch, count, device, asked.pairs, asked.seconds)
                print(f"{name:13} batch {batch:4}  {count:2} trials  {told}", flush=True)


def _networks(name: str, count: int, device: torch.device) -> list[nn.Module]:
    made: list[nn.Module] = []
    for seed in range(count):
        torch.manual_seed(seed)
        network = model.build(
            name,
            num_classes=CLASSES,
            image_px=PX[name],
            channels=3,
            mean=(0.5,) * 3,
            std=(0.25,) * 3,
        )
        made.append(network.to(device).train())
    return made


def _ratio(
    name: str, batch: int, count: int, device: torch.device, pairs: int, seconds: float
) -> str:
    torch.manual_seed(0)
    images = torch.rand(batch, 3, PX[name], PX[name], device=device) * 255
    targets = torch.randint(CLASSES, (batch,), device=device)
    rates = torch.logspace(-3, -2, count, device=device)
    alone = _alone(_networks(name, count, device), rates, images, targets)
    try:
        fused = _fused(_networks(name, count, device), rates, images, targets)
        fused()
    except RuntimeError as error:
        return f"cannot be mapped: {str(error).splitlines()[0]}"
    alone()
    found = []
    for _ in range(pairs):
        slow_s, fast_s = _seconds(alone, device, seconds), _seconds(fused, device, seconds)
        found.append(slow_s / fast_s)
    return (
        f"{statistics.median(found):5.2f} times as fast as one after another "
        f"({min(found):.2f} to {max(found):.2f}; {1e3 * slow_s:.1f} ms for all of them)"
    )


def _seconds(step: Callable[[], None], device: torch.device, seconds: float) -> float:
    """Of one step of all trials."""
    began_at, steps = time.perf_counter(), 0
    while time.perf_counter() - began_at < seconds or steps < 2:
        step()
        steps += 1
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - began_at) / steps


def _alone(
    networks: list[nn.Module], rates: Tensor, images: Tensor, targets: Tensor
) -> Callable[[], None]:
    optimizers = [
        torch.optim.SGD(network.parameters(), lr=rate, weight_decay=rate / 10)
        for network, rate in zip(networks, rates.tolist(), strict=True)
    ]

    def step() -> None:
        for network, optimizer in zip(networks, optimizers, strict=True):
            loss = functional.cross_entropy(network(images), targets)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()

    return step


def _fused(
    networks: list[nn.Module], rates: Tensor, images: Tensor, targets: Tensor
) -> Callable[[], None]:
    weights, buffers = stack_module_state(networks)
    weights = {name: value.detach() for name, value in weights.items()}
    skeleton = networks[0]

    def loss(one: dict[str, Tensor], rest: dict[str, Tensor]) -> Tensor:
        return functional.cross_entropy(functional_call(skeleton, (one, rest), images), targets)

    gradients = vmap(grad(loss), randomness="different")

    def step() -> None:
        found = gradients(weights, buffers)
        with torch.no_grad():
            for name, value in weights.items():
                rate = rates.view(-1, *(1,) * (value.dim() - 1))
                value.sub_(rate * (found[name] + rate / 10 * value))

    return step


if __name__ == "__main__":
    main()
