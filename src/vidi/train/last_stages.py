"""The last stages of a pretrained network, trained on what those before them say of each image.

Early stages see large maps, take most of the time, and change least in fine-tuning. Here they stay
as they are, so what they say is computed once and kept in memory, and many looks at every image
cost little. Between a head alone and fine-tuning all layers, in time and in accuracy.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vidi.augment import ViewKind, views
from vidi.data import Indices, PixelStore
from vidi.model import Classifier
from vidi.plan import Plan
from vidi.step import StepSettings, autocast
from vidi.train.features import quick_copy

# Measured on two thirds of the training photos of clothing, docs/measurements.md.
LEARNING_RATE: Final = 1e-3
WEIGHT_DECAY: Final = 0.05
BATCH_SIZE: Final = 32
WARM_UP: Final = 0.1
_ROWS_A_BATCH: Final = 16


class LastStages(NamedTuple):
    """Which stages are the last ones: from number `first` on, counted from the input, to the head.

    shape: (C, H, W) of what they see.
    """

    first: int
    shape: tuple[int, int, int]

    def kept_bytes(self, num_views: int, plan: Plan) -> int:
        """Of so many views of images."""
        return num_views * math.prod(self.shape) * _dtype(plan).itemsize


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
    seen: dict[int, Tensor] = {}

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


def _smallest_from(stages: list[nn.Module], seen: dict[int, Tensor]) -> int | None:
    last = len(stages) - 1
    # The stem is often a container made on the fly, which nobody calls.
    if not seen.keys() >= set(range(1, last + 1)) or seen[last].ndim != 4:
        return None
    end = stages[last](seen[last])
    if end.ndim != 4:
        return None
    for number in range(last, 0, -1):
        if seen[number].ndim != 4:
            return None
        if seen[number].shape[2] > end.shape[2]:
            return number
    return None


class _Enough(Exception):
    """The rest of the network is not needed."""


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
    device = torch.device(plan.execution.device)
    kept = _kept(plan, classifier, store, ids, which, flipped=flipped, stop=stop)
    if kept is None:
        return None
    targets = torch.from_numpy(labels[ids]).long()
    classifier.to(device=device).eval()
    layout = torch.channels_last if plan.execution.channels_last else torch.contiguous_format
    chain = nn.Sequential(*(module for _, module in classifier.stages[which.first : -1]))
    chain.to(memory_format=layout)  # type: ignore[call-overload]
    head = classifier.head
    parameters: list[Tensor] = [*chain.parameters(), *head.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    groups: list[dict[str, Any]] = [
        {"params": [each for each in parameters if each.ndim > 1]},
        {"params": [each for each in parameters if each.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    loss_of = StepSettings.of(plan).loss
    generator = torch.Generator().manual_seed(plan.seed)
    num_views = 1 + flipped
    began_at = time.monotonic()
    planned = max(1, round(most_epochs * len(ids) / BATCH_SIZE))
    order, step, losses = torch.empty(0, dtype=torch.long), 0, []
    while True:
        # By the clock or by the number of steps, whichever is further.
        gone = (time.monotonic() - began_at) / max(1e-9, ends_at - began_at)
        progress = max(gone, step / planned)
        if progress >= 1.0 or stop():
            break
        if len(order) < BATCH_SIZE:
            order = torch.cat([order, torch.randperm(len(ids), generator=generator)])
        rows, order = order[:BATCH_SIZE], order[BATCH_SIZE:]
        view = torch.randint(0, num_views, (len(rows),), generator=generator)
        maps = kept[rows * num_views + view].permute(0, 3, 1, 2).to(device)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * _factor(progress)
        with autocast(device, plan.execution.precision):
            features = chain(maps).mean((2, 3))
            logits = head(features)
        loss = loss_of(logits.float(), targets[rows].to(device)) / len(rows)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
        optimizer.step()
        step += 1
    if stop() or not step:
        return None
    last = torch.stack(losses[-max(1, step // 10) :]).mean().item()
    if not math.isfinite(last):
        return None
    return Learnt(step, step * BATCH_SIZE / len(ids), last)


def _factor(progress: float) -> float:
    """Of the learning rate: up in a tenth, then half a cosine down to zero."""
    rise = min(1.0, (progress + 1e-3) / WARM_UP)
    return rise * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def _kept(
    plan: Plan,
    classifier: Classifier,
    store: PixelStore,
    ids: Indices,
    which: LastStages,
    *,
    flipped: bool,
    stop: Callable[[], bool],
) -> Tensor | None:
    """(views, H, W, C) of what the last stages see; the views of an image follow one another."""
    device = torch.device(plan.execution.device)
    network = quick_copy(plan, classifier)
    channels, height, width = which.shape
    num_views = 1 + flipped
    kept = torch.empty((len(ids) * num_views, height, width, channels), dtype=_dtype(plan))
    kind: ViewKind = "flip" if flipped else "plain"
    found: list[Tensor] = []

    def take(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        found.append(given[0])
        raise _Enough

    handle = network.stages[which.first][1].register_forward_pre_hook(take)
    try:
        with torch.inference_mode(), autocast(device, plan.execution.precision):
            for start in range(0, len(ids), _ROWS_A_BATCH):
                if stop():
                    return None
                rows = ids[start : start + _ROWS_A_BATCH]
                pixels = torch.from_numpy(store.take(rows)[0]).permute(0, 3, 1, 2).to(device)
                for number, view in enumerate(views(pixels, kind, plan.pixels.image_px)):
                    found.clear()
                    with contextlib.suppress(_Enough):
                        network.features(view)
                    begin = start * num_views + number
                    end = begin + len(rows) * num_views
                    kept[begin:end:num_views] = found[0].permute(0, 2, 3, 1).cpu()
    finally:
        handle.remove()
    return kept


def _dtype(plan: Plan) -> torch.dtype:
    return torch.bfloat16 if plan.execution.precision == "bfloat16" else torch.float32
