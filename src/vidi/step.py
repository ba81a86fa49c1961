"""One update of the weights: forward, backward, guard, step. The probe times the very same code."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from vidi.batch import Batch
from vidi.facts import Precision
from vidi.finite import all_finite

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class StepSettings:
    """What one update needs to know of the plan."""

    precision: Precision
    label_smoothing: float
    micro_batch_size: int
    clip_norm: float | None
    # Dropout and the like draw from torch's own generators; they are seeded from this and the
    # step, so that a resumed run draws the same numbers without saving a generator's state.
    seed: int


@dataclass(frozen=True, slots=True)
class StepResult:
    """What an update did; tensors, so that nobody waits for the device.

    loss_sum: () float32, the sum of the losses of the images.
    correct: () float32, how many images had their largest logit at their (largest) target.
    num_images: how many there were.
    finite: whether the weights were updated; False when the loss or a gradient was not finite.
    """

    loss_sum: Tensor
    correct: Tensor
    num_images: int
    finite: bool


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The context in which the model computes in `precision`; it does nothing for float32."""
    return torch.autocast(
        device.type, dtype=_DTYPES[precision], enabled=precision != "float32", cache_enabled=True
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
) -> StepResult:
    """One update from one batch, accumulated over micro-batches of equal weight per image.

    The learning rate is the one that the optimizer's groups hold. A loss or gradient that is not
    finite leaves weights and optimizer untouched.
    """
    seed_step(settings.seed, step, batch.images.device)
    loss_sum = torch.zeros((), device=batch.images.device)
    correct = torch.zeros((), device=batch.images.device)
    num_images = len(batch)
    for part in batch.split(settings.micro_batch_size):
        with autocast(part.images.device, settings.precision):
            logits = model(part.images)
        loss = functional.cross_entropy(
            logits.float(), part.targets, label_smoothing=settings.label_smoothing, reduction="sum"
        )
        (loss / num_images).backward()  # type: ignore[no-untyped-call]
        loss_sum += loss.detach()
        labels = part.targets if part.targets.ndim == 1 else part.targets.argmax(1)
        correct += (logits.detach().argmax(1) == labels).sum()
    finite = _update(optimizer, loss_sum, settings.clip_norm)
    optimizer.zero_grad(set_to_none=True)
    return StepResult(loss_sum, correct, num_images, finite)


def _update(optimizer: torch.optim.Optimizer, loss_sum: Tensor, clip_norm: float | None) -> bool:
    # The optimizer's own lists: walking through the modules of a small model takes as long as the
    # check itself.
    learning = [
        parameter
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    ]
    gradients = [parameter.grad for parameter in learning]
    # The one place of a step that waits for the device: an update with a bad gradient would
    # poison weights, momentum and average for good.
    if clip_norm is None:
        finite = bool(all_finite([*gradients, loss_sum]))
    else:
        norm = torch.nn.utils.get_total_norm(gradients)
        finite = bool(torch.isfinite(norm) & torch.isfinite(loss_sum))
        if finite:
            torch.nn.utils.clip_grads_with_norm_(learning, clip_norm, norm)
    if finite:
        optimizer.step()
    return finite
