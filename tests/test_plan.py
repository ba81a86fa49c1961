"""Decisions as tables: facts in, plan out; no torch, no files, no clock."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidi.config import Config
from vidi.errors import ConfigError, DamagedError, DataError
from vidi.facts import (
    Accelerator,
    DatasetFacts,
    Facts,
    Machine,
    Measurements,
    ModelFacts,
    StepTiming,
    WeightsFacts,
)
from vidi.plan import Plan, choose_model, make

LITE0 = WeightsFacts(
    image_px=224, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", crop_fraction=0.875
)


CARD = Accelerator(kind="cuda", name="a card", memory_bytes=16 << 30, bfloat16=True)


def dataset(
    px: int = 28, num_train: int = 60_000, num_classes: int = 10, **changes: Any
) -> DatasetFacts:
    each = num_train // num_classes
    values: dict[str, Any] = {
        "name": "things",
        "fingerprint": "f" * 32,
        "classes": tuple(f"c{i}" for i in range(num_classes)),
        "counts": {"train": (each,) * num_classes, "validation": (each // 10,) * num_classes,
                   "test": (each // 5,) * num_classes},
        "height_px": (px, px, px),
        "width_px": (px, px, px),
        "grey": False,
        "split_rule": "folders",
    }  # fmt: skip
    return DatasetFacts(**{**values, **changes})


def machine(**changes: Any) -> Machine:
    values: dict[str, Any] = {
        "platform": "Linux", "processor": "a processor", "physical_cores": 2, "usable_cores": 2,
        "memory_bytes": 8 << 30, "cpu_bfloat16": True, "python": "3.11", "torch": "2.13",
    }  # fmt: skip
    return Machine(**{**values, **changes})


def plan_for(config: Config | None = None, **facts: Any) -> Plan:
    values = {"dataset": dataset(), "machine": machine(), **facts}
    return make(config or Config(), Facts(**values))


PHOTOS: dict[str, Any] = {
    "dataset": dataset(px=400, num_train=3_000, width_px=(400, 400, 533)),
    "weights": LITE0,
}


def asked(**settings: object) -> Config:
    return Config().with_settings({key.replace("__", "."): v for key, v in settings.items()})


def test_small_images_are_trained_from_scratch_at_their_own_size() -> None:
    plan = plan_for()
    assert plan.model.name == "small_cnn"
    assert plan.model.weights == "none"
    assert (plan.pixels.image_px, plan.pixels.store_px) == (28, 28)
    assert plan.augment.crop == "pad"


@pytest.mark.parametrize(
    ("minutes", "px", "num_train", "machine_has", "name"),
    [
        (None, 32, 50_000, {}, "small_cnn"),
        (5, 28, 60_000, {}, "small_cnn"),
        (20, 28, 60_000, {}, "small_cnn_x2"),
        (10, 32, 50_000, {}, "small_cnn"),
        (60, 32, 50_000, {}, "small_cnn_x3"),
        (60, 32, 50_000, {"winograd": True}, "small_cnn_x4"),
        (10, 32, 12_000, {"winograd": True}, "small_cnn_x2_mean2"),
        (60, 32, 12_000, {"winograd": True}, "small_cnn_x3_mean2"),
        (60, 32, 12_000, {"accelerators": (CARD,)}, "small_cnn_x4"),
        (60, 32, 50_000, {"cpu_bfloat16": False}, "small_cnn_x2"),
        (60, 8, 1_500, {}, "small_cnn"),
        (1, 32, 50_000, {"accelerators": (CARD,)}, "small_cnn_x3"),
    ],
)
def test_the_small_network_is_as_wide_as_the_time_allows(
    minutes: float | None, px: int, num_train: int, machine_has: dict[str, Any], name: str
) -> None:
    config = Config() if minutes is None else asked(train__minutes=minutes)
    plan = plan_for(
        config,
        dataset=dataset(px=px, num_train=num_train, grey=True),
        machine=machine(**machine_has),
    )
    assert plan.model.name == name
    assert plan.optimizer.name == "muon_hyperball"
    assert (plan.schedule.name, plan.schedule.warmup_fraction) == ("linear", 0.0)


@pytest.mark.parametrize(
    ("settings", "num_train", "changes", "machine_has", "name"),
    [
        ({}, 1_000, {}, {}, "efficientnet_lite0"),
        ({}, 50_000, {}, {}, "small_cnn"),
        ({}, 1_000, {"grey": True}, {}, "small_cnn"),
        ({}, 1_000, {"height_px": (16, 16, 16)}, {}, "small_cnn"),
        ({}, 1_000, {}, {"accelerators": (CARD,)}, "efficientnet_lite0"),
        ({"train__minutes": 1}, 1_000, {}, {}, "efficientnet_lite0"),
        ({"train__minutes": 1}, 1_000, {}, {"cpu_bfloat16": False}, "efficientnet_lite0"),
        ({"train__minutes": 0.1}, 1_000, {}, {}, "small_cnn"),
        ({"train__minutes": 60}, 50_000, {}, {"accelerators": (CARD,)}, "small_cnn_x4"),
        ({"model__weights": "none"}, 1_000, {}, {}, "small_cnn"),
        ({"data__image_px": 32}, 1_000, {}, {}, "small_cnn"),
        ({"model__weights": "imagenet"}, 50_000, {"grey": True}, {}, "efficientnet_lite0"),
        ({"model__name": "efficientnet_lite0"}, 50_000, {}, {}, "efficientnet_lite0"),
    ],
)
def test_small_pictures_are_enlarged_for_weights_that_know_more_than_they_say(
    settings: dict[str, Any],
    num_train: int,
    changes: dict[str, Any],
    machine_has: dict[str, Any],
    name: str,
) -> None:
    facts = dataset(px=32, num_train=num_train, **changes)
    plan = plan_for(asked(**settings), dataset=facts, machine=machine(**machine_has), weights=LITE0)
    assert plan.model.name == name
    if name == "efficientnet_lite0":
        assert plan.model.weights == "imagenet"
        assert (plan.pixels.image_px, plan.pixels.store_px) == (128, 128)
        assert plan.augment.crop == "resized"
    else:
        assert plan.model.weights == "none"
        assert plan.pixels.image_px == 32


def test_networks_that_share_a_batch_are_planned_as_each_alone() -> None:
    one, two = (
        plan_for(asked(model__name=name, train__learning_rate_scaling="linear"))
        for name in ("small_cnn", "small_cnn_x2_mean2")
    )
    assert (one.batch_size, two.batch_size) == (256, 512)
    assert (one.batch_size_each, two.batch_size_each) == (256, 256)
    assert two.optimizer.learning_rate == one.optimizer.learning_rate
    # Each of them sees an image in every other epoch.
    assert two.num_epochs == 2 * one.num_epochs
    assert two.longest_steps == one.longest_steps


def test_tiny_images_are_shown_larger() -> None:
    plan = plan_for(dataset=dataset(px=8))
    assert (plan.pixels.image_px, plan.pixels.store_px) == (16, 16)
    assert plan.augment.crop_padding_px == 1
    assert plan_for(asked(data__image_px=8), dataset=dataset(px=8)).pixels.image_px == 8
    assert plan_for(asked(model__name="mlp"), dataset=dataset(px=8)).pixels.image_px == 8


@pytest.mark.parametrize(
    ("num_train", "policy", "erased"), [(1_258, "light", 0.25), (54_000, "none", 0.0)]
)
def test_few_images_are_varied_more_when_a_network_starts_from_scratch(
    num_train: int, policy: str, erased: float
) -> None:
    augment = plan_for(dataset=dataset(num_train=num_train, grey=True)).augment
    assert (augment.policy, augment.erase_probability) == (policy, erased)
    photos = plan_for(**PHOTOS).augment
    assert (photos.policy, photos.erase_probability) == ("none", 0.0)


def test_photos_are_fine_tuned_from_weights_at_hand() -> None:
    plan = plan_for(**PHOTOS)
    assert (plan.model.name, plan.model.weights) == ("efficientnet_lite0", "imagenet")
    assert (plan.pixels.image_px, plan.pixels.store_px) == (224, 256)
    assert plan.pixels.mean == LITE0.mean
    assert plan.augment.crop == "resized"
    assert plan.optimizer.name == "adamw"


@pytest.mark.parametrize(
    ("settings", "num_train", "head"),
    [
        ({}, 3_000, "first"),
        ({}, 200_000, "with_the_rest"),
        ({"train__minutes": 5}, 3_000, "first"),
        ({"train__minutes": 0.5}, 3_000, "with_the_rest"),
        ({"train__head": "with_the_rest"}, 3_000, "with_the_rest"),
        ({"model__name": "resnet18", "model__weights": "imagenet"}, 3_000, "with_the_rest"),
        ({"model__weights": "none"}, 3_000, "with_the_rest"),
    ],
)
def test_a_head_is_fitted_first_where_there_is_time(
    settings: dict[str, Any], num_train: int, head: str
) -> None:
    facts = {**PHOTOS, "dataset": dataset(px=400, num_train=num_train)}
    if settings.get("model__weights") == "none":
        facts["weights"] = None
    assert plan_for(asked(**settings), **facts).head == head


def test_the_minutes_are_for_the_head_too() -> None:
    slow = measured(float32_last=20).model_copy(update={"evaluation_images_per_second": 60.0})
    facts: dict[str, Any] = {**PHOTOS, "dataset": dataset(px=400, num_train=3_000)}
    epochs = [
        plan_for(asked(train__minutes=30, train__head=head), measured=slow, **facts).num_epochs
        for head in ("first", "with_the_rest")
    ]
    # Two looks at 3,300 images take 110 s, and an epoch at 20 images a second 150 s and more.
    assert 0.5 < epochs[1] - epochs[0] < 0.8


def test_every_decision_has_a_reason_and_a_value() -> None:
    decisions = plan_for(**PHOTOS).decisions()
    assert len(decisions) > 20
    assert all(name and value and why for name, value, why in decisions)


def test_what_was_asked_is_taken_and_said() -> None:
    plan = plan_for(asked(train__batch_size=32, train__optimizer="adamw", data__image_px=40))
    assert (plan.batch_size, plan.optimizer.name, plan.pixels.image_px) == (32, "adamw", 40)
    assert plan.reasons["batch_size"] == "asked for"


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("step", {"every_fractio": 0.3}, "'every_fractio'"),
        ("step", {"every_fraction": 0.0}, "every_fraction = 0.0"),
        ("step", {"every_fraction": (0.3,)}, "one number"),
        ("multistep", {"milestones": 0.3}, "numbers"),
        ("plateau", {"patienc": 3}, "'patienc'"),
        ("plateau", {"patience": (3,)}, "one number"),
    ],
)
def test_settings_that_a_schedule_does_not_take_are_refused_before_a_run_is_made(
    name: str, settings: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError, match=r"train\.schedule_settings") as refused:
        plan_for(asked(train__schedule=name, train__schedule_settings=settings))
    assert words in str(refused.value)


def test_the_same_facts_give_the_same_plan() -> None:
    assert plan_for() == plan_for()


def test_a_plan_survives_json() -> None:
    plan = plan_for(**PHOTOS)
    assert Plan.from_json(plan.model_dump_json()) == plan


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": 1}', '{"seed": NaN}'])
def test_a_damaged_plan_is_refused(text: str) -> None:
    with pytest.raises(DamagedError, match=r"plan\.json"):
        Plan.from_json(text)


@given(batch_size=st.integers(1, 512), rate=st.floats(1e-5, 1.0))
def test_the_learning_rate_is_stated_for_256_images(batch_size: int, rate: float) -> None:
    plans = {
        name: plan_for(asked(train__batch_size=batch_size, train__learning_rate=rate,
                             train__optimizer=name))
        for name in ("sgd", "adamw")
    }  # fmt: skip
    assert plans["sgd"].optimizer.learning_rate == pytest.approx(rate * batch_size / 256)
    assert plans["adamw"].optimizer.learning_rate == pytest.approx(
        rate * math.sqrt(batch_size / 256)
    )


@given(
    px=st.integers(8, 600),
    num_train=st.integers(4, 100_000),
    num_classes=st.integers(2, 50),
    epochs=st.none() | st.floats(0.05, 40),
)
def test_any_data_set_gets_a_plan_that_fits_together(
    px: int, num_train: int, num_classes: int, epochs: float | None
) -> None:
    num_train = max(num_train, num_classes)
    facts = dataset(px=px, num_train=num_train, num_classes=num_classes)
    config = Config() if epochs is None else asked(train__epochs=epochs)
    weights = (
        LITE0
        if choose_model(config, Facts(dataset=facts, machine=machine())).weights != "none"
        else None
    )
    plan = plan_for(config, dataset=facts, weights=weights)
    assert 1 <= plan.batch_size <= facts.num_images("train")
    assert plan.pixels.store_px >= plan.pixels.image_px >= 1
    assert 1 <= plan.evaluate_every_steps <= plan.horizon_steps == plan.last_step
    assert plan.log_every_steps >= 1
    assert 0 <= plan.ema_decay < 1


def measured(**rates: float) -> Measurements:
    steps = tuple(
        StepTiming(
            precision="bfloat16" if name.startswith("bfloat16") else "float32",
            channels_last=name.endswith("last"),
            batch_size=128,
            threads=2,
            images_per_second=rate,
            rejected="its loss is 9 % off float32's" if name.endswith("wrong_last") else "",
        )
        for name, rate in rates.items()
    )
    return Measurements(steps=steps, evaluation_images_per_second=3_000.0)


def test_the_fastest_measured_way_is_taken() -> None:
    plan = plan_for(measured=measured(float32_last=100, float32=120, bfloat16_last=90))
    assert (plan.execution.precision, plan.execution.channels_last) == ("float32", False)
    assert "120 images/s" in plan.reasons["execution.precision"]


def test_a_way_whose_loss_was_off_is_never_taken() -> None:
    plan = plan_for(measured=measured(float32_last=100, bfloat16_wrong_last=900))
    assert plan.execution.precision == "float32"


def test_an_asked_precision_is_kept_though_it_is_slower() -> None:
    plan = plan_for(
        asked(machine__precision="bfloat16"),
        measured=measured(float32_last=100, bfloat16_last=50),
    )
    assert plan.execution.precision == "bfloat16"


@pytest.mark.parametrize("minutes", [1, 5, 20])
def test_minutes_become_as_many_epochs_as_fit(minutes: float) -> None:
    rate = 2_000.0
    plan = plan_for(
        asked(train__minutes=minutes),
        dataset=dataset(grey=True),
        measured=measured(float32_last=rate),
    )
    training_s = plan.work(0, plan.horizon_steps) * plan.batch_size / rate
    assert 0.75 * minutes * 60 < training_s < minutes * 60


def test_minutes_count_what_was_spent_before() -> None:
    config = asked(train__minutes=1)
    fast, late = (
        plan_for(
            config,
            measured=measured(float32_last=2_000).model_copy(update={"spent_s": spent_s}),
        ).horizon_steps
        for spent_s in (0.0, 30.0)
    )
    assert late < 0.6 * fast


@pytest.mark.parametrize(
    ("plain", "flipped", "expected"),
    [(0.96, 0.40, False), (0.85, 0.83, True), (0.15, 0.11, True), (None, None, True)],
)
def test_images_are_mirrored_where_that_keeps_their_meaning(
    plain: float | None, flipped: float | None, expected: bool
) -> None:
    facts = dataset(neighbour_agreement=plain, neighbour_agreement_flipped=flipped)
    for name, how in (("small_cnn", "alternating"), ("resnet18", "random")):
        plan = plan_for(asked(model__name=name), dataset=facts)
        assert plan.augment.horizontal_flip == (how if expected else "none")
        assert plan.reasons["augment.horizontal_flip"]


@pytest.mark.parametrize(
    ("flip", "crop", "views"),
    [
        ("random", "pad", "shift_flip"),
        ("random", "none", "flip"),
        ("none", "pad", "shift"),
        ("none", "none", "plain"),
    ],
)
def test_only_a_small_network_looks_by_itself_at_what_training_showed(
    flip: str, crop: str, views: str
) -> None:
    settings = asked(augment__horizontal_flip=flip, augment__crop=crop)
    plan = plan_for(settings)
    assert plan.model.views == views
    assert plan.reasons["model.views"]
    assert plan_for(settings.with_settings({"model.name": "resnet18"})).model.views == "plain"
    assert plan_for(settings, **PHOTOS).model.views == "plain"
    plan = plan_for(settings.with_settings({"model.views": "flip"}))
    assert plan.model.views == "flip"
    assert plan.reasons["model.views"] == "asked for"


@pytest.mark.parametrize(
    ("height", "width", "aspect", "resize", "store_px"),
    [
        # Exactly what the model sees: nothing to do.
        ((224, 224, 224), (224, 224, 224), (1.0, 1.0, 1.0), "squash", 224),
        # Photos: little is cut off, and there is room around a random crop.
        ((400, 400, 533), (400, 533, 533), (1.33, 1.33, 1.33), "crop", 256),
        ((400, 600, 900), (400, 600, 900), (1.0, 1.2, 1.4), "crop", 256),
        # A camera that makes one long shape: distorted alike, a crop would lose two fifths.
        ((450, 450, 450), (800, 800, 800), (1.78, 1.78, 1.78), "squash", 256),
        # Long ones, some upright, some across, so that the typical sides say nothing.
        ((300, 600, 900), (300, 600, 900), (2.5, 3.0, 3.5), "pad", 224),
        ((400, 400, 400), (1200, 1200, 1200), None, "pad", 224),
    ],
)
def test_the_shape_of_the_images_decides_how_they_become_square(
    height: tuple[int, int, int],
    width: tuple[int, int, int],
    aspect: tuple[float, float, float] | None,
    resize: str,
    store_px: int,
) -> None:
    facts = dataset(height_px=height, width_px=width, aspect=aspect)
    plan = plan_for(dataset=facts, weights=LITE0)
    assert (plan.pixels.resize, plan.pixels.store_px) == (resize, store_px)
    assert plan.reasons["pixels.resize"]
    if resize == "pad":
        assert plan.augment.crop == "resized"


def test_classes_are_drawn_as_asked_and_imbalance_is_said() -> None:
    rare = dataset(counts={"train": (900, 9), "validation": (9, 9)}, num_classes=2)
    plan = plan_for(dataset=rare)
    assert plan.sampling == "each"
    assert "100 times as many" in plan.reasons["sampling"]
    assert plan_for(asked(train__sampling="balanced"), dataset=rare).sampling == "balanced"
    assert plan_for(dataset=dataset(weighted=True)).sampling == "weighted"


@pytest.mark.parametrize(
    ("facts", "store"),
    [
        ({"cache_free_bytes": 100 << 30}, "disk"),
        # 3.9 GB of pixels.
        ({"cache_free_bytes": 1 << 30, "machine": machine(memory_bytes=64 << 30)}, "memory"),
        ({"cache_free_bytes": 1 << 30, "machine": machine(memory_bytes=2 << 30)}, "stream"),
        ({"machine": machine(accelerators=(CARD,))}, "device"),
        ({"machine": machine(accelerators=(CARD.model_copy(update={"memory_bytes": 1 << 30}),))},
         "disk"),
    ],
)  # fmt: skip
def test_pixels_wait_where_they_fit(facts: dict[str, Any], store: str) -> None:
    photos = dataset(px=400, num_train=15_000)
    plan = plan_for(dataset=photos, weights=LITE0, **facts)
    assert plan.execution.store == store
    assert "GB decoded" in plan.reasons["execution.store"]


def test_data_that_are_pixels_already_stay_in_memory() -> None:
    assert plan_for(dataset=dataset(decoded=True)).execution.store == "memory"


def test_what_takes_long_to_decode_is_decoded_while_training() -> None:
    few, many = dataset(px=400, num_train=3_000), dataset(px=400, num_train=300_000)
    assert plan_for(dataset=few, weights=LITE0).execution.build == "before"
    plan = plan_for(dataset=many, weights=LITE0)
    assert plan.execution.build == "alongside"
    assert "training starts now" in plan.reasons["execution.build"]
    # One file that cannot be read is to stop the run: so all of them are read first.
    careful = plan_for(asked(data__unreadable="stop"), dataset=many, weights=LITE0)
    assert careful.execution.build == "before"


def test_grey_images_from_scratch_have_one_channel() -> None:
    assert plan_for(dataset=dataset(grey=True)).pixels.channels == 1


def test_one_class_is_refused() -> None:
    with pytest.raises(DataError, match="only the class 'c0'"):
        plan_for(dataset=dataset(counts={"train": (9, 0), "validation": (0, 0)}, num_classes=2))


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="this machine has cpu"):
        plan_for(asked(machine__device="cuda"))


def test_float16_on_a_processor_is_refused() -> None:
    with pytest.raises(ConfigError, match="float16"):
        plan_for(asked(machine__precision="float16"))


def test_accumulation_into_less_than_an_image_is_refused() -> None:
    with pytest.raises(ConfigError, match="at most 4"):
        plan_for(asked(train__batch_size=4, train__accumulate=5))


def test_an_accelerator_is_used_and_named() -> None:
    card = Accelerator(kind="cuda", name="a card", memory_bytes=80 << 30, bfloat16=True)
    plan = plan_for(machine=machine(accelerators=(card,)), **PHOTOS)
    assert (plan.execution.device, plan.execution.precision) == ("cuda", "bfloat16")
    assert plan.reasons["execution.device"] == "a card"


# The loss, by the counts of the classes.


def counts(*train: int) -> dict[str, Any]:
    return {
        "classes": tuple(f"c{i}" for i in range(len(train))),
        "counts": {"train": train, "validation": (5,) * len(train), "test": (5,) * len(train)},
    }


@pytest.mark.parametrize(
    ("train", "settings", "name", "imbalance"),
    [
        ((100, 100), {}, "cross_entropy", "none"),
        ((1_900, 100), {}, "cross_entropy", "none"),
        ((2_100, 100), {}, "cross_entropy", "logit_adjustment"),
        ((2_100, 100), {"train__loss": "bce"}, "bce", "weighted"),
        ((2_100, 100), {"train__loss": "focal"}, "focal", "focal"),
        ((2_100, 100), {"train__imbalance": "none"}, "cross_entropy", "none"),
        ((100, 100), {"train__imbalance": "focal"}, "focal", "focal"),
        ((300, 100), {"train__imbalance": "weighted"}, "cross_entropy", "weighted"),
    ],
)
def test_the_loss_is_chosen_from_the_counts_unless_asked_for(
    train: tuple[int, ...], settings: dict[str, object], name: str, imbalance: str
) -> None:
    plan = plan_for(asked(**settings), dataset=dataset(**counts(*train)))
    assert (plan.loss.name, plan.loss.imbalance) == (name, imbalance)
    assert plan.reasons["loss.imbalance"]


@pytest.mark.parametrize(
    ("facts", "settings"),
    [
        ({}, {"train__sampling": "balanced"}),
        ({}, {"train__sampling": "balanced", "train__loss": "bce"}),
        ({"weighted": True}, {}),
    ],
)
def test_what_is_drawn_evenly_already_is_not_corrected_again(
    facts: dict[str, Any], settings: dict[str, object]
) -> None:
    plan = plan_for(asked(**settings), dataset=dataset(**counts(5_000, 100), **facts))
    assert plan.loss.imbalance == "none"
    assert plan.loss.class_weights is plan.loss.log_prior is None
    assert "50 to 1" in plan.reasons["loss.imbalance"]


def test_two_remedies_at_once_are_taken_when_asked_for_and_said() -> None:
    both = asked(train__sampling="balanced", train__imbalance="weighted")
    plan = plan_for(both, dataset=dataset(**counts(5_000, 100)))
    assert plan.loss.imbalance == "weighted"
    assert "favour the rare ones" in plan.reasons["loss.imbalance"]


@given(st.lists(st.integers(0, 5_000), min_size=2, max_size=9))
def test_class_weights_make_each_class_count_alike(train: list[int]) -> None:
    if sum(1 for count in train if count) < 2:
        return
    facts = dataset(**counts(*train))
    weights = plan_for(asked(train__imbalance="weighted"), dataset=facts).loss.class_weights
    assert weights is not None
    shares = [weight * count for weight, count in zip(weights, train, strict=True) if count]
    assert shares == pytest.approx([shares[0]] * len(shares))
    assert sum(shares) == pytest.approx(sum(train))


def test_the_prior_of_a_class_without_images_is_finite() -> None:
    plan = plan_for(
        asked(train__imbalance="logit_adjustment"), dataset=dataset(**counts(90, 10, 0))
    )
    assert plan.loss.log_prior is not None
    assert all(math.isfinite(value) for value in plan.loss.log_prior)
    assert plan.loss.log_prior[0] == pytest.approx(math.log(0.9))


CONTRADICTIONS: dict[str, tuple[dict[str, object], str]] = {
    "two averages": ({"train__ema_decay": 0.9, "train__swa_fraction": 0.2}, "two averages"),
    "focal and bce": ({"train__loss": "bce", "train__imbalance": "focal"}, "loss of its own"),
    "adjusted bce": ({"train__loss": "bce", "train__imbalance": "logit_adjustment"}, "softmax"),
    "gamma of nothing": ({"train__focal_gamma": 1.0}, "only used by the focal loss"),
    "sizes that fall": ({"train__progressive_px": (28, 20)}, "has to rise"),
    "sizes that end elsewhere": ({"train__progressive_px": (14, 20)}, "has to rise"),
    "shares that fall": ({"train__progressive_data": (0.5, 0.2, 1.0)}, "has to rise"),
    "shares that leave some out": ({"train__progressive_data": (0.2, 0.5)}, "has to rise to 1"),
    "frozen and random": ({"train__freeze_stages": 2}, "not pretrained"),
    "unfreezing what is random": ({"train__unfreeze_fraction": 0.5}, "not pretrained"),
    "a head on nothing": ({"train__head": "first"}, "not pretrained"),
    "L-BFGS in steps": ({"train__optimizer": "lbfgs"}, "fits heads"),
    "compiling without a compiler": ({"machine__compile": True}, "compiler"),
    "graphs on a processor": ({"machine__cuda_graphs": True}, "NVIDIA"),
    "a schedule where there is none": (
        {"train__optimizer": "sgd_schedule_free", "train__schedule": "cosine"},
        "does without a schedule",
    ),
    "an average beside an average": (
        {"train__optimizer": "adamw_schedule_free", "train__ema_decay": 0.99},
        "averages the weights itself",
    ),
    "convolutions that are not there": ({"machine__winograd": True}, "no such code"),
    "tf32 on a processor": ({"machine__precision": "tf32"}, "NVIDIA"),
}


@pytest.mark.parametrize(
    ("settings", "processes", "sentence"),
    [
        ({"machine__cuda_graphs": True, "machine__compile": False}, 1, "records compiled code"),
        ({"machine__cuda_graphs": True}, 2, "several processes"),
        ({"machine__augment_on": "host", "data__store": "device"}, 1, "memory of the accelerator"),
    ],
)
def test_on_a_card_too_what_contradicts_is_refused(
    settings: dict[str, object], processes: int, sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        plan_for(asked(**settings), machine=machine(accelerators=(CARD,), processes=processes))


def test_graphs_and_the_place_of_augmentation_are_taken_as_measured() -> None:
    plain = timing(500.0, precision="bfloat16", compile=True, compile_s=20.0)
    graphs = timing(900.0, precision="bfloat16", compile=True, compile_s=30.0, cuda_graphs=True)
    host = timing(950.0, precision="bfloat16", augment_on="host", fused=False)
    card = machine(accelerators=(CARD,))
    photos = {**PHOTOS, "machine": card, "cache_free_bytes": 1 << 40}
    chosen = plan_for(
        asked(train__epochs=1_000, data__store="disk"),
        **photos,
        measured=Measurements(steps=(plain, graphs)),
    )
    assert chosen.execution.compile
    assert chosen.execution.cuda_graphs
    other = plan_for(
        asked(train__epochs=1_000, data__store="disk"),
        **photos,
        measured=Measurements(steps=(plain, graphs, host)),
    ).execution
    assert (other.augment_on, other.fused, other.compile) == ("host", False, False)
    asked_for = plan_for(asked(machine__cuda_graphs=True, data__store="disk"), **photos).execution
    assert asked_for.compile


def test_minimal_filtering_is_taken_as_measured() -> None:
    torchs = timing(500.0, precision="bfloat16")
    own = timing(900.0, precision="bfloat16", winograd=True)
    measured = Measurements(steps=(torchs, own))
    chosen = plan_for(measured=measured)
    assert chosen.execution.winograd
    assert "measured fastest of 2 ways: 900" in chosen.reasons["execution.winograd"]
    slower = own.model_copy(update={"images_per_second": 450.0})
    for without in (
        plan_for(),
        plan_for(measured=Measurements(steps=(torchs, slower))),
        plan_for(asked(machine__winograd=False), measured=measured),
        plan_for(machine=machine(accelerators=(CARD,)), measured=measured),
    ):
        assert not without.execution.winograd
    able = machine(winograd=True)
    unmeasured = plan_for(asked(machine__winograd=True), machine=able).execution
    assert unmeasured.winograd
    assert unmeasured.precision == "bfloat16"


def test_memory_that_was_handed_back_is_no_way_of_its_own() -> None:
    # Timed after others in one process, it had their memory.
    kept = timing(500.0)
    returned = timing(600.0).model_copy(update={"keep_memory": False})
    measured = Measurements(steps=(kept, returned))
    chosen = plan_for(measured=measured)
    assert chosen.execution.keep_memory
    assert "500 images/s" in chosen.reasons["execution.precision"]
    wanted = plan_for(asked(machine__keep_memory=False), measured=measured)
    assert not wanted.execution.keep_memory
    assert "600 images/s" in wanted.reasons["execution.precision"]


@pytest.mark.parametrize(
    ("setting", "value"),
    [("precision", "float32"), ("compile", True), ("recompute", True), ("sharding", "full")],
)
def test_minimal_filtering_and_what_it_does_not_go_with(setting: str, value: object) -> None:
    config = Config().with_settings({"machine.winograd": True, f"machine.{setting}": value})
    able = machine(winograd=True, compiler=True, processes=2 if setting == "sharding" else 1)
    with pytest.raises(ConfigError, match=f"does not go with machine.{setting}"):
        plan_for(config, machine=able)


@pytest.mark.parametrize("name", ["sgd_schedule_free", "adamw_schedule_free"])
def test_without_a_schedule_the_rate_stays_and_no_second_average_is_kept(name: str) -> None:
    plan = plan_for(asked(train__optimizer=name, train__epochs=100))
    assert plan.schedule.name == "constant"
    assert plan.schedule.warmup_fraction > 0
    assert plan.ema_decay == plan.swa_fraction == 0
    assert all(name in plan.reasons[what] for what in ("schedule.name", "ema_decay"))


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_settings_that_contradict_each_other_are_refused_before_training(case: str) -> None:
    settings, sentence = CONTRADICTIONS[case]
    with pytest.raises(ConfigError, match=sentence) as refused:
        plan_for(asked(**settings))
    assert refused.value.fix


@pytest.mark.parametrize(
    "settings", [{"train__schedule": "plateau"}, {"train__patience_epochs": 3}], ids=str
)
def test_what_follows_the_validation_needs_one(settings: dict[str, object]) -> None:
    facts = dataset(counts={"train": (50, 50), "validation": (0, 0)}, classes=("a", "b"))
    with pytest.raises(ConfigError, match="held out"):
        plan_for(asked(**settings), dataset=facts)


def test_accumulation_that_does_not_divide_is_resolved_with_a_reason() -> None:
    plan = plan_for(asked(train__batch_size=10, train__accumulate=3))
    assert plan.micro_batch_size == 4
    assert "last one smaller" in plan.reasons["accumulate"]


# What changes along a run.


def test_stages_of_size_divide_the_run_evenly() -> None:
    plan = plan_for(asked(train__progressive_px=(14, 20, 28), train__epochs=3))
    assert [stage.image_px for stage in plan.stages] == [14, 20, 28]
    assert plan.stage_at(0).image_px == 14
    assert plan.stage_at(plan.horizon_steps - 1).image_px == 28
    assert plan.end_of(plan.stages[0]) == pytest.approx(plan.horizon_steps / 3, abs=1)


def test_stages_of_size_and_of_data_are_as_few_as_there_are_changes() -> None:
    plan = plan_for(
        asked(
            train__progressive_px=(14, 28, 28, 28),
            train__progressive_data=(0.25, 0.25, 1.0, 1.0),
            train__epochs=4,
        )
    )
    found = [(stage.until, stage.image_px, stage.data_share) for stage in plan.stages]
    assert found == [(0.25, 14, 0.25), (0.5, 28, 0.25), (1.0, 28, 1.0)]
    assert [plan.start_of(stage) for stage in plan.stages] == [
        0,
        *(plan.end_of(stage) for stage in plan.stages[:-1]),
    ]
    assert "shares of the images" in plan.reasons["stages"]


def judging(rate: float) -> Measurements:
    """A thousand images a second in training, and so many in validation."""
    known = measured(bfloat16_last=1_000.0)
    return known.model_copy(update={"evaluation_images_per_second": rate})


def test_a_small_network_against_the_clock_sees_small_images_at_first() -> None:
    known = judging(3_000.0)
    plan = plan_for(asked(train__minutes=5), measured=known)
    assert [stage.image_px for stage in plan.stages] == [18, 23, 28]
    assert "more looks" in plan.reasons["stages"]
    # More steps than of whole images, and as much work.
    whole = plan_for(asked(train__minutes=5, train__progressive_px=(28,)), measured=known)
    assert plan.horizon_steps > 1.25 * whole.horizon_steps
    assert plan.work(0, plan.horizon_steps) == pytest.approx(whole.horizon_steps, rel=0.03)


@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        ({"train__minutes": 10}, {}),
        ({"train__epochs": 5}, {}),
        ({"train__minutes": 5, "train__progressive_px": (28,)}, {}),
        ({"train__minutes": 5, "model__name": "resnet18"}, {}),
        ({"train__minutes": 5}, {"dataset": dataset(px=16)}),
        ({"train__minutes": 5}, {"machine": machine(accelerators=(CARD,))}),
        ({"train__minutes": 5}, PHOTOS),
    ],
    ids=["time enough", "epochs", "asked for", "another network", "tiny", "accelerator", "photos"],
)
def test_elsewhere_images_keep_their_size(
    settings: dict[str, object], facts: dict[str, Any]
) -> None:
    plan = plan_for(asked(**settings), **{"measured": judging(3_000.0), **facts})
    assert [stage.image_px for stage in plan.stages] == [plan.pixels.image_px]


@given(step=st.integers(0, 900), share=st.floats(0.05, 3.0))
def test_a_run_is_cut_or_stretched_to_the_work_that_fits(step: int, share: float) -> None:
    plan = plan_for(asked(train__minutes=5), measured=judging(3_000.0))
    assert len(plan.stages) == 3
    plan = plan.model_copy(update={"horizon_steps": 1_000, "last_step": 1_000})
    work = share * plan.work(step, 1_000)
    steps = plan.steps_for(work, step)

    def of(more: int) -> float:
        last = step + more
        return plan.model_copy(update={"horizon_steps": last}).work(step, last)

    assert of(steps) <= work < of(steps + 1)
    assert plan.work(0, 1_000) == pytest.approx(plan.work(0, step) + plan.work(step, 1_000))


@pytest.mark.parametrize("length", [{"train__minutes": 20}, {"train__epochs": 20}])
def test_validation_that_would_take_much_of_the_time_is_more_seldom(length: dict[str, int]) -> None:
    for forward, epochs in ((100_000.0, 1), (1_500.0, 2), (500.0, 4)):
        plan = plan_for(asked(**length), measured=judging(forward))
        assert plan.evaluate_every_steps == epochs * plan.steps_per_epoch
    assert "of the time of an epoch" in plan.reasons["evaluate_every_steps"]


@given(
    fraction=st.floats(0.01, 0.9),
    frozen=st.integers(0, 3),
    sizes=st.sampled_from([None, (96, 224), (64, 128, 224)]),
)
def test_unfreezing_goes_from_the_head_to_what_stays_frozen(
    fraction: float, frozen: int, sizes: tuple[int, ...] | None
) -> None:
    config = asked(train__unfreeze_fraction=fraction, train__freeze_stages=frozen,
                   train__progressive_px=sizes)  # fmt: skip
    model = ModelFacts(name="m", parameters=1, multiply_adds=1, stages=tuple("abcdefg"))
    stages = plan_for(config, model=model, **PHOTOS).stages
    counts = [stage.frozen_stages for stage in stages]
    assert counts == sorted(counts, reverse=True)
    assert (counts[0], counts[-1]) == (6, frozen)
    ends = [stage.until for stage in stages]
    assert ends == sorted(set(ends))
    assert ends[-1] == 1.0
    assert stages[-1].image_px == 224


def test_a_head_alone_takes_no_steps() -> None:
    plan = plan_for(asked(train__head="only"), **PHOTOS)
    assert (plan.horizon_steps, plan.last_step) == (0, 0)
    assert plan.evaluate_every_steps >= 1


# Processes that share a batch.


def test_a_batch_is_shared_evenly_between_processes() -> None:
    plan = plan_for(asked(train__batch_size=50), machine=machine(processes=4, local_processes=4))
    assert (plan.batch_size, plan.local_batch_size) == (48, 12)
    assert "multiple of 4" in plan.reasons["batch_size"]
    assert plan.execution.threads == 1


def test_more_processes_than_images_are_refused() -> None:
    with pytest.raises(ConfigError, match="shared by 4 processes"):
        plan_for(asked(train__batch_size=3), machine=machine(processes=4))


def test_small_parts_of_a_batch_share_their_statistics_on_accelerators() -> None:
    card = Accelerator(kind="cuda", name="a card", memory_bytes=80 << 30, bfloat16=True)
    for batch_size, shared in ((64, True), (512, False)):
        plan = plan_for(
            asked(train__batch_size=batch_size, model__name="resnet18", model__weights="none"),
            machine=machine(processes=8, accelerators=(card,)),
        )
        assert plan.execution.sync_batch_norm is shared


# The fastest way of computing a step.


def timing(rate: float, **more: Any) -> StepTiming:
    values: dict[str, Any] = {
        "precision": "float32", "channels_last": True, "batch_size": 128, "threads": 2,
        "images_per_second": rate, "micro_batch_size": 128,
    }  # fmt: skip
    return StepTiming(**{**values, **more})


def test_compiling_is_taken_where_the_run_is_long_enough_to_earn_it() -> None:
    steps = (timing(1_000), timing(1_500, compile=True, compile_s=60.0))
    measured = Measurements(steps=steps)
    short = plan_for(asked(train__epochs=0.5), measured=measured)
    long = plan_for(asked(train__epochs=30), measured=measured)
    assert (short.execution.compile, long.execution.compile) == (False, True)
    assert "60 s of compiling" in long.reasons["execution.compile"]


def test_a_smaller_part_of_the_batch_is_taken_where_it_is_faster() -> None:
    steps = (timing(1_000), timing(1_300, micro_batch_size=32))
    plan = plan_for(measured=Measurements(steps=steps))
    assert plan.micro_batch_size == 32
    assert plan.accumulate == plan.batch_size // 32
    assert "measured faster" in plan.reasons["accumulate"]


SHARED: dict[str, Any] = {"machine": machine(processes=2, local_processes=2)}


def test_a_divided_model_is_planned_so_that_it_can_be_divided() -> None:
    plan = plan_for(asked(machine__sharding="full"), **SHARED)
    assert plan.execution.sharding == "full"
    assert plan.optimizer.name == "sgd"
    assert plan.execution.recompute
    assert not plan.execution.channels_last
    assert plan.execution.fused is False
    assert plan.execution.build == "before"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"train__optimizer": "muon"}, "muon"),
        ({"train__optimizer": "adamw_schedule_free"}, "whole weights"),
        ({"machine__channels_last": True}, "channels_last"),
        ({"machine__fused": True}, "fused"),
        ({"data__build": "alongside"}, "data.build = 'before'"),
        ({"data__store": "stream"}, "data.store = 'stream'"),
        ({"train__minutes": 5}, "train.epochs"),
    ],
)
def test_what_needs_the_model_whole_contradicts_dividing_it(
    settings: dict[str, object], named: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        plan_for(asked(machine__sharding="full", **settings), **SHARED)
    assert named in str(refused.value)


def test_one_process_has_nothing_to_divide_by() -> None:
    with pytest.raises(ConfigError, match="this is one alone"):
        plan_for(asked(machine__sharding="full"))


def test_one_epoch_of_one_step_is_said_in_the_singular() -> None:
    few = dataset(px=28, num_train=100)
    plan = plan_for(asked(train__epochs=1, train__batch_size=100), dataset=few)
    assert plan.reasons["horizon_steps"] == "asked for 1 epoch of 1 step"
    plan = plan_for(asked(train__epochs=2.5, train__batch_size=50), dataset=few)
    assert plan.reasons["horizon_steps"] == "asked for 2.5 epochs of 2 steps"


def test_a_plan_says_what_each_setting_became() -> None:
    settings: dict[str, object] = {
        "train__optimizer": "adamw",
        "train__learning_rate": 0.03,
        "train__momentum": 0.8,
        "train__weight_decay": 0.01,
        "train__schedule": "linear",
        "train__warmup_fraction": 0.1,
        "train__batch_size": 32,
        "train__label_smoothing": 0.2,
        "train__layer_decay": 0.7,
        "train__epochs": 4,
        "train__imbalance": "weighted",
        "model__dropout": 0.3,
        "augment__policy": "medium",
        "data__image_px": 32,
    }
    plan = plan_for(asked(**settings))
    for name, value in settings.items():
        assert plan.setting(name.replace("__", ".")) == value, name
    assert plan_for().setting("train.batch_size") == plan_for().batch_size
    assert plan_for().setting("data.cache_dir") is None
