"""What was measured once is not measured again, on the same machine for the same step."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vidi import __version__
from vidi.data.cache import replace_file
from vidi.errors import StorageError
from vidi.facts import Machine, Measurements, ModelFacts
from vidi.plan import Plan
from vidi.probe.speed import Space

FORMAT = 2


def key_of(machine: Machine, model: ModelFacts, plan: Plan, options: Space) -> str:
    """A name for everything that a measurement depends on: machine, versions, model and shapes."""
    told: dict[str, Any] = {
        "format": FORMAT,
        "vidi": __version__,
        "machine": machine.model_dump(mode="json"),
        "model": model.model_dump(mode="json"),
        "image_px": plan.stages[-1].image_px,
        "channels": plan.pixels.channels,
        "num_classes": plan.model.num_classes,
        "views": plan.model.views,
        "batch_size": plan.local_batch_size,
        "optimizer": plan.optimizer.name,
        "loss": plan.loss.name,
        "sam": plan.sam_rho > 0.0,
        "recompute": plan.execution.recompute,
        "frozen": [plan.model.freeze_batch_norm, plan.stages[-1].frozen_stages],
        "options": repr(options),
    }
    text = json.dumps(told, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def recalled(cache_dir: Path, key: str) -> Measurements | None:
    """What was measured before; None where nothing was, or the record cannot be read."""
    try:
        text = _path(cache_dir, key).read_text(encoding="utf-8")
        return Measurements.model_validate_json(text)
    except (OSError, UnicodeDecodeError, ValidationError):
        return None


def keep(cache_dir: Path, key: str, measured: Measurements) -> None:
    """For the next time. A cache that cannot be written costs a measurement, not the run."""
    with contextlib.suppress(OSError, StorageError):
        replace_file(_path(cache_dir, key), measured.model_dump_json(indent=1).encode())


def _path(cache_dir: Path, key: str) -> Path:
    return cache_dir / "probe" / f"{key}.json"
