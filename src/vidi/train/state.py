"""The moving half of a training run: exactly what a checkpoint holds, no more and no less."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, cast

import safetensors.torch
import torch
from torch import Tensor

from vidi.errors import DamagedError
from vidi.memory import Limit
from vidi.model import Classifier
from vidi.optim import Average
from vidi.restore import put_weights, unpacked
from vidi.schedule import PlateauState
from vidi.shards import in_all, is_sharded, local, put, whole_on_first
from vidi.train.ranks import Saved

FORMAT = 2
# What schedule-free optimizers count for a group and not for a parameter.
_GROUP_NUMBERS = {"k", "weight_sum", "lr_max"}
_GROUP = "group "


@dataclass(frozen=True, slots=True)
class Best:
    """Which weights to keep: the latest whose validation is within one standard error of the top.

    On few images the top is luck, and later weights, with a lower learning rate, are the better
    bet; weights that have become worse by more than chance are not. (The one-standard-error rule
    of Breiman et al. 1984, with time in the place of simplicity.)

    step, accuracy, log_loss: of the weights to keep. top_accuracy: the highest seen.
    """

    step: int
    accuracy: float
    log_loss: float
    top_accuracy: float

    @staticmethod
    def after(before: Best | None, step: int, accuracy: float, log_loss: float, n: int) -> Best:
        """What to keep after a validation on `n` images."""
        top = accuracy if before is None else max(before.top_accuracy, accuracy)
        # With one right and one wrong image added, the error of a perfect score is not zero.
        share = (top * n + 1) / (n + 2)
        standard_error = math.sqrt(share * (1 - share) / (n + 2))
        # A single image is never more than luck; half of another one keeps rounding out of it.
        if before is None or accuracy >= top - max(standard_error, 1.5 / n):
            return Best(step, accuracy, log_loss, top)
        return replace(before, top_accuracy=top)


@dataclass(slots=True)
class Window:
    """Sums over the steps since the last log line; read from the device only there."""

    loss_sum: Tensor
    correct: Tensor
    # Updates that the device left out by itself; None where the processor looks at each.
    skipped: Tensor | None = None
    num_images: int = 0
    num_steps: int = 0

    @staticmethod
    def empty(device: torch.device) -> Window:
        return Window(torch.zeros((), device=device), torch.zeros((), device=device))


@dataclass(slots=True)
class State:
    """Everything that changes while training."""

    model: Classifier
    optimizer: torch.optim.Optimizer
    average: Average | None
    window: Window
    # How many images go through the model at once, in training and in evaluation.
    training_limit: Limit
    evaluation_limit: Limit
    # float16 alone needs it: what keeps its gradients from vanishing.
    scaler: torch.amp.GradScaler | None = None
    plateau: PlateauState = field(default_factory=PlateauState)
    step: int = 0
    # The step whose weights were validated last.
    evaluated_step: int = -1
    best: Best | None = None
    evaluations_since_best: int = 0
    skipped_steps: int = 0
    consecutive_skips: int = 0
    # How often the weights were taken back to a checkpoint because they were not finite.
    rollbacks: int = 0
    # Things that the user should read in the report, in the order they happened.
    notes: list[str] = field(default_factory=list)

    @property
    def is_schedule_free(self) -> bool:
        """Whether the optimizer holds the average itself."""
        return "weight_sum" in self.optimizer.param_groups[0]

    @property
    def is_sharded(self) -> bool:
        """Whether each process holds a part of the weights only: all save at the same step then."""
        return is_sharded(self.model)

    def take_over(self, optimizer: torch.optim.Optimizer) -> None:
        """Go on with another optimizer over the same parameters, from where this one is."""
        _unflatten(optimizer, *_flat(self.optimizer))
        self.optimizer = optimizer

    def files(self) -> dict[str, bytes]:
        """The tensors, as the files of a checkpoint.

        Where they are divided all processes call this, and the first one gets them.
        """
        tensors, _ = _flat(self.optimizer)
        if self.is_schedule_free:
            assert self.average is not None
            self.average.follow(self.model, self.optimizer, self.step)
        files = {
            "model.safetensors": _packed(self.model.state_dict()),
            "optimizer.safetensors": _packed(tensors),
        }
        if self.average is not None and self.average.num_steps:
            files["ema.safetensors"] = _packed(self.average.state_dict())
        return files

    def broken(self) -> str:
        """What holds a number that is not finite, in words; empty when nothing does."""
        tensors, _ = _flat(self.optimizer)
        for what, values in (
            ("the model", self.model.state_dict().values()),
            ("the optimizer", tensors.values()),
        ):
            if not self._all_finite(values):
                return what
        if self.average is not None and not self._all_finite(self.average.state_dict().values()):
            return "the average"
        return ""

    def _all_finite(self, tensors: Iterable[Tensor]) -> bool:
        finite = _all_finite([local(tensor) for tensor in tensors])
        return bool(in_all(torch.tensor(finite))) if self.is_sharded else finite

    def counters(self) -> dict[str, Any]:
        """The numbers, as the `state.json` of a checkpoint; floats survive JSON exactly."""
        return {
            "format": FORMAT,
            "step": self.step,
            "evaluated_step": self.evaluated_step,
            "best": None
            if self.best is None
            else {
                "step": self.best.step,
                "accuracy": self.best.accuracy,
                "log_loss": self.best.log_loss,
                "top_accuracy": self.best.top_accuracy,
            },
            "evaluations_since_best": self.evaluations_since_best,
            "skipped_steps": self.skipped_steps,
            "consecutive_skips": self.consecutive_skips,
            "rollbacks": self.rollbacks,
            "training_limit": self.training_limit.num_images,
            "evaluation_limit": self.evaluation_limit.num_images,
            "plateau": asdict(self.plateau),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "window": {
                "loss_sum": float(self.window.loss_sum),
                "correct": float(self.window.correct),
                "num_images": self.window.num_images,
                "num_steps": self.window.num_steps,
                "skipped": None if self.window.skipped is None else float(self.window.skipped),
            },
            "optimizer_numbers": _flat(self.optimizer)[1],
            "average_steps": 0 if self.average is None else self.average.num_steps,
            "notes": list(self.notes),
        }

    def restore(self, checkpoint: Saved) -> None:
        """Take over everything from a verified checkpoint.

        Raises:
            DamagedError: it does not fit this model, or a newer version wrote it.
        """
        counters = cast("dict[str, Any]", checkpoint.state)
        if counters.get("format") != FORMAT:
            raise DamagedError(
                f"checkpoint {checkpoint.step} has format {counters.get('format')}, "
                f"this version reads {FORMAT}",
                fix="use the version of vidi that wrote it (environment.json)",
            )
        device = self.window.loss_sum.device
        self.restore_tensors(checkpoint)
        window = counters["window"]
        self.window = Window(
            torch.tensor(window["loss_sum"], device=device),
            torch.tensor(window["correct"], device=device),
            None if window["skipped"] is None else torch.tensor(window["skipped"], device=device),
            window["num_images"],
            window["num_steps"],
        )
        self.step = counters["step"]
        self.evaluated_step = counters["evaluated_step"]
        self.best = None if counters["best"] is None else Best(**counters["best"])
        self.evaluations_since_best = counters["evaluations_since_best"]
        self.skipped_steps = counters["skipped_steps"]
        self.consecutive_skips = counters["consecutive_skips"]
        self.rollbacks = counters["rollbacks"]
        self.training_limit.num_images = counters["training_limit"]
        self.evaluation_limit.num_images = counters["evaluation_limit"]
        self.plateau = PlateauState(**counters["plateau"])
        self.notes = list(counters["notes"])

    def restore_tensors(self, checkpoint: Saved) -> None:
        """Only weights, average and optimizer of a verified checkpoint; counters stay.

        Raises:
            DamagedError: it does not fit this model.
        """
        counters = cast("dict[str, Any]", checkpoint.state)
        origin = f"step {checkpoint.step}"
        own = unpacked(checkpoint.read("model.safetensors"), origin=origin)
        put_weights(self.model, own, origin=origin)
        _unflatten(
            self.optimizer,
            safetensors.torch.load(checkpoint.read("optimizer.safetensors")),
            counters["optimizer_numbers"],
        )
        if self.average is not None and "ema.safetensors" in checkpoint.names:
            origin = f"{origin}, average"
            average = unpacked(checkpoint.read("ema.safetensors"), origin=origin)
            put_weights(self.average.model, average, origin=origin)
            self.average.num_steps = counters["average_steps"]
        elif self.average is not None:
            self.average.reset(self.model)
        if self.scaler is not None and counters["scaler"] is not None:
            self.scaler.load_state_dict(counters["scaler"])


def _all_finite(tensors: Iterable[Tensor]) -> bool:
    """No NaN and no infinity in any of the floating tensors; waits for the device."""
    floating = [tensor.detach() for tensor in tensors if tensor.is_floating_point()]
    sums = [tensor.sum(dtype=torch.float32) for tensor in floating]
    if not sums or bool(torch.stack(sums).isfinite().all()):
        return True
    # Very large numbers may add up to infinity.
    return all(bool(tensor.isfinite().all()) for tensor in floating)


def _packed(tensors: dict[str, Tensor]) -> bytes:
    whole = whole_on_first(tensors)
    return safetensors.torch.save({name: tensor.contiguous() for name, tensor in whole.items()})


def _flat(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, float]]:
    """An optimizer's state as tensors and plain numbers, named `parameter.quantity`."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, float] = {}
    for index, quantities in optimizer.state_dict()["state"].items():
        for name, value in quantities.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value
            elif value is not None:
                numbers[f"{index}.{name}"] = value
    for index, group in enumerate(optimizer.param_groups):
        for name in _GROUP_NUMBERS & group.keys():
            numbers[f"{_GROUP}{index}.{name}"] = group[name]
    return tensors, numbers


def _unflatten(
    optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], numbers: dict[str, float]
) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for key, value in (*tensors.items(), *numbers.items()):
        index, _, name = key.partition(".")
        if index.startswith(_GROUP):
            optimizer.param_groups[int(index.removeprefix(_GROUP))][name] = value
            continue
        if isinstance(value, Tensor) and value.shape == parameters[int(index)].shape:
            # A momentum keeps the memory layout of its parameter; mixed layouts are slow.
            saved, value = value, torch.empty_like(parameters[int(index)], dtype=value.dtype)
            put(value, saved)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
