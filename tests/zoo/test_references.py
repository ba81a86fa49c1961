"""The zoo equals torchvision and timm, weights, outputs and gradients."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vidi import model
from vidi.zoo import MODELS
from vidi.zoo.efficientnet import with_our_names

if importlib.util.find_spec("timm") is None:
    pytest.skip("the extra 'timm' is not installed", allow_module_level=True)
timm: Any = model.import_timm()
torchvision: Any = pytest.importorskip("torchvision")

FAST = {"resnet18", "resnet50", "efficientnet_b0"}
TORCHVISION = [
    pytest.param(name, marks=() if name in FAST else pytest.mark.slow)
    for name in MODELS
    if name.startswith(("alexnet", "vgg", "resnet", "efficientnet_b"))
]
LITE = [
    "efficientnet_lite0",
    *(pytest.param(f"efficientnet_lite{n}", marks=pytest.mark.slow) for n in range(1, 5)),
]


def images(image_px: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, image_px, image_px, generator=torch.Generator().manual_seed(0))


def shaken(network: nn.Module) -> nn.Module:
    """Statistics that are not those of a fresh model, so that a difference in their use shows."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0.0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return network


def gradients(network: nn.Module, batch: Tensor) -> list[Tensor]:
    """Of one training step's loss, without the randomness of dropout."""
    network.train()
    for module in network.modules():
        if "Dropout" in type(module).__name__:
            module.eval()
        if "StochasticDepth" in type(module).__name__ or "DropPath" in type(module).__name__:
            module.eval()
    targets = torch.arange(len(batch)) % 10
    nn.functional.cross_entropy(network(batch), targets).backward()  # type: ignore[no-untyped-call]
    found = [parameter.grad for parameter in network.parameters()]
    return [gradient for gradient in found if gradient is not None]


def assert_same_training_step(ours: nn.Module, theirs: nn.Module, batch: Tensor) -> None:
    mine, reference = gradients(ours, batch), gradients(theirs, batch)
    assert len(mine) == len(reference)
    for a, b in zip(mine, reference, strict=True):
        assert (a - b).norm() <= 1e-4 * max(float(b.norm()), 1e-3)


# The smallest size that is not treated as small; for some the usual one, too.
@pytest.mark.parametrize(
    ("name", "image_px"),
    [
        *(pytest.param(*name.values, 96, marks=name.marks) for name in TORCHVISION),
        *((name, 224) for name in sorted(FAST)),
    ],
)
def test_weights_outputs_and_gradients_equal_torchvision(name: str, image_px: int) -> None:
    theirs = shaken(torchvision.models.get_model(name, weights=None, num_classes=10))
    ours = MODELS[name].build(num_classes=10)
    ours.load_state_dict(theirs.state_dict())
    ours.eval()
    theirs.eval()
    with torch.inference_mode():
        expected = theirs(images(image_px))
        off = (ours(images(image_px)) - expected).abs().max()
        assert off <= 1e-5 * max(1.0, float(expected.abs().max()))
    assert_same_training_step(ours, theirs, images(image_px, count=4))


@pytest.mark.parametrize("image_px", [96, 127])
@pytest.mark.parametrize("name", LITE)
def test_weights_and_outputs_equal_timm(name: str, image_px: int) -> None:
    theirs = shaken(timm.create_model(f"tf_{name}", num_classes=10))
    ours = MODELS[name].build(num_classes=10)
    ours.load_state_dict(with_our_names(theirs.state_dict()))
    ours.eval()
    theirs.eval()
    with torch.inference_mode():
        expected = theirs(images(image_px))
        got = ours(images(image_px))
    # Without gradients the padding is computed in another way.
    torch.testing.assert_close(ours(images(image_px)).detach(), got, rtol=1e-4, atol=1e-4)
    assert (got - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))
    assert_same_training_step(ours, theirs, images(image_px, count=4))


def test_the_packaged_weights_equal_timm_at_224_px() -> None:
    classifier = model.build(
        "efficientnet_lite0",
        num_classes=1000,
        image_px=224,
        channels=3,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        weights="imagenet",
    ).eval()
    assert classifier.fit is not None
    assert len(classifier.fit.matched) == 296
    theirs = timm.create_model("tf_efficientnet_lite0")
    theirs.load_state_dict(
        dict(zip(theirs.state_dict(), classifier.network.state_dict().values(), strict=True))
    )
    pixels = torch.randint(
        0, 256, (2, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    with torch.inference_mode():
        expected = theirs.eval()((pixels / 255 - 0.5) / 0.5)
        assert (classifier(pixels) - expected).abs().max() <= 1e-5 * expected.abs().max()
