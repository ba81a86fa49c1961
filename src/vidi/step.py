"""One update of the weights: forward, backward, guard, step. The probe times the very same code."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vidi.batch import Batch
from vidi.facts import Precision
from vidi.finite import all_finite
from vidi.loss import Loss
from vidi.plan import Plan
from vidi.shards import in_all, is_sharded, local, total_norm, unsynchronised
from vidi.winograd import winograd_convolutions

# What autocast computes in; float32 and tf32 compute without it.
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class StepSettings:
    """What one update needs to know of the plan."""

    precision: Precision
    loss: Loss
    # Images that go through the model at once; the rest of the batch follows, gradients add up.
    micro_batch_size: int
    clip_norm: float | None
    # Dropout and the like draw from torch's own generators; they are seeded from this and the
    # step, so that a resumed run draws the same numbers without saving a generator's state.
    seed: int
    # Radius of sharpness-aware minimisation; 0 leaves it out.
    sam_rho: float = 0.0
    # Whether the processor waits for the numbers of a step before it takes the update, or the
    # device leaves a bad update out by itself. The first is free where the processor computes.
    guard: Literal["host", "device"] = "host"
    # Processes that share a batch; each has its part, and gradients are the mean over them. With
    # others, the images of the whole batch.
    world_size: int = 1
    batch_size: int | None = None
    # Whether each process holds a part of the weights only, see vidi.shards.
    sharded: bool = False
    # Whether 3 x 3 convolutions are computed by vidi.winograd.
    winograd: bool = False

    @staticmethod
    def of(plan: Plan) -> StepSettings:
        """The step of a plan."""
        device = torch.device(plan.execution.device)
        loss = plan.loss
        sharded = plan.execution.sharding == "full"
        return StepSettings(
            precision=plan.execution.precision,
            loss=Loss(
                name=loss.name,
                label_smoothing=plan.label_smoothing,
                gamma=loss.focal_gamma,
                class_weights=_tensor(loss.class_weights, device),
                log_prior=_tensor(loss.log_prior, device),
            ),
            micro_batch_size=plan.micro_batch_size,
            clip_norm=plan.clip_norm,
            seed=plan.seed,
            sam_rho=plan.sam_rho,
            # Fused optimizers, which guard themselves, do not take parts of weights.
            guard="host" if device.type == "cpu" or sharded else "device",
            world_size=plan.execution.world_size,
            batch_size=plan.batch_size,
            sharded=sharded,
            winograd=plan.execution.winograd,
        )


def _tensor(values: tuple[float, ...] | None, device: torch.device) -> Tensor | None:
    return None if values is None else torch.tensor(values, device=device)


@dataclass(frozen=True, slots=True)
class StepResult:
    """What an update did; tensors, so that nobody waits for the device.

    loss_sum: () float32, the sum of the losses of the images; 0 where the update was left out.
    correct: () float32, how many images had their largest logit at their (largest) target.
    num_images: how many there were.
    finite: whether the weights were updated; False when the loss or a gradient was not finite.
        A () bool tensor where the device guards itself.
    """

    loss_sum: Tensor
    correct: Tensor
    num_images: int
    finite: bool | Tensor


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The context in which the model computes in `precision`; it does nothing for float32."""
    dtype = _DTYPES.get(precision)
    return torch.autocast(
        device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None, cache_enabled=True
    )


def seed_step(seed: int, step: int, device: torch.device) -> None:
    """Give torch's generators the numbers of this step: a pure function of (seed, step)."""
    number = (seed * 1_000_003 + step) & 0x7FFF_FFFF_FFFF_FFFF
    if device.type == "cpu":
        # torch.manual_seed looks at every kind of device, which takes 0.2 ms.
        torch.default_generator.manual_seed(number)
    else:
        torch.manual_seed(number)


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    settings: StepSettings,
    step: int,
    *,
    scaler: torch.amp.GradScaler | None = None,
) -> StepResult:
    """One update from one batch, accumulated over micro-batches of equal weight per image.

    The learning rate is the one that the optimizer's groups hold. A loss or gradient that is not
    finite leaves weights and optimizer untouched.

    Args:
        model: pixels in, logits out; wrapped in DistributedDataParallel, or divided, where
            processes share the batch. Gradients travel with the last micro-batch only.
        scaler: for float16, whose gradients would vanish; it is part of the run's state.
    """
    seed_step(settings.seed, step, batch.images.device)
    loss_sum, correct = _backward(model, batch, settings, scaler)
    if settings.sam_rho > 0.0:
        seed_step(settings.seed, step, batch.images.device)
        with _at_the_worst_point_nearby(model, settings), _statistics_kept(model):
            optimizer.zero_grad(set_to_none=True)
            _backward(model, batch, settings, scaler)
    finite = _update(optimizer, loss_sum, settings, scaler)
    optimizer.zero_grad(set_to_none=True)
    if isinstance(finite, Tensor):
        loss_sum, correct = torch.where(finite, loss_sum, 0.0), torch.where(finite, correct, 0.0)
    return StepResult(loss_sum, correct, len(batch), finite)


def rehearse(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    settings: StepSettings,
    step: int,
) -> None:
    """Forward and backward as in `train_step`, to see whether memory is enough; nothing stays.

    Several processes do this before their first update: in the middle of one, where gradients are
    already on their way, it would be too late to try again with less.
    """
    seed_step(settings.seed, step, batch.images.device)
    quiet = model.no_sync() if _is_shared(model) else contextlib.nullcontext()
    with _statistics_kept(model), quiet:
        _backward(model, batch, settings, None)
    optimizer.zero_grad(set_to_none=True)


def _backward(
    model: nn.Module, batch: Batch, settings: StepSettings, scaler: torch.amp.GradScaler | None
) -> tuple[Tensor, Tensor]:
    """Gradients of the batch's mean loss into the parameters; (sum of losses, images right)."""
    loss_sum = torch.zeros((), device=batch.images.device)
    correct = torch.zeros((), device=batch.images.device)
    share = 1.0 / len(batch)
    if settings.world_size > 1 and settings.batch_size is not None:
        # What shares gradients takes their mean over the processes, whose parts may differ in size.
        share = settings.world_size / settings.batch_size
    parts = batch.split(_sizes(len(batch), settings))
    for number, part in enumerate(parts, start=1):
        with _synchronised(model, number == len(parts)):
            with (
                autocast(part.images.device, settings.precision),
                winograd_convolutions(settings.winograd),
            ):
                logits = model(part.images)
            loss = settings.loss(logits.float(), part.targets)
            mean = loss * share
            if settings.world_size > 1:
                # A bad loss reaches the other processes as a bad gradient: all leave it out.
                mean = mean * torch.where(torch.isfinite(mean.detach()), 1.0, torch.nan)
            (mean if scaler is None else scaler.scale(mean)).backward()  # type: ignore[no-untyped-call]
        loss_sum += loss.detach()
        labels = part.targets if part.targets.ndim == 1 else part.targets.argmax(1)
        correct += (logits.detach().argmax(1) == labels).sum()
    return loss_sum, correct


def _sizes(num_images: int, settings: StepSettings) -> int | list[int]:
    """How many images go through at once, as `Batch.split` takes it.

    Where a model is divided all processes call it equally often, though their parts of a batch may
    differ by a few images.
    """
    if not settings.sharded or settings.batch_size is None:
        return settings.micro_batch_size
    each = settings.batch_size // settings.world_size
    number = min(num_images, math.ceil(each / settings.micro_batch_size))
    return [num_images // number + (place < num_images % number) for place in range(number)]


def _synchronised(model: nn.Module, now: bool) -> contextlib.AbstractContextManager[Any]:
    """Gradients travel to the other processes with the last micro-batch only."""
    if now:
        return contextlib.nullcontext()
    if is_sharded(model):
        return unsynchronised(model)
    return model.no_sync() if _is_shared(model) else contextlib.nullcontext()


def _is_shared(model: nn.Module) -> TypeGuard[nn.parallel.DistributedDataParallel]:
    return isinstance(model, nn.parallel.DistributedDataParallel)


def _update(
    optimizer: torch.optim.Optimizer,
    loss_sum: Tensor,
    settings: StepSettings,
    scaler: torch.amp.GradScaler | None,
) -> bool | Tensor:
    if scaler is not None:
        scaler.unscale_(optimizer)
    # The optimizer's own lists: walking through the modules of a small model takes as long as the
    # check itself.
    learning = [
        parameter
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    ]
    gradients = [local(parameter.grad) for parameter in learning]
    # With others, the gradient alone tells: it is the same for all.
    good = all_finite([*gradients, loss_sum] if settings.world_size == 1 else gradients)
    if settings.sharded:
        good = in_all(good)
    if settings.guard == "device" and takes_found_inf(optimizer):
        # Kernels of fused optimizers look at this number by themselves and change nothing.
        optimizer.found_inf, optimizer.grad_scale = (~good).float(), None  # type: ignore[attr-defined]
        _clip(gradients, settings)
        optimizer.step()
        if scaler is not None:
            scaler.update()
        return good
    # The one place of a step that waits for the device: an update with a bad gradient would
    # poison weights, momentum and average for good.
    finite = bool(good)
    if finite:
        _clip(gradients, settings)
        optimizer.step()
    if scaler is not None:
        scaler.update()
    return finite


def takes_found_inf(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer's kernels can leave an update out by themselves: torch's fused ones."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def _clip(gradients: list[Tensor], settings: StepSettings) -> None:
    if settings.clip_norm is not None:
        # As torch.nn.utils.clip_grads_with_norm_, on parts of gradients too.
        share = settings.clip_norm / (_norm(gradients, settings) + 1e-6)
        torch._foreach_mul_(gradients, share.clamp(max=1.0))


def _norm(gradients: list[Tensor], settings: StepSettings) -> Tensor:
    """Of the whole gradient, also where each process has a part of it."""
    if settings.sharded:
        return total_norm(gradients)
    return torch.nn.utils.get_total_norm(gradients)


@contextlib.contextmanager
def _at_the_worst_point_nearby(model: nn.Module, settings: StepSettings) -> Iterator[None]:
    """Inside, the weights are where the loss rises most within `sam_rho` (Foret et al. 2021)."""
    learning = [p for p in model.parameters() if p.grad is not None]
    weights = [local(p) for p in learning]
    gradients = [local(p.grad) for p in learning if p.grad is not None]
    with torch.no_grad():
        norm = _norm(gradients, settings)
        before = [weight.clone() for weight in weights]
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.addcmul_(gradient, settings.sam_rho / (norm + 1e-12))
    try:
        yield
    finally:
        with torch.no_grad():
            # Copied back, not subtracted: nothing is left of the excursion, not even rounding.
            torch._foreach_copy_(weights, before)


@contextlib.contextmanager
def _statistics_kept(model: nn.Module) -> Iterator[None]:
    """Batch norms normalise by the batch as ever, but their running statistics stay."""
    norms = [part for part in model.modules() if isinstance(part, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
