"""The last stages of a pretrained network, trained on what those before them say of each image.

Early stages see large maps, take most of the time, and change least in fine-tuning. Here they stay
as they are, so what they say is computed once and kept in memory, and many looks at every image
cost little. Between a head alone and fine-tuning all layers, in time and in accuracy.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, NamedTuple, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vidi import optim, schedule
from vidi.batch import Batch
from vidi.data import Indices, PixelStore
from vidi.model import Classifier
from vidi.plan import Plan
from vidi.step import StepSettings, train_step
from vidi.train.features import Extractor

# Measured on two thirds of the training photos of clothing, docs/measurements.md. The learning rate
# is that of a batch; the weight decay follows the rule of `vidi.optim`.
LEARNING_RATE: Final = 1e-3
WEIGHT_DECAY: Final = 0.4
BATCH_SIZE: Final = 32
WARMUP_FRACTION: Final = 0.1


class LastStages(NamedTuple):
    """Which stages are the last ones: from number `first` on, counted from the input, to the head.

    shape: (C, H, W) of what they see.
    """

    first: int
    shape: tuple[int, int, int]

    def kept_bytes(self, num_views: int, plan: Plan) -> int:
        """Of so many views of images."""
        half = plan.execution.precision in ("bfloat16", "float16")
        return num_views * math.prod(self.shape) * (2 if half else 4)


class Learnt(NamedTuple):
    """steps: updates. epochs: looks at every image. loss: mean of the last tenth of the steps."""

    steps: int
    epochs: float
    loss: float


def last_stages(classifier: Classifier) -> LastStages | None:
    """The stages whose maps are as small as they get, and the one that makes them so.

    None where there are no such, or the network is no chain of stages whose last maps are averaged
    for the head; that is tried with two images and not believed.
    """
    stages = [module for _, module in classifier.stages[:-1]]
    seen: dict[int, Any] = {}

    def look(number: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, given: seen.__setitem__(number, given[0])

    handles = [stage.register_forward_pre_hook(look(number)) for number, stage in enumerate(stages)]
    was_training = classifier.training
    classifier.eval()
    try:
        with torch.inference_mode():
            generator = torch.Generator().manual_seed(0)
            px = classifier.image_px
            images = torch.randint(
                0, 256, (2, classifier.channels, px, px), generator=generator
            ).to(classifier.scale.device, torch.float32)
            features = classifier.features(images)
            first = _smallest_from(stages, seen)
            if first is None:
                return None
            maps = seen[first]
            for stage in stages[first:]:
                maps = stage(maps)
            same = torch.allclose(maps.mean((2, 3)), features, rtol=1e-3, atol=1e-4)
    except (RuntimeError, TypeError, IndexError):
        # Stages that do not follow one another: whatever it was that went wrong between them.
        return None
    finally:
        for handle in handles:
            handle.remove()
        classifier.train(was_training)
    _, channels, height, width = seen[first].shape
    return LastStages(first, (channels, height, width)) if same else None


def _smallest_from(stages: list[nn.Module], seen: dict[int, Any]) -> int | None:
    last = len(stages) - 1
    # The stem is often a container made on the fly, which nobody calls.
    if not seen.keys() >= set(range(1, last + 1)) or not _is_map(seen[last]):
        return None
    end = stages[last](seen[last])
    if end.ndim != 4:
        return None
    for number in range(last, 0, -1):
        if not _is_map(seen[number]):
            return None
        if seen[number].shape[2] > end.shape[2]:
            return number
    return None


def _is_map(given: object) -> bool:
    """Not features, nor what several networks share (`SmallCNNs`)."""
    return isinstance(given, Tensor) and given.ndim == 4


@final
class _Part(nn.Module):
    """From the maps that the last stages are given to logits."""

    def __init__(self, classifier: Classifier, first: int) -> None:
        super().__init__()
        self.stages = nn.Sequential(*(module for _, module in classifier.stages[first:-1]))
        self.head = classifier.head

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, H, W) to (N, classes)."""
        logits: Tensor = self.head(self.stages(maps).mean((2, 3)))
        return logits


def train_last_stages(
    plan: Plan,
    classifier: Classifier,
    store: PixelStore,
    labels: NDArray[np.int64],
    ids: Indices,
    which: LastStages,
    *,
    flipped: bool,
    most_epochs: float,
    ends_at: float,
    stop: Callable[[], bool],
) -> Learnt | None:
    """Train them in place, until `ends_at` (`time.monotonic()`) at most; the learning rate has
    fallen to zero by then. Norms keep their statistics.

    Args:
        classifier: with the head to begin with; on the processor or the plan's device.
        labels: (all rows,). ids: rows to learn from.
        flipped: mirror images are looked at as well.
        stop: asked before each step.

    Returns:
        None where it was stopped, the time was too short for a step, or the loss was no number.
    """
    maps = Extractor(plan, classifier).maps(store, ids, which.first, flipped=flipped, stop=stop)
    if maps is None:
        return None
    device = torch.device(plan.execution.device)
    layout = torch.channels_last if plan.execution.channels_last else torch.contiguous_format
    part = _Part(classifier.to(device).eval(), which.first).requires_grad_(True)
    part.to(memory_format=layout)  # type: ignore[call-overload]
    optimizer = optim.make(
        "adamw",
        part,
        learning_rate=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        batch_size=BATCH_SIZE,
    )
    falling = schedule.make("cosine", warmup_fraction=WARMUP_FRACTION, warmup_start=0.01)
    # They are small: what fits where all layers learn fits here.
    settings = replace(StepSettings.of(plan), micro_batch_size=BATCH_SIZE, sam_rho=0.0)
    scaler = torch.amp.GradScaler(device.type) if settings.precision == "float16" else None
    targets = torch.from_numpy(labels[ids]).long()
    generator = torch.Generator().manual_seed(plan.seed)
    planned = max(1, round(most_epochs * len(ids) / BATCH_SIZE))
    began_at = time.monotonic()
    order, step, losses = torch.empty(0, dtype=torch.long), 0, []
    while True:
        # By the clock or by the number of steps, whichever is further.
        gone = (time.monotonic() - began_at) / max(1e-9, ends_at - began_at)
        progress = max(gone, step / planned)
        if progress >= 1.0 or stop():
            break
        while len(order) < BATCH_SIZE:
            order = torch.cat([order, torch.randperm(len(ids), generator=generator)])
        rows, order = order[:BATCH_SIZE], order[BATCH_SIZE:]
        view = torch.randint(0, maps.shape[1], (BATCH_SIZE,), generator=generator)
        batch = Batch(maps[rows, view].permute(0, 3, 1, 2), targets[rows], rows).to(device)
        optim.set_learning_rate(optimizer, falling(progress))
        result = train_step(part, optimizer, batch, settings, step, scaler=scaler)
        losses.append(result.loss_sum / BATCH_SIZE)
        step += 1
    if stop() or not step:
        return None
    last = torch.stack(losses[-max(1, step // 10) :]).mean().item()
    if not math.isfinite(last):
        return None
    return Learnt(step, step * BATCH_SIZE / len(ids), last)
