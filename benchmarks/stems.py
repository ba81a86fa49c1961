"""Does a network made for large images learn small ones better when its stem does not reduce them?

    python benchmarks/stems.py CIFAR10 --images 5000 --minutes 1

Below 96 px (VGG: 64 px) the zoo's networks leave out strides and poolings of their stem. Each is
trained from scratch for the same time with that and without, at the images' own size, by `vidi
train`; accuracies are those of held-out training images. Before that, heads on the features of
EfficientNet-Lite0's ImageNet weights, with and without, at several sizes.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

import vidi
from tune import subset  # type: ignore[import-not-found]  # beside this file
from vidi import model, probe
from vidi.metrics import Evaluation
from vidi.zoo import IMAGENET, MODELS

NAMES = ("resnet18", "vgg11_bn", "alexnet", "efficientnet_b0")
LITE = "efficientnet_lite0"
# At this size every network is what its authors made.
LARGE_PX = 224
HELD_OUT = 0.3


def as_for_large(name: str) -> Callable[..., nn.Module]:
    """The network as it is for large images, whatever it is shown."""

    def built(num_classes: int) -> nn.Module:
        return MODELS[name].build(num_classes=num_classes, image_px=LARGE_PX)

    return built


def from_scratch(data: str, folder: Path, minutes: float, network: Any) -> str:
    run = vidi.train(
        data,
        settings={
            "train.minutes": minutes,
            "data.validation_fraction": HELD_OUT,
            **({"model.name": network} if isinstance(network, str) else {}),
        },
        out=folder,
        model=None if isinstance(network, str) else network,
    )
    found = Evaluation.model_validate_json(run.read_evaluation("validation"))
    looks = max(one["epoch"] for one in run.metrics.read() if one["kind"] == "validation")
    return f"{found.accuracy:.1%} after {looks:.1f} looks"


def read(folder: Path) -> tuple[list[Image.Image], np.ndarray]:
    """Every image of a folder of classes, in an order without meaning, and their classes."""
    paths = sorted(folder.glob("*/*"))
    order = np.random.default_rng(0).permutation(len(paths))
    classes = {name: index for index, name in enumerate(sorted({p.parent.name for p in paths}))}
    images = [Image.open(paths[row]).convert("RGB") for row in order]
    return images, np.array([classes[paths[row].parent.name] for row in order])


@torch.inference_mode()
def with_a_head(images: list[Image.Image], labels: np.ndarray, px: int, made_for_px: int) -> float:
    """Accuracy of a head on ImageNet's features of images of so many px, on held-out ones."""
    pixels = IMAGENET[LITE].pixels
    classifier = model.build(
        LITE,
        num_classes=10,
        image_px=made_for_px,
        channels=3,
        mean=pixels.mean,
        std=pixels.std,
        weights="imagenet",
    ).eval()
    found: list[Tensor] = []
    for start in range(0, len(images), 50):
        sized = [one.resize((px, px), Image.Resampling.BICUBIC) for one in images[start:][:50]]
        batch = torch.from_numpy(np.stack([np.asarray(one) for one in sized]))
        found.append(classifier.features(batch.permute(0, 3, 1, 2)))
    features = torch.cat(found).numpy()
    features = (features - features.mean(0)) / (features.std(0) + 1e-6)
    train = round((1 - HELD_OUT) * len(labels))
    head = LogisticRegression(C=0.003, max_iter=2000).fit(features[:train], labels[:train])
    return float(head.score(features[train:], labels[train:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--names", nargs="*", default=NAMES)
    parser.add_argument("--sizes", type=int, nargs="*", default=[32, 48, 64, 80])
    asked = parser.parse_args()
    probe.keep_memory()
    with tempfile.TemporaryDirectory(prefix="vidi-bench-") as name:
        folder = Path(name)
        data = subset(asked.data, asked.images, folder)
        images, labels = read(Path(data) / "train")
        for px in asked.sizes:
            adapted, large = (with_a_head(images, labels, px, made) for made in (px, LARGE_PX))
            print(f"{LITE}, a head, {px} px: adapted {adapted:.1%}, as for large {large:.1%}")
        for network in asked.names:
            told = [
                from_scratch(data, folder / f"{network}-{index}", asked.minutes, one)
                for index, one in enumerate((network, as_for_large(network)))
            ]
            print(f"{network}: adapted {told[0]}, as for large {told[1]}", flush=True)


if __name__ == "__main__":
    main()
