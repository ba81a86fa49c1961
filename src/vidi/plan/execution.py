"""How one step is computed on this machine."""

from __future__ import annotations

import math
from typing import Literal

from vidi.config import Config, MachineConfig
from vidi.errors import ConfigError
from vidi.facts import Accelerator, Facts, Machine, Precision, Sharding, StepTiming, Where
from vidi.image import PixelContract
from vidi.plan.decisions import Decisions
from vidi.plan.feeding import Place, decide_build, decide_place
from vidi.plan.network import SMALL_IMAGE_PX
from vidi.plan.sharding import decide_sharding
from vidi.plan.values import ExecutionPlan

# Batch norm over fewer images than this in each process is noise: the processes share statistics.
SYNC_BATCH_NORM_BELOW = 16
# How long a process waits for the others. torch's half an hour helps nobody.
TIMEOUT_S = 120.0


def decide_execution(
    config: Config,
    facts: Facts,
    pixels: PixelContract,
    decided: Decisions,
    *,
    batch_size: int,
    frozen_norms: bool,
) -> ExecutionPlan:
    """Device, precision, layout, compilation, threads, processes.

    Raises:
        ConfigError: what was asked for does not work on this machine.
    """
    asked, machine = config.machine, facts.machine
    device = decide_device(config, facts, decided)
    _check(config, machine, device)
    _check_graphs(config, machine, device)
    _check_winograd(config, machine, device)
    accelerators = {accelerator.kind: accelerator for accelerator in machine.accelerators}
    accelerator = None if device == "cpu" else accelerators[device]
    best = fastest(facts, config)
    ways = len(facts.measured.steps) if facts.measured else 0
    deterministic = decided.take(
        "execution.deterministic", asked.deterministic, _deterministic_rule(device)
    )
    cores = max(1, machine.usable_cores // machine.local_processes)
    threads_rule = cores, f"this process may use {cores} of {machine.usable_cores} cores"
    if best is not None and best.threads != cores:
        threads_rule = best.threads, _measured(best, ways)
    threads = decided.take("execution.threads", asked.threads, threads_rule)
    place = decide_place(config, facts, pixels, device, decided)
    if asked.augment_on == "host" and place == "device":
        raise ConfigError(
            "machine.augment_on = 'host', and the images wait in the memory of the accelerator",
            fix="set data.store = 'memory' or 'disk', or leave machine.augment_on out",
        )
    world = machine.processes
    sharding = decide_sharding(config, world, decided)
    each = batch_size // world
    return ExecutionPlan(
        device=device,
        precision=decided.take(
            "execution.precision", asked.precision, _precision_rule(best, ways, accelerator, asked)
        ),
        channels_last=decided.take(
            "execution.channels_last", asked.channels_last, _layout_rule(best, ways, sharding)
        ),
        compile=decided.take("execution.compile", asked.compile, _compile_rule(best, ways, asked)),
        cuda_graphs=decided.take(
            "execution.cuda_graphs", asked.cuda_graphs, _cuda_graphs_rule(best, ways, device)
        ),
        fused=decided.take("execution.fused", asked.fused, _fused_rule(best, ways, sharding)),
        augment_on=decided.take(
            "execution.augment_on", asked.augment_on, _augment_on_rule(best, ways, device, place)
        ),
        winograd=decided.take(
            "execution.winograd", asked.winograd, _winograd_rule(best, ways, device)
        ),
        recompute=decided.take("execution.recompute", asked.recompute, _recompute_rule(sharding)),
        keep_memory=decided.take(
            "execution.keep_memory", asked.keep_memory, _keep_memory_rule(device)
        ),
        deterministic=deterministic,
        threads=threads,
        loader_threads=decided.take(
            "execution.loader_threads", asked.loader_threads, _loader_threads_rule(device, machine)
        ),
        store=place,
        build=decide_build(config, facts, place, threads, decided, sharding=sharding),
        world_size=decided.take(
            "execution.world_size",
            None,
            (world, "this process alone" if world == 1 else "as started; --nproc or torchrun"),
        ),
        sharding=sharding,
        sync_batch_norm=decided.take(
            "execution.sync_batch_norm",
            None,
            _sync_batch_norm_rule(world, each, device, frozen_norms=frozen_norms),
        ),
        timeout_s=asked.timeout_s or TIMEOUT_S,
    )


def decide_device(
    config: Config, facts: Facts, decided: Decisions
) -> Literal["cpu", "cuda", "mps", "xpu"]:
    """What computes: what was asked for, else an accelerator, else the processor.

    Raises:
        ConfigError: torch sees no such device.
    """
    asked = config.machine.device
    kinds = {accelerator.kind: accelerator for accelerator in facts.machine.accelerators}
    if asked not in (None, "cpu") and asked not in kinds:
        names = ", ".join(["cpu", *kinds])
        raise ConfigError(
            f"machine.device = '{asked}': torch sees no such device here",
            fix=f"this machine has {names}; `vidi doctor` says more",
        )
    rule: tuple[Literal["cpu", "cuda", "mps", "xpu"], str] = ("cpu", "no accelerator found")
    if kinds:
        kind = next(iter(kinds))
        rule = (kind, f"{kinds[kind].name}")
    return decided.take("execution.device", asked, rule)


def _check(config: Config, machine: Machine, device: str) -> None:
    asked = config.machine
    if asked.precision == "float16" and device == "cpu":
        raise ConfigError(
            "machine.precision = 'float16' does not work on a processor",
            fix="use bfloat16 or float32, or leave it open: it is measured",
        )
    if asked.precision == "tf32" and device != "cuda":
        raise ConfigError(
            f"machine.precision = 'tf32' is a format of NVIDIA's GPUs, and the device is {device}",
            fix="use float32 or bfloat16, or leave it open: it is measured",
        )
    if asked.compile and device == "cpu" and not machine.compiler:
        raise ConfigError(
            "machine.compile = true needs a C++ compiler on a processor, and there is none",
            fix="install g++ or clang++, or leave it out",
        )


def _check_graphs(config: Config, machine: Machine, device: str) -> None:
    asked = config.machine
    if not asked.cuda_graphs:
        return
    if device != "cuda":
        raise ConfigError(
            f"machine.cuda_graphs = true is for NVIDIA's GPUs, and the device is {device}",
            fix="leave it out: it is measured where it can be",
        )
    if asked.compile is False:
        raise ConfigError(
            "machine.cuda_graphs = true records compiled code, and machine.compile = false",
            fix="leave machine.compile out, or machine.cuda_graphs",
        )
    if machine.processes > 1:
        raise ConfigError(
            "machine.cuda_graphs = true cannot record what several processes say to each other",
            fix="train in one process, or leave it out",
        )


def _check_winograd(config: Config, machine: Machine, device: str) -> None:
    asked = config.machine
    if not asked.winograd:
        return
    if device != "cpu" or not machine.winograd:
        raise ConfigError(
            "machine.winograd = true: there is no such code for this machine",
            fix="leave it out; it is there where vidi was installed from its source on Linux, "
            "with a C compiler, for a processor with AVX-512 BF16",
        )
    for contradicts, setting in (
        (asked.precision not in (None, "bfloat16"), f"precision = '{asked.precision}'"),
        (asked.compile, "compile = true"),
        (asked.recompute, "recompute = true"),
        (asked.sharding == "full", "sharding = 'full'"),
    ):
        if contradicts:
            raise ConfigError(
                f"machine.winograd = true does not go with machine.{setting}",
                fix="leave one of them out",
            )


def fastest(facts: Facts, config: Config) -> StepTiming | None:
    """The measured candidate that ends a run soonest and agrees with what was asked for.

    Compiling is paid once, so a long run takes it and a short one does not.
    """
    asked = config.machine
    steps = facts.measured.steps if facts.measured else ()
    fitting = [
        step
        for step in steps
        if not step.rejected
        and asked.precision in (None, step.precision)
        and asked.channels_last in (None, step.channels_last)
        and asked.compile in (None, step.compile)
        and asked.cuda_graphs in (None, step.cuda_graphs)
        and asked.fused in (None, step.fused)
        and asked.augment_on in (None, step.augment_on)
        and asked.winograd in (None, step.winograd)
        and step.keep_memory is (asked.keep_memory is not False)
        and asked.threads in (None, step.threads)
    ]
    images = planned_images(config, facts)

    def seconds(step: StepTiming) -> float:
        return images / step.images_per_second + step.compile_s

    return min(fitting, key=seconds, default=None)


def planned_images(config: Config, facts: Facts) -> float:
    """About as many images as a run of this request looks at."""
    num_train = facts.dataset.num_images("train")
    if config.train.epochs is not None:
        return config.train.epochs * num_train
    measured = facts.measured.steps if facts.measured else ()
    if config.train.minutes is not None and measured:
        rate = max(step.images_per_second for step in measured)
        return config.train.minutes * 60 * rate
    return 20.0 * num_train


def accumulate_rule(best: StepTiming | None, local_batch_size: int) -> tuple[int, str]:
    """Into how many parts a batch is cut: as was measured fastest, else none."""
    if best is None or best.micro_batch_size is None:
        return 1, "the batch fits"
    parts = math.ceil(local_batch_size / best.micro_batch_size)
    if parts == 1:
        return 1, "the batch fits, and parts of it were not faster"
    return parts, f"parts of {best.micro_batch_size} images were measured faster"


def evaluation_batch_size(execution: ExecutionPlan, pixels: PixelContract) -> int:
    if execution.device != "cpu":
        return 256
    return 16 if pixels.image_px > SMALL_IMAGE_PX else 250


def _measured(best: StepTiming, ways: int) -> str:
    """ways: how many were measured; one alone is no comparison."""
    rate = f"{best.images_per_second:,.0f} images/s"
    if ways == 1:
        return f"measured alone, {rate}: there was no time to compare"
    return f"measured fastest of {ways} ways: {rate}"


def _precision_rule(
    best: StepTiming | None, ways: int, accelerator: Accelerator | None, asked: MachineConfig
) -> tuple[Precision, str]:
    if best is not None:
        return best.precision, _measured(best, ways)
    if asked.winograd:
        return "bfloat16", "what the convolutions asked for compute in"
    if accelerator is not None and accelerator.bfloat16:
        return "bfloat16", "the device multiplies it at twice the rate or more"
    return "float32", "not measured: the run is too short for it to matter"


def _layout_rule(best: StepTiming | None, ways: int, sharding: Sharding) -> tuple[bool, str]:
    if sharding == "full":
        return False, "weights are divided in the order of their indices"
    if best is not None:
        return best.channels_last, _measured(best, ways)
    return True, "convolutions read it without a copy"


def _compile_rule(best: StepTiming | None, ways: int, asked: MachineConfig) -> tuple[bool, str]:
    if asked.cuda_graphs:
        return True, "CUDA graphs record compiled code"
    if best is None:
        return False, "not measured: a short run does not earn the time of compiling"
    if best.compile:
        return True, f"{_measured(best, ways)}, {best.compile_s:.0f} s of compiling counted"
    return False, "not worth its compiling in this run"


def _cuda_graphs_rule(best: StepTiming | None, ways: int, device: str) -> tuple[bool, str]:
    if device != "cuda":
        return False, "NVIDIA's GPUs alone have them"
    if best is not None and best.cuda_graphs:
        return True, _measured(best, ways)
    return False, "not measured" if best is None else "not worth their recording in this run"


def _recompute_rule(sharding: Sharding) -> tuple[bool, str]:
    if sharding == "full":
        return True, "memory is what is missing where a model is divided"
    return False, "memory is not what is missing"


def _fused_rule(best: StepTiming | None, ways: int, sharding: Sharding) -> tuple[bool | None, str]:
    if sharding == "full":
        return False, "torch's fused kernels take whole weights"
    if best is not None and best.fused is not None:
        return best.fused, _measured(best, ways)
    return None, "fused where the weights lie in order; see vidi.optim"


def _augment_on_rule(
    best: StepTiming | None, ways: int, device: str, place: Place
) -> tuple[Where, str]:
    if device == "cpu":
        return "device", "the processor is the device"
    if place == "device":
        return "device", "the images are there already"
    if best is not None:
        return best.augment_on, _measured(best, ways)
    return "device", "it varies a batch in less time than the processor takes for an image"


def _winograd_rule(best: StepTiming | None, ways: int, device: str) -> tuple[bool, str]:
    if device != "cpu":
        return False, "for processors only"
    if best is None:
        return False, "not measured"
    if best.winograd:
        return True, _measured(best, ways)
    return False, "no such convolutions or no such code here, or not faster"


def _keep_memory_rule(device: str) -> tuple[bool, str]:
    if device != "cpu":
        return True, "the host's memory is used again for every batch"
    return True, "page faults take up to half of a step without it (docs/measurements.md)"


def _deterministic_rule(device: str) -> tuple[bool, str]:
    if device == "cpu":
        return True, "a processor's operations are, at a fixed number of threads"
    return False, "exact repetition costs speed on a GPU; ask for it when you need it"


def _loader_threads_rule(device: str, machine: Machine) -> tuple[int, str]:
    if device == "cpu":
        return 1, "decoded pixels are gathered far faster than a processor trains"
    cores = max(1, machine.usable_cores // machine.local_processes)
    return min(4, cores), "gathering keeps ahead of the accelerator"


def _sync_batch_norm_rule(
    world: int, each: int, device: str, *, frozen_norms: bool
) -> tuple[bool, str]:
    if world == 1:
        return False, "one process"
    if frozen_norms:
        return False, "the statistics of the pretrained weights are kept"
    if device == "cpu":
        return False, "torch has it for accelerators only; each process normalises by its part"
    if each < SYNC_BATCH_NORM_BELOW:
        return True, f"{each} images in each process are too few for statistics"
    return False, f"{each} images in each process are enough for statistics"
