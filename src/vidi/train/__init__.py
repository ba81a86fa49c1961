"""Training: `train` does all of it; the parts are public for those who write their own loop."""

from vidi.restore import build_model
from vidi.train.loop import Job, Progress, Validation, loop, save
from vidi.train.prepare import (
    Extensions,
    Prepared,
    build_job,
    build_state,
    prepare,
)
from vidi.train.state import Best, State
from vidi.train.training import train

__all__ = [
    "Best",
    "Extensions",
    "Job",
    "Prepared",
    "Progress",
    "State",
    "Validation",
    "build_job",
    "build_model",
    "build_state",
    "loop",
    "prepare",
    "save",
    "train",
]
