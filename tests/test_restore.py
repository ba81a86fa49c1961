"""A plan to its network."""

from __future__ import annotations

import pytest
import torch

from vidi.config import Config
from vidi.facts import DatasetFacts, Facts, Machine
from vidi.plan import Plan, make
from vidi.restore import MOST_KEPT, Initial, build_model


def plan_of(name: str, **settings: object) -> Plan:
    dataset = DatasetFacts(
        name="made up",
        fingerprint="f",
        classes=("a", "b", "c"),
        counts={"train": (300, 300, 300), "validation": (50, 50, 50), "test": ()},
        height_px=(64, 64, 64),
        width_px=(64, 64, 64),
        grey=False,
        split_rule="folders",
    )
    machine = Machine(
        platform="p",
        processor="p",
        physical_cores=2,
        usable_cores=2,
        memory_bytes=1 << 33,
        cpu_bfloat16=False,
        python="3",
        torch="2",
    )
    asked = {"model.name": name, "train.epochs": 1.0, **settings}
    return make(Config().with_settings(asked), Facts(dataset=dataset, machine=machine))


@pytest.mark.parametrize("name", ["lenet5", "small_cnn", "resnet18", "efficientnet_b0"])
def test_a_network_from_kept_weights_is_the_one_that_would_be_drawn(name: str) -> None:
    plan = plan_of(name)
    initial: Initial = {}
    build_model(plan, initial=initial)
    kept, drawn = build_model(plan, initial=initial).eval(), build_model(plan).eval()
    images = torch.rand(2, 3, plan.pixels.image_px, plan.pixels.image_px) * 255
    with torch.inference_mode():
        assert torch.equal(kept(images), drawn(images))
    for ours, its in zip(kept.parameters(), drawn.parameters(), strict=True):
        assert ours.stride() == its.stride()
        assert ours.requires_grad


def test_training_a_network_leaves_the_kept_weights_as_they_were() -> None:
    plan = plan_of("lenet5")
    initial: Initial = {}
    for network in (build_model(plan, initial=initial), build_model(plan, initial=initial)):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.fill_(7.0)
    for kept, drawn in zip(
        build_model(plan, initial=initial).parameters(), build_model(plan).parameters(), strict=True
    ):
        assert torch.equal(kept, drawn)


def test_other_seeds_have_other_weights_and_few_are_kept() -> None:
    initial: Initial = {}
    seen = [
        next(build_model(plan_of("lenet5", **{"train.seed": n}), initial=initial).parameters())
        for n in range(MOST_KEPT + 2)
    ]
    assert not torch.equal(seen[0], seen[1])
    assert len(initial) == MOST_KEPT


def test_dropout_is_of_the_plan_and_not_of_the_weights() -> None:
    initial: Initial = {}
    for share in (0.1, 0.4):
        network = build_model(plan_of("lenet5", **{"model.dropout": share}), initial=initial)
        assert share in {m.p for m in network.modules() if isinstance(m, torch.nn.Dropout)}
    assert len(initial) == 1
