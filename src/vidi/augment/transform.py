"""What a transform is, and how several become one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from vidi.augment.random import ImageRandom
from vidi.batch import Batch

# (batch, rng, done) -> batch. `done` is the share of training that is done, 0..1. Images keep their
# type (uint8 or float) and their range 0..255; the batch that came in is not changed.
Transform: TypeAlias = Callable[[Batch, ImageRandom, float], Batch]


def compose(transforms: Sequence[Transform]) -> Transform:
    """The transforms one after the other, as one; none at all changes nothing."""
    steps = tuple(transforms)

    def composed(batch: Batch, rng: ImageRandom, done: float) -> Batch:
        for step in steps:
            batch = step(batch, rng, done)
        return batch

    return composed
