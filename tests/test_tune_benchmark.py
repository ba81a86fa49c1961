"""The benchmark of searches: everybody begins with the same trial, and what comes out is drawn."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vidi.config import Config
from vidi.train.trial import TrialResult

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "tune.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tune_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_optuna_begins_with_the_default_as_the_others_do(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Config] = []
    told: list[dict[str, Any]] = []
    enqueue = benchmark.optuna.Study.enqueue_trial

    def advance(_: Path, __: Any, config: Config, **___: Any) -> TrialResult:
        trained.append(config)
        return TrialResult(9, 9, accuracy=0.5, log_loss=1.0, seconds=0.1, finished=True)

    def noted(study: Any, values: dict[str, Any]) -> None:
        told.append(values)
        enqueue(study, values)

    monkeypatch.setattr(benchmark, "advance", advance)
    monkeypatch.setattr(benchmark.optuna.Study, "enqueue_trial", noted)
    config = Config().with_settings({"model.name": "small_cnn", "train.epochs": 1})
    curve = benchmark._optuna("digits", config, benchmark.SPACE, 0, tmp_path, (1e9, 0.5))
    assert {one.to_toml() for one in trained} == {config.to_toml()}
    assert [accuracy for _, accuracy in curve] == [0.5]
    (first,) = told
    # As the plan of the default has it, or the nearest that the space can give.
    assert first["train.batch_size"] == 64
    assert first["train.learning_rate"] == 0.12
    assert first["train.weight_decay"] == 0.02
    assert first["model.dropout"] == 0.0


def test_the_curve_has_a_line_for_each_strategy_and_search(benchmark: ModuleType) -> None:
    curves = [{"random": [(10.0, 0.5), (20.0, 0.7)], "asha": [(5.0, 0.6)]}] * 2
    drawn = benchmark.picture(curves, "<photos>")
    assert drawn.count("<polyline") == 4
    assert "&lt;photos&gt;" in drawn
    assert all(f">{name}</text>" in drawn for name in curves[0])
    # The last is as good until the end of the longest.
    assert benchmark._stairs([(5.0, 0.6), (8.0, 0.7)], 20.0) == [
        (5.0, 0.6), (8.0, 0.6), (8.0, 0.7), (20.0, 0.7),
    ]  # fmt: skip
