"""One update: what is cut into parts, guarded, clipped or sharpened is still that one update."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vidi.batch import Batch
from vidi.loss import Loss
from vidi.step import StepSettings, train_step

PLAIN = StepSettings(precision="float32", loss=Loss(), micro_batch_size=16, clip_norm=None, seed=0)


def network(*, norm: bool = False) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8) if norm else nn.Identity(),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(3),
            nn.Flatten(),
            nn.Linear(72, 5),
        )


def batch(num_images: int = 16) -> Batch:
    generator = torch.Generator().manual_seed(2)
    return Batch(
        torch.randn(num_images, 3, 12, 12, generator=generator),
        torch.randint(0, 5, (num_images,), generator=generator),
        torch.arange(num_images),
    )


class Seen(torch.optim.SGD):
    """Keeps the gradients of the last update."""

    gradients: list[Tensor]

    def step(self, closure: Any = None) -> Any:
        self.gradients = [p.grad.clone() for g in self.param_groups for p in g["params"]]
        return super().step(closure)


def gradients(settings: StepSettings, model: nn.Module | None = None) -> Tensor:
    model = model or network()
    optimizer = Seen(model.parameters(), lr=0.1)
    train_step(model, optimizer, batch(), settings, 0)
    return torch.cat([gradient.flatten() for gradient in optimizer.gradients])


@pytest.mark.parametrize("micro_batch_size", [4, 5, 1])
def test_gradients_of_micro_batches_add_up_to_those_of_the_batch(micro_batch_size: int) -> None:
    whole = gradients(PLAIN)
    parts = gradients(replace(PLAIN, micro_batch_size=micro_batch_size))
    assert float((whole - parts).norm() / whole.norm()) < 1e-6


def test_the_result_tells_the_sums_of_the_batch() -> None:
    model, images = network(), batch()
    with torch.no_grad():
        logits = model(images.images)
    result = train_step(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        images,
        replace(PLAIN, micro_batch_size=4),
        0,
    )
    assert result.num_images == 16
    expected = nn.functional.cross_entropy(logits, images.targets, reduction="sum")
    torch.testing.assert_close(result.loss_sum, expected)
    assert float(result.correct) == float((logits.argmax(1) == images.targets).sum())


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "host": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "device, fused SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "device, fused AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    "device, not fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, foreach=True),
}


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("how", OPTIMIZERS)
def test_an_update_with_a_bad_number_changes_nothing(how: str, where: str) -> None:
    settings = replace(PLAIN, guard="host" if how == "host" else "device")
    model = network()
    optimizer = OPTIMIZERS[how](model.parameters())
    images = batch()
    train_step(model, optimizer, images, settings, 0)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
    if where == "loss":
        poisoned = Batch(images.images * torch.nan, images.targets, images.ids)
        result = train_step(model, optimizer, poisoned, settings, 1)
    else:
        weight = model.get_parameter("5.weight")
        hook = weight.register_hook(lambda g: g * torch.inf)  # type: ignore[no-untyped-call]
        result = train_step(model, optimizer, images, settings, 1)
        hook.remove()
    assert not bool(result.finite)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[0][name]), name
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            assert value is None or torch.equal(value, before[1][index][name]), name
    # And the next good one is taken.
    assert bool(train_step(model, optimizer, images, settings, 2).finite)
    assert not torch.equal(model.state_dict()["5.weight"], before[0]["5.weight"])


def test_a_guarding_device_gives_the_same_update_as_a_waiting_processor() -> None:
    results = []
    for guard in ("host", "device"):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
        settings = replace(PLAIN, guard=guard, clip_norm=0.1)
        for step in range(3):
            train_step(model, optimizer, batch(), settings, step)
        results.append(nn.utils.parameters_to_vector(model.parameters()))
    assert torch.equal(*results)


def test_clipping_bounds_the_norm_of_all_gradients_together() -> None:
    assert float(gradients(PLAIN).norm()) > 0.01
    assert float(gradients(replace(PLAIN, clip_norm=0.01)).norm()) == pytest.approx(0.01, rel=1e-3)


def test_sharpness_aware_gradients_are_those_of_the_worst_point_nearby() -> None:
    rho = 0.05
    model = network()
    plain = gradients(PLAIN, copy.deepcopy(model))
    moved = copy.deepcopy(model)
    offset = 0
    with torch.no_grad():
        for parameter in moved.parameters():
            part = plain[offset : offset + parameter.numel()].view_as(parameter)
            parameter.add_(part * rho / plain.norm())
            offset += parameter.numel()
    torch.testing.assert_close(
        gradients(replace(PLAIN, sam_rho=rho), copy.deepcopy(model)), gradients(PLAIN, moved)
    )


def test_sharpness_aware_steps_come_back_to_the_bit_and_leave_statistics_alone() -> None:
    plain, sharp = network(norm=True), network(norm=True)
    for model, rho in ((plain, 0.0), (sharp, 0.5)):
        # At a rate of zero, only the excursion could move a weight.
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        train_step(model, optimizer, batch(), replace(PLAIN, sam_rho=rho), 0)
    for name, value in plain.state_dict().items():
        if "num_batches" not in name:
            assert torch.equal(value, sharp.state_dict()[name]), name


def test_float16_skips_what_overflows_and_goes_on_with_a_smaller_scale() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    settings = replace(PLAIN, precision="float16")
    taken = [
        bool(train_step(model, optimizer, batch(), settings, step, scaler=scaler).finite)
        for step in range(40)
    ]
    assert not taken[0]
    assert taken[-1]
    assert scaler.get_scale() < 2.0**40
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_dropout_depends_on_seed_and_step_alone() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(432, 5))
    losses = []
    for step in (3, 4, 3):
        torch.rand(step)
        trial = copy.deepcopy(model)
        optimizer = torch.optim.SGD(trial.parameters(), lr=0.1)
        losses.append(float(train_step(trial, optimizer, batch(), PLAIN, step).loss_sum))
    assert losses[0] == losses[2] != losses[1]
