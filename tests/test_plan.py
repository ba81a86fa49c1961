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
    StepTiming,
    WeightsFacts,
)
from vidi.plan import Plan, choose_model, make

LITE0 = WeightsFacts(
    image_px=224, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", crop_fraction=0.875
)


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
    assert plan.model.name == "small_resnet"
    assert plan.model.weights == "none"
    assert (plan.pixels.image_px, plan.pixels.store_px) == (28, 28)
    assert plan.augment.crop == "pad"


def test_photos_are_fine_tuned_from_weights_at_hand() -> None:
    plan = plan_for(**PHOTOS)
    assert (plan.model.name, plan.model.weights) == ("efficientnet_lite0", "imagenet")
    assert (plan.pixels.image_px, plan.pixels.store_px) == (224, 256)
    assert plan.pixels.mean == LITE0.mean
    assert plan.augment.crop == "resized"
    assert plan.optimizer.name == "adamw"


def test_every_decision_has_a_reason_and_a_value() -> None:
    decisions = plan_for(**PHOTOS).decisions()
    assert len(decisions) > 20
    assert all(name and value and why for name, value, why in decisions)


def test_what_was_asked_is_taken_and_said() -> None:
    plan = plan_for(asked(train__batch_size=32, train__optimizer="adamw", data__image_px=40))
    assert (plan.batch_size, plan.optimizer.name, plan.pixels.image_px) == (32, "adamw", 40)
    assert plan.reasons["batch_size"] == "asked for"


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
    weights = LITE0 if choose_model(config, facts).weights != "none" else None
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
    plan = plan_for(asked(train__minutes=minutes), measured=measured(float32_last=rate))
    training_s = plan.horizon_steps * plan.batch_size / rate
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
    [(0.96, 0.40, "none"), (0.85, 0.83, "random"), (0.15, 0.11, "random"), (None, None, "random")],
)
def test_images_are_mirrored_where_that_keeps_their_meaning(
    plain: float | None, flipped: float | None, expected: str
) -> None:
    facts = dataset(neighbour_agreement=plain, neighbour_agreement_flipped=flipped)
    plan = plan_for(dataset=facts)
    assert plan.augment.horizontal_flip == expected
    assert plan.reasons["augment.horizontal_flip"]


@pytest.mark.parametrize(
    ("width", "resize"), [(400, "squash"), (600, "crop"), (1_200, "pad")], ids=str
)
def test_the_shape_of_the_images_decides_how_they_become_square(width: int, resize: str) -> None:
    px = 224 if resize == "squash" else 400
    width = 224 if resize == "squash" else width
    facts = dataset(px=px, width_px=(width, width, width))
    assert plan_for(dataset=facts, weights=LITE0).pixels.resize == resize


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
