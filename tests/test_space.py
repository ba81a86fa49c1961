"""What a search may try: refused where it cannot be, drawn within its ends."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from vidi.config import Config
from vidi.errors import ConfigError
from vidi.facts import DatasetFacts, Facts, Machine
from vidi.plan import make
from vidi.space import (
    Distribution,
    Space,
    choice,
    default_space,
    from_tree,
    integer,
    log_integer,
    log_uniform,
    portfolio,
    read,
    uniform,
)
from vidi.tune.sampling import Wish, suggest


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"train.learning_rte": {"uniform": [0, 1]}}, "did you mean 'train.learning_rate'"),
        ({"learning_rate": {"uniform": [0, 1]}}, "did you mean 'train.learning_rate'"),
        ({"train.learning_rate": {"uniform": [1.0, 0.1]}}, "range from 1 to 0.1 is empty"),
        ({"train.learning_rate": {"uniform": [0.1, 0.1]}}, "empty"),
        ({"train.learning_rate": {"uniform": [-1, 1]}}, "greater than 0"),
        ({"train.learning_rate": {"log_uniform": [0, 1]}}, "begin above 0"),
        ({"train.learning_rate": {"uniform": [0.1, float("inf")]}}, "no range"),
        ({"train.learning_rate": {"unifrom": [0.1, 1]}}, "did you mean 'uniform'"),
        ({"train.learning_rate": {"uniform": [0.1]}}, r"\[low, high\]"),
        ({"train.learning_rate": {"uniform": ["a", "b"]}}, "two numbers"),
        ({"train.learning_rate": 0.1}, "no distribution"),
        ({"train.batch_size": {"uniform": [1, 64]}}, "valid integer"),
        ({"train.batch_size": {"integer": [1.5, 64]}}, "whole numbers"),
        ({"train.momentum": {"uniform": [0.5, 1.0]}}, "less than 1"),
        ({"train.loss": {"choice": ["mse"]}}, "cross_entropy"),
        ({"train.loss": {"choice": []}}, "nothing to choose"),
        ({"train.loss": {"choice": ["bce", "bce"]}}, "twice"),
        ({"data.split_seed": {"integer": [1, 5]}}, "judged by the same images"),
        ({"train.minutes": {"uniform": [1, 5]}}, "as long as each other"),
        ({"machine.threads": {"integer": [1, 2]}}, "how fast"),
        (
            {"train.momentum": {"uniform": [0.1, 0.9], "when": {"train.optimizer": "sgd"}}},
            "which is not searched",
        ),
        (
            {
                "train.optimizer": {"choice": ["adamw", "muon"]},
                "train.momentum": {"uniform": [0.1, 0.9], "when": {"train.optimizer": "sgd"}},
            },
            "which it never is",
        ),
        (
            {
                "train.loss": {"choice": ["bce"], "when": {"train.head": "first"}},
                "train.head": {"choice": ["first"], "when": {"train.loss": "bce"}},
            },
            "wait for each other",
        ),
        ({}, "nothing to search"),
    ],
)
def test_a_wrong_space_is_refused_by_name(tree: Mapping[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        from_tree(tree)


def test_a_file_says_the_same_as_python(tmp_path: Path) -> None:
    path = tmp_path / "space.toml"
    path.write_text(
        """
[space]
"train.optimizer" = { choice = ["sgd", "adamw"] }
train.momentum = { uniform = [0.8, 0.97], when = { "train.optimizer" = "sgd" } }
train.learning_rate = [
  { log_uniform = [0.03, 1.5], when = { "train.optimizer" = "sgd" } },
  { log_uniform = [3e-4, 1e-2], when = { "train.optimizer" = ["adamw"] } },
]
train.progressive_px = { choice = [[16, 32], [32]] }
"""
    )
    written = Space.of(
        {
            "train.progressive_px": choice([16, 32], [32]),
            "train.learning_rate": [
                log_uniform(0.03, 1.5).when("train.optimizer", "sgd"),
                log_uniform(3e-4, 1e-2).when("train.optimizer", "adamw"),
            ],
            "train.momentum": uniform(0.8, 0.97).when("train.optimizer", "sgd"),
            "train.optimizer": choice("sgd", "adamw"),
        }
    )
    assert read(path) == written
    assert from_tree(written.to_json()) == written
    names = [axis.name for axis in written]
    assert names.index("train.optimizer") < names.index("train.learning_rate")


def test_files_that_are_no_space_say_how_one_looks(tmp_path: Path) -> None:
    path = tmp_path / "space.toml"
    for text in ("[train]\nepochs = 3", "space = 3", "not = [toml"):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"\[space\]"):
            read(path)
    with pytest.raises(ConfigError, match="cannot read"):
        read(tmp_path / "none.toml")


DISTRIBUTIONS = some.one_of(
    some.tuples(some.floats(-1e3, 1e3), some.floats(0.01, 1e3)).map(
        lambda ends: uniform(ends[0], ends[0] + ends[1])
    ),
    some.tuples(some.floats(1e-6, 1e3), some.floats(1.1, 1e3)).map(
        lambda ends: log_uniform(ends[0], ends[0] * ends[1])
    ),
    some.tuples(some.integers(-50, 50), some.integers(1, 50)).map(
        lambda ends: integer(ends[0], ends[0] + ends[1])
    ),
    some.tuples(some.integers(1, 50), some.integers(1, 50)).map(
        lambda ends: log_integer(ends[0], ends[0] + ends[1])
    ),
    some.lists(some.integers(), min_size=1, max_size=6, unique=True).map(
        lambda values: choice(*values)
    ),
)


@settings(max_examples=200, deadline=None)
@given(one=DISTRIBUTIONS, share=some.floats(0, 1), other=some.floats(0, 1))
def test_a_share_gives_a_value_inside_and_back(
    one: Distribution, share: float, other: float
) -> None:
    value = one.at(share)
    assert one.contains(value)
    again = one.at(one.share(value))
    assert again == (value if one.kind == "choice" else pytest.approx(value, rel=1e-6, abs=1e-6))
    if one.kind != "choice" and share <= other:
        assert value <= one.at(other)
    assert all(one.contains(point) for point in one.points(5))
    assert one.kind == "choice" or {one.at(0.0), one.at(1.0)} <= set(one.points(5))


def facts(num_train: int = 1000, classes: int = 4, rare: int | None = None) -> DatasetFacts:
    counts = [num_train // classes] * classes
    if rare is not None:
        counts[0] = rare
    return DatasetFacts(
        name="n",
        fingerprint="f",
        classes=tuple("abcdefghij"[:classes]),
        counts={"train": tuple(counts), "validation": (9,) * classes},
        height_px=(32, 32, 32),
        width_px=(32, 32, 32),
        grey=False,
        split_rule="folders",
    )


@pytest.mark.parametrize("pretrained", [False, True])
def test_the_default_space_can_be_searched_and_begins_with_the_default(pretrained: bool) -> None:
    space = default_space(Config(), facts(), pretrained=pretrained)
    starts = portfolio(space, pretrained=pretrained)
    assert starts[0] == {}
    assert 1 < len(starts) <= 4
    for settings_ in starts:
        Config().with_settings(settings_)
    names = {axis.name for axis in space}
    assert {"train.learning_rate", "train.weight_decay", "train.batch_size"} <= names
    assert ("train.layer_decay" in names) == pretrained


MATTERS = {
    "model.stochastic_depth", "model.dropout", "train.learning_rate", "train.weight_decay",
    "train.optimizer", "train.momentum", "train.schedule", "train.warmup_fraction",
    "train.batch_size", "train.label_smoothing", "train.ema_decay", "augment.policy",
    "augment.mixup_alpha", "augment.cutmix_alpha",
}  # fmt: skip


@pytest.mark.parametrize("px", [32, 400])
@pytest.mark.parametrize("pretrained", [False, True])
def test_a_full_space_has_what_matters_and_all_of_it_can_be_planned(
    pretrained: bool, px: int
) -> None:
    dataset = facts(1600).model_copy(update={"height_px": (px,) * 3, "width_px": (px,) * 3})
    space = default_space(Config(), dataset, pretrained=pretrained, full=True)
    names = {axis.name for axis in space}
    own = {"train.layer_decay", "train.freeze_stages"} if pretrained else {"model.name"}
    assert names >= MATTERS | own
    assert ("data.image_px" in names) == (pretrained or px == 400)
    weights = "imagenet" if pretrained else "none"
    asked = Config().with_settings({"train.epochs": 3.0, "model.weights": weights})
    for number in range(1, 61):
        found = suggest(space, asked, Wish("random", 0), [], number)
        assert found is not None
        made = make(asked.with_settings(found.settings), Facts(dataset=dataset, machine=MACHINE))
        for name, value in found.settings.items():
            told = made.setting(name)
            assert told is None or told == pytest.approx(value), name


def test_a_full_space_has_stochastic_depth_where_the_network_that_is_asked_for_does() -> None:
    def names(model: str) -> set[str]:
        asked = Config().with_settings({"model.name": model})
        return {axis.name for axis in default_space(asked, facts(), pretrained=False, full=True)}

    assert "model.stochastic_depth" in names("resnet50")
    assert not {"model.stochastic_depth", "model.name"} & names("small_cnn")


def test_what_was_asked_for_is_not_searched() -> None:
    asked = Config().with_settings({"train.optimizer": "adamw", "train.label_smoothing": 0.1})
    space = default_space(asked, facts(), pretrained=False)
    names = [axis.name for axis in space]
    assert "train.optimizer" not in names
    assert "train.label_smoothing" not in names
    # Momentum is that of sgd, and only the range of adamw is left.
    assert "train.momentum" not in names
    (rate,) = [axis for axis in space if axis.name == "train.learning_rate"]
    assert rate.distribution == log_uniform(3e-4, 1e-2)


@pytest.mark.parametrize(
    ("images", "rare", "batches", "imbalance"),
    [
        (100, None, (32,), False),
        (1600, None, (32, 64), False),
        (50_000, 100, (128, 256, 512), True),
    ],
)
def test_the_default_space_follows_the_images(
    images: int, rare: int | None, batches: tuple[int, ...], imbalance: bool
) -> None:
    space = default_space(Config(), facts(images, rare=rare), pretrained=False)
    axes = {axis.name: axis.distribution for axis in space}
    assert axes["train.batch_size"].values == batches
    assert ("train.imbalance" in axes) == imbalance


MACHINE = Machine(
    platform="p",
    processor="p",
    physical_cores=2,
    usable_cores=2,
    memory_bytes=1 << 33,
    cpu_bfloat16=False,
    python="3",
    torch="2",
)
RARE = facts(50_000, rare=100)


def test_of_the_remedies_for_rare_classes_one_is_tried_at_a_time() -> None:
    space = default_space(Config(), RARE, pretrained=False)
    drawn = [suggest(space, Config(), Wish("random", 3), (), number) for number in range(1, 60)]
    remedies = {
        (one.settings["train.imbalance"], one.settings.get("train.sampling"))
        for one in drawn
        if one is not None
    }
    assert remedies == {
        ("none", "each"),
        ("none", "balanced"),
        ("logit_adjustment", None),
        ("weighted", None),
    }


@pytest.mark.parametrize(
    ("asked", "left"),
    [
        ({"train.sampling": "balanced"}, set()),
        ({"train.sampling": "weighted"}, set()),
        ({"train.sampling": "each"}, {"train.imbalance"}),
        ({"train.imbalance": "weighted"}, set()),
        ({"train.imbalance": "none"}, {"train.sampling"}),
    ],
)
def test_a_remedy_that_was_asked_for_is_the_only_one(
    asked: dict[str, object], left: set[str]
) -> None:
    space = default_space(Config().with_settings(asked), RARE, pretrained=False)
    names = {axis.name for axis in space}
    assert names & {"train.imbalance", "train.sampling"} == left


def test_where_the_owner_weighs_the_images_no_remedy_is_tried() -> None:
    weighted = RARE.model_copy(update={"weighted": True})
    names = {axis.name for axis in default_space(Config(), weighted, pretrained=False)}
    assert not names & {"train.imbalance", "train.sampling"}
