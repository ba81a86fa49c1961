"""Changes drawn from a table: RandAugment, TrivialAugment, AugMix, and our own policies.

A table is a tuple of `Change`: what can happen, and how far it goes at full strength. Each image
gets its own draw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal, TypeAlias

import torch
from torch import Tensor

from vidi.augment import colour, memory, warp
from vidi.augment.random import ImageRandom
from vidi.augment.transform import Transform, compose
from vidi.augment.warp import GREY, Interpolation
from vidi.augment_settings import Policy
from vidi.batch import Batch
from vidi.errors import UsageError

Kind: TypeAlias = Literal[
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "contrast",
    "saturation",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
]
# Of `done`, 0..1: the share of the full strength, 0..1.
Strength: TypeAlias = Callable[[float], float]


@dataclass(frozen=True, slots=True)
class Change:
    """One line of a table.

    full: how far it goes at full strength. Shear: px for each px; translate: share of the side;
    rotate: degrees; brightness, contrast, saturation, sharpness: what is added to, or taken from, a
    factor of 1; posterize: bits lost; solarize: how far the threshold comes down from 1, as a share
    of the range; the others take none. Shear to sharpness go both ways, equally likely.
    """

    kind: Kind
    full: float = 0.0


# Cubuk et al. 2019 (arXiv 1909.13719), with the numbers of torchvision's version at full strength.
RANDAUGMENT: Final = (
    Change("identity"),
    Change("shear_x", 0.3),
    Change("shear_y", 0.3),
    Change("translate_x", 150 / 331),
    Change("translate_y", 150 / 331),
    Change("rotate", 30.0),
    Change("brightness", 0.9),
    Change("saturation", 0.9),
    Change("contrast", 0.9),
    Change("sharpness", 0.9),
    Change("posterize", 4.0),
    Change("solarize", 1.0),
    Change("autocontrast"),
    Change("equalize"),
)

# Mueller and Hutter 2021 (arXiv 2103.10158), the wide space. Its translation is by up to 32 px of
# images of 224 px there, and so a seventh of the side here.
TRIVIALAUGMENT_WIDE: Final = (
    Change("identity"),
    Change("shear_x", 0.99),
    Change("shear_y", 0.99),
    Change("translate_x", 1 / 7),
    Change("translate_y", 1 / 7),
    Change("rotate", 135.0),
    Change("brightness", 0.99),
    Change("saturation", 0.99),
    Change("contrast", 0.99),
    Change("sharpness", 0.99),
    Change("posterize", 6.0),
    Change("solarize", 1.0),
    Change("autocontrast"),
    Change("equalize"),
)

# Hendrycks et al. 2020 (arXiv 1912.02781): without what its test set of corruptions does.
AUGMIX: Final = (
    Change("shear_x", 0.3),
    Change("shear_y", 0.3),
    Change("translate_x", 1 / 3),
    Change("translate_y", 1 / 3),
    Change("rotate", 30.0),
    Change("posterize", 4.0),
    Change("solarize", 1.0),
    Change("autocontrast"),
    Change("equalize"),
)

# Small changes of the kind that a camera makes by itself. Nothing that a digit, a letter or a
# medical image does not survive: ten degrees do not make a 6 of a 9.
GENTLE: Final = (
    Change("identity"),
    Change("translate_x", 0.08),
    Change("translate_y", 0.08),
    Change("rotate", 10.0),
    Change("brightness", 0.3),
    Change("contrast", 0.3),
    Change("saturation", 0.4),
    Change("sharpness", 0.5),
)

# How many changes one image gets, from which table, at most how strong. An amount is drawn evenly
# from nothing up to that, so that weak ones stay frequent (Mueller and Hutter 2021 found this as
# good as tuning it).
POLICIES: Final[dict[Policy, tuple[int, tuple[Change, ...], float]]] = {
    "none": (0, (), 0.0),
    "light": (1, GENTLE, 1.0),
    "medium": (2, RANDAUGMENT, 0.5),
    "strong": (2, RANDAUGMENT, 1.0),
}

_WARPS: Final = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
_BOTH_WAYS: Final = (*_WARPS, "brightness", "contrast", "saturation", "sharpness")
# How many changes a chain of AugMix has at most.
_DEPTH: Final = 3
# Have no effect, or a strange one, where there is no colour.
_COLOURS: Final = ("saturation",)


def steady(done: float) -> float:
    """Full strength from the beginning to the end."""
    del done
    return 1.0


def rising(until: float, start: float = 0.0) -> Strength:
    """From `start` up to full strength at `until`, both 0..1, and then full. Easy images first, as
    in the progressive training of EfficientNetV2 (Tan and Le 2021, arXiv 2104.00298)."""
    if not (0 < until <= 1 and 0 <= start <= 1):
        raise UsageError(f"a ramp from {start:g} at 0 to 1 at {until:g} leaves the range 0..1")

    def strength(done: float) -> float:
        return min(1.0, start + (1.0 - start) * done / until)

    return strength


def during(transform: Transform, start: float = 0.0, stop: float = 1.0) -> Transform:
    """The transform while `start` <= done < `stop` (at 1, to the end), and nothing otherwise: for
    example without mixing in the last tenth."""

    def sometimes(batch: Batch, rng: ImageRandom, done: float) -> Batch:
        on = start <= done and (done < stop or stop >= 1.0)
        return transform(batch, rng, done) if on else batch

    return sometimes


def rand_augment(
    num_changes: int = 2,
    magnitude: float = 0.3,
    table: Sequence[Change] = RANDAUGMENT,
    *,
    strength: Strength = steady,
    interpolation: Interpolation = "bilinear",
    fill: float = GREY,
) -> Transform:
    """`num_changes` lines of the table one after the other, drawn for each image, each at the share
    `magnitude` of its full amount (9 of 30 in the paper's counting is 0.3) times strength(done)."""

    def always_that(done: float) -> tuple[float, float]:
        return magnitude * strength(done), magnitude * strength(done)

    return _drawn(tuple(table), num_changes, always_that, interpolation, fill)


def trivial_augment(
    table: Sequence[Change] = TRIVIALAUGMENT_WIDE,
    *,
    num_changes: int = 1,
    strength: Strength = steady,
    interpolation: Interpolation = "bilinear",
    fill: float = GREY,
) -> Transform:
    """One line of the table, drawn for each image, and how much of it, evenly from nothing to the
    full amount times strength(done)."""
    return _drawn(
        tuple(table), num_changes, lambda done: (0.0, strength(done)), interpolation, fill
    )


def policy(name: Policy, *, grey: bool, strength: Strength = steady) -> Transform:
    """One of our own, see POLICIES. grey: the images are without colour, so changes of colour are
    left out."""
    num_changes, table, most = POLICIES[name]
    if not num_changes:
        return compose(())
    if grey:
        table = tuple(change for change in table if change.kind not in _COLOURS)
    return trivial_augment(
        table, num_changes=num_changes, strength=lambda done: most * strength(done)
    )


def _drawn(
    table: tuple[Change, ...],
    num_changes: int,
    magnitudes: Callable[[float], tuple[float, float]],
    interpolation: Interpolation,
    fill: float,
) -> Transform:
    if not table:
        raise UsageError("a table of no changes", fix="leave the transform out")

    def augmented(batch: Batch, rng: ImageRandom, done: float) -> Batch:
        rng = rng.stream("changes")
        drawn = [_draw(rng, table, *magnitudes(done)) for _ in range(num_changes)]
        kinds, amounts = (torch.stack(rows, dim=1) for rows in zip(*drawn, strict=True))

        images = _all_in_turn(batch.images, kinds, amounts, interpolation, fill)
        return Batch(images, batch.targets, batch.ids)

    return augmented


def augmix(
    magnitude: float = 0.3,
    table: Sequence[Change] = AUGMIX,
    *,
    num_chains: int = 3,
    strength: Strength = steady,
    interpolation: Interpolation = "bilinear",
    fill: float = GREY,
) -> Transform:
    """Chains of one to three changes side by side, averaged with random weights, and the result
    averaged with the image itself (Hendrycks et al. 2020, arXiv 1912.02781, with its alpha of 1).

    Each change has an amount drawn evenly from nothing to the share `magnitude` of the full one.
    """
    lines = tuple(table)

    def mixed(batch: Batch, rng: ImageRandom, done: float) -> Batch:
        rng = rng.stream("augmix")
        # Dirichlet(1, 1, 1) is three exponential numbers divided by their sum; Beta(1, 1) is even.
        weights = -torch.log(1.0 - rng.uniform(count=num_chains))
        own = rng.uniform()
        weights = torch.cat((own[None], weights / weights.sum(dim=0) * (1.0 - own)))
        nothing = _number("identity")
        drawn = []
        for _ in range(num_chains):
            depth = rng.integers(_DEPTH) + 1
            for step in range(_DEPTH):
                kinds, amounts = _draw(rng, lines, 0.0, magnitude * strength(done))
                drawn.append((torch.where(depth > step, kinds, nothing), amounts))
        kinds, amounts = (torch.stack(rows, dim=1) for rows in zip(*drawn, strict=True))

        def change(
            images: Tensor, kinds: Tensor, amounts: Tensor, warps: Tensor, weights: Tensor
        ) -> Tensor:
            shares = weights[:, :, None, None, None].unbind(dim=1)
            total = images.to(torch.float32) * shares[0]
            for chain in range(num_chains):
                own = slice(chain * _DEPTH, (chain + 1) * _DEPTH)
                steps = kinds[:, own], amounts[:, own], warps[:, own]
                end = _in_turn(images, *steps, interpolation, fill)
                total.addcmul_(end.to(torch.float32), shares[chain + 1])
            return memory.like(total, images)

        images = colour.check_uint8(batch.images)
        warps = _matrices(amounts, kinds, images)
        images = memory.for_all(change, images, kinds, amounts, warps, weights.T)
        return Batch(images, batch.targets, batch.ids)

    return mixed


def changed(
    images: Tensor,
    table: tuple[Change, ...],
    which: Tensor,
    magnitude: Tensor,
    sign: Tensor,
    interpolation: Interpolation = "bilinear",
    fill: float = GREY,
) -> Tensor:
    """Each image changed by line which (N,) of the table, by magnitude (N,) 0..1 times the full
    amount, in the direction sign (N,), -1 or 1."""
    kinds, amounts = _kinds_and_amounts(table, which, magnitude, sign)
    return _all_in_turn(images, kinds[:, None], amounts[:, None], interpolation, fill)


def _draw(
    rng: ImageRandom, table: tuple[Change, ...], low: float, high: float
) -> tuple[Tensor, Tensor]:
    """For each image the number of a kind and how much of it, (N,) both."""
    which, magnitude = rng.integers(len(table)), rng.uniform(low, high)
    return _kinds_and_amounts(table, which, magnitude, rng.integers(2) * 2 - 1)


def _kinds_and_amounts(
    table: tuple[Change, ...], which: Tensor, magnitude: Tensor, sign: Tensor
) -> tuple[Tensor, Tensor]:
    full, both_ways, kinds = (
        column.index_select(0, which) for column in _columns(table, which.device)
    )
    amounts = magnitude * full
    return kinds, torch.where(both_ways, amounts * sign, amounts)


@cache
def _columns(table: tuple[Change, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """full (float32), both ways (bool) and number of the kind (int64), one for each line: kept, so
    that no step waits for a copy to the device."""
    return (
        torch.tensor([change.full for change in table], device=device, dtype=torch.float32),
        torch.tensor([change.kind in _BOTH_WAYS for change in table], device=device),
        torch.tensor([_number(change.kind) for change in table], device=device),
    )


def _number(kind: Kind) -> int:
    return (*_WARPS, *_VALUES, "identity").index(kind)


def _all_in_turn(
    images: Tensor, kinds: Tensor, amounts: Tensor, interpolation: Interpolation, fill: float
) -> Tensor:
    def change(images: Tensor, kinds: Tensor, amounts: Tensor, warps: Tensor) -> Tensor:
        return _in_turn(images, kinds, amounts, warps, interpolation, fill)

    warps = _matrices(amounts, kinds, images)
    return memory.for_all(change, colour.check_uint8(images), kinds, amounts, warps)


def _in_turn(
    images: Tensor,
    kinds: Tensor,
    amounts: Tensor,
    warps: Tensor,
    interpolation: Interpolation,
    fill: float,
) -> Tensor:
    """images changed by one kind after the other.

    kinds, amounts (N, steps); warps (N, steps, 3, 3), used where the kind is a warp.
    """

    def warp_some(images: Tensor, matrix: Tensor) -> Tensor:
        return warp.warped(images, matrix, interpolation, fill, has_perspective=False)

    alone = memory.in_main_memory(images) and len(images) == 1
    for step in range(kinds.shape[1]):
        kind, amount, matrix = kinds[:, step], amounts[:, step], warps[:, step]
        if not alone:
            images = _some_changed(images, kind, amount, matrix, warp_some)
        elif (number := int(kind)) < len(_WARPS):
            images = warp_some(images, matrix)
        elif number < _number("identity"):
            images = list(_VALUES.values())[number - len(_WARPS)](images, amount)
    return images


def _some_changed(
    images: Tensor,
    kinds: Tensor,
    amounts: Tensor,
    matrices: Tensor,
    warp_some: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Each image by its own kind: on an accelerator all kinds for all images, and a choice."""
    result = memory.where(kinds < len(_WARPS), warp_some, images, matrices)
    for number, change in enumerate(_VALUES.values(), start=len(_WARPS)):
        # What was made here may be written over; what came in may not.
        ours = result is not images
        result = memory.where(kinds == number, change, result, amounts, in_place=ours)
    return result


def _matrices(amounts: Tensor, kinds: Tensor, images: Tensor) -> Tensor:
    """(N, steps, 3, 3): each warp; where the kind is none, the identity. amounts, kinds (N, steps).

    One resampling serves all kinds of warp, for each image has its own matrix.
    """
    height, width = images.shape[2:]
    shear_x, shear_y, right, down, angle = (
        torch.where(kinds == number, amounts, 0.0).flatten() for number in range(len(_WARPS))
    )
    # At most one of them is other than the identity, so their order does not matter.
    shear = warp.sheared(shear_x, shear_y)
    move = warp.translated(right * width, down * height)
    matrices = torch.bmm(torch.bmm(shear, warp.rotated(angle)), move)
    return matrices.view(*kinds.shape, 3, 3)


def _factor(change: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    def by_amount(images: Tensor, amount: Tensor) -> Tensor:
        return change(images, 1.0 + amount)

    return by_amount


def _posterize(images: Tensor, amount: Tensor) -> Tensor:
    return colour.posterize(images, 8 - amount.round())


def _solarize(images: Tensor, amount: Tensor) -> Tensor:
    return colour.solarize(images, (1.0 - amount) * 255)


def _autocontrast(images: Tensor, amount: Tensor) -> Tensor:
    del amount
    return colour.autocontrast(images)


def _equalize(images: Tensor, amount: Tensor) -> Tensor:
    del amount
    return colour.equalize(images)


_VALUES: Final[dict[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "brightness": _factor(colour.brightness),
    "contrast": _factor(colour.contrast),
    "saturation": _factor(colour.saturation),
    "sharpness": _factor(colour.sharpness),
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
}
