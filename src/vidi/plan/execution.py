"""How one step is computed on this machine."""

from __future__ import annotations

from typing import Literal

from vidi.config import Config
from vidi.errors import ConfigError
from vidi.facts import Accelerator, Facts, Machine, Precision, StepTiming
from vidi.image import PixelContract
from vidi.plan.decisions import Decisions
from vidi.plan.feeding import decide_build, decide_place
from vidi.plan.network import SMALL_IMAGE_PX
from vidi.plan.values import ExecutionPlan


def decide_execution(
    config: Config, facts: Facts, pixels: PixelContract, decided: Decisions
) -> ExecutionPlan:
    asked, machine = config.machine, facts.machine
    available = {accelerator.kind: accelerator for accelerator in machine.accelerators}
    if asked.device not in (None, "cpu") and asked.device not in available:
        names = ", ".join(["cpu", *available])
        raise ConfigError(
            f"machine.device = '{asked.device}': torch sees no such device here",
            fix=f"this machine has {names}; `vidi doctor` says more",
        )
    device_rule: tuple[Literal["cpu", "cuda", "mps", "xpu"], str] = ("cpu", "no accelerator found")
    if available:
        kind = next(iter(available))
        device_rule = (kind, f"{available[kind].name}")
    device = decided.take("execution.device", asked.device, device_rule)
    if asked.precision == "float16" and device == "cpu":
        raise ConfigError(
            "machine.precision = 'float16' does not work on a processor",
            fix="use bfloat16 or float32, or leave it open: it is measured",
        )
    accelerator = None if device == "cpu" else available[device]
    best = fastest(facts, config)
    precision = decided.take(
        "execution.precision", asked.precision, _precision_rule(best, accelerator)
    )
    channels_last = decided.take("execution.channels_last", asked.channels_last, _layout_rule(best))
    threads = decided.take(
        "execution.threads",
        asked.threads,
        (machine.usable_cores, f"this process may use {machine.usable_cores} cores"),
    )
    loader_threads = decided.take(
        "execution.loader_threads", asked.loader_threads, _loader_threads_rule(device, machine)
    )
    place = decide_place(config, facts, pixels, device, decided)
    return ExecutionPlan(
        device=device,
        precision=precision,
        channels_last=channels_last,
        threads=threads,
        loader_threads=loader_threads,
        store=place,
        build=decide_build(config, facts, place, threads, decided),
    )


def fastest(facts: Facts, config: Config) -> StepTiming | None:
    """The fastest measured candidate that agrees with what was asked for."""
    asked = config.machine
    steps = facts.measured.steps if facts.measured else ()
    fitting = [
        step
        for step in steps
        if not step.rejected
        and asked.precision in (None, step.precision)
        and asked.channels_last in (None, step.channels_last)
    ]
    return max(fitting, key=lambda step: step.images_per_second, default=None)


def _precision_rule(
    best: StepTiming | None, accelerator: Accelerator | None
) -> tuple[Precision, str]:
    if best is not None:
        return best.precision, f"measured fastest: {best.images_per_second:,.0f} images/s"
    if accelerator is not None and accelerator.bfloat16:
        return "bfloat16", "the device multiplies it at twice the rate or more"
    return "float32", "not measured: the run is too short for it to matter"


def _layout_rule(best: StepTiming | None) -> tuple[bool, str]:
    if best is not None:
        return best.channels_last, f"measured fastest: {best.images_per_second:,.0f} images/s"
    return True, "convolutions read it without a copy"


def _loader_threads_rule(device: str, machine: Machine) -> tuple[int, str]:
    if device == "cpu":
        return 1, "decoded pixels are gathered far faster than a processor trains"
    return min(4, machine.usable_cores), "gathering keeps ahead of the accelerator"


def evaluation_batch_size(execution: ExecutionPlan, pixels: PixelContract) -> int:
    if execution.device != "cpu":
        return 256
    return 16 if pixels.image_px > SMALL_IMAGE_PX else 250
