"""Whether processes hold the model whole or in parts, and what that rules out."""

from __future__ import annotations

from vidi.config import Config
from vidi.errors import ConfigError
from vidi.facts import Sharding
from vidi.plan.decisions import Decisions
from vidi.plan.optimizing import SCHEDULE_FREE
from vidi.plan.values import Plan

# Its update looks at whole matrices; schedule-free optimizers keep the average in their state.
_WHOLE_WEIGHTS = ("muon", "muon_hyperball", *SCHEDULE_FREE)


def decide_sharding(config: Config, world: int, decided: Decisions) -> Sharding:
    """Raises ConfigError where there is nothing to divide by."""
    asked = config.machine.sharding
    if asked == "full" and world == 1:
        raise ConfigError(
            "machine.sharding = 'full' divides a model between processes, and this is one alone",
            fix="start several with --nproc N or torchrun, or leave it out",
        )
    if asked == "full" and config.train.minutes is not None:
        raise ConfigError(
            "train.minutes plans with the measured step, and a divided one is not measured",
            fix="give train.epochs, or leave machine.sharding out",
        )
    why = "one process" if world == 1 else "each process holds the whole model, which is fastest"
    return decided.take("execution.sharding", asked, ("none", why))


def check_sharding(plan: Plan) -> None:
    """Raises ConfigError where a plan divides its model and does something that needs it whole."""
    execution = plan.execution
    if execution.sharding == "none":
        return
    for contradicts, what, fix in (
        (
            plan.optimizer.name in _WHOLE_WEIGHTS,
            f"train.optimizer = '{plan.optimizer.name}' looks at whole weights",
            "use sgd or adamw",
        ),
        (
            execution.precision == "float16",
            "machine.precision = 'float16' scales whole gradients",
            "use bfloat16 or float32",
        ),
        (
            execution.channels_last,
            "machine.channels_last = true lays weights out in another order than they are cut in",
            "leave it out",
        ),
        (execution.compile, "machine.compile = true compiles whole models", "leave it out"),
        (
            execution.fused is True,
            "machine.fused = true: torch's fused kernels take whole weights",
            "leave it out",
        ),
        (
            execution.store == "stream" or execution.build == "alongside",
            "images that cannot be decoded would be missing from the batch of one process only, "
            f"with data.store = '{execution.store}' and data.build = '{execution.build}'",
            "set data.build = 'before', and data.store = 'disk' or 'memory'",
        ),
        (
            plan.head == "only",
            "train.head = 'only' trains nothing that would have to be divided",
            "leave machine.sharding out",
        ),
    ):
        if contradicts:
            raise ConfigError(
                f"machine.sharding = 'full' divides the model between processes; {what}", fix=fix
            )


def with_sharding(plan: Plan, sharding: Sharding) -> Plan:
    """The plan of a run that goes on with its model whole or in parts, as it was not before.

    Raises:
        ConfigError: it does something that needs the model whole.
    """
    changes: dict[str, object] = {"sharding": sharding}
    if sharding == "full":
        changes |= {"channels_last": False, "compile": False, "fused": False, "recompute": True}
        changes["winograd"] = False
    changed = plan.model_copy(update={"execution": plan.execution.model_copy(update=changes)})
    check_sharding(changed)
    return changed
