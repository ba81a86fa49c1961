"""The zoo against torchvision: images per second and memory of one training step, side by side.

    python benchmarks/models.py [--repeats N] [--batch-size N] [--image-px N] [NAME ...]

Both networks have the same weights and see the same batch, in channels_last; their steps take turns
in one process, so that whatever else the machine does meets both. Medians; the ratio is the median
of the ratios of neighbouring steps. The bars are 0.98 of torchvision's images per second and no
more than its memory. Needs the extra "timm" (torchvision).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vidi import model, probe
from vidi.zoo import MODELS

NAMES = ("resnet18", "resnet50", "vgg11", "efficientnet_b0")
SPEED_BAR, MEMORY_BAR = 0.98, 1.0


def pair(name: str, device: torch.device) -> tuple[nn.Module, nn.Module]:
    """(ours, torchvision's) with the same weights."""
    model.import_timm()
    import torchvision  # noqa: PLC0415 - only after the operators are declared

    theirs: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=100)
    ours = MODELS[name].build(num_classes=100)
    ours.load_state_dict(theirs.state_dict())
    layout = {"device": device, "memory_format": torch.channels_last}
    return ours.to(**layout).train(), theirs.to(**layout).train()  # type: ignore[call-overload]


class Step:
    """One training step of a network on a resident batch."""

    def __init__(self, network: nn.Module, images: Tensor, targets: Tensor, bfloat16: bool) -> None:
        self.network, self.images, self.targets = network, images, targets
        self.bfloat16 = bfloat16
        self.optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)

    def seconds(self) -> float:
        started_at = time.perf_counter()
        with torch.autocast(self.images.device.type, torch.bfloat16, enabled=self.bfloat16):
            logits = self.network(self.images)
        loss = nn.functional.cross_entropy(logits.float(), self.targets)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.images.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - started_at

    def kept_bytes(self) -> int:
        """What the forward pass keeps for the backward pass, parameters left out."""
        parameters = {p.untyped_storage().data_ptr() for p in self.network.parameters()}
        storages: dict[int, int] = {}
        held = []

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                storages[storage.data_ptr()] = storage.nbytes()
                held.append(tensor)
            return tensor

        lowered = torch.autocast(self.images.device.type, torch.bfloat16, enabled=self.bfloat16)
        with lowered, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            self.network(self.images)
        return sum(storages.values())


def compared(
    name: str, *, device: torch.device, batch_size: int, image_px: int, repeats: int, bfloat16: bool
) -> dict[str, float | str]:
    images = torch.randn(batch_size, 3, image_px, image_px, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    targets = torch.randint(0, 100, (batch_size,), device=device)
    ours, theirs = (Step(network, images, targets, bfloat16) for network in pair(name, device))
    for _ in range(3):
        ours.seconds()
        theirs.seconds()
    mine: list[float] = []
    reference: list[float] = []
    for repeat in range(repeats):
        # Who comes first changes, so that neither always finds the caches warm.
        for step, times in ((ours, mine), (theirs, reference))[:: 1 if repeat % 2 else -1]:
            times.append(step.seconds())
    ratios = [theirs_s / ours_s for ours_s, theirs_s in zip(mine, reference, strict=True)]
    return {
        "model": name,
        "ours_images_per_second": batch_size / statistics.median(mine),
        "torchvision_images_per_second": batch_size / statistics.median(reference),
        "speed_ratio": statistics.median(ratios),
        "memory_ratio": ours.kept_bytes() / theirs.kept_bytes(),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME")
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--image-px", type=int, default=128)
    parser.add_argument("--bfloat16", action="store_true")
    asked = parser.parse_args(arguments)
    probe.keep_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    met = True
    for name in asked.names:
        row = compared(
            name,
            device=device,
            batch_size=asked.batch_size,
            image_px=asked.image_px,
            repeats=asked.repeats,
            bfloat16=asked.bfloat16,
        )
        met &= float(row["speed_ratio"]) >= SPEED_BAR
        met &= float(row["memory_ratio"]) <= MEMORY_BAR + 1e-3
        shown = {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
        print(json.dumps(shown), flush=True)
    print(
        f"bars: speed {SPEED_BAR} or more, memory {MEMORY_BAR} or less:",
        "met" if met else "NOT met",
    )
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
