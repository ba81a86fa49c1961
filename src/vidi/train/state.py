"""The moving half of a training run: exactly what a checkpoint holds, no more and no less."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, cast

import safetensors.torch
import torch
from torch import Tensor

from vidi.errors import DamagedError
from vidi.model import Classifier
from vidi.optim import Average
from vidi.restore import load_weights
from vidi.run import Checkpoint

FORMAT = 1


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
        if before is None or accuracy >= top - standard_error:
            return Best(step, accuracy, log_loss, top)
        return replace(before, top_accuracy=top)


@dataclass(slots=True)
class Window:
    """Sums over the steps since the last log line; read from the device only there."""

    loss_sum: Tensor
    correct: Tensor
    num_images: int = 0

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
    step: int = 0
    # The step whose weights were validated last.
    evaluated_step: int = -1
    best: Best | None = None
    evaluations_since_best: int = 0
    skipped_steps: int = 0
    consecutive_skips: int = 0
    # Things that the user should read in the report, in the order they happened.
    notes: list[str] = field(default_factory=list)

    def files(self) -> dict[str, bytes]:
        """The tensors, as the files of a checkpoint."""
        tensors, _ = _flat(self.optimizer)
        files = {
            "model.safetensors": _packed(self.model.state_dict()),
            "optimizer.safetensors": _packed(tensors),
        }
        if self.average is not None:
            files["ema.safetensors"] = _packed(self.average.state_dict())
        return files

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
            "window": {
                "loss_sum": float(self.window.loss_sum),
                "correct": float(self.window.correct),
                "num_images": self.window.num_images,
            },
            "optimizer_numbers": _flat(self.optimizer)[1],
            "average_steps": 0 if self.average is None else self.average.num_steps,
            "notes": list(self.notes),
        }

    def restore(self, checkpoint: Checkpoint) -> None:
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
        origin = f"step {checkpoint.step}"
        load_weights(self.model, checkpoint.read("model.safetensors"), origin=origin)
        _unflatten(
            self.optimizer,
            safetensors.torch.load(checkpoint.read("optimizer.safetensors")),
            counters["optimizer_numbers"],
        )
        if self.average is not None:
            load_weights(
                self.average.model, checkpoint.read("ema.safetensors"), origin=f"{origin}, average"
            )
            self.average.num_steps = counters["average_steps"]
        window = counters["window"]
        self.window = Window(
            torch.tensor(window["loss_sum"], device=device),
            torch.tensor(window["correct"], device=device),
            window["num_images"],
        )
        self.step = counters["step"]
        self.evaluated_step = counters["evaluated_step"]
        self.best = None if counters["best"] is None else Best(**counters["best"])
        self.evaluations_since_best = counters["evaluations_since_best"]
        self.skipped_steps = counters["skipped_steps"]
        self.consecutive_skips = counters["consecutive_skips"]
        self.notes = list(counters["notes"])


def _packed(tensors: dict[str, Tensor]) -> bytes:
    return safetensors.torch.save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    )


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
    return tensors, numbers


def _unflatten(
    optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], numbers: dict[str, float]
) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for key, value in (*tensors.items(), *numbers.items()):
        index, _, name = key.partition(".")
        if isinstance(value, Tensor) and value.shape == parameters[int(index)].shape:
            # A momentum keeps the memory layout of its parameter; mixed layouts are slow.
            value = torch.empty_like(parameters[int(index)], dtype=value.dtype).copy_(value)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
