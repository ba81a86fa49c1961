"""The check for a GPU: what of it runs without one works, so that it is not a first try there."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu_check.py"


@pytest.fixture(scope="module")
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its data classes look themselves up there.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_way_of_a_step_has_a_rate(check: ModuleType) -> None:
    small = check.sizes(dry=True)
    for way in (check.ours(small, compiled=False), check.bare(small), check.reference(small)):
        assert 0 < check.rate(small, way) < math.inf


def test_steps_are_taken_and_bad_ones_are_not(check: ModuleType) -> None:
    small = check.sizes(dry=True)
    assert check.no_sync(small, compiled=False) == {"steps without a wait": 3}
    assert check.bad_step(small) == {"weights that moved": 0}
    assert check.out_of_memory(small) == {"not on a processor": 0}


@pytest.mark.slow
def test_equal_runs_are_equal_also_when_one_is_stopped(check: ModuleType) -> None:
    try:
        assert check.exact(check.sizes(dry=True)) == {"bytes that differ": 0}
    finally:
        torch.use_deterministic_algorithms(False)
