"""Contract checks for what you write yourself: each says in one sentence what is wrong.

vidi's own parts go through the same checks.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from vidi import model
from vidi.augment import ImageRandom, Transform
from vidi.batch import Batch
from vidi.errors import UsageError
from vidi.words import first_line


def check_schedule(schedule: Callable[[float], float], *, points: int = 1001) -> None:
    """`schedule` is a function of `done` in [0, 1] alone, and gives multipliers in [0, 1].

    Raises:
        AssertionError: what is wrong, in one sentence.
    """
    dones = [point / (points - 1) for point in range(points)]
    first = [schedule(done) for done in dones]
    for done, value in zip(dones, first, strict=True):
        if isinstance(value, bool) or not isinstance(value, float | int):
            raise AssertionError(
                f"schedule({done:g}) gives a {type(value).__name__}, not a plain number"
            )
        if not math.isfinite(value) or not 0.0 <= value <= 1.0:
            raise AssertionError(f"schedule({done:g}) = {value}, which is not in [0, 1]")
    # Backwards, so that a hidden counter or a memory of the last call shows.
    again = [schedule(done) for done in reversed(dones)][::-1]
    for done, value, second in zip(dones, first, again, strict=True):
        if value != second:
            raise AssertionError(
                f"schedule({done:g}) gave {value} and then {second}: it depends on more than `done`"
            )


# How images lie in memory.
_LAYOUTS = ("last", "planar", "part")


def check_transform(
    transform: Transform,
    *,
    image_px: int = 32,
    channels: tuple[int, ...] = (1, 3),
    num_classes: int = 10,
    each_by_itself: bool = True,
) -> None:
    """`transform` maps `(batch, rng, done)` to a batch and depends on nothing else.

    It is tried on uint8 images of image_px squared, channels last, planar and as a part of larger
    ones, on batches of 1, 2 and 7, and at the beginning, in the middle and at the end of training.
    each_by_itself: what becomes of an image does not depend on its batch, or only on its neighbour
    there (`augment.partners`); say False for a transform that mixes by another rule.

    Raises:
        AssertionError: what is wrong, in one sentence.
    """
    for count in (1, 2, 7):
        for num_channels in channels:
            for layout in _LAYOUTS:
                batch = _some_batch(count, num_channels, image_px, num_classes, layout)
                for done in (0.0, 0.5, 1.0):
                    _check_once(transform, batch, done, num_classes)
    if each_by_itself:
        _check_parts(transform, _some_batch(7, channels[-1], image_px, num_classes, "last"))


def _some_batch(count: int, channels: int, image_px: int, num_classes: int, layout: str) -> Batch:
    """Smooth colours with noise, so that every change shows."""
    generator = torch.Generator().manual_seed(count)
    coarse = torch.rand(count, channels, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (image_px, image_px), mode="bilinear")
    noise = torch.rand(smooth.shape, generator=generator)
    images = (200 * smooth + 55 * noise).to(torch.uint8)
    if layout == "last":
        images = images.contiguous(memory_format=torch.channels_last)
    elif layout == "part":
        wider = torch.zeros(count, channels, image_px + 3, image_px + 3, dtype=torch.uint8)
        wider[:, :, 1:-2, 2:-1] = images
        images = wider[:, :, 1:-2, 2:-1]
    return Batch(
        images,
        torch.arange(count) % num_classes,
        torch.arange(count) * 37 + 11,
    )


def _check_once(transform: Transform, batch: Batch, done: float, num_classes: int) -> None:
    images, targets, ids = batch.images.clone(), batch.targets.clone(), batch.ids.clone()
    torch_state, numpy_state, python_state = _global_states()
    out = transform(batch, ImageRandom(0, 3, batch.ids), done)
    if not isinstance(out, Batch):
        raise AssertionError(f"the transform gives a {type(out).__name__}, not a Batch")
    for name, before, now in (
        ("images", images, batch.images),
        ("targets", targets, batch.targets),
        ("ids", ids, batch.ids),
    ):
        if not torch.equal(before, now):
            raise AssertionError(
                f"the transform changed the {name} that it was given; it has to make new ones"
            )
    used = [
        name
        for name, same in (
            ("torch's", torch.equal(torch_state, torch.get_rng_state())),
            ("numpy's", numpy_state == _numpy_state()),
            ("Python's", python_state == random.getstate()),
        )
        if not same
    ]
    if used:
        raise AssertionError(
            f"the transform draws from {used[0]} global generator; draw from the `rng` it is given"
        )
    _check_images(batch, out)
    _check_targets(out, num_classes)
    again = transform(batch, ImageRandom(0, 3, batch.ids), done)
    if not (torch.equal(out.images, again.images) and torch.equal(out.targets, again.targets)):
        raise AssertionError(
            "the transform gives something else for the same batch, numbers and `done`: it "
            "remembers or draws something of its own"
        )


def _global_states() -> tuple[torch.Tensor, str, object]:
    return torch.get_rng_state(), _numpy_state(), random.getstate()


def _numpy_state() -> str:
    return repr(np.random.get_state(legacy=False))


def _check_images(batch: Batch, out: Batch) -> None:
    if not torch.equal(out.ids, batch.ids):
        raise AssertionError("the transform changed the ids or their order")
    expected, shape = tuple(batch.images.shape[:2]), tuple(out.images.shape)
    if len(shape) != 4 or shape[:2] != expected:
        raise AssertionError(
            f"the images have the shape {shape}; expected is {(*expected, 'height', 'width')}"
        )
    if out.images.dtype != torch.uint8 and not out.images.dtype.is_floating_point:
        raise AssertionError(f"the images are {out.images.dtype}; expected is uint8 or a float")
    low, high = float(out.images.min()), float(out.images.max())
    # A comparison that is also false for NaN.
    if not (low >= 0 and high <= 255):
        raise AssertionError(f"the images have values from {low:g} to {high:g}, not in 0..255")


def _check_targets(out: Batch, num_classes: int) -> None:
    targets, count = out.targets, len(out)
    if targets.dtype == torch.int64 and targets.shape == (count,):
        return
    if not (targets.dtype.is_floating_point and targets.shape == (count, num_classes)):
        raise AssertionError(
            f"the targets are {targets.dtype} of shape {tuple(targets.shape)}; expected are class "
            f"numbers ({count},) or shares ({count}, {num_classes})"
        )
    sums = targets.sum(dim=1)
    if not bool(((sums - 1).abs() < 1e-3).all() and (targets >= 0).all()):
        raise AssertionError(
            "the targets of an image do not sum to 1, or some are negative: sums from "
            f"{float(sums.min()):g} to {float(sums.max()):g}"
        )


def _check_parts(transform: Transform, batch: Batch) -> None:
    whole = transform(batch, ImageRandom(0, 3, batch.ids), 1.0)
    for start, stop in ((0, 4), (4, 7)):
        part = Batch(batch.images[start:stop], batch.targets[start:stop], batch.ids[start:stop])
        alone = transform(part, ImageRandom(0, 3, part.ids), 1.0)
        same = torch.equal(alone.images, whole.images[start:stop])
        if not (same and torch.equal(alone.targets, whole.targets[start:stop])):
            raise AssertionError(
                "what the transform makes of an image depends on the rest of its batch: draw one "
                "number per image from `rng`, and mix only neighbours"
            )


def check_model(
    build: Callable[..., nn.Module],
    *,
    num_classes: int = 7,
    image_px: int = 32,
    channels: int = 3,
) -> None:
    """`build(num_classes)` gives a network from (N, C, H, W) to (N, num_classes) that can train.

    `build` is called as `vidi.model.build` calls it. The network is tried on normalised images, in
    training on 1, 2 and 3 of them, and in evaluation.

    Raises:
        AssertionError: what is wrong, in one sentence.
    """
    try:
        classifier = model.build(
            build,
            num_classes=num_classes,
            image_px=image_px,
            channels=channels,
            mean=(0.5,) * channels,
            std=(0.25,) * channels,
        )
    except UsageError as error:
        raise AssertionError(error.message) from error
    network = classifier.network
    images = _normal_images(3, channels, image_px)
    _check_evaluation(network, images, num_classes)
    _check_training(network, images, num_classes)
    _check_parameters(network, images)


def _normal_images(count: int, channels: int, image_px: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, channels, image_px, image_px, generator=generator)


def _check_evaluation(network: nn.Module, images: Tensor, num_classes: int) -> None:
    network.eval()
    given = images.clone()
    torch_state, numpy_state, python_state = _global_states()
    with torch.no_grad():
        logits = network(images)
    if not torch.equal(given, images):
        raise AssertionError("the model changes the images that it is given")
    drawn = not torch.equal(torch_state, torch.get_rng_state())
    if drawn or numpy_state != _numpy_state() or python_state != random.getstate():
        raise AssertionError("the model draws random numbers in evaluation: ask `self.training`")
    with torch.no_grad():
        again, alone = network(images), network(images[:1])
        last = network(images.contiguous(memory_format=torch.channels_last))
    if not torch.equal(logits, again):
        raise AssertionError("the model gives different logits for the same images in evaluation")
    if not logits.isfinite().all():
        raise AssertionError("the model gives logits that are not numbers")
    if alone.shape != (1, num_classes):
        raise AssertionError(f"the model gives {tuple(alone.shape)} for one image, not (1, K)")
    for other, what in ((alone, "the rest of its batch"), (last, "the memory format")):
        if not torch.allclose(other, logits[: len(other)], rtol=1e-3, atol=1e-3):
            raise AssertionError(f"in evaluation, the logits of an image depend on {what}")


def _check_training(network: nn.Module, images: Tensor, num_classes: int) -> None:
    network.train()
    numpy_state, python_state = _numpy_state(), random.getstate()
    for count in (3, 2, 1):
        try:
            logits = network(images[:count])
        except ValueError as error:
            # Batch norm over a single value has no variance.
            raise AssertionError(
                f"the model cannot train on a batch of {count}: {error}; leave out batch norm "
                "where the maps have shrunk to one position"
            ) from error
        # Whatever else goes wrong in somebody else's code is told in one sentence too.
        except Exception as error:
            raise AssertionError(
                f"the model cannot train on a batch of {count}: {first_line(error)}"
            ) from error
        if logits.shape != (count, num_classes):
            raise AssertionError(f"the model gives {tuple(logits.shape)} for {count} images")
    if numpy_state != _numpy_state() or python_state != random.getstate():
        raise AssertionError(
            "the model draws from numpy's or Python's generator, which no seed of a run reaches: "
            "draw from torch's"
        )


def _check_parameters(network: nn.Module, images: Tensor) -> None:
    network.train()
    network.zero_grad(set_to_none=True)
    logits = network(images)
    if not logits.requires_grad:
        raise AssertionError("no gradient reaches the model: is its forward under no_grad?")
    logits.square().sum().backward()
    without = [
        name
        for name, parameter in network.named_parameters()
        if parameter.requires_grad and parameter.grad is None
    ]
    if without:
        raise AssertionError(f"the parameter '{without[0]}' gets no gradient: it is never used")
    broken = [
        name
        for name, parameter in network.named_parameters()
        if parameter.grad is not None and not parameter.grad.isfinite().all()
    ]
    if broken:
        raise AssertionError(f"the gradient of '{broken[0]}' is not a number")
