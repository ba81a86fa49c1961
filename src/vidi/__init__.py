"""vidi: a folder of images in, the best classifier that a time budget and a machine can buy out.

The commands are functions here, by the same words. Importing this imports no torch; a name that
needs it imports it when it is first used.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vidi.batch import Batch
    from vidi.bundle import Bundle
    from vidi.commands import (
        audit,
        cache,
        contact_sheet,
        doctor,
        evaluate,
        find_learning_rate,
        plan,
        report,
        tensorboard,
    )
    from vidi.comparing import compare
    from vidi.config import Config
    from vidi.errors import VidiError
    from vidi.export import export
    from vidi.metrics import Evaluation, Predictions
    from vidi.predictor import Prediction, Predictor, load
    from vidi.run import Run
    from vidi.serve import serve
    from vidi.study import Study
    from vidi.suspects import suspects
    from vidi.train import train
    from vidi.tune.ablate import ablate
    from vidi.tune.fitting import fit
    from vidi.tune.search import tune

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "Bundle",
    "Config",
    "Evaluation",
    "Prediction",
    "Predictions",
    "Predictor",
    "Run",
    "Study",
    "VidiError",
    "__version__",
    "ablate",
    "audit",
    "cache",
    "compare",
    "contact_sheet",
    "doctor",
    "evaluate",
    "export",
    "find_learning_rate",
    "fit",
    "load",
    "models",
    "plan",
    "report",
    "serve",
    "suspects",
    "tensorboard",
    "train",
    "tune",
]

# Public name -> the module that owns it.
_OWNERS = {
    "Batch": "vidi.batch",
    "Bundle": "vidi.bundle",
    "Config": "vidi.config",
    "Evaluation": "vidi.metrics",
    "Prediction": "vidi.predictor",
    "Predictions": "vidi.metrics",
    "Predictor": "vidi.predictor",
    "Run": "vidi.run",
    "Study": "vidi.study",
    "VidiError": "vidi.errors",
    "ablate": "vidi.tune.ablate",
    "audit": "vidi.commands",
    "cache": "vidi.commands",
    "compare": "vidi.comparing",
    "contact_sheet": "vidi.commands",
    "doctor": "vidi.commands",
    "evaluate": "vidi.commands",
    "find_learning_rate": "vidi.commands",
    "export": "vidi.export",
    "fit": "vidi.tune.fitting",
    "load": "vidi.predictor",
    "models": "vidi.commands",
    "plan": "vidi.commands",
    "report": "vidi.commands",
    "tensorboard": "vidi.commands",
    "serve": "vidi.serve",
    "suspects": "vidi.suspects",
    "train": "vidi.train",
    "tune": "vidi.tune.search",
}


class _Package(types.ModuleType):
    """The commands keep their names: importing the module `vidi.train` must not replace the
    function `vidi.train`, which is what Python does with submodules otherwise."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _OWNERS and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _OWNERS:
        raise AttributeError(f"module 'vidi' has no attribute '{name}'")
    value = getattr(importlib.import_module(_OWNERS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
