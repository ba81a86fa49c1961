"""Optimizers equal torch's, weight decay stays put, and no average is ever poisoned."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vidi import optim
from vidi.errors import MissingExtra, UsageError
from vidi.optim import Average, Group
from vidi.plan.optimizing import SCHEDULE_FREE

NAMES = sorted(set(optim.OPTIMIZERS) - {"lbfgs"})


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            # No bias: batch norm leaves it a gradient of pure rounding, which Adam makes large.
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, 16),
            nn.Linear(16, 5),
        )


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(steps):
        images = torch.randn(8, 3, 6, 6, generator=generator)
        targets = torch.randint(0, 5, (8,), generator=generator)
        loss = nn.functional.cross_entropy(model(images), targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    return losses


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


REFERENCES: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.05),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.0),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.05),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.05, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=0.05),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_without_weight_decay_every_optimizer_equals_torch(name: str) -> None:
    ours, theirs = network(), network()
    made = optim.make(name, optim.groups(ours), learning_rate=0.05)
    train(ours, made, 5)
    train(theirs, REFERENCES[name](theirs.parameters()), 5)
    torch.testing.assert_close(weights(ours), weights(theirs), rtol=1e-4, atol=1e-5)


def decaying(parameters: nn.Module, torch_decay: float) -> list[dict[str, Any]]:
    listed = list(parameters.parameters())
    return [
        {"params": [p for p in listed if p.ndim > 1], "weight_decay": torch_decay},
        {"params": [p for p in listed if p.ndim <= 1], "weight_decay": 0.0},
    ]


@pytest.mark.parametrize(
    ("name", "rate", "decay"), [("sgd", 0.1, 5e-4), ("adamw", 1e-3, 0.05), ("nadam", 1e-3, 0.05)]
)
def test_at_the_reference_rate_a_weight_decay_is_torch_s(
    name: str, rate: float, decay: float
) -> None:
    ours, theirs = network(), network()
    made = optim.make(name, optim.groups(ours), learning_rate=rate, weight_decay=decay)
    reference: torch.optim.Optimizer
    if name == "sgd":
        reference = torch.optim.SGD(decaying(theirs, decay), lr=rate, momentum=0.9, nesterov=True)
    elif name == "adamw":
        reference = torch.optim.AdamW(decaying(theirs, decay), lr=rate)
    else:
        reference = torch.optim.NAdam(decaying(theirs, decay), lr=rate, decoupled_weight_decay=True)
    train(ours, made, 5)
    train(theirs, reference, 5)
    torch.testing.assert_close(weights(ours), weights(theirs), rtol=1e-5, atol=1e-6)


def shrunk(name: str, *, steps: int = 400, **settings: Any) -> float:
    """What is left of a weight of 1 that gets no gradient."""
    parameter = nn.Parameter(torch.ones(2, 2))
    # About a 2,000th in each step of two images, for every optimizer.
    decay = 0.06 / (1.0 if name == "sgd" else optim.REFERENCE_LEARNING_RATE[name])
    # Filters on a sphere have nothing to shrink.
    group = Group("weights", (parameter,), hidden=name != "muon_hyperball")
    made = optim.make(name, [group], weight_decay=decay, **settings)
    for _ in range(steps):
        parameter.grad = torch.zeros(2, 2)
        made.step()
    return float(parameter.detach()[0, 0])


@pytest.mark.parametrize("name", NAMES)
def test_weight_decay_does_not_move_when_the_learning_rate_is_tuned(name: str) -> None:
    reference = optim.REFERENCE_LEARNING_RATE[name]
    expected = shrunk(name, learning_rate=reference, batch_size=2)
    # An average of the weights lags behind them.
    assert expected < 0.91
    for factor in (0.01, 0.3, 5.0):
        assert shrunk(name, learning_rate=reference * factor, batch_size=2) == pytest.approx(
            expected, rel=1e-3
        )


@pytest.mark.parametrize("name", NAMES)
def test_weight_decay_of_an_epoch_does_not_move_with_the_batch_size(name: str) -> None:
    small = shrunk(name, learning_rate=0.01, batch_size=2, steps=800)
    large = shrunk(name, learning_rate=0.01, batch_size=4, steps=400)
    assert small == pytest.approx(large, rel=0.01)


def test_weight_decay_of_sgd_does_not_move_with_the_momentum() -> None:
    left = [
        shrunk("sgd", learning_rate=0.1, batch_size=2, momentum=momentum, steps=600)
        for momentum in (0.0, 0.5, 0.9)
    ]
    assert left == pytest.approx([left[0]] * 3, rel=0.02)


def test_norms_and_biases_do_not_decay_and_every_parameter_is_in_one_group() -> None:
    model = network()
    made = optim.groups(model)
    listed = [id(parameter) for group in made for parameter in group.parameters]
    assert sorted(listed) == sorted(id(parameter) for parameter in model.parameters())
    for group in made:
        assert {parameter.ndim >= 2 for parameter in group.parameters} == {group.decays}


def test_only_filters_between_the_first_layer_and_the_head_are_hidden() -> None:
    model = network()
    hidden = [g for g in optim.groups(model) if g.hidden]
    assert [p.shape for g in hidden for p in g.parameters] == [(8, 8, 3, 3), (16, 32)]


def test_layer_decay_slows_each_stage_below_the_next() -> None:
    model = network()
    stages = (("stem", model[0]), ("middle", model[1:6]), ("head", model[6:]))
    made = optim.groups(model, stages=stages, layer_decay=0.5)
    scales = {group.name.split(":")[0]: group.scale for group in made}
    assert scales == {"stem": 0.25, "middle": 0.5, "head": 1.0}
    assert len({group.name for group in made}) == len(made)
    optimizer = optim.make("sgd", made, learning_rate=0.4)
    optim.set_learning_rate(optimizer, 0.5)
    rates = {group["name"].split(":")[0]: group["lr"] for group in optimizer.param_groups}
    assert rates == pytest.approx({"stem": 0.05, "middle": 0.1, "head": 0.2})


def test_a_parameter_in_no_stage_learns_as_slowly_as_the_first() -> None:
    class WithToken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.zeros(4, 4))
            self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    model = WithToken()
    made = optim.groups(model, stages=(("body", model.body), ("head", model.head)), layer_decay=0.1)
    [found] = [g for g in made if any(p is model.token for p in g.parameters)]
    assert found.scale == pytest.approx(0.1)


def test_where_the_first_layer_is_computed_the_second_one_is_hidden() -> None:
    class Computed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("stem", torch.zeros(4, 3, 2, 2))
            self.inner = nn.Conv2d(4, 8, 3)
            self.head = nn.Linear(8, 5)

    hidden = [g for g in optim.groups(Computed()) if g.hidden]
    assert [p.shape for g in hidden for p in g.parameters] == [(8, 4, 3, 3)]


@pytest.mark.parametrize("name", [*NAMES, "lbfgs"])
def test_a_multiplier_of_zero_stops_all_movement(name: str) -> None:
    model = network()
    optimizer = optim.make(name, optim.groups(model), learning_rate=0.01)
    before = weights(model).clone()
    optim.set_learning_rate(optimizer, 0.0)
    assert {group["lr"] for group in optimizer.param_groups} == {0.0}
    if name != "lbfgs":
        train(model, optimizer, 2)
        assert torch.equal(weights(model), before)
    optim.set_learning_rate(optimizer, 1.0)
    assert all(group["lr"] == group["base_learning_rate"] for group in optimizer.param_groups)
    assert max(group["lr"] for group in optimizer.param_groups) == 0.01


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_optimizer_continues_as_if_it_had_not_stopped(name: str) -> None:
    whole, part = network(), network()

    def make(model: nn.Module) -> torch.optim.Optimizer:
        return optim.make(name, optim.groups(model), learning_rate=0.01, weight_decay=0.01)

    train(whole, first := make(whole), 3)
    train(part, second := make(part), 3)
    resumed_model, resumed = network(seed=5), None
    resumed_model.load_state_dict(part.state_dict())
    resumed = make(resumed_model)
    resumed.load_state_dict(second.state_dict())
    train(whole, first, 4)
    train(resumed_model, resumed, 4)
    assert torch.equal(weights(whole), weights(resumed_model))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_muon_takes_the_momentum_that_it_is_given() -> None:
    def after(momentum: float) -> Tensor:
        weight = nn.Parameter(torch.zeros(6, 4))
        made = optim.make(
            "muon", [Group("w", (weight,), hidden=True)], learning_rate=1.0, momentum=momentum
        )
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            weight.grad = torch.randn(6, 4, generator=generator)
            made.step()
        return weight.detach()

    assert not torch.equal(after(0.5), after(0.95))


@pytest.mark.parametrize("shape", [(12, 7), (7, 12), (8, 8)])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_muon_on_matrices_equals_torch(shape: tuple[int, int]) -> None:
    ours = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    theirs = nn.Parameter(ours.detach().clone())
    made = optim.make(
        "muon",
        [Group("hidden", (ours,), hidden=True)],
        learning_rate=0.02,
        weight_decay=0.1,
        momentum=0.95,
    )
    reference = torch.optim.Muon(
        [theirs], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        gradient = torch.randn(shape, generator=generator)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        made.step()
        reference.step()  # type: ignore[no-untyped-call]
    # Both compute in bfloat16, in matrix products of different shapes.
    torch.testing.assert_close(ours, theirs, rtol=0.0, atol=4 * 0.02 * 0.02)


def test_muon_makes_the_update_of_a_filter_orthogonal() -> None:
    weight = nn.Parameter(torch.zeros(6, 4, 3, 3))
    made = optim.make("muon", [Group("hidden", (weight,), hidden=True)], learning_rate=1.0)
    weight.grad = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    made.step()
    values = torch.linalg.svdvals(weight.detach().flatten(1)) / (0.2 * math.sqrt(36))
    assert values.min() > 0.4
    assert values.max() < 1.4


def test_on_a_hyperball_filters_turn_as_far_as_the_rate_says_and_keep_their_norm() -> None:
    generator = torch.Generator().manual_seed(0)
    filters = [
        nn.Parameter(torch.randn(6, 4, 3, 3, generator=generator) * scale) for scale in (1, 9)
    ]
    before = [each.detach().clone() for each in filters]
    zeros, still = nn.Parameter(torch.zeros(6, 4, 3, 3)), nn.Parameter(torch.ones(5, 5))
    group = Group("hidden", (*filters, zeros, still), hidden=True)
    made = optim.make("muon_hyperball", [group], learning_rate=0.1, weight_decay=0.5)
    gradient = torch.randn(6, 4, 3, 3, generator=generator)
    for parameter in (*filters, zeros):
        parameter.grad = gradient.clone()
    still.grad = torch.zeros(5, 5)
    made.step()
    for old, new in zip(before, filters, strict=True):
        assert new.norm().item() == pytest.approx(old.norm().item(), rel=1e-5)
        # A right angle between the two would make it arctan(0.1) exactly.
        turned = torch.nn.functional.cosine_similarity(old.flatten(), new.detach().flatten(), dim=0)
        assert math.acos(turned.item()) == pytest.approx(0.1, rel=0.05)
    assert zeros.norm().item() == pytest.approx(math.sqrt(6), rel=1e-5)
    assert torch.equal(still, torch.ones(5, 5))


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_learns(name: str) -> None:
    model = network()
    images = torch.randn(20, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(20) % 5
    rate = {
        "adadelta": 1.0,
        "sgd": 0.05,
        "adagrad": 0.05,
        "sgd_schedule_free": 0.5,
        "muon_hyperball": 0.05,
    }.get(name, 5e-3)
    optimizer = optim.make(name, optim.groups(model), learning_rate=rate, weight_decay=1e-4)
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(images), targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert loss.item() < 0.4


@pytest.mark.parametrize("name", SCHEDULE_FREE)
def test_a_schedule_free_average_is_the_package_s_and_training_does_not_notice(name: str) -> None:
    watched, alone = network(), network()
    average = Average(watched)
    ours, theirs = (
        optim.make(name, optim.groups(model), learning_rate=0.05, weight_decay=0.01)
        for model in (watched, alone)
    )
    for step in range(4):
        train(watched, ours, 1)
        average.follow(watched, ours, step + 1)
        train(alone, theirs, 1)
    assert torch.equal(weights(watched), weights(alone))
    assert average.num_steps == 4
    theirs.eval()  # type: ignore[attr-defined]
    torch.testing.assert_close(weights(average.model), weights(alone), rtol=1e-6, atol=1e-7)
    assert not torch.equal(weights(average.model), weights(watched))


def test_statistics_are_those_of_the_images_shown_and_nothing_else_changes() -> None:
    model = network().eval()
    before = weights(model).clone()
    batches = [torch.randn(16, 3, 6, 6), torch.randn(16, 3, 6, 6) + 1.0]
    optim.measure_statistics(model, iter(batches))
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d)
    expected = torch.stack([model[0](b).mean((0, 2, 3)) for b in batches]).mean(0)
    torch.testing.assert_close(norm.running_mean, expected.detach(), rtol=1e-4, atol=1e-5)
    assert norm.momentum == 0.1
    assert not model.training
    assert torch.equal(weights(model), before)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "schedulefree", None)
    with pytest.raises(MissingExtra, match="schedulefree") as refused:
        optim.make("adamw_schedule_free", network(), learning_rate=0.1)
    assert "vidi[schedulefree]" in refused.value.fix


def test_lbfgs_fits_a_head() -> None:
    head = nn.Linear(4, 3)
    features = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    targets = features[:, :3].argmax(1)
    optimizer = optim.make("lbfgs", optim.groups(head), learning_rate=1.0, max_iter=60)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(head(features), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    assert closure() < 0.05


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"name": "adamv"}, "did you mean 'adam"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"momentum": 1.0}, "momentum"),
        ({"nestorov": True}, "did you mean 'nesterov'"),
        ({"name": "lbfgs", "weight_decay": 0.1}, "part of the loss"),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict[str, Any], sentence: str) -> None:
    given_arguments = {"name": "sgd", "learning_rate": 0.1, **arguments}
    with pytest.raises(UsageError, match=sentence):
        optim.make(given_arguments.pop("name"), optim.groups(network()), **given_arguments)


def test_a_model_without_parameters_is_refused() -> None:
    with pytest.raises(UsageError, match="no parameters"):
        optim.make("sgd", optim.groups(nn.ReLU()), learning_rate=0.1)


def test_the_average_is_the_exponential_mean_with_a_short_start() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 5.0)
    average = Average(model, decay=0.9)
    expected = 5.0
    for step in range(200):
        nn.init.constant_(model.weight, math.sin(step))
        assert average.update(model)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * math.sin(step)
        assert average.state_dict()["weight"].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("decay", [0.9, 0.99])
def test_an_average_of_every_fourth_step_lies_near_that_of_every_step(decay: float) -> None:
    model = nn.Linear(1, 1, bias=False)
    every, fourth = Average(model, decay), Average(model, decay)
    for step in range(1, 401):
        nn.init.constant_(model.weight, math.sin(step / 60))
        every.update(model)
        if step % 4 == 0:
            fourth.update(model, steps=4)
    assert fourth.num_steps == every.num_steps == 400
    both = [average.state_dict()["weight"].item() for average in (every, fourth)]
    # What is averaged moves by up to 0.05 in three steps.
    assert both[0] == pytest.approx(both[1], abs=0.05)
    assert both[0] != pytest.approx(model.weight.item(), abs=0.06)


def test_the_average_keeps_what_does_not_change_to_the_bit() -> None:
    model = network()
    average = Average(model, decay=0.999)
    for _ in range(20):
        average.update(model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(average.state_dict()[name], tensor)


def test_the_average_follows_statistics_and_counters_and_is_a_model_in_evaluation_mode() -> None:
    model = network()
    average = Average(model, decay=0.5)
    train(model, optim.make("sgd", optim.groups(model), learning_rate=0.1), 3)
    average.update(model)
    state = average.state_dict()
    assert state["1.num_batches_tracked"] == 3
    assert not torch.equal(state["1.running_mean"], torch.zeros(8))
    assert not average.model.training
    assert not any(parameter.requires_grad for parameter in average.model.parameters())


@pytest.mark.parametrize("where", ["0.weight", "1.running_var", "7.bias"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_the_average_is_never_poisoned(where: str, value: float) -> None:
    model = network()
    average = Average(model, decay=0.9)
    train(model, optim.make("sgd", optim.groups(model), learning_rate=0.1), 1)
    average.update(model)
    before = {name: tensor.clone() for name, tensor in average.state_dict().items()}
    model.state_dict()[where].view(-1)[0] = value
    assert not average.update(model)
    assert average.num_steps == 1
    for name, tensor in average.state_dict().items():
        assert torch.equal(tensor, before[name])


@settings(max_examples=30, deadline=None)
@given(split=st.integers(0, 12), decay=st.floats(0.0, 0.9999))
def test_a_resumed_average_continues_as_if_it_had_not_stopped(split: int, decay: float) -> None:
    def moved(step: int) -> nn.Linear:
        model = nn.Linear(2, 2)
        for index, parameter in enumerate(model.parameters()):
            nn.init.constant_(parameter, math.sin(step + index))
        return model

    whole = Average(moved(100), decay)
    part = Average(moved(100), decay)
    for step in range(split):
        whole.update(moved(step))
        part.update(moved(step))
    resumed = Average(moved(7), decay)
    state = {name: tensor.clone() for name, tensor in part.state_dict().items()}
    resumed.load_state_dict(state, num_steps=part.num_steps)
    for step in range(split, 13):
        whole.update(moved(step))
        resumed.update(moved(step))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name])


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_an_average_that_never_moves_or_overshoots_is_refused(decay: float) -> None:
    with pytest.raises(UsageError, match="decay"):
        Average(network(), decay)
