"""The range test finds where a loss falls, draws it, and restores everything that it touched."""

from __future__ import annotations

import copy
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from torch import nn

from vidi import optim, probe
from vidi.batch import Batch
from vidi.loss import Loss
from vidi.step import StepSettings

SETTINGS = StepSettings(
    precision="float32", loss=Loss(), micro_batch_size=32, clip_norm=None, seed=0
)


def ranged(model: nn.Module, **changes: float) -> probe.RangeTest:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 3, 4, 4, generator=generator)

    def batches(count: int) -> list[Batch]:
        labels = [torch.randint(0, 4, (32,), generator=generator) for _ in range(count)]
        noise = [0.3 * torch.randn(32, 3, 4, 4, generator=generator) for _ in range(count)]
        return [
            Batch(centres[y] + e, y, torch.arange(32)) for y, e in zip(labels, noise, strict=True)
        ]

    values = {"low": 1e-5, "high": 1e3, "scale": 0.25, "limit_s": 30.0, **changes}
    return probe.range_test(
        model,
        lambda network: optim.make("sgd", network, learning_rate=0.1),
        batches(80),
        SETTINGS,
        steps=80,
        **values,
    )


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Dropout(0.1), nn.Linear(48, 4))


def test_the_suggestion_lies_where_the_loss_falls_and_is_stated_for_256_images() -> None:
    test = ranged(network())
    assert test.suggestion is not None
    assert 1e-3 < test.suggestion < 10.0
    assert test.per_256 == pytest.approx(test.suggestion / 0.25)
    assert list(test.rates) == sorted(test.rates)
    # It ends when the loss has left.
    assert test.losses[-1] <= 2.0 * min(test.losses)


def test_everything_is_as_before() -> None:
    model = network().eval()
    before = copy.deepcopy(model.state_dict())
    generator = torch.default_generator.get_state()
    ranged(model)
    assert torch.equal(torch.default_generator.get_state(), generator)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.training


def test_a_loss_that_never_falls_gives_no_suggestion() -> None:
    test = ranged(network(), low=1e-12, high=1e-11)
    assert test.suggestion is None or min(test.losses) < test.losses[0]
    assert probe.range_test(
        network(), lambda n: optim.make("sgd", n, learning_rate=0.1), [], SETTINGS,
        low=1e-3, high=1.0, steps=5, scale=1.0, limit_s=1.0,
    ).suggestion is None  # fmt: skip


def test_the_picture_is_an_image_with_the_suggestion_in_it() -> None:
    test = ranged(network())
    drawn = probe.picture(test, 'mlp & "friends"')
    root = ElementTree.fromstring(drawn)
    assert root.tag.endswith("svg")
    assert f"{test.suggestion:.2g}" in drawn
    assert "<script" not in drawn
