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
from vidi.facts import Machine, Measurements, Precision, StepTiming, Where
from vidi.malloc import keep_memory
from vidi.memory import is_out_of_memory
from vidi.optim import FUSED
from vidi.step import StepSettings, autocast, train_step

# A candidate's loss after the warm-up may differ from float32's by this share. Rounding of
# bfloat16 moves it by less than a percent; a broken kernel moves it by much more.
LOSS_TOLERANCE: Final = 0.05
WARM_UP_STEPS: Final = 3
# A candidate that is this much slower than the best so far after two steps is given up.
HOPELESS: Final = 1.25
# The probe may take this share of a planned run: never less than a few steps need, never so long
# that nobody would wait for it. The promise is 5 % or 20 s, whichever is more.
SHARE: Final = 0.05
LEAST_S: Final = 4.0
MOST_S: Final = 120.0
# So many timed steps are enough; fewer where time is short.
MOST_STEPS: Final = 20
# A float32 step that differs by less than this from the best so far is not worth a change: the
# measurement itself is not better.
NOISE: Final = 0.02
# What came as close as this to the best is timed again where there is time: a small network at
# 32 px was 7 % faster in the other memory format than one look at each had told.
RUN_OFF: Final = 1.15
RUN_OFF_MOST: Final = 3
RUN_OFF_TURNS: Final = 4
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
    # None: as vidi.optim takes it.
    fused: bool | None = None
    cuda_graphs: bool = False
    augment_on: Where = "device"
    winograd: bool = False


# The augmented batch of a step, on the device, varied there or on the processor.
Feed = Callable[[int, Where], Batch]
MakeOptimizer = Callable[[nn.Module, bool | None], torch.optim.Optimizer]


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
    fused: tuple[bool | None, ...] = (None,)
    cuda_graphs: tuple[bool, ...] = (False,)
    augment_on: tuple[Where, ...] = ("device",)
    winograd: tuple[bool, ...] = (False,)

    @property
    def first(self) -> Candidate:
        return Candidate(
            self.precisions[0],
            self.channels_last[0],
            self.micro_batch_sizes[0],
            self.threads[0],
            self.compile[0],
            self.keep_memory[0],
            self.fused[0],
            self.cuda_graphs[0],
            self.augment_on[0],
            self.winograd[0],
        )

    def around(self, best: Candidate, turn: int) -> Iterator[Candidate]:
        """The candidates that differ from `best` in one thing: the turn-th, of nine."""
        name, values = (
            ("precision", self.precisions),
            ("winograd", self.winograd),
            ("channels_last", self.channels_last),
            ("micro_batch_size", self.micro_batch_sizes),
            ("threads", self.threads),
            ("compile", self.compile),
            ("fused", self.fused),
            ("augment_on", self.augment_on),
            ("cuda_graphs", self.cuda_graphs),
        )[turn]
        for value in values:
            if getattr(best, name) != value:
                changed: Any = {name: value}
                if name == "cuda_graphs" and value:
                    # What is recorded is compiled code, also where compiling alone did not pay.
                    changed["compile"] = True
                candidate = best._replace(**changed)
                # What is compiled has convolutions of its own, and other precisions have torch's.
                other = candidate.compile or candidate.precision != "bfloat16"
                if not (candidate.winograd and other):
                    yield candidate

    TURNS = 9


def allowance_s(planned_s: float) -> float:
    """Seconds that a probe may take before a run of so many."""
    return max(LEAST_S, min(MOST_S, SHARE * planned_s))


def space(
    device: str,
    machine: Machine,
    *,
    batch_size: int,
    threads: int,
    limit_s: float,
    optimizer: str = "sgd",
    winograd: bool = False,
) -> Space:
    """What is worth timing here, by what the machine has; float32 leads, the others are held to it.

    Args:
        batch_size: images of one update in this process.
        threads: what this process may use.
        limit_s: compiling is left out where it would take most of that.
        optimizer: whether it has a fused kernel.
        winograd: whether the model has convolutions for it.
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
        # Two threads of one core share its multipliers, and small networks wait for one another.
        threads=_halved(threads) if device == "cpu" else (threads,),
        compile=(False, True) if compilers and limit_s > COMPILING_S else (False,),
        # Not to be compared in one process: whoever comes second finds the first one's memory.
        keep_memory=(True,),
        # On a processor the choice is whether weights that lie in another order are copied for it.
        fused=(None, device == "cpu") if optimizer in FUSED else (None,),
        cuda_graphs=(False, True)
        if device == "cuda" and limit_s > COMPILING_S and machine.processes == 1
        else (False,),
        augment_on=("device",) if device == "cpu" else ("device", "host"),
        winograd=(False, True)
        if winograd and device == "cpu" and machine.winograd and "bfloat16" in precisions
        else (False,),
    )


def _halved(threads: int) -> tuple[int, ...]:
    """All, a half, a quarter: three at most."""
    return tuple(dict.fromkeys((threads, max(1, threads // 2), max(1, threads // 4))))


def measure(
    model: nn.Module,
    make_optimizer: MakeOptimizer,
    batches: Sequence[Batch],
    settings: StepSettings,
    options: Space,
    *,
    limit_s: float,
    feed: Feed | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Measurements:
    """Time `train_step` for one candidate after another on copies of `model`, which stays as it is.

    One thing is changed at a time, and what was fastest is kept for the next. In the time that is
    left, those that came close are timed again in turns, because a shared machine drifts. The time
    limit holds from step to step, so it is exceeded by two steps of the first candidate at most.

    Args:
        model: on its device, in training mode.
        make_optimizer: builds the run's optimizer for a copy of the model; fused, its lists, or as
            it chooses.
        batches: a few real batches of the run's size, on the device; used in turn.
        settings: of the step; the candidate replaces what it names.
        options: what may be tried.
        limit_s: how long all of it may take.
        feed: makes a step's batch instead, and its time counts; where it matters what augments.
        clock: seconds that never fall.
    """
    started_at = clock()
    threads = torch.get_num_threads()
    trial = _Trial(
        model, make_optimizer, feed or _in_turn(batches), len(batches[0]), settings, limit_s, clock
    )
    try:
        best = options.first
        trial.time(best, best_s=float("inf"))
        for turn in range(Space.TURNS):
            for candidate in options.around(best, turn):
                if not trial.has_time_for(candidate):
                    continue
                before_s = trial.seconds[best]
                step_s = trial.time(candidate, best_s=before_s)
                if step_s < before_s * (1.0 - NOISE):
                    best = candidate
        trial.run_off()
        best = min(trial.seconds, key=lambda candidate: trial.seconds[candidate])
        forward = trial.time_forward(best)
    finally:
        torch.set_num_threads(threads)
        keep_memory(options.keep_memory[0])
        memory.release()
    return Measurements(
        steps=tuple(trial.timings),
        evaluation_images_per_second=forward,
        probe_s=clock() - started_at,
    )


def _in_turn(batches: Sequence[Batch]) -> Feed:
    return lambda step, _: batches[step % len(batches)]


@final
class _Trial:
    """Times candidates, and remembers what the first one's losses were."""

    def __init__(
        self,
        model: nn.Module,
        make_optimizer: MakeOptimizer,
        feed: Feed,
        batch_size: int,
        settings: StepSettings,
        limit_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._model = model
        self._make_optimizer = make_optimizer
        self._feed = feed
        self._batch_size = batch_size
        self._settings = settings
        self._clock = clock
        # The rest is for the forward pass.
        self.ends_at = clock() + 0.85 * limit_s
        # Where steps are slow, the first candidate must leave time for others.
        self._share_s = limit_s / 5
        self._reference: list[float] = []
        self.timings: list[StepTiming] = []
        # Of one step; infinite for what was rejected.
        self.seconds: dict[Candidate, float] = {}
        # On all of a candidate's steps.
        self.spent_s: dict[Candidate, float] = {}

    def has_time_for(self, candidate: Candidate) -> bool:
        """Compiling cannot be broken off, so it is begun only where it can end in time."""
        needed_s = COMPILING_S if candidate.compile else 0.0
        return self._clock() + needed_s <= self.ends_at

    def time(self, candidate: Candidate, *, best_s: float) -> float:
        """Seconds of one step; infinite when the candidate is out."""
        rejected, compile_s, step_s = "", 0.0, float("inf")
        began_at = self._clock()
        try:
            losses, step_s, compile_s = self._run(candidate, best_s)
        except Exception as error:
            # What a compiler or a kernel raises has no common type. Without float32 there is
            # nothing to fall back on.
            if not self.timings:
                raise
            why = "out of memory" if is_out_of_memory(error) else type(error).__name__
            rejected = f"failed: {why}"
        else:
            if not self.timings:
                self._reference = losses
            off = _distance(losses, self._reference)
            # Written so that a loss that is not a number is rejected as well.
            rejected = "" if off <= LOSS_TOLERANCE else f"its loss is {off:.0%} off float32's"
        rate = 0.0 if math.isinf(step_s) else self._batch_size / step_s
        self.timings.append(
            StepTiming(
                precision=candidate.precision,
                channels_last=candidate.channels_last,
                batch_size=self._batch_size,
                threads=candidate.threads,
                images_per_second=rate,
                micro_batch_size=candidate.micro_batch_size,
                compile=candidate.compile,
                keep_memory=candidate.keep_memory,
                fused=candidate.fused,
                cuda_graphs=candidate.cuda_graphs,
                augment_on=candidate.augment_on,
                winograd=candidate.winograd,
                compile_s=compile_s,
                rejected=rejected,
            )
        )
        self.seconds[candidate] = float("inf") if rejected else step_s
        self.spent_s[candidate] = self._clock() - began_at
        return self.seconds[candidate]

    def run_off(self) -> None:
        """Time the best few again, in turns; what counts is the median of each."""
        best_s = min(self.seconds.values())
        close = [
            candidate
            for candidate, step_s in sorted(self.seconds.items(), key=lambda item: item[1])
            # Compiling again would take longer than all else.
            if step_s <= RUN_OFF * best_s and not candidate.compile
        ][:RUN_OFF_MOST]
        if len(close) < 2:
            return
        looks = {candidate: [self.seconds[candidate]] for candidate in close}
        for _ in range(RUN_OFF_TURNS):
            # A turn is for all, or what ran at a better moment would win.
            if self._clock() + sum(self.spent_s[one] for one in close) > self.ends_at:
                break
            for candidate in close:
                _, step_s, _ = self._run(candidate, math.inf)
                looks[candidate].append(step_s)
        for candidate, seconds in looks.items():
            self.seconds[candidate] = statistics.median(seconds)
            number = list(self.seconds).index(candidate)
            rate = self._batch_size / self.seconds[candidate]
            self.timings[number] = self.timings[number].model_copy(
                update={"images_per_second": rate}
            )

    def _run(self, candidate: Candidate, best_s: float) -> tuple[list[float], float, float]:
        """(loss per image in the warm-up, median seconds of a step, seconds of compiling)."""
        network = self._copy(candidate)
        optimizer = self._make_optimizer(network, candidate.fused)
        called: Any = network
        if candidate.compile:
            mode = "reduce-overhead" if candidate.cuda_graphs else "default"
            called = torch.compile(network, mode=mode)
        settings = replace(
            self._settings,
            precision=candidate.precision,
            micro_batch_size=candidate.micro_batch_size,
            winograd=candidate.winograd,
            guard="host",
        )
        times: list[float] = []
        losses: list[float] = []
        first_s, step = 0.0, 0
        began_at = self._clock()
        while not self._is_enough(times, step, best_s, began_at):
            step_at = self._clock()
            batch = self._feed(step, candidate.augment_on)
            result = train_step(called, optimizer, batch, settings, step)
            _wait(batch)
            step_s = self._clock() - step_at
            if step == 0:
                first_s = step_s
            if step < WARM_UP_STEPS:
                losses.append(float(result.loss_sum) / result.num_images)
            # The first step takes memory and chooses kernels; it counts if it is all there is.
            if step > 0:
                times.append(step_s)
            step += 1
        # The warm-up counts only where there is nothing else.
        timed = times[WARM_UP_STEPS - 1 :] or times or [first_s]
        step_s = statistics.median(timed)
        return losses, step_s, max(0.0, first_s - step_s) if candidate.compile else 0.0

    def _is_enough(self, times: Sequence[float], step: int, best_s: float, began_at: float) -> bool:
        if step == 0:
            return False
        now = self._clock()
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
        for turn in range(5):
            batch = self._feed(turn, candidate.augment_on)
            with torch.inference_mode(), autocast(batch.images.device, candidate.precision):
                began_at = self._clock()
                network(batch.images)
                _wait(batch)
                times.append(self._clock() - began_at)
            if self._clock() > self.ends_at and turn > 0:
                break
        return self._batch_size / max(min(times), 1e-9)


def _distance(losses: Sequence[float], reference: Sequence[float]) -> float:
    """How far the mean loss of the first steps is off the reference's, as a share of it.

    The mean, because dropout draws other numbers for smaller parts of a batch: a single step was
    12 % off on 16 photos. A candidate that was given up early is judged by the steps that it made.
    """
    both = min(len(losses), len(reference))
    right = sum(reference[:both])
    return abs(sum(losses[:both]) - right) / max(abs(right), 1e-6)


def _wait(batch: Batch) -> None:
    if batch.images.device.type != "cpu":
        torch.accelerator.synchronize()
