"""How the minutes of a fit are spent, as tables."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidi.plan.budget import (
    Counts,
    Features,
    ending_s,
    export_s,
    features_rule,
    last_stages_rule,
    needed_s,
    smaller_px,
    trainings_rule,
    tuning_rule,
)

# Clothing: photos of ten classes, 150 features a second on two cores.
CLOTHING = Counts(3_068, 341, 372)


def first_answer(left_s: float) -> Features | None:
    return features_rule(left_s, CLOTHING, 150.0, 1280, 10, image_px=224, bundle_s=16.0)


@pytest.mark.parametrize(
    ("left_s", "flipped", "folds", "everything"),
    [
        (600.0, True, 5, True),
        (170.0, True, 3, True),
        (120.0, False, 3, True),
        (65.0, True, 3, True),
        (45.0, False, 3, True),
        (34.5, False, 0, True),
        (25.0, False, 0, False),
    ],
)
def test_the_first_answer_uses_what_the_time_allows(
    left_s: float, flipped: bool, folds: int, everything: bool
) -> None:
    rule = first_answer(left_s)
    assert rule is not None
    assert (rule.flipped, rule.folds) == (flipped, folds)
    assert (rule.num_train == CLOTHING.train) == everything


def test_a_time_that_is_too_short_for_anything_gets_no_answer() -> None:
    least_s = needed_s(CLOTHING, 150.0, 1280, 10)
    assert first_answer(least_s - 0.1) is None
    assert first_answer(least_s + 0.1) is not None


@pytest.mark.parametrize(
    ("left_s", "image_px"), [(30.0, None), (60.0, None), (130.0, 160), (500.0, 192)]
)
def test_fine_tuning_begins_where_it_has_time_to_pay(left_s: float, image_px: int | None) -> None:
    found = tuning_rule(left_s, CLOTHING, 150.0, 224, bundle_s=16.0)
    assert (found and found.image_px) == image_px


@pytest.mark.parametrize(
    ("left_s", "kept_bytes", "flipped", "epochs"),
    [
        (40.0, 1, None, None),
        (80.0, 1, False, 1.2),
        (130.0, 1, True, 2.2),
        (600.0, 1, True, 8.0),
        # Mirror images as well would not fit into memory; or not even one view of each image.
        (600.0, 600 << 20, False, 8.0),
        (600.0, 1100 << 20, None, None),
    ],
)
def test_the_last_stages_are_trained_where_time_and_memory_allow(
    left_s: float, kept_bytes: int, flipped: bool | None, epochs: float | None
) -> None:
    found = last_stages_rule(
        left_s, CLOTHING, 150.0, bundle_s=16.0, kept_bytes=kept_bytes, memory_bytes=8 << 30
    )
    assert (found and found.flipped) == flipped
    assert (found and round(found.epochs, 1)) == epochs


def test_more_memory_keeps_mirror_images_too_and_unknown_memory_is_not_none() -> None:
    def flipped(memory_bytes: int) -> bool | None:
        found = last_stages_rule(
            600.0, CLOTHING, 150.0, bundle_s=16.0, kept_bytes=600 << 20, memory_bytes=memory_bytes
        )
        return None if found is None else found.flipped

    assert [flipped(size << 30) for size in (2, 4, 8, 10)] == [None, None, False, True]
    assert flipped(0) is False


def test_few_images_are_looked_at_until_the_updates_are_enough() -> None:
    few = last_stages_rule(
        600.0, Counts(100, 20, 20), 150.0, bundle_s=16.0, kept_bytes=1, memory_bytes=8 << 30
    )
    assert few is not None
    assert few.epochs == 32.0


@given(
    left_s=st.floats(1.0, 1e5),
    train=st.integers(20, 10**6),
    held_out=st.integers(2, 10**5),
    forward=st.floats(1.0, 1e5),
    image_px=st.sampled_from([32, 64, 128, 224, 384]),
)
def test_nothing_is_planned_that_cannot_finish(
    left_s: float, train: int, held_out: int, forward: float, image_px: int
) -> None:
    counts = Counts(train, held_out, held_out)
    tuning = tuning_rule(left_s, counts, forward, image_px, bundle_s=16.0)
    if tuning is not None:
        assert tuning.seconds + ending_s(counts, forward, bundle_s=16.0) <= left_s
        assert 0 < tuning.image_px <= max(32, image_px)
    partly = last_stages_rule(
        left_s, counts, forward, bundle_s=16.0, kept_bytes=1, memory_bytes=8 << 30
    )
    if partly is not None:
        assert partly.seconds + ending_s(counts, forward, bundle_s=16.0) <= left_s
    first = features_rule(left_s, counts, forward, 1280, 10, image_px=image_px, bundle_s=16.0)
    if first is not None:
        assert first.seconds <= left_s
        assert 0 < first.num_train <= train


@given(left_s=st.floats(1.0, 1e4), more_s=st.floats(0.0, 1e4))
def test_more_time_never_means_less(left_s: float, more_s: float) -> None:
    some = first_answer(left_s)
    more = first_answer(left_s + more_s)
    if some is not None:
        assert more is not None
        assert more.num_train >= some.num_train
    tuned = tuning_rule(left_s, CLOTHING, 150.0, 224, bundle_s=0.0)
    longer = tuning_rule(left_s + more_s, CLOTHING, 150.0, 224, bundle_s=0.0)
    if tuned is not None:
        assert longer is not None
        assert longer.image_px >= tuned.image_px


@given(
    left_s=st.floats(1.0, 1e4),
    opened_s=st.floats(0.0, 1e3),
    forward=st.floats(0.1, 1e4),
    image_px=st.sampled_from([32, 64, 128, 224, 384]),
)
def test_smaller_images_are_taken_only_where_a_head_on_them_fits(
    left_s: float, opened_s: float, forward: float, image_px: int
) -> None:
    px = smaller_px(left_s, opened_s, CLOTHING, forward, 1280, 10, image_px=image_px)
    if px is None:
        return
    assert px < image_px
    rate = forward * (image_px / px) ** 2
    assert features_rule(left_s - opened_s, CLOTHING, rate, 1280, 10, image_px=px, bundle_s=16.0)


def test_a_busy_machine_makes_images_smaller_before_it_says_no() -> None:
    # 10 features a second instead of 150: judging alone would take more than a minute.
    assert features_rule(80.0, CLOTHING, 10.0, 1280, 10, image_px=224, bundle_s=16.0) is None
    assert smaller_px(80.0, 20.0, CLOTHING, 10.0, 1280, 10, image_px=224) == 128
    assert smaller_px(25.0, 20.0, CLOTHING, 10.0, 1280, 10, image_px=224) is None


def test_an_export_is_forecast_by_the_size_of_the_network() -> None:
    small, large = export_s("onnx", 14), export_s("onnx", 99)
    assert 0.0 == export_s(None, 99) < export_s("torch", 14) < small < large
    assert large == pytest.approx(16.0, abs=0.5)


@pytest.mark.parametrize(
    ("left_s", "train", "validation", "kind", "number"),
    [
        (40.0, 1_258, 180, "one", 1),
        (130.0, 1_258, 180, "several", 2),
        (400.0, 1_258, 180, "several", 4),
        (900.0, 1_258, 180, "search", 14),
        (900.0, 1_258, 20, "one", 1),
        # Of many images a longer training is worth more than several.
        (400.0, 45_000, 5_000, "one", 1),
        (600.0, 45_000, 5_000, "several", 2),
    ],
)
def test_time_for_many_trainings_is_for_a_search(
    left_s: float, train: int, validation: int, kind: str, number: int
) -> None:
    found = trainings_rule(left_s, 1.0, Counts(train, validation, 300), 60.0, 200.0)
    assert (found.kind, found.number) == (kind, number)
