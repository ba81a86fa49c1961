"""Which weights of a run are kept."""

from __future__ import annotations

import pytest

from vidi.train.state import Best


@pytest.mark.parametrize("num_images", [20, 180, 5_000])
def test_one_image_less_than_a_perfect_score_is_not_worse(num_images: int) -> None:
    early = Best.after(None, 10, 1.0, 0.1, num_images)
    late = Best.after(early, 90, (num_images - 1) / num_images, 0.2, num_images)
    assert (late.step, late.top_accuracy) == (90, 1.0)


def test_weights_that_became_worse_by_more_than_chance_are_not_kept() -> None:
    early = Best.after(None, 10, 0.95, 0.1, 1_000)
    late = Best.after(early, 90, 0.93, 0.2, 1_000)
    assert (late.step, late.accuracy, late.top_accuracy) == (10, 0.95, 0.95)
