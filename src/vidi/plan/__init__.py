"""decided: every number of a run, nothing left open, each with its reason.

`make(config, facts)` is pure: no torch, no files, no clock. Every rule of thumb of vidi stands in
this package, one file for each kind of decision, with its source or with the measurement in
docs/measurements.md that chose it.

It is called more than once while a run is prepared, each time with more facts (what the decoded
pixels say, what the probe measured). What an earlier call decided for the pixels stays, because
those rules read only the facts that were there from the start.
"""

from vidi.plan.execution import TIMEOUT_S
from vidi.plan.feeding import Build, Place, Sampling
from vidi.plan.length import epochs_of
from vidi.plan.making import annealed, make, retimed
from vidi.plan.network import SMALL_IMAGE_PX, Choice, choose_model, is_enlarged
from vidi.plan.sharding import with_sharding
from vidi.plan.values import (
    ExecutionPlan,
    LossPlan,
    ModelPlan,
    OptimizerPlan,
    Plan,
    SchedulePlan,
    Stage,
)

__all__ = [
    "SMALL_IMAGE_PX",
    "TIMEOUT_S",
    "Build",
    "Choice",
    "ExecutionPlan",
    "LossPlan",
    "ModelPlan",
    "OptimizerPlan",
    "Place",
    "Plan",
    "Sampling",
    "SchedulePlan",
    "Stage",
    "annealed",
    "choose_model",
    "epochs_of",
    "is_enlarged",
    "make",
    "retimed",
    "with_sharding",
]
