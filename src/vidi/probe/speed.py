"""Times the real training step for each way of computing it that this machine allows."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple, final

import torch
from torch import nn

from vidi import memory
from vidi.batch import Batch
from vidi.facts import Machine, Measurements, Precision, StepTiming
from vidi.malloc import keep_memory
from vidi.memory import is_out_of_memory
from vidi.step import StepSettings, autocast, train_step

# A candidate's loss after the warm-up may differ from float32's by this share. Rounding of
# bfloat16 moves it by less than a percent; a broken kernel moves it by much more.
LOSS_TOLERANCE: Final = 0.05
WARM_UP_STEPS: Final = 3
# A candidate that is this much slower than the best so far after two steps is given up.
HOPELESS: Final = 1.25
# So many timed steps are enough; fewer where time is short.
MOST_STEPS: Final = 20
# A float32 step that differs by less than this from the best so far is not worth a change: the
# measurement itself is not better.
NOISE: Final = 0.02
# Compiling on a processor takes about a minute and cannot be broken off, so it is only tried where
# it is a small part of the time that the probe has.
COMPILING_S: Final = 40.0
# Smaller parts of a batch are not tried: their overhead is all that would be measured.
FEWEST_IMAGES: Final = 4


class Candidate(NamedTuple):
    """One way of computing the step."""

    precision: Precision
    channels_last: bool
    micro_batch_size: int
    threads: int
    compile: bool = False
    keep_memory: bool = True


@final
@dataclass(frozen=True, slots=True)
class Space:
    """What may be tried. Each has what is likeliest to be best first."""

    precisions: tuple[Precision, ...]
    channels_last: tuple[bool, ...]
    micro_batch_sizes: tuple[int, ...]
    threads: tuple[int, ...]
    compile: tuple[bool, ...]
    keep_memory: tuple[bool, ...]

    @property
    def first(self) -> Candidate:
        return Candidate(
            self.precisions[0],
            self.channels_last[0],
            self.micro_batch_sizes[0],
            self.threads[0],
            self.compile[0],
            self.keep_memory[0],
        )

    def around(self, best: Candidate, turn: int) -> Iterator[Candidate]:
        """The candidates that differ from `best` in one thing: the turn-th, of six."""
        name, values = (
            ("precision", self.precisions),
            ("channels_last", self.channels_last),
            ("micro_batch_size", self.micro_batch_sizes),
            ("threads", self.threads),
            ("compile", self.compile),
            ("keep_memory", self.keep_memory),
        )[turn]
        for value in values:
            if getattr(best, name) != value:
                changed: Any = {name: value}
                yield best._replace(**changed)

    TURNS = 6


def space(device: str, machine: Machine, *, batch_size: int, threads: int, limit_s: float) -> Space:
    """What is worth timing here, by what the machine has; float32 leads, the others are held to it.

    Args:
        batch_size: images of one update in this process.
        threads: what this process may use.
        limit_s: compiling is left out where it would take most of that.
    """
    precisions: list[Precision] = ["float32"]
    native = {accelerator.kind: accelerator.bfloat16 for accelerator in machine.accelerators}
    if device == "cuda":
        precisions.append("tf32")
    if native.get(device, machine.cpu_bfloat16 if device == "cpu" else False):  # type: ignore[call-overload]
        precisions.append("bfloat16")
    elif device == "cuda":
        precisions.append("float16")
    sizes = [batch_size]
    while sizes[-1] >= 2 * FEWEST_IMAGES and len(sizes) < 4:
        sizes.append(math.ceil(sizes[-1] / 2))
    compilers = device != "cpu" or machine.compiler
    return Space(
        precisions=tuple(precisions),
        channels_last=(True, False),
        micro_batch_sizes=tuple(sizes),
        # Two threads of one core share its multipliers.
        threads=(threads, threads // 2) if device == "cpu" and threads >= 4 else (threads,),
        compile=(False, True) if compilers and limit_s > COMPILING_S else (False,),
        keep_memory=(True, False) if device == "cpu" and limit_s > 10.0 else (True,),
    )


def measure(
    model: nn.Module,
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    batches: Sequence[Batch],
    settings: StepSettings,
    options: Space,
    *,
    limit_s: float,
) -> Measurements:
    """Time `train_step` for one candidate after another on copies of `model`, which stays as it is.

    One thing is changed at a time, and what was fastest is kept for the next. The time limit holds
    from step to step, so it is exceeded by two steps of the first candidate at most.

    Args:
        model: on its device, in training mode.
        make_optimizer: builds the run's optimizer for a copy of the model.
        batches: a few real batches of the run's size, on the device; used in turn.
        settings: of the step; the candidate replaces what it names.
        options: what may be tried.
        limit_s: how long all of it may take.
    """
    started_at = time.perf_counter()
    threads = torch.get_num_threads()
    trial = _Trial(model, make_optimizer, batches, settings, started_at, limit_s)
    try:
        best = options.first
        trial.time(best, best_s=float("inf"))
        for turn in range(Space.TURNS):
            for candidate in options.around(best, turn):
                if time.perf_counter() > trial.ends_at:
                    break
                before_s = trial.seconds[best]
                step_s = trial.time(candidate, best_s=before_s)
                if step_s < before_s * (1.0 - NOISE):
                    best = candidate
        forward = trial.time_forward(best)
    finally:
        torch.set_num_threads(threads)
        keep_memory(options.keep_memory[0])
        memory.release()
    return Measurements(
        steps=tuple(trial.timings),
        evaluation_images_per_second=forward,
        probe_s=time.perf_counter() - started_at,
    )


@final
class _Trial:
    """Times candidates, and remembers what the first one's loss was."""

    def __init__(
        self,
        model: nn.Module,
        make_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        batches: Sequence[Batch],
        settings: StepSettings,
        started_at: float,
        limit_s: float,
    ) -> None:
        self._model = model
        self._make_optimizer = make_optimizer
        self._batches = batches
        self._settings = settings
        # The rest is for the forward pass.
        self.ends_at = started_at + 0.85 * limit_s
        # Where steps are slow, the first candidate must leave time for others.
        self._share_s = limit_s / 5
        self._reference_loss: float | None = None
        self.timings: list[StepTiming] = []
        # Of one step; infinite for what was rejected.
        self.seconds: dict[Candidate, float] = {}

    def time(self, candidate: Candidate, *, best_s: float) -> float:
        """Seconds of one step; infinite when the candidate is out."""
        rejected, compile_s, step_s, loss = "", 0.0, float("inf"), float("nan")
        try:
            loss, step_s, compile_s = self._run(candidate, best_s)
        except Exception as error:
            # What a compiler or a kernel raises has no common type. Without float32 there is
            # nothing to fall back on.
            if not self.timings:
                raise
            why = "out of memory" if is_out_of_memory(error) else type(error).__name__
            rejected = f"failed: {why}"
        else:
            if self._reference_loss is None:
                self._reference_loss = loss
            off = abs(loss - self._reference_loss) / max(abs(self._reference_loss), 1e-6)
            # Written so that a loss that is not a number is rejected as well.
            rejected = "" if off <= LOSS_TOLERANCE else f"its loss is {off:.0%} off float32's"
        rate = 0.0 if math.isinf(step_s) else len(self._batches[0]) / step_s
        self.timings.append(
            StepTiming(
                precision=candidate.precision,
                channels_last=candidate.channels_last,
                batch_size=len(self._batches[0]),
                threads=candidate.threads,
                images_per_second=rate,
                micro_batch_size=candidate.micro_batch_size,
                compile=candidate.compile,
                keep_memory=candidate.keep_memory,
                compile_s=compile_s,
                rejected=rejected,
            )
        )
        self.seconds[candidate] = float("inf") if rejected else step_s
        return self.seconds[candidate]

    def _run(self, candidate: Candidate, best_s: float) -> tuple[float, float, float]:
        """(loss per image after the warm-up, median seconds of a step, seconds of compiling)."""
        network = self._copy(candidate)
        optimizer = self._make_optimizer(network)
        called: Any = torch.compile(network) if candidate.compile else network
        settings = replace(
            self._settings,
            precision=candidate.precision,
            micro_batch_size=candidate.micro_batch_size,
            guard="host",
        )
        times: list[float] = []
        loss, first_s, step = float("nan"), 0.0, 0
        began_at = time.perf_counter()
        while not self._is_enough(times, step, best_s, began_at):
            step_at = time.perf_counter()
            batch = self._batches[step % len(self._batches)]
            result = train_step(called, optimizer, batch, settings, step)
            _wait(batch)
            step_s = time.perf_counter() - step_at
            if step == 0:
                first_s = step_s
            if step < WARM_UP_STEPS:
                loss = float(result.loss_sum) / result.num_images
            # The first step takes memory and chooses kernels; it counts if it is all there is.
            if step > 0:
                times.append(step_s)
            step += 1
        # The warm-up counts only where there is nothing else.
        timed = times[WARM_UP_STEPS - 1 :] or times or [first_s]
        step_s = statistics.median(timed)
        return loss, step_s, max(0.0, first_s - step_s) if candidate.compile else 0.0

    def _is_enough(self, times: Sequence[float], step: int, best_s: float, began_at: float) -> bool:
        if step == 0:
            return False
        now = time.perf_counter()
        if now > self.ends_at or (times and now - began_at > self._share_s):
            return True
        if len(times) >= 2 and min(times) > HOPELESS * best_s:
            return True
        timed = times[WARM_UP_STEPS - 1 :]
        # A second, and at least three steps, tell.
        return len(timed) >= MOST_STEPS or (len(timed) >= 3 and sum(timed) > 1.0)

    def _copy(self, candidate: Candidate) -> nn.Module:
        torch.set_num_threads(candidate.threads)
        keep_memory(candidate.keep_memory)
        layout = torch.channels_last if candidate.channels_last else torch.contiguous_format
        copied = copy.deepcopy(self._model).train()
        return copied.to(memory_format=layout)  # type: ignore[call-overload,no-any-return]

    def time_forward(self, candidate: Candidate) -> float:
        """Images per second of evaluation, in the way that trains fastest."""
        network = self._copy(candidate).eval()
        times: list[float] = []
        with torch.inference_mode(), autocast(self._batches[0].images.device, candidate.precision):
            for turn in range(5):
                batch = self._batches[turn % len(self._batches)]
                began_at = time.perf_counter()
                network(batch.images)
                _wait(batch)
                times.append(time.perf_counter() - began_at)
                if time.perf_counter() > self.ends_at and turn > 0:
                    break
        return len(self._batches[0]) / min(times)


def _wait(batch: Batch) -> None:
    if batch.images.device.type != "cpu":
        torch.accelerator.synchronize()
